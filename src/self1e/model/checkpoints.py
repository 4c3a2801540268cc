"""Checkpoints of any origin: read strictly, written in our own names.

Three layouts are read through one call, `Self1EForConditionalGeneration.from_pretrained`:

* our own, which is `transformers`' InternVL plus ``mask_head``;
* the published one (InternVLChat plus three ``combine_decode_proj*`` MLPs, METHOD 1.1), with Qwen2,
  Qwen3, Llama or InternLM2 as its language model;
* both ``-hf`` layouts of InternVL.

A configuration becomes one of ours in `normalise_config`; names and shapes are a table of disjoint
rules, one per leaf, so that `reference_state_dict` can walk it backwards, bit for bit.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    ConversionOps,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    revert_weight_conversion,
)

from self1e.errors import CheckpointError

logger = logging.getLogger(__name__)

# --------------------------------------------------------------------------- configuration

_FAMILIES = {
    "InternLM2ForCausalLM": "internlm2",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "LlamaForCausalLM": "llama",
}
_IMAGE_TO_SEG = 7
"""``<IMG_CONTEXT>`` is followed by ``</img>``'s six siblings (quad, ref, box) in every InternVL 2 to 3.5
vocabulary; the next free id is ``[SEG]``."""
_ADDED_TOKENS = 2
"""``[SEG]`` and the unused ``[SEGT]`` close a published SELF1E vocabulary (METHOD 1.3)."""
_PADDED_QWEN3_VOCABULARY, _QWEN3_IMAGE_TOKEN = 151936, 151671


def normalise_config(found: dict[str, Any]) -> dict[str, Any]:
    """Turn a configuration of any origin into one of ours.

    Published configurations do not say which ids ``<IMG_CONTEXT>`` and ``[SEG]`` have. They follow from
    the vocabulary's size: ``[SEG]`` is the last but one row of a SELF1E vocabulary, ``<IMG_CONTEXT>``
    comes seven ids before the place of ``[SEG]``. A caller who has the tokenizer passes
    ``image_token_id`` and ``seg_token_id`` to ``from_pretrained`` instead; they win.

    Args:
        found: A ``config.json`` as a dict: ours, InternVLChat / InternVL3SELF1E / InternVL2SELF1E, or ``-hf``.

    Raises:
        CheckpointError: The configuration asks for something that would change results and that we lack.
    """
    if "llm_config" in found:
        return _from_chat(found)
    if found.get("model_type") in ("self1e", "internvl"):
        return _from_hf(found)
    raise CheckpointError(
        f"config.json has model_type={found.get('model_type')!r} and no llm_config; expected a SELF1E or InternVL "
        "configuration (model_type self1e, internvl_chat or internvl). Point to the folder of such a model."
    )


def _from_hf(found: dict[str, Any]) -> dict[str, Any]:
    """``-hf`` InternVL, and our own: transformers' names already."""
    _expect(found, "vision_feature_layer", -1)
    _expect(found, "vision_feature_select_strategy", "default")
    config = {**found, "model_type": "self1e"}
    config.pop("auto_map", None)
    text = config.get("text_config")
    if isinstance(text, Mapping):
        config["text_config"] = {**text, **_rope(text)} if _has_rope(text) else dict(text)
        for old in ("rope_theta", "rope_scaling") if _has_rope(text) else ():
            config["text_config"].pop(old, None)
    return config


def _from_chat(found: dict[str, Any]) -> dict[str, Any]:
    """Original InternVLChat repositories and the published SELF1E checkpoints."""
    _expect(found, "select_layer", -1)
    _expect(found, "ps_version", "v2")
    vision, text = _vision_config(found), _text_config(found["llm_config"])
    architecture = (found.get("architectures") or [""])[0]
    has_mask_head = "SELF1E" in architecture
    is_internlm2 = _family(found["llm_config"]) == "internlm2"
    ratio = found.get("downsample_ratio", 0.5)
    config = {
        "model_type": "self1e",
        "architectures": ["Self1EForConditionalGeneration"],
        "vision_config": vision,
        "text_config": text,
        "downsample_ratio": ratio,
        "image_seq_length": round(vision["image_size"] // vision["patch_size"] * ratio) ** 2,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "template": found.get("template"),
        # The InternVL2 class, the only one for InternLM2, sends the auxiliary mask through the final MLP.
        "auxiliary_low_resolution": "through_final_mlp"
        if is_internlm2 or architecture == "InternVL2SELF1E"
        else "plain",
        **_token_ids(text["vocab_size"], text["model_type"], has_mask_head=has_mask_head),
        **{name: found[name] for name in ("image_token_id", "seg_token_id") if name in found},
    }
    dtype = found.get("dtype") or found.get("torch_dtype")
    return config if dtype is None else {**config, "dtype": dtype}


def _token_ids(vocabulary: int, model_type: str, *, has_mask_head: bool) -> dict[str, int]:
    if has_mask_head:
        seg = vocabulary - _ADDED_TOKENS
        return {"seg_token_id": seg, "image_token_id": seg - _IMAGE_TO_SEG}
    if model_type == "qwen3" and vocabulary == _PADDED_QWEN3_VOCABULARY:
        return {"image_token_id": _QWEN3_IMAGE_TOKEN}
    return {"image_token_id": vocabulary - _IMAGE_TO_SEG}


def _vision_config(found: Mapping[str, Any]) -> dict[str, Any]:
    vision = found.get("vision_config") or {}
    image_size = vision.get("image_size", 448)
    forced = found.get("force_image_size")
    if forced not in (None, image_size):
        raise CheckpointError(
            f"force_image_size={forced} differs from vision_config.image_size={image_size}; the position table would "
            "have to be resized. Resize it, and write one size into both places of config.json."
        )
    if vision.get("norm_type", "rms_norm") not in ("layer_norm", "rms_norm"):
        raise CheckpointError(f"vision_config.norm_type={vision['norm_type']!r}; expected layer_norm or rms_norm.")
    if vision.get("drop_path_rate"):
        logger.info(
            "vision_config.drop_path_rate=%s is not used: it matters in training only.", vision["drop_path_rate"]
        )
    names = {
        "hidden_size": ("hidden_size", 3200),
        "num_hidden_layers": ("num_hidden_layers", 48),
        "num_attention_heads": ("num_attention_heads", 25),
        "intermediate_size": ("intermediate_size", 12800),
        "num_channels": ("num_channels", 3),
        "patch_size": ("patch_size", 14),
        "attention_bias": ("qkv_bias", False),
        "use_qk_norm": ("qk_normalization", True),
        "norm_type": ("norm_type", "rms_norm"),
        "layer_norm_eps": ("layer_norm_eps", 1e-6),
        "hidden_act": ("hidden_act", "gelu"),
        "attention_dropout": ("attention_dropout", 0.0),
        "projection_dropout": ("dropout", 0.0),
        "hidden_dropout_prob": ("dropout", 0.0),
        "initializer_range": ("initializer_range", 0.02),
        "layer_scale_init_value": ("initializer_factor", 0.1),
    }
    config = {ours: vision.get(theirs, default) for ours, (theirs, default) in names.items()}
    return {"model_type": "internvl_vision", "image_size": image_size, "use_mean_pooling": True, **config}


def _family(llm: Mapping[str, Any]) -> str:
    """Which language model: by ``architectures[0]``, as the published code does, else by ``model_type``."""
    architecture = (llm.get("architectures") or [""])[0]
    family = _FAMILIES.get(architecture) or str(llm.get("model_type"))
    if family not in _FAMILIES.values():
        raise CheckpointError(
            f"llm_config has architectures={llm.get('architectures')} and model_type={llm.get('model_type')!r}; "
            f"expected one of {', '.join(_FAMILIES)}."
        )
    return family


def _text_config(llm: Mapping[str, Any]) -> dict[str, Any]:
    family = _family(llm)
    if llm.get("use_sliding_window"):
        raise CheckpointError(
            "llm_config.use_sliding_window is true; expected false: image tokens see the whole image."
        )
    if family == "internlm2" and llm.get("bias"):
        raise CheckpointError(
            "llm_config.bias is true; expected an InternLM2 without biases, which is exactly a Llama."
        )
    model_type = "llama" if family == "internlm2" else family
    known = {field.name for field in fields(CONFIG_MAPPING[model_type])}  # type: ignore[arg-type]
    generic = {field.name for field in fields(PreTrainedConfig)} - {"pad_token_id", "bos_token_id", "eos_token_id"}
    config = {name: value for name, value in llm.items() if name in known - generic and value is not None}
    config |= {"model_type": model_type, **_rope(llm)}
    config["tie_word_embeddings"] = bool(llm.get("tie_word_embeddings", False))
    missing = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"} - config.keys()
    if missing:
        raise CheckpointError(
            f"llm_config has no {', '.join(sorted(missing))}; take the config.json of the checkpoint."
        )
    return config


def _has_rope(text: Mapping[str, Any]) -> bool:
    return any(text.get(name) for name in ("rope_theta", "rope_scaling", "rope_parameters"))


def _rope(text: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings in transformers' form.

    Dynamic NTK equals the default below ``max_position_embeddings`` (32768 in every InternVL) but costs a
    host sync per step and breaks full-graph compilation, so it becomes the default.
    """
    rope = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    kind = rope.pop("type", None)
    rope.setdefault("rope_type", kind or "default")
    rope.setdefault("rope_theta", text.get("rope_theta", 10000.0))
    if rope["rope_type"] == "dynamic":
        rope = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    return {"rope_parameters": rope}


def _expect(found: Mapping[str, Any], name: str, value: Any) -> None:
    if found.get(name, value) != value:
        raise CheckpointError(
            f"config.json has {name}={found[name]!r}; expected {value!r}, the only value this model computes. "
            "Use a checkpoint made with it."
        )


# --------------------------------------------------------------------------- names and shapes


class SplitGroupedRows(ConversionOps):
    """Split InternLM2's fused ``wqkv``: per KV group, rows of its queries, then of its key, then of its value."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Split one fused tensor; its rows may carry a weight or a bias."""
        fused = _first(input_dict.popitem()[1])
        text = kwargs["config"].text_config
        groups = text.num_key_value_heads
        queries = text.num_attention_heads // groups
        grouped = fused.unflatten(0, (groups, queries + 2, -1))  # (groups, [q ..., k, v], head, ...)
        parts = grouped.split([queries, 1, 1], dim=1)
        return {name: part.flatten(0, 2).contiguous() for name, part in zip(target_patterns, parts, strict=True)}

    @property
    def reverse_op(self) -> ConversionOps:
        """The fusing operation."""
        return FuseGroupedRows()


class FuseGroupedRows(ConversionOps):
    """The inverse of `SplitGroupedRows`."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Fuse q, k and v."""
        groups = kwargs["config"].text_config.num_key_value_heads
        head = kwargs["config"].text_config.head_dim
        parts = [_first(input_dict[name]).unflatten(0, (groups, -1, head)) for name in source_patterns]
        return {target_patterns[0]: torch.cat(parts, dim=1).flatten(0, 2)}

    @property
    def reverse_op(self) -> ConversionOps:
        """The splitting operation."""
        return SplitGroupedRows()


def _first(tensors: Any) -> Tensor:
    return tensors[0] if isinstance(tensors, list) else tensors


_LAYER, _VISION_LAYER = r"^language_model\.model\.layers\.(\d+)\.", r"^vision_model\.encoder\.layers\.(\d+)\."
_OUR_LAYER, _OUR_VISION_LAYER = r"model.language_model.layers.\1.", r"model.vision_tower.encoder.layer.\1."

_VISION = {
    r"^vision_model\.embeddings\.class_embedding": "model.vision_tower.embeddings.cls_token",
    r"^vision_model\.embeddings\.position_embedding": "model.vision_tower.embeddings.position_embeddings",
    r"^vision_model\.embeddings\.patch_embedding\.": "model.vision_tower.embeddings.patch_embeddings.projection.",
    _VISION_LAYER + r"attn\.qkv\.": _OUR_VISION_LAYER + "attn.qkv.",  # split below
    _VISION_LAYER + r"attn\.proj\.": _OUR_VISION_LAYER + "attention.projection_layer.",
    _VISION_LAYER + r"attn\.q_norm\.": _OUR_VISION_LAYER + "attention.q_norm.",
    _VISION_LAYER + r"attn\.k_norm\.": _OUR_VISION_LAYER + "attention.k_norm.",
    _VISION_LAYER + r"mlp\.": _OUR_VISION_LAYER + "mlp.",
    _VISION_LAYER + r"norm1\.": _OUR_VISION_LAYER + "layernorm_before.",
    _VISION_LAYER + r"norm2\.": _OUR_VISION_LAYER + "layernorm_after.",
    _VISION_LAYER + "ls1": _OUR_VISION_LAYER + "lambda_1",
    _VISION_LAYER + "ls2": _OUR_VISION_LAYER + "lambda_2",
    r"^mlp1\.0\.": "model.multi_modal_projector.layer_norm.",
    r"^mlp1\.1\.": "model.multi_modal_projector.linear_1.",
    r"^mlp1\.3\.": "model.multi_modal_projector.linear_2.",
}
_HEAD = {
    r"^combine_decode_proj_ori\.0\.": "mask_head.expand_vision.linear_1.",
    r"^combine_decode_proj_ori\.2\.": "mask_head.expand_vision.linear_2.",
    r"^combine_decode_proj_all\.0\.": "mask_head.expand_language.linear_1.",
    r"^combine_decode_proj_all\.2\.": "mask_head.expand_language.linear_2.",
    r"^combine_decode_proj\.0\.": "mask_head.final_mlp.linear_1.",
    r"^combine_decode_proj\.2\.": "mask_head.final_mlp.linear_2.",
}
_LANGUAGE = {r"^language_model\.model\.norm\.": "model.language_model.norm."}
_QWEN = {  # Qwen2, Qwen3, Llama
    r"^language_model\.model\.embed_tokens\.": "model.language_model.embed_tokens.",
    _LAYER + r"self_attn\.": _OUR_LAYER + "self_attn.",
    _LAYER + r"mlp\.": _OUR_LAYER + "mlp.",
    _LAYER + r"input_layernorm\.": _OUR_LAYER + "input_layernorm.",
    _LAYER + r"post_attention_layernorm\.": _OUR_LAYER + "post_attention_layernorm.",
    r"^language_model\.lm_head\.": "lm_head.",
}
_INTERNLM2 = {
    r"^language_model\.model\.tok_embeddings\.": "model.language_model.embed_tokens.",
    _LAYER + r"attention\.wqkv\.": _OUR_LAYER + "attention.wqkv.",  # split below
    _LAYER + r"attention\.wo\.": _OUR_LAYER + "self_attn.o_proj.",
    _LAYER + r"feed_forward\.w1\.": _OUR_LAYER + "mlp.gate_proj.",
    _LAYER + r"feed_forward\.w3\.": _OUR_LAYER + "mlp.up_proj.",
    _LAYER + r"feed_forward\.w2\.": _OUR_LAYER + "mlp.down_proj.",
    _LAYER + r"attention_norm\.": _OUR_LAYER + "input_layernorm.",
    _LAYER + r"ffn_norm\.": _OUR_LAYER + "post_attention_layernorm.",
    r"^language_model\.output\.": "lm_head.",
}
_OLD_HF = {  # the newer -hf layout needs no rule, and the older one names its language model as _QWEN does
    r"^vision_tower\.": "model.vision_tower.",
    r"^multi_modal_projector\.": "model.multi_modal_projector.",
}


def _renamings(*tables: Mapping[str, str]) -> list[WeightTransform]:
    return [WeightRenaming(theirs, ours) for table in tables for theirs, ours in table.items()]


def _split_vision() -> WeightTransform:
    parts = ["attention.q_proj", "attention.k_proj", "attention.v_proj"]
    return WeightConverter("attn.qkv", parts, operations=[Chunk(dim=0)])


def _split_internlm2() -> WeightTransform:
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    return WeightConverter("attention.wqkv", parts, operations=[SplitGroupedRows()])


def reference_rules(layout: str) -> list[WeightTransform]:
    """Rules from the published names to ours, for one language model's ``layout``: ``qwen`` or ``internlm2``."""
    if layout == "internlm2":
        return [*_renamings(_VISION, _HEAD, _LANGUAGE, _INTERNLM2), _split_vision(), _split_internlm2()]
    return [*_renamings(_VISION, _HEAD, _LANGUAGE, _QWEN), _split_vision()]


register_checkpoint_conversion_mapping(
    "self1e",
    [  # type: ignore[arg-type]
        *_renamings(_VISION, _HEAD, _LANGUAGE, _QWEN, _INTERNLM2, _OLD_HF),
        _split_vision(),
        _split_internlm2(),
    ],
    overwrite=True,
)


def reference_state_dict(
    model: PreTrainedModel, state_dict: Mapping[str, Tensor] | None = None, *, layout: str | None = None
) -> dict[str, Tensor]:
    """Return the model's tensors under the published names (METHOD 1.1), bit for bit.

    Args:
        model: A `Self1EForConditionalGeneration`.
        state_dict: Tensors in our names; default the model's own. Any tensors in parameter shape will do.
        layout: Names of the language model: ``qwen`` (Qwen2, Qwen3, Llama) or ``internlm2``. Default: a Llama
            is taken for the InternLM2 that it is in every published checkpoint.
    """
    if layout is None:
        layout = "internlm2" if model.config.text_config.model_type == "llama" else "qwen"
    tensors = dict(model.state_dict() if state_dict is None else state_dict)
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    # Only our own rules may run backwards: transformers' inherited ones would rename (and lose) tensors.
    carrier = SimpleNamespace(_weight_conversions=reference_rules(layout), config=model.config)
    return revert_weight_conversion(carrier, tensors)  # type: ignore[arg-type]


# --------------------------------------------------------------------------- strictness


def refuse_pickles(path: Any, subfolder: str = "") -> None:
    """Raise if a local folder has pickled weights only: loading a pickle runs whatever it contains."""
    folder = Path(str(path)) / subfolder
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds pickled weights only ({', '.join(pickles)}); expected *.safetensors. Convert them where "
            "you trust them: safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')."
        )


def check_loaded(info: Mapping[str, Any], source: Any, *, new_mask_head: bool) -> None:
    """Raise one error that lists everything which does not fit.

    Args:
        info: transformers' loading report.
        source: Where the weights came from, for the message.
        new_mask_head: The checkpoint is a base model: the mask head, as a whole, may be missing.
    """
    missing = set(info["missing_keys"])
    if new_mask_head:
        missing = {name for name in missing if not name.startswith("mask_head.")}
    problems = [
        *_listed("missing", missing),
        *_listed("unexpected", info["unexpected_keys"]),
        *_listed(
            "misshapen",
            (f"{name} {tuple(was)} instead of {tuple(wanted)}" for name, was, wanted in info["mismatched_keys"]),
        ),
    ]
    if not problems:
        return
    hint = "Use the config.json that belongs to the weights."
    if missing and all(name.startswith("mask_head.") for name in missing):
        hint = "A base model has no mask head: pass new_mask_head=True to start one, e.g. for training."
    raise CheckpointError(f"The weights in {source} do not fit the model:\n" + "\n".join(problems) + f"\n{hint}")


def _listed(kind: str, names: Iterable[str]) -> list[str]:
    ordered = sorted(
        names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    )
    return [f"  {kind}: {name}" for name in ordered]
