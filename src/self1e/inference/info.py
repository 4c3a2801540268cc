"""What a model is, told without loading its weights: sizes, switches, vocabulary, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from self1e.configuration import Self1EConfig
from self1e.inference.loading import find_model, reading
from self1e.model import Self1EForConditionalGeneration
from self1e.model.checkpoints.configs import is_base, origin_of
from self1e.processing.processor import Self1EProcessor
from self1e.processing.tokenizers import has_tokenizer

_SWITCHES = (
    "seg_readout",
    "fine",
    "residual",
    "unshuffle",
    "attention",
    "final_mlp",
    "auxiliary_low_resolution",
    "num_seg_tokens",
)
_PARTS = {
    "vision encoder": "model.vision_tower.",
    "projector": "model.multi_modal_projector.",
    "language model": "model.language_model.",
    "output vocabulary": "lm_head.",
    "mask head": "mask_head.",
}
_BYTES = {"float32": 4, "bfloat16": 2}
_TILES = (1, 4, 12)
_WORDS = 80  # tokens of a query's sequence that are not the picture's


def read_info(name: Any) -> dict[str, Any]:
    """Describe a model of any origin by its name: reads its configuration, its weights' headers and its tokenizer.

    Released weights come without a tokenizer; what depends on it is then None.
    """
    shown, path = find_model(name, needs_tokenizer=False)
    folder = Path(path)
    with reading(shown):
        found, _ = PreTrainedConfig.get_config_dict(path)
        origin = origin_of(found)
        if origin == "chat" and folder.is_dir() and not is_base(folder):
            origin = "published"
        config: Any = Self1EConfig.from_pretrained(path)
        lacks_tokenizer = folder.is_dir() and not has_tokenizer(folder)
        processor = None if lacks_tokenizer else Self1EProcessor.from_pretrained(path)
    return {**describe(config, processor, name=shown), "origin": origin}


def describe(config: Self1EConfig, processor: Self1EProcessor | None, *, name: str = "") -> dict[str, Any]:
    """Describe a model.

    Args:
        config: Its configuration.
        processor: Its processor, if it has a tokenizer.
        name: What to call it.

    Returns:
        JSON-able: ``parameters`` by part, ``sizes``, ``switches``, ``vocabulary``, ``template``, and
        ``memory_bytes[dtype][tiles]`` for one query (estimates: weights, plus the largest maps alive together).
    """
    with torch.device("meta"):
        model = Self1EForConditionalGeneration(config)
    counts = {part: 0 for part in _PARTS}
    for parameter_name, parameter in model.named_parameters():  # tied ones come once
        part = next((part for part, prefix in _PARTS.items() if parameter_name.startswith(prefix)), "other")
        counts[part] = counts.get(part, 0) + parameter.numel()
    total = sum(counts.values())
    text: Any = config.text_config
    vision: Any = config.vision_config
    tokens = (config.patches_per_side // config.compression) ** 2
    return {
        "name": name,
        "parameters": {"total": total, **counts},
        "sizes": {
            "tile": config.tile_size,
            "patch": int(vision.patch_size[0]),
            "image tokens per tile": tokens,
            "mask grid per tile": mask_side(config),
            "vision width": vision.hidden_size,
            "vision layers": vision.num_hidden_layers,
            "language model": text.model_type,
            "language width": text.hidden_size,
            "language layers": text.num_hidden_layers,
            "language heads": text.num_attention_heads,
        },
        "switches": {switch: getattr(config, switch) for switch in _SWITCHES},
        "vocabulary": {
            "rows": text.vocab_size,
            "tokens": None if processor is None else len(processor.tokenizer),
            "[SEG]": config.seg_token_id,
            "<IMG_CONTEXT>": config.image_token_id,
        },
        "template": None if processor is None else processor.template,
        "max_tiles": None if processor is None else processor.image_processor.max_tiles,
        "memory_bytes": {
            dtype: {str(tiles): total * size + _activation_bytes(config, tiles, size) for tiles in _TILES}
            for dtype, size in _BYTES.items()
        },
    }


def mask_side(config: Self1EConfig) -> int:
    """Side of the mask grid of one tile, before enlarging to the picture."""
    side = config.patches_per_side
    if config.unshuffle in ("one", "two", "three") and config.fine != "none":
        side *= config.compression
    elif config.unshuffle == "none" and config.fine == "none":
        side //= config.compression
    return side * round(config.num_seg_tokens**0.5)


def _activation_bytes(config: Self1EConfig, tiles: int, size: int) -> int:
    """Estimate what one query needs beside the weights: what is kept of the picture, and the widest stage."""
    text: Any = config.text_config
    vision: Any = config.vision_config
    patches = tiles * config.patches_per_side**2
    tokens = patches // config.compression**2 + _WORDS
    kept = patches * (vision.hidden_size + text.hidden_size) + tokens * text.hidden_size
    encoder = patches * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    projector = patches * (config.compression**2 * vision.hidden_size + 2 * text.hidden_size)
    language = tokens * (6 * text.hidden_size + 3 * text.intermediate_size) + tokens**2
    head = 8 * tiles * mask_side(config) ** 2 * text.hidden_size
    return size * (kept + max(encoder + projector, language, head))
