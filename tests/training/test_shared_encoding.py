"""A picture encoded once for its rows trains exactly like a picture repeated for every row (METHOD section 8, item 19).

The proof runs in float64: also the losses, which otherwise compute in float32 whatever the model runs in.
"""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from self1e.data.mixture import Item, Row
from self1e.model import Self1EForConditionalGeneration
from self1e.processing.processor import IGNORED_LABEL, Self1EProcessor
from self1e.training.collate import Collator

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-9
ZERO = 1e-14
"""A bias of keys cancels out in the softmax of vision: its gradient is rounding alone."""


def noise(size_wh: tuple[int, int], seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size_wh[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def asked(image: Image.Image, text: str, seed: int) -> Row:
    mask = np.random.default_rng(seed).random(image.size[::-1]) < 0.4
    return Row(question=f"<image>\nWhat is {text} in this image?", answer="Sure, [SEG].", mask=mask)


def told(text: str, answer: str) -> Row:
    return Row(question=f"<image>\n{text}", answer=answer, mask=None)


ONE, WIDE, TALL = noise((70, 70), 0), noise((170, 60), 1), noise((60, 130), 2)
BATCHES = {
    "one tile": [
        Item(
            image=ONE, rows=tuple(asked(ONE, text, n) for n, text in enumerate(("a cup", "it", "the dog"))), source="a"
        ),
        Item(image=TALL, rows=(asked(TALL, "that thing over there", 3),), source="b"),
    ],
    "several tiles": [
        Item(image=WIDE, rows=(asked(WIDE, "a cup", 4), asked(WIDE, "the other cup", 5)), source="a"),
        Item(image=ONE, rows=(asked(ONE, "all of it", 6),), source="b"),
        Item(image=TALL, rows=(asked(TALL, "x", 7), asked(TALL, "y", 8), asked(TALL, "z", 9)), source="c"),
    ],
    "rows that only write": [
        Item(
            image=WIDE, rows=(asked(WIDE, "a cup", 10), told("How many?", "two"), told("Why?", "Because.")), source="a"
        ),
        Item(image=ONE, rows=(told("What?", "A long answer, over several words."),), source="b"),
    ],
}


@pytest.fixture(scope="module")
def processor(tiny_model_folder) -> Self1EProcessor:
    return Self1EProcessor.from_pretrained(tiny_model_folder)


@pytest.fixture(scope="module")
def model(tiny_model_folder) -> Any:
    return Self1EForConditionalGeneration.from_pretrained(tiny_model_folder, dtype=torch.float64).train()


@pytest.fixture(autouse=True)
def losses_in_float64(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def as_published(batch: dict[str, Any]) -> dict[str, Any]:
    """Repeat each picture's tiles for every row that looks at it, as the published collate step does."""
    counts = [rows * columns for rows, columns in batch["tile_grids"]]
    tiles = batch["pixel_values"].split(counts)
    looked_at = [picture for picture in batch["picture_of_row"] if picture >= 0]
    own = iter(range(len(looked_at)))
    return batch | {
        "pixel_values": torch.cat([tiles[picture] for picture in looked_at]),
        "tile_grids": [batch["tile_grids"][picture] for picture in looked_at],
        "picture_of_row": [next(own) if picture >= 0 else -1 for picture in batch["picture_of_row"]],
    }


def step(model: Any, batch: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    batch = batch | {"pixel_values": batch["pixel_values"].double()}
    outputs = model(**batch)
    outputs.loss.backward()
    losses = {"total": outputs.loss.detach(), **outputs.losses}
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, expected in other.items():
        assert expected.dtype == torch.float64
        difference = (one[name] - expected).abs().max()
        assert difference <= TOLERANCE * expected.abs().max() + ZERO, name


def assert_trains_alike(model: Any, batch: dict[str, Any]) -> None:
    repeated = as_published(batch)
    assert len(repeated["pixel_values"]) > len(batch["pixel_values"])
    (losses, gradients), (published_losses, published_gradients) = step(model, batch), step(model, repeated)
    assert min(losses.values()) > 0
    assert_equal(losses, published_losses)
    assert_equal(gradients, published_gradients)
    assert gradients.keys() == {name for name, _ in model.named_parameters()}
    silent = [name for name, gradient in gradients.items() if gradient.abs().max() < 1e6 * ZERO]
    assert [name for name in silent if not name.endswith("k_proj.bias")] == []


@pytest.mark.parametrize("name", BATCHES)
def test_a_picture_encoded_once_trains_like_a_picture_per_row(model, processor, name):
    batch = Collator(processor, max_tiles=1 if name == "one tile" else 4)(BATCHES[name])
    assert (len({tuple(grid) for grid in batch["tile_grids"]}) == 1) == (name == "one tile")
    assert_trains_alike(model, batch)


def test_rows_without_a_picture_change_nothing_about_it(model, processor):
    batch = Collator(processor, max_tiles=4)(BATCHES["several tiles"])
    tokenized = processor.tokenize_conversation([("What is a cup?", "A vessel.")], num_tiles=0)
    sequences, labels = [tokenized.input_ids], [tokenized.labels]
    for ids, row, is_real in zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True):
        sequences.append(ids[is_real].tolist())
        labels.append(row[is_real].tolist())
    batch |= processor.pad(sequences, labels)
    batch["picture_of_row"] = [-1, *batch["picture_of_row"]]
    batch["mask_targets"] = [torch.zeros(0, 1, 1), *batch["mask_targets"]]
    assert (batch["labels"][0] != IGNORED_LABEL).any()
    assert_trains_alike(model, batch)
