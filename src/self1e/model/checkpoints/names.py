"""Names and shapes: a table of disjoint rules, one per leaf, from every foreign layout to ours.

transformers' loader walks the table when it loads a plain folder; `our_names` and `split` walk it tensor by tensor
for everything that is read lazily; `reference_state_dict` walks it backwards, bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    ConversionOps,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    revert_weight_conversion,
)

EMBEDDINGS, OUTPUT = "model.language_model.embed_tokens.weight", "lm_head.weight"
"""The two matrices with one row per token, ``(V, D)``; tied ones are one."""


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


_FUSED = {
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attention.wqkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
}


def _split_vision() -> WeightTransform:
    return WeightConverter("attn.qkv", list(_FUSED["attn.qkv"]), operations=[Chunk(dim=0)])


def _split_internlm2() -> WeightTransform:
    return WeightConverter("attention.wqkv", list(_FUSED["attention.wqkv"]), operations=[SplitGroupedRows()])


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

_RULES = [
    (re.compile(theirs + r"(?!\w)" if theirs[-1].isalnum() else theirs), ours)
    for table in (_VISION, _HEAD, _LANGUAGE, _QWEN, _INTERNLM2, _OLD_HF)
    for theirs, ours in table.items()
]


def our_names(name: str) -> tuple[str, ...]:
    """Name the tensors of ours that one tensor of any layout becomes: three for a fused ``qkv``, else one.

    A name that no rule knows stays as it is: it is ours already, or nobody's.
    """
    for pattern, ours in _RULES:
        renamed, hits = pattern.subn(ours, name)
        if hits:
            name = renamed
            break
    for fused, parts in _FUSED.items():
        if f".{fused}." in name:
            return tuple(name.replace(fused, part) for part in parts)
    return (name,)


def split(name: str, tensor: Tensor, config: Any) -> tuple[Tensor, ...]:
    """Split a tensor by rows into the tensors of `our_names`, in order.

    Args:
        name: Its name in its own layout.
        tensor: A weight, a bias, or the B of a LoRA: whatever has the module's output rows first.
        config: A `Self1EConfig`; InternLM2's rows are grouped by its key and value heads.
    """
    if "attention.wqkv." in name:
        parts = _FUSED["attention.wqkv"]
        found = SplitGroupedRows().convert({"": tensor}, [""], list(parts), config=config)
        return tuple(found[part] for part in parts)
    return tensor.chunk(3) if ".attn.qkv." in name else (tensor,)


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
