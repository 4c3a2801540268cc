"""Class maps: the highest logit wins, the background is what no class claims, and files give it all back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from self1e.data.own.indexed import read_indexed
from self1e.errors import PromptError, SettingError
from self1e.inference.export import write_indexed_classes
from self1e.inference.segmenter import Self1E
from self1e.inference.semantic import CLASSES_AT_ONCE, SemanticMap, find_classes

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE_WH = (21, 14)


class Maps:
    """Stands for a model: it answers query ``k`` with map ``k``."""

    def __init__(self, maps: dict[str, torch.Tensor]) -> None:
        self.maps = maps
        self.asked: list[int] = []

    def mask_logits(self, encoded: Any, queries: Sequence[str], **options: Any) -> torch.Tensor:
        self.asked.append(len(queries))
        return torch.stack([self.maps[query] for query in queries])


def map_of(maps: dict[str, torch.Tensor], background: float | None = 0.0) -> SemanticMap:
    image = Image.new("RGB", SIZE_WH, (90, 120, 60))
    encoded = SimpleNamespace(size_wh=SIZE_WH, image=image, source="x.jpg")
    return find_classes(Maps(maps), encoded, tuple(maps), background=background)


def random_maps(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return {f"thing {k}": torch.randn(7, 7, generator=generator) for k in range(count)}


@pytest.mark.parametrize("background", [None, 0.0, 0.7])
def test_the_highest_logit_wins_above_the_background(background: float | None):
    maps = random_maps(5)
    found = map_of(maps, background)
    full = torch.nn.functional.interpolate(torch.stack([*maps.values()])[None], SIZE_WH[::-1], mode="bilinear")[0]
    best, winner = full.max(0)
    expected = winner.numpy() + 1
    if background is not None:
        expected[(best <= background).numpy()] = 0
    np.testing.assert_array_equal(found.labels, expected)
    assert (found.labels == 0).any() == (background is not None)
    for k in range(5):
        inside = found.labels == k + 1
        assert found.areas[k] == inside.sum()
        mean = best[torch.from_numpy(inside)].sigmoid().mean().item() if inside.any() else 0
        assert found.scores[k] == pytest.approx(mean, abs=1e-6)


def test_equal_logits_go_to_the_earlier_class_and_a_logit_at_the_threshold_to_none():
    flat = torch.full((3, 3), 0.5)
    assert (map_of({"a": flat, "b": flat}).labels == 1).all()
    assert (map_of({"a": flat, "b": flat}, background=0.5).labels == 0).all()


def test_many_classes_are_asked_in_groups_and_need_16_bits(tmp_path: Path):
    maps = random_maps(300)
    model = Maps(maps)
    encoded = SimpleNamespace(size_wh=SIZE_WH, image=None, source="")
    found = find_classes(model, encoded, tuple(maps), background=None)
    assert max(model.asked) <= CLASSES_AT_ONCE
    assert sum(model.asked) == 300
    assert found.labels.dtype == np.uint16
    assert len(np.unique(found.palette, axis=0)) == 301
    found.save(tmp_path, "many")
    with Image.open(tmp_path / "many.semantic.png") as image:
        assert image.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(image), found.labels)
    assert not (tmp_path / "many.semantic.overlay.png").exists()  # there is no picture


def test_the_files_give_the_map_back(tmp_path: Path):
    found = map_of(random_maps(4))
    names = [path.name for path in found.save(tmp_path / "new", "x", more={"made_by": "a test"})]
    assert names == ["x.semantic.png", "x.legend.png", "x.semantic.overlay.png", "x.semantic.json"]
    with Image.open(tmp_path / "new/x.semantic.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), found.labels)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(found.colored()))
    again = SemanticMap.read(tmp_path / "new/x.semantic.png")
    np.testing.assert_array_equal(again.labels, found.labels)
    np.testing.assert_array_equal(again.palette, found.palette)
    np.testing.assert_allclose(again.scores, found.scores, atol=1e-6)
    assert (again.classes, again.background, again.source) == (found.classes, 0.0, "x.jpg")
    assert json.loads((tmp_path / "new/x.semantic.json").read_text("utf-8"))["made_by"] == "a test"


def test_the_map_is_training_data_for_the_reader_of_indexed_masks(tmp_path: Path):
    found = map_of(random_maps(4))
    (tmp_path / "images").mkdir()
    assert found.image is not None
    found.image.save(tmp_path / "images/x.png")
    found.save(tmp_path / "masks", "x")
    (tmp_path / "masks/x.semantic.png").rename(tmp_path / "masks/x.png")
    (tmp_path / "classes.txt").write_bytes(write_indexed_classes(found.classes))
    parsed = read_indexed(tmp_path, "train")
    decoded = {one.text: one.mask for one in parsed.records[0].annotation.decode(SIZE_WH)}
    present = [k for k in range(4) if found.areas[k]]
    assert set(decoded) == {f"the thing {k}" for k in present}
    for k in present:
        np.testing.assert_array_equal(decoded[f"the thing {k}"], found.mask(f"thing {k}"))


def test_pictures_show_what_is_there():
    block, other = torch.full((2, 2), -1.0), torch.full((2, 2), -2.0)
    block[:, 0] = 3.0
    found = map_of({"left": block, "nowhere": other})
    overlay = np.asarray(found.overlay(alpha=1, legend=False))
    np.testing.assert_array_equal(overlay[5, 0], found.palette[1])
    np.testing.assert_array_equal(overlay[5, -1], (90, 120, 60))
    assert found.overlay().height > SIZE_WH[1]
    colours = {tuple(color) for color in np.asarray(found.legend()).reshape(-1, 3).tolist()}
    assert tuple(found.palette[1].tolist()) in colours
    assert tuple(found.palette[2].tolist()) not in colours


def test_a_model_gives_the_map_of_its_own_logits(tiny_model: Self1E, pictures: list[Image.Image]):
    classes = [f"thing {k}" for k in range(6)]
    found = tiny_model.semantic(pictures[0], classes, background=None, batch_size=4)
    encoded = tiny_model.encode(pictures[0])
    logits = tiny_model.mask_logits(encoded, classes, kind="phrase")
    size_hw = encoded.size_wh[::-1]
    full = torch.nn.functional.interpolate(logits[None], size_hw, mode="bilinear")[0]
    np.testing.assert_array_equal(found.labels - 1, full.argmax(0).numpy())
    assert tiny_model.semantic(encoded, classes, background=1e6).areas.sum() == 0


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ("road", "expected a list"),
        ([], "no name"),
        (["a", " "], "an empty name"),
        (["a", "b", "a"], "'a' twice"),
        (["background"], "leave it out"),
    ],
)
def test_wrong_classes_are_told(tiny_model: Self1E, classes: Any, told: str):
    with pytest.raises(PromptError, match=told):
        tiny_model.semantic("no such file.jpg", classes)


def test_a_background_that_is_no_number_is_refused(tiny_model: Self1E):
    with pytest.raises(SettingError, match="finite"):
        tiny_model.semantic("no such file.jpg", ["a"], background=float("nan"))


def test_a_name_as_long_as_a_book_makes_no_legend_as_wide_as_a_street():
    def width(name: str) -> int:
        return SemanticMap(np.array([[1]], np.uint8), (name,), np.ones(1, np.float32)).legend(width=100).width

    assert width("x" * 59) < width("x" * 60)  # these are whole
    assert width("x" * 4000) <= width("x" * 60)
    assert 0 < width("\u5929\u7a7a \U0001f600") < 500
