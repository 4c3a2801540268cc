"""From items to a batch: masks follow their pictures, and a bad row is named."""

import numpy as np
import pytest
import torch
from PIL import Image

from self1e.data.mixture import Item, Row
from self1e.errors import DatasetError, PromptError
from self1e.model import Self1EForConditionalGeneration
from self1e.processing.processor import Self1EProcessor
from self1e.training.collate import Collator

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES_WH = {"square": (60, 60), "wide": (230, 70), "tall": (50, 190), "large": (224, 168)}
GRIDS = {"square": [1, 1], "wide": [1, 3], "tall": [4, 1], "large": [3, 4]}


@pytest.fixture(scope="module")
def processor(tiny_model_folder) -> Self1EProcessor:
    return Self1EProcessor.from_pretrained(tiny_model_folder)


def corner(name: str, queries: int = 1) -> Item:
    """A picture that is black but for a white corner, and the corner's mask."""
    width, height = SIZES_WH[name]
    mask = np.zeros((height, width), bool)
    mask[: height // 2, width // 2 :] = True
    image = Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2))
    rows = tuple(Row(question=f"<image>\nWhere {n}?", answer="[SEG].", mask=mask) for n in range(queries))
    return Item(image=image, rows=rows, source=f"test/{name}")


def test_at_twelve_tiles_every_mask_lies_on_its_picture(processor):
    items = [corner(name, queries) for queries, name in enumerate(SIZES_WH, start=1)]
    batch = Collator(processor, max_tiles=12)(items)
    assert batch["tile_grids"] == list(GRIDS.values())
    assert batch["picture_of_row"] == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    counts = [rows * columns for rows, columns in batch["tile_grids"]]
    pictures = batch["pixel_values"].split(counts)
    for row, (picture, target) in enumerate(zip(batch["picture_of_row"], batch["mask_targets"], strict=True)):
        width, height = items[picture].image.size
        assert target.shape == (1, height, width)  # the true size, not the tiles'
        assert (batch["input_ids"][row] == processor.image_token_id).sum() == 4 * counts[picture]
        rows, columns = batch["tile_grids"][picture]
        whole = pictures[picture][:, 0].unflatten(0, (rows, columns)).permute(0, 2, 1, 3).flatten(0, 1).flatten(1, 2)
        seen = torch.nn.functional.interpolate(whole[None, None], size=(height, width), mode="area")[0, 0] > 0.25
        overlap = (seen & target[0].bool()).sum() / (seen | target[0].bool()).sum()
        assert overlap > 0.95


def test_a_model_takes_what_the_collator_makes(processor, tiny_model_folder):
    model = Self1EForConditionalGeneration.from_pretrained(tiny_model_folder, dtype=torch.float32)
    batch = Collator(processor, max_tiles=12)([corner("wide", 2), corner("square")])
    outputs = model(**batch)
    assert [tuple(logits.shape) for logits in outputs.mask_logits] == [(1, 8, 24)] * 2 + [(1, 8, 8)]
    assert torch.isfinite(outputs.loss)


def changed(**changes) -> Item:
    item = corner("wide")
    row = {"question": "<image>\nWhere?", "answer": "[SEG].", "mask": item.rows[0].mask} | changes
    return Item(image=item.image, rows=(*item.rows, Row(**row)), source=item.source)


def test_a_mask_of_another_size_is_named(processor):
    bad = changed(mask=np.ones((230, 70), bool))
    with pytest.raises(DatasetError, match=r"test/wide, question .*Where\?.*mask is 70x230 but the picture 230x70"):
        Collator(processor)([corner("square"), bad])


def test_a_text_that_pushes_the_mask_out_is_named(processor):
    bad = changed(question="<image>\n" + "very " * 60 + "long?")
    collator = Collator(processor, max_length=200)
    with pytest.raises(PromptError, match=r"test/wide, question .*max_length=200 would cut 1 \[SEG\]"):
        collator([corner("square"), bad])
    with pytest.raises(PromptError, match=r"test/large, question .*max_length=80 would cut .*image tokens"):
        Collator(processor, max_tiles=12, max_length=80)([corner("large")])


def test_a_long_answer_without_a_mask_is_cut_as_published(processor):
    item = Item(
        image=corner("wide").image,
        rows=(Row(question="<image>\nWhy?", answer="So. " * 100, mask=None),),
        source="test/told",
    )
    batch = Collator(processor, max_length=200)([item])
    assert batch["input_ids"].shape == (1, 200)


def test_a_mask_without_a_word_for_it_is_named(processor):
    with pytest.raises(DatasetError, match=r"test/wide, question .*the answer 'There\.' holds no \[SEG\]"):
        Collator(processor)([changed(answer="There.")])
    nothing = Item(image=corner("wide").image, rows=(), source="test/nothing")
    with pytest.raises(DatasetError, match="test/nothing: nothing is asked"):
        Collator(processor)([nothing])
