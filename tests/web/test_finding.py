"""Threshold, layers and opacity from kept logits; classes to a map; stages and attention. No gradio, no browser."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from self1e.drawing import distinct_colors
from self1e.errors import PromptError
from self1e.web import finding
from self1e.web.finding import MAX_QUERIES, described, draw, find, read_queries, rows, shrunk, with_threshold
from self1e.web.mapping import MAX_CLASSES, class_rows, draw_map, read_classes
from self1e.web.seeing import attention_of, attention_share, read_query, see, twin

pytestmark = pytest.mark.usefixtures("one_thread")


class Model:
    """Left half of the picture for the first query, 0.2 of probability everywhere for the others."""

    no_target_threshold: float | None = None

    def __init__(self) -> None:
        self.asked = 0

    def mask_logits(self, encoded: Any, queries: list[str], **options: Any) -> torch.Tensor:
        self.asked += 1
        logits = torch.full((len(queries), 8, 8), -1.386)
        logits[0, :, :4], logits[0, :, 4:] = 2.0, -2.0
        return logits


def encoded(size_wh: tuple[int, int] = (64, 32)) -> Any:
    from self1e.inference.segmenter import EncodedPicture
    from self1e.structures import TileGrid

    image = Image.new("RGB", size_wh, (200, 200, 200))
    return EncodedPicture(image, TileGrid(1, 1), vision=SimpleNamespace(), source="street.jpg")  # type: ignore[arg-type]


def test_queries_are_lines_without_empty_and_equal_ones():
    assert read_queries(" the  cup \n\n the cup\r\na dog ") == ["the cup", "a dog"]


@pytest.mark.parametrize("text", ["", None, " \n\t"])
def test_no_query_is_said(text):
    with pytest.raises(PromptError, match="one thing per line"):
        read_queries(text)


def test_too_many_queries_are_refused():
    lines = [f"thing {k}" for k in range(MAX_QUERIES + 1)]
    assert len(read_queries("\n".join(lines[:-1]))) == MAX_QUERIES
    with pytest.raises(PromptError, match="takes 16 at once"):
        read_queries("\n".join(lines))


def test_a_new_threshold_asks_no_model_and_gives_what_asking_would():
    model = Model()
    found = find(model, encoded(), ["left", "nothing"])
    stricter = with_threshold(found, 1.5)
    assert model.asked == 1
    assert stricter.result == find(model, encoded(), ["left", "nothing"], threshold=1.5).result
    assert stricter.result.areas[0] < found.result.areas[0] == 32 * 32
    assert with_threshold(found, -1.5).result.areas.tolist()[1] == 64 * 32


def test_rows_tell_score_area_and_what_is_not_there():
    there, absent = rows(find(Model(), encoded(), ["left", "nothing"]))
    assert (there.is_there, there.area, there.share) == (True, 1024, 0.5)
    assert there.score == pytest.approx(float(torch.sigmoid(torch.tensor(2.0))), abs=0.1)
    assert (absent.is_there, absent.score, absent.area) == (False, 0.0, 0)
    assert absent.peak == pytest.approx(0.2, abs=1e-3)
    assert there.color == distinct_colors(2)[0]


def test_a_calibrated_model_turns_masks_down_at_every_threshold():
    model = Model()
    model.no_target_threshold = 0.95
    found = find(model, encoded(), ["left"])
    assert found.result.is_empty.tolist() == [True]
    assert with_threshold(found, 1.0).result.is_empty.tolist() == [True]


def test_layers_keep_their_colour_and_opacity_covers():
    found = with_threshold(find(Model(), encoded(), ["left", "all"]), -1.5)  # the second covers everything
    bare = np.asarray(draw(found, [], 1.0))
    assert (bare == 200).all()
    second = np.asarray(draw(found, [1], 1.0))
    assert tuple(second[16, 32]) == distinct_colors(2)[1]
    faint = np.asarray(draw(found, [1], 0.5)).astype(int)
    assert abs(faint[16, 32] - (np.array(distinct_colors(2)[1]) + 200) / 2).max() <= 2
    assert np.array_equal(second, np.asarray(draw(found, [1, 7, -1], 1.0)))  # numbers that do not exist


def test_a_large_picture_is_shown_small_and_kept_large(monkeypatch):
    monkeypatch.setattr(finding, "SHOWN_SIDE", 64)
    monkeypatch.setattr(finding.shrunk, "__defaults__", (64,))
    found = find(Model(), encoded((640, 320)), ["left", "nothing"])
    assert found.result.size_wh == (640, 320)
    assert draw(found, [0], 0.5).size == (64, 32)
    assert found.shown.areas[0] == pytest.approx(found.result.areas[0] / 100, rel=0.05)
    assert found.shown.is_empty.tolist() == found.result.is_empty.tolist()
    thin = Image.new("RGB", (10_000, 2))
    assert shrunk(thin, 100).size == (100, 1)


def test_what_is_drawn_is_told_in_words():
    told = described(find(Model(), encoded(), ["left", "nothing"]))
    assert told == "The picture with masks: left, 50.0% of the picture; nothing: not there"


def test_classes_come_from_lines_and_commas():
    assert read_classes("road, car\n person ,,road") == ["road", "car", "person"]
    with pytest.raises(PromptError, match="Name the classes"):
        read_classes(" , \n")
    with pytest.raises(PromptError, match=f"takes {MAX_CLASSES}"):
        read_classes(",".join(str(k) for k in range(MAX_CLASSES + 1)))


def test_a_map_is_drawn_and_its_classes_are_listed_by_size():
    from self1e.inference.semantic import SemanticMap

    labels = np.zeros((4, 10), np.uint8)
    labels[:, :2], labels[:, 2:9] = 1, 2
    image = Image.new("RGB", (10, 4), (10, 10, 10))
    found = SemanticMap(labels, ("sky", "road", "boat"), np.array([0.5, 0.75, 0], np.float32), image=image)
    road, sky, boat = class_rows(found)
    assert [road.query, sky.query, boat.query] == ["road", "sky", "boat"]
    assert (road.share, sky.share, boat.is_there) == (0.7, 0.2, False)
    drawn = np.asarray(draw_map(found, 1.0))
    assert tuple(drawn[0, 0]) == sky.color
    assert tuple(drawn[0, 9]) == (10, 10, 10)


def test_looking_inside_shows_the_stages_and_leaves_the_model_as_it_is(tiny_model, pictures):
    before = tiny_model.mask_logits(pictures[0], "a cup")
    sight = see(tiny_model, pictures[0], read_query("\n a  cup \n more"))
    assert sight.query == "a cup"
    assert len(sight.stages) >= 3
    assert all(image.size == pictures[0].size for _, image in sight.stages)
    assert not any("{" in name for name, _ in sight.stages)
    assert sight.num_layers == tiny_model.model.config.text_config.num_hidden_layers
    for layer in range(sight.num_layers + 1):
        assert attention_of(sight, layer).size == pictures[0].size
        assert 0 < attention_share(sight, layer) <= 1
    assert not tiny_model.model.mask_head._forward_pre_hooks
    assert torch.equal(tiny_model.mask_logits(pictures[0], "a cup"), before)


def test_the_twin_shares_weights_and_nothing_else(tiny_model):
    made = twin(tiny_model)
    assert {id(p) for p in made.model.parameters()} == {id(p) for p in tiny_model.model.parameters()}
    assert made.model.config is not tiny_model.model.config
    assert made.model.mask_head is not tiny_model.model.mask_head


def test_nothing_to_look_for_is_said():
    with pytest.raises(PromptError, match="look for"):
        read_query(" \n")


def test_masks_of_the_page_are_those_of_segment(tiny_model, pictures):
    picture = tiny_model.encode(pictures[1])
    found = find(tiny_model, picture, ["a cup", "What is there?"], threshold=0.25)
    plain = tiny_model.segment(picture, ["a cup", "What is there?"], threshold=0.25)
    assert replace(found.result, text=plain.text) == plain


@pytest.mark.parametrize("read", [read_queries, read_classes, read_query])
def test_a_novel_is_refused_before_the_model_reads_it(read):
    assert read("w" * 4000)
    with pytest.raises(PromptError, match="4,001 letters"):
        read("w" * 4001)
