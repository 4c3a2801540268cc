"""What is trained: LoRA on both towers, whole matrices, or nothing; and how it becomes one plain model again.

LoRA is PEFT's, put into the model in place: its class, its forward and its other names stay. A checkpoint in training
holds every tensor, those under LoRA as ``X.base_layer.weight``, ``X.lora_A.default.weight`` and
``X.lora_B.default.weight``, and ``lora_alpha`` in its config.json: `self1e.load` reads it as it is.

The published LoRA sits on the fused ``qkv`` of the vision encoder, so q, k and v share one A. Ours sits on three
projections: three adapters, another parametrisation of the same rank (DESIGN section 2). Merged weights do not show it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from self1e.errors import CheckpointError, SettingError
from self1e.model import Self1EForConditionalGeneration
from self1e.model.checkpoints.adapters import find_attached, merge
from self1e.training.recipes.settings import AdapterSettings

LANGUAGE = "model.language_model."
VISION = "model.vision_tower."
PROJECTOR = "model.multi_modal_projector."
HEAD = "mask_head."
EMBEDDINGS = "model.language_model.embed_tokens."
OUTPUT = "lm_head."

_LANGUAGE_LAYERS = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_VISION_LAYERS = r"model\.vision_tower\.encoder\.layer\.\d+\.(attention\.([qkv]_proj|projection_layer)|mlp\.fc[12])"
_TOKEN_ADAPTER = ".token_adapter"
_TOKEN_ROWS = f"{_TOKEN_ADAPTER}.trainable_tokens_delta.default"


def attach_adapters(
    model: Self1EForConditionalGeneration, settings: AdapterSettings, *, frozen_dtype: torch.dtype | None = None
) -> Self1EForConditionalGeneration:
    """Freeze a model but for what the settings train, in place.

    Args:
        model: Without adapters.
        settings: What is trained.
        frozen_dtype: Of weights that do not change; None leaves theirs. Trained ones become float32, so that small
            steps are not lost.

    Returns:
        The same model.

    Raises:
        SettingError: The settings do not fit each other or the model.
    """
    _check(model, settings)
    model.requires_grad_(False)
    towers = ((settings.language, _LANGUAGE_LAYERS), (settings.vision, _VISION_LAYERS))
    adapted = [pattern for how, pattern in towers if how == "lora"]
    if adapted:
        inject_adapter_in_model(_lora(model, settings, adapted), model)
        # config.json then tells whoever reads the checkpoint what no tensor holds.
        model.config.lora_alpha = settings.lora_alpha
    for name, parameter in model.named_parameters():
        if _is_whole(name, settings):
            parameter.requires_grad_(True)
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.requires_grad:
            parameter.data = parameter.data.float() if frozen_dtype is not None else parameter.data
        elif frozen_dtype is not None:
            parameter.data = parameter.data.to(frozen_dtype)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SettingError("adapters: nothing is trained; set at least one part to lora, full or seg.")
    return model


def _check(model: Self1EForConditionalGeneration, settings: AdapterSettings) -> None:
    matrices = (settings.input_embeddings, settings.output_embeddings)
    if model.config.tie_word_embeddings and len(set(matrices)) > 1:
        raise SettingError(
            f"adapters.input_embeddings={matrices[0]!r} and adapters.output_embeddings={matrices[1]!r}, but this model "
            "has one matrix for both; set them to the same."
        )
    if "seg" in matrices and "lora" not in (settings.language, settings.vision):
        raise SettingError(
            "adapters: the row of [SEG] alone is trained beside LoRA only; set language or vision to lora, or the "
            "embeddings to full."
        )
    if "seg" in matrices and model.config.seg_token_id is None:
        raise SettingError("adapters: this model has no [SEG] yet; it needs a tokenizer, see `self1e convert`.")


def _lora(model: Self1EForConditionalGeneration, settings: AdapterSettings, patterns: list[str]) -> LoraConfig:
    rows: dict[str, list[int]] = {}
    seg = model.config.seg_token_id
    if seg is not None and settings.input_embeddings == "seg":
        rows["embed_tokens"] = [seg]
    if seg is not None and settings.output_embeddings == "seg" and not model.config.tie_word_embeddings:
        rows["lm_head"] = [seg]
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.lora_alpha,  # pyright: ignore[reportArgumentType] (alpha / r is a division)
        lora_dropout=settings.dropout,
        target_modules="|".join(f"({pattern})" for pattern in patterns),
        trainable_token_indices=rows or None,  # pyright: ignore[reportArgumentType]
        bias="none",
    )


def _is_whole(name: str, settings: AdapterSettings) -> bool:
    """Whether a parameter is trained as itself."""
    if name.startswith(EMBEDDINGS):
        return settings.input_embeddings == "full"
    if name.startswith(OUTPUT):
        return settings.output_embeddings == "full"
    if name.startswith(LANGUAGE):
        return settings.language == "full"
    if name.startswith(VISION):
        return settings.vision == "full"
    if name.startswith(PROJECTOR):
        return settings.projector == "full"
    return name.startswith(HEAD) and settings.mask_head == "full"


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Count what is trained and what is frozen; tied parameters once."""
    counts = {"trained": 0, "frozen": 0}
    for parameter in model.parameters():
        counts["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    return counts


# --------------------------------------------------------------------------- back to one plain model


def merged_tensors(
    tensors: Mapping[str, Tensor], *, scale: float, seg_token_id: int | None = None
) -> dict[str, Tensor]:
    """Put adapters into the weights they belong to.

    Args:
        tensors: A complete state dict, with adapters or without.
        scale: ``alpha / r``.
        seg_token_id: The row that was trained alone, if one was.

    Returns:
        A state dict under plain names. Products are taken in float32 or wider, and rounded once to the type of the
        weight.

    Raises:
        CheckpointError: Half of an adapter is missing, or names collide.
    """
    rows = {name.removesuffix(_TOKEN_ROWS): tensor for name, tensor in tensors.items() if name.endswith(_TOKEN_ROWS)}
    others = {
        name.replace(_TOKEN_ADAPTER, ""): tensor for name, tensor in tensors.items() if not name.endswith(_TOKEN_ROWS)
    }
    attached = find_attached(others)
    if attached.missing or attached.unexpected:
        raise CheckpointError(
            f"The adapters are incomplete: missing {', '.join(attached.missing) or 'nothing'}; unexpected "
            f"{', '.join(attached.unexpected) or 'nothing'}. Take another checkpoint."
        )
    plain = {name: others[stored] for name, stored in attached.plain.items()}
    for module, pair in attached.pairs.items():
        weight = plain[f"{module}.weight"]
        plain[f"{module}.weight"] = merge(weight, others[pair.a], others[pair.b], scale).to(weight.dtype)
    for module, row in rows.items():
        if seg_token_id is None:
            raise CheckpointError("The row of [SEG] was trained alone, but the configuration has no seg_token_id.")
        weight = plain[f"{module}.weight"].clone()
        weight[seg_token_id] = row[0].to(weight.dtype)
        plain[f"{module}.weight"] = weight
    return plain


def lora_scale(model: nn.Module) -> float:
    """``alpha / r`` of a model's LoRA; 1 without any."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            return float(next(iter(module.scaling.values())))
    return 1.0


@torch.no_grad()
def merge_adapters(
    model: Self1EForConditionalGeneration,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Self1EForConditionalGeneration:
    """Make a plain model of one with adapters, which stays as it is and can go on learning.

    Tensors that no adapter changes are shared with ``model`` where their type stays.

    Args:
        model: With adapters, or without.
        state_dict: Its complete tensors, where they are sharded over processes and were gathered.
        dtype: Of all weights; None keeps theirs.
    """
    source = model.state_dict() if state_dict is None else state_dict
    tensors = merged_tensors(source, scale=lora_scale(model), seg_token_id=model.config.seg_token_id)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    return plain_model(model.config, tensors)


@torch.no_grad()
def plain_model(config: Any, tensors: Mapping[str, Tensor]) -> Self1EForConditionalGeneration:
    """Make a model of merged tensors without copying them."""
    config = copy.deepcopy(config)
    if hasattr(config, "lora_alpha"):
        del config.lora_alpha
    device = next(iter(tensors.values())).device
    with torch.device("meta"):
        plain = Self1EForConditionalGeneration(config)
    missing, unexpected = plain.load_state_dict(dict(tensors), strict=False, assign=True)
    plain.tie_weights()
    missing = [name for name in missing if not (config.tie_word_embeddings and name.startswith(OUTPUT))]
    if missing or unexpected:
        raise CheckpointError(
            f"The tensors do not make a model: missing {missing or 'none'}, unexpected {unexpected or 'none'}."
        )
    _fill_buffers(plain, device)
    plain.config.dtype = plain.dtype
    return plain.eval()


def _fill_buffers(model: nn.Module, device: torch.device) -> None:
    """Compute buffers that no checkpoint holds (rotary tables) where they were only planned."""
    for module in model.modules():
        planned = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if not planned:
            continue
        fresh = type(module)(module.config)  # type: ignore[call-arg, arg-type]
        for name in planned:
            module.register_buffer(name, getattr(fresh, name).to(device), persistent=False)


def export_model(
    model: Self1EForConditionalGeneration,
    processor: Any,
    folder: Path,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = torch.bfloat16,
) -> Path:
    """Write a complete model folder, which `self1e.load` reads; adapters are merged. ``model`` stays as it is.

    Args:
        model: With adapters, or without.
        processor: Of the model.
        folder: Files are written into it.
        state_dict: See `merge_adapters`.
        dtype: Of the weights; None keeps theirs.
    """
    plain = merge_adapters(model, state_dict=state_dict, dtype=dtype)
    plain.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
