"""Record what tiny models compute, so that a change of numerics shows without the published goldens.

    python scripts/record_goldens.py            # writes tests/golden/own/<case>.safetensors and processing.json

Weights and inputs come from a seed through plain uniform numbers, the same on every machine; only results are stored.
Run it after a change of numerics that was wanted, and say in the commit why they changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from self1e.model import Self1EConfig, Self1EForConditionalGeneration
from self1e.processing import prompts
from self1e.training.nano import build_processor

FOLDER = Path(__file__).parents[1] / "tests" / "golden" / "own"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "llama": ("llama", {}),
    # The encoder of the 6B models: RMS norms, queries and keys normalised, no biases.
    "rms_encoder": ("qwen2", {"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False}),
}
"""Language model and changed vision settings of each recorded case."""
IMAGE, SEG, VOCABULARY = 34, 41, 43
"""Ids as in a published vocabulary: [SEG] last but one, <IMG_CONTEXT> seven before it."""


def tiny_config(family: str = "qwen2", *, encoder: dict[str, Any] | None = None, **switches: Any) -> Self1EConfig:
    """A model of a few thousand numbers; no two of its sizes are equal by chance. A tile is 16 pixels and 4 tokens."""
    text = {
        "model_type": family,
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        **({"head_dim": 6} if family == "qwen3" else {}),
    }
    vision = {
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": [16, 16],
        "patch_size": [4, 4],
        "attention_bias": True,
        **(encoder or {}),
    }
    settings = {"image_token_id": IMAGE, "seg_token_id": SEG, "image_seq_length": 4, **switches}
    return Self1EConfig(text_config=text, vision_config=vision, **settings)


def tiny_model(family: str = "qwen2", *, seed: int = 0, implementation: str = "eager", **switches: Any) -> Any:
    """A model whose every tensor is random, also biases, norms and layer scales, so that a forgotten one shows."""
    config = tiny_config(family, **switches)
    config._attn_implementation = implementation
    model = Self1EForConditionalGeneration(config).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            uniform = torch.from_numpy(rng.uniform(-1, 1, tuple(parameter.shape)))
            if (name.endswith("weight") and parameter.ndim == 1) or "lambda" in name:
                parameter.copy_(1 + uniform / 2)  # norms and layer scales
            elif parameter.ndim == 1:
                parameter.copy_(uniform / 4)
            else:
                parameter.copy_(uniform * (3 / parameter[0].numel()) ** 0.5)
    return model


def tiny_batch(
    config: Self1EConfig,
    *,
    tile_grids: tuple[tuple[int, int], ...] = ((1, 1),),
    picture_of_row: tuple[int, ...] | None = None,
    rows_without_seg: tuple[int, ...] = (),
    seed: int = 1,
) -> dict[str, Any]:
    """Pictures of noise and rows of random words about them, right-padded; one query per row."""
    rng = np.random.default_rng(seed)
    pictures = tuple(range(len(tile_grids))) if picture_of_row is None else picture_of_row
    rows: list[list[int]] = []
    for row, picture in enumerate(pictures):
        tiles = tile_grids[picture][0] * tile_grids[picture][1] if picture >= 0 else 0
        words = rng.integers(1, IMAGE, 6 + 2 * row).tolist()
        answer = [] if row in rows_without_seg else [SEG] * config.num_seg_tokens
        rows.append([*words[:3], *[IMAGE] * (4 * tiles), *words[3:], *answer, 7, 8])
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    is_real = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    labels = ids.masked_fill((ids == IMAGE) | (is_real == 0), -100)
    labels[:, :4] = -100
    total = sum(r * c for r, c in tile_grids)
    sizes = [(1, 19 + 3 * row, 14 + row) for row in range(len(rows))]
    targets = [torch.from_numpy(rng.integers(0, 2, size)).float() for size in sizes]
    return {
        "input_ids": ids,
        "attention_mask": is_real,
        "labels": labels,
        "pixel_values": torch.from_numpy(rng.uniform(-2, 2, (total, 3, 16, 16))).float(),
        "tile_grids": list(tile_grids),
        "picture_of_row": list(pictures),
        "mask_targets": [torch.zeros(0, 1, 1) if row in rows_without_seg else t for row, t in enumerate(targets)],
    }


def observe(case: str) -> dict[str, Tensor]:
    """What is recorded: features, masks, losses and greedy text of one batch over two tile grids."""
    family, encoder = CASES[case]
    model = tiny_model(family, encoder=encoder)
    batch = tiny_batch(model.config, tile_grids=((1, 2), (2, 2)), picture_of_row=(0, 1, 0, 1), rows_without_seg=(3,))
    with torch.no_grad():
        vision = model.encode_pictures(batch["pixel_values"], batch["tile_grids"])
        output = model(**batch)
        prompt = batch["input_ids"][:1, :13]  # three words, eight image tokens, two words
        answer = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            pixel_values=batch["pixel_values"][:2],
            tile_grids=batch["tile_grids"][:1],
            max_new_tokens=6,
            do_sample=False,
        )
    is_real = batch["attention_mask"].bool()
    found = {
        "coarse": vision.coarse,
        "fine": vision.fine,
        "last_hidden_state": output.last_hidden_state[is_real],
        "loss": output.loss,
        **{f"losses.{name}": value for name, value in output.losses.items()},
        "generated_ids": answer[:, prompt.shape[1] :],
    }
    for row in range(3):
        found[f"mask_logits.{row}"] = output.mask_logits[row]
        found[f"low_resolution_logits.{row}"] = output.low_resolution_logits[row]
    return {name: value.contiguous() for name, value in found.items()}


def observe_processing() -> dict[str, Any]:
    """What is recorded of text and pixels: ids of every published question, tiles of pictures of several shapes."""
    processor = build_processor()
    conversations: dict[str, Any] = {}
    for name, table in (("training", prompts.TRAINING_QUESTIONS), ("validation", prompts.VALIDATION_QUESTIONS)):
        for kind, questions in table.items():
            for number, question in enumerate([questions] if isinstance(questions, str) else questions):
                turn = (question.format(text="the red circle left of <img>"), "Sure, [SEG].")
                found = processor.tokenize_conversation([turn], num_tiles=1)
                conversations[f"{name} {kind} {number}"] = {"ids": found.input_ids, "labels": found.labels}
    pictures: dict[str, Any] = {}
    for size in ((160, 160), (97, 61), (40, 300), (640, 211)):
        x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
        pixels = np.stack([x * 3 % 256, (x + 2 * y) % 256, x * y % 256], -1).astype(np.uint8)
        for most in (1, 6):
            batch = processor.image_processor(Image.fromarray(pixels), max_tiles=most)
            values = batch["pixel_values"].double()
            pictures[f"{size[0]} x {size[1]}, {most} tiles at most"] = {
                "grid": batch["tile_grids"].tolist(),
                "means": values.mean((2, 3)).flatten().tolist(),
                "corner": values[0, :, :3, :3].flatten().tolist(),
            }
    return {"conversations": conversations, "pictures": pictures}


def main() -> None:
    """Write one file per case, and one for text and pixels."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        path = FOLDER / f"{case}.safetensors"
        save_file(observe(case), path)
        print(f"{path}: {path.stat().st_size / 1024:.0f} KB")
    (FOLDER / "processing.json").write_text(json.dumps(observe_processing()) + "\n", "utf-8")


if __name__ == "__main__":
    main()
