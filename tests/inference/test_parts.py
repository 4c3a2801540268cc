"""Pieces and holes are those that a flood fill finds, and their scores are means over their own pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from self1e.components import encode_runs, read_runs
from self1e.errors import SettingError
from self1e.inference.masks import enlarge
from self1e.inference.parts import PartOptions
from self1e.structures import Segmentation, encode_mask


def flood_fill(mask: np.ndarray, connectivity: int) -> list[np.ndarray]:
    """Find the pieces pixel by pixel, by columns."""
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    steps += [(1, 1), (1, -1), (-1, 1), (-1, -1)] if connectivity == 8 else []
    left = mask.copy()
    pieces = []
    for x, y in np.argwhere(mask.T):
        if not left[y, x]:
            continue
        piece, waiting = np.zeros_like(mask), [(y, x)]
        left[y, x] = False
        while waiting:
            row, column = waiting.pop()
            piece[row, column] = True
            for down, right in steps:
                there = row + down, column + right
                if 0 <= there[0] < mask.shape[0] and 0 <= there[1] < mask.shape[1] and left[there]:
                    left[there] = False
                    waiting.append(there)
        pieces.append(piece)
    return pieces


def without_holes(mask: np.ndarray, connectivity: int) -> np.ndarray:
    """Fill, pixel by pixel, what the background at the border does not reach."""
    padded = np.pad(~mask, 1, constant_values=True)
    outside = flood_fill(padded, 12 - connectivity)[0]
    return ~outside[1:-1, 1:-1]


@st.composite
def random_masks(draw: st.DrawFn) -> np.ndarray:
    height, width = draw(st.integers(1, 17)), draw(st.integers(1, 17))
    share = draw(st.sampled_from([0.1, 0.4, 0.6, 0.75, 0.95]))
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random((height, width)) < share


@settings(max_examples=150, deadline=None)
@given(random_masks(), st.sampled_from([4, 8]), st.booleans(), st.integers(0, 6))
def test_parts_are_what_a_flood_fill_finds(mask: np.ndarray, connectivity: int, fill_holes: bool, min_area: int):
    result = Segmentation.from_masks([mask], [0.5], ["it"])
    found = result.parts(fill_holes=fill_holes, min_area=min_area, connectivity=connectivity)
    expected = flood_fill(without_holes(mask, connectivity) if fill_holes else mask, connectivity)
    expected = [piece for piece in expected if piece.sum() >= min_area]
    expected.sort(key=lambda piece: -piece.sum())  # stable, as parts is
    if not expected:
        assert found.queries == ("it",)
        assert found.is_empty.tolist() == [True]
        assert found.scores.tolist() == [0.0]
    else:
        np.testing.assert_array_equal(found.masks, expected)
        assert found.areas.tolist() == [piece.sum() for piece in expected]
        for box, piece in zip(found.boxes_xyxy.tolist(), expected, strict=True):
            y, x = np.nonzero(piece)
            assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    tidy = result.tidied(fill_holes=fill_holes, min_area=min_area, connectivity=connectivity)
    assert len(tidy) == 1
    np.testing.assert_array_equal(tidy.mask(), np.any([np.zeros_like(mask), *expected], axis=0))


@settings(max_examples=100, deadline=None)
@given(random_masks())
def test_runs_give_the_code_that_pixels_give(mask: np.ndarray):
    rle = encode_mask(mask)
    assert encode_runs(read_runs(rle), mask.shape) == rle
    assert encode_runs(read_runs(rle, background=True), mask.shape) == encode_mask(~mask)


def test_a_snake_is_one_piece():
    mask = np.zeros((41, 30), dtype=bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True  # every column but the outer two sees nothing but apart rows
    assert len(Segmentation.from_masks([mask], [1], ["snake"]).parts(connectivity=4)) == 1
    mask[21, -1] = False
    assert len(Segmentation.from_masks([mask], [1], ["snake"]).parts(connectivity=4)) == 2


def test_scores_are_means_over_a_parts_own_pixels():
    logits = torch.full((6, 8), -3.0)
    logits[1:3, 1:3], logits[4, 5:7] = 4.0, 0.5
    size_wh = (80, 61)
    rle, score = enlarge(logits, size_wh)
    result = Segmentation(("it",), (rle,), np.array([score]), size_wh, mask_logits=logits.numpy()[None])
    found = result.parts()
    assert len(found) == 2
    assert found.mask_logits is None
    columns = torch.nn.functional.interpolate(logits[None, None], size=(61, 80), mode="bilinear")[0, 0].sigmoid()
    for k in range(2):
        assert found.scores[k] == pytest.approx(columns[torch.from_numpy(found.mask(k))].mean().item(), abs=1e-5)
    assert found.scores[0] > found.scores[1] + 0.1
    assert float((found.scores * found.areas).sum() / found.areas.sum()) == pytest.approx(score, abs=1e-6)
    assert result.tidied(min_area=1).scores[0] == pytest.approx(score, abs=1e-6)


def test_without_logits_parts_have_the_whole_masks_score():
    mask = np.zeros((5, 9), dtype=bool)
    mask[1:3, 1:3], mask[1, 6] = True, True
    found = Segmentation.from_masks([mask, mask & ~mask], [0.7, 0.9], ["cups", "dog"], text=["a", "b"]).parts()
    assert found.queries == ("cups", "cups", "dog")
    assert found.text == ("a", "a", "b")
    np.testing.assert_allclose(found.scores, [0.7, 0.7, 0])


def test_nothing_changes_unless_it_is_asked_for():
    result = Segmentation.from_masks([np.eye(4, dtype=bool)], [0.5], ["it"])
    assert PartOptions().is_idle
    assert result.tidied() is result
    assert len(result.parts()) == 1
    assert len(result.parts(connectivity=4)) == 4


def test_a_result_without_queries_has_no_parts():
    result = Segmentation.from_masks([], [], [], size_wh=(4, 3), text=["no such thing"])
    assert result.parts(fill_holes=True) == result


@pytest.mark.parametrize(
    ("wrong", "told"), [({"min_area": -1}, "min_area=-1"), ({"connectivity": 6}, "4 .edges. or 8")]
)
def test_wrong_options_are_told(wrong: dict[str, int], told: str):
    with pytest.raises(SettingError, match=told):
        PartOptions(**wrong)  # type: ignore[arg-type]
