"""Configurations of any origin: read as one of ours, and written as the published one.

Four origins, told apart by ``config.json``:

* ``self1e``: our own;
* ``published``: InternVLChat's form with SELF1E's three MLPs (architectures InternVL3SELF1E, InternVL2SELF1E);
* ``chat``: the original InternVLChat repositories, a base without mask head;
* ``hf``: InternVL in transformers' own form, a base as well.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers import CONFIG_MAPPING, PreTrainedConfig

from self1e.errors import CheckpointError
from self1e.model.checkpoints.adapters import find_attached
from self1e.model.checkpoints.files import WeightFiles, find_weights
from self1e.model.checkpoints.names import EMBEDDINGS, OUTPUT, our_names
from self1e.model.checkpoints.strict import HEAD

if TYPE_CHECKING:
    from self1e.configuration import Self1EConfig

logger = logging.getLogger(__name__)

Origin = Literal["self1e", "published", "chat", "hf"]

_FAMILIES = {
    "InternLM2ForCausalLM": "internlm2",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "LlamaForCausalLM": "llama",
}
_ARCHITECTURES = {family: architecture for architecture, family in _FAMILIES.items()}
_VISION_NAMES = {  # ours: theirs, and InternVL's own default
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
_IMAGE_TO_SEG = 7
"""``<IMG_CONTEXT>`` is followed by ``</img>``'s six siblings (quad, ref, box) in every InternVL 2 to 3.5
vocabulary; the next free id is ``[SEG]``."""
_ADDED_TOKENS = 2
"""``[SEG]`` and the unused ``[SEGT]`` close a published SELF1E vocabulary (METHOD 1.3)."""
_OURS_IN_PUBLISHED = ("image_token_id", "seg_token_id", "auxiliary_low_resolution")
"""What `published_config` adds, so that nothing has to be guessed when it is read again."""
_PUBLISHED = {
    "seg_readout": "before",
    "fine": "replicate",
    "residual": True,
    "unshuffle": "two",
    "attention": "image_seg",
    "final_mlp": True,
    "num_seg_tokens": 1,
}
_PADDED_QWEN3_VOCABULARY, _QWEN3_IMAGE_TOKEN = 151936, 151671


def origin_of(found: Mapping[str, Any]) -> Origin:
    """Tell where a ``config.json`` comes from.

    Raises:
        CheckpointError: It is neither SELF1E's nor InternVL's.
    """
    if "llm_config" in found:
        return "published" if "SELF1E" in (found.get("architectures") or [""])[0] else "chat"
    if found.get("model_type") == "self1e":
        return "self1e"
    if found.get("model_type") == "internvl":
        return "hf"
    raise CheckpointError(
        f"config.json has model_type={found.get('model_type')!r} and no llm_config; expected a SELF1E or InternVL "
        "configuration (model_type self1e, internvl_chat or internvl). Point to the folder of such a model."
    )


def is_base(folder: str | Path) -> bool:
    """Whether a local folder holds a base model: weights of InternVL without a mask head."""
    found, _ = PreTrainedConfig.get_config_dict(str(folder))
    origin = origin_of(found)
    return origin == "hf" or (origin == "chat" and origin_of(_as_the_weights_are(found, Path(folder))) == "chat")


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
    return _from_chat(found) if origin_of(found) in ("published", "chat") else _from_hf(found)


def read_config(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Turn the configuration of a local folder into one of ours, with what else the folder says.

    What the weights are counts more than what ``config.json`` says of them: whether they have a mask head, and in a
    published checkpoint how many rows the vocabulary has. A tokenizer beside a foreign checkpoint gives the ids of
    ``<IMG_CONTEXT>`` and ``[SEG]``, which no foreign ``config.json`` holds.

    Args:
        found: Its ``config.json``, as a dict.
        folder: Where it lies.

    Raises:
        CheckpointError: The configuration, the weights' index or the tokenizer cannot be used.
    """
    from self1e.processing.tokenizers import add_what_weights_have, has_tokenizer, load_tokenizer
    from self1e.processing.tokenizers import token_ids as ids_of

    origin = origin_of(found)
    if origin == "self1e":
        return normalise_config(found)
    if origin != "hf":
        found = _as_the_weights_are(found, folder)
    config = normalise_config(found)
    if not has_tokenizer(folder):
        return config
    tokenizer = load_tokenizer(folder)
    text = config.get("text_config") or {}
    is_base = origin_of(found) != "published"
    add_what_weights_have(tokenizer, text.get("vocab_size"), is_base=is_base, source=folder)
    return {**config, **ids_of(tokenizer)}


def _as_the_weights_are(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Correct an InternVLChat configuration by the headers of its weights, if they are there."""
    if not find_weights(folder):
        return found
    tensors = WeightFiles(folder).tensors
    attached = find_attached(tensors)
    names = {name: stored for plain, stored in attached.plain.items() for name in our_names(plain)}
    if origin_of(found) == "chat" and any(name.startswith(HEAD) for name in names):
        found = {**found, "architectures": ["InternVL3SELF1E"]}
    if origin_of(found) == "published" and EMBEDDINGS in names:
        rows = tensors[names[EMBEDDINGS]].shape[:1]
        both = rows == tensors[names.get(OUTPUT, names[EMBEDDINGS])].shape[:1]
        if both and rows and rows[0] != found["llm_config"].get("vocab_size"):
            found = {**found, "llm_config": {**found["llm_config"], "vocab_size": rows[0]}}
    return found


def published_config(config: Self1EConfig) -> dict[str, Any]:
    """Write one of our configurations in the published form (METHOD 1.2, 1.4): the inverse of `normalise_config`.

    The ids of ``<IMG_CONTEXT>`` and ``[SEG]`` are added, which the published form lacks; its readers ignore them.

    Raises:
        CheckpointError: A switch is set that the published system does not have.
    """
    unlike = {name: getattr(config, name) for name, usual in _PUBLISHED.items() if getattr(config, name) != usual}
    if unlike:
        raise CheckpointError(
            f"The published layout has no place for {', '.join(f'{k}={v!r}' for k, v in unlike.items())}; expected "
            f"{', '.join(f'{name}={_PUBLISHED[name]!r}' for name in unlike)}. Keep this checkpoint in our own layout."
        )
    text, vision = config.text_config, config.vision_config
    is_internlm2 = text.model_type == "llama"
    if is_internlm2 and (text.attention_bias or text.mlp_bias):
        raise CheckpointError("A Llama with biases has no published form; keep this checkpoint in our own layout.")
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    more = ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act", "initializer_range")
    extra = ("head_dim", "attention_bias") if text.model_type == "qwen3" else ()
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    rope = dict(text.rope_parameters or {})
    language = {name: getattr(text, name) for name in (*same, *more, *extra, *tokens)}
    language |= {
        "architectures": ["InternLM2ForCausalLM" if is_internlm2 else _ARCHITECTURES[text.model_type]],
        "model_type": "internlm2" if is_internlm2 else text.model_type,
        "rope_theta": rope.pop("rope_theta", 10000.0),
        "rope_scaling": rope if rope.get("rope_type", "default") != "default" else None,
        "tie_word_embeddings": bool(text.tie_word_embeddings),
        **({"bias": False} if is_internlm2 else {"use_sliding_window": False}),
    }
    eyes = {theirs: getattr(vision, ours) for ours, (theirs, _) in _VISION_NAMES.items() if ours != "patch_size"}
    eyes |= {"patch_size": int(vision.patch_size[0]), "image_size": config.tile_size, "drop_path_rate": 0.0}
    eyes |= {"architectures": ["InternVisionModel"], "model_type": "intern_vit_6b"}
    through = config.auxiliary_low_resolution == "through_final_mlp"
    found = {
        "model_type": "internvl_chat",
        "architectures": ["InternVL2SELF1E" if is_internlm2 or through else "InternVL3SELF1E"],
        "llm_config": language,
        "vision_config": eyes,
        "force_image_size": config.tile_size,
        "downsample_ratio": config.downsample_ratio,
        "select_layer": -1,
        "ps_version": "v2",
        "template": config.template or "internvl2_5",
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "tie_word_embeddings": bool(text.tie_word_embeddings),
        "image_token_id": config.image_token_id,
        "seg_token_id": config.seg_token_id,
        "auxiliary_low_resolution": config.auxiliary_low_resolution,
    }
    dtype = config.dtype
    return found if dtype is None else {**found, "torch_dtype": str(dtype).removeprefix("torch.")}


def _from_hf(found: dict[str, Any]) -> dict[str, Any]:
    """``-hf`` InternVL, and our own: transformers' names already."""
    _expect(found, "vision_feature_layer", -1)
    _expect(found, "vision_feature_select_strategy", "default")
    config = {**found, "model_type": "self1e"}
    for name in ("auto_map", "lora_alpha"):  # the latter is of the weights, see adapters.read_scale
        config.pop(name, None)
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
        **{name: found[name] for name in _OURS_IN_PUBLISHED if name in found},
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
    config = {ours: vision.get(theirs, default) for ours, (theirs, default) in _VISION_NAMES.items()}
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
