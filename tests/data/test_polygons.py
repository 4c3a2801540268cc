"""Polygons to pixels: unions as COCO's, outlines and fill as OpenCV's."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as codec

from self1e.data.polygons import count_segmentation, decode_segmentation, paint_polygon
from self1e.errors import DatasetError

SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]
SHIFTED = [3, 3, 7, 3, 7, 7, 3, 7]
SIZE_WH = (10, 8)

# Drawn by the same steps as OpenCV 4.11 takes, once written out in full.
INSIDE = """
..............
.#####........
.##########...
.##########...
.###########..
..####..####..
..###.....###.
..##........#.
..#...........
"""
REACHING_OUT = """
.#########..
###########.
############
############
############
..##########
....########
......######
.......#####
"""


def drawn(picture: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in line] for line in picture.split()])


def bresenham(start: tuple[int, int], end: tuple[int, int]) -> set[tuple[int, int]]:
    """The textbook's loop, from left to right."""
    (x, y), (x_end, y_end) = sorted([start, end], key=lambda point: point[0])
    dx, dy, down = x_end - x, abs(y_end - y), 1 if y_end >= y else -1
    error, pixels = max(dx, dy) - 2 * min(dx, dy), {(x, y)}
    for _ in range(max(dx, dy)):
        aside = error < 0
        error += 2 * max(dx, dy) * aside - 2 * min(dx, dy)
        x, y = (x + aside, y + down) if dy > dx else (x + 1, y + down * aside)
        pixels.add((x, y))
    return pixels


def test_a_mask_is_the_union_of_its_polygons_and_the_published_one_their_sum():
    union, count = (decode(([SQUARE, SHIFTED]), SIZE_WH) for decode in (decode_segmentation, count_segmentation))
    assert union.dtype == bool
    assert union.sum() == 16 + 16 - 4
    assert sorted(zip(*np.unique(count, return_counts=True), strict=True)) == [(0, 80 - 28), (1, 24), (2, 4)]


@pytest.mark.parametrize("form", ["bytes", "string", "list"])
def test_every_form_of_run_length_code_is_the_same_mask(form):
    expected = decode_segmentation([SQUARE], SIZE_WH)
    rle = dict(codec.encode(np.asfortranarray(expected, dtype=np.uint8)))
    if form == "string":
        rle = json.loads(json.dumps({**rle, "counts": rle["counts"].decode()}))
    if form == "list":
        flat = expected.T.ravel()
        borders = np.flatnonzero(np.diff(flat)) + 1
        rle["counts"] = np.diff([0, *borders, flat.size]).tolist()
    assert np.array_equal(decode_segmentation(rle, SIZE_WH), expected)


@pytest.mark.parametrize("nothing", [None, [], [[]], [[1, 1, 5, 5]]])
def test_nothing_and_a_line_are_empty_masks(nothing):
    mask = decode_segmentation(nothing, SIZE_WH)
    assert mask.shape == (8, 10)
    assert not mask.any()


def test_a_run_length_code_of_another_picture_is_refused():
    rle = {"size": [10, 8], "counts": [80]}
    with pytest.raises(DatasetError, match=r"refcoco/val/7: .* size \[10, 8\], expected \[8, 10\]"):
        decode_segmentation(rle, SIZE_WH, "refcoco/val/7")
    with pytest.raises(DatasetError, match="cannot be decoded"):
        decode_segmentation({"size": [8, 10], "counts": "2"}, SIZE_WH, "x")


def test_painting_is_opencvs():
    corners = [(1.9, 1.0), (10.2, 2.7), (12, 7), (6, 4), (2, 8)]  # cut, not rounded
    assert np.array_equal(paint_polygon(corners, (14, 9)), drawn(INSIDE))
    corners = [(-4, 3), (6, -3), (16, 5), (9, 11), (5, 6)]
    assert np.array_equal(paint_polygon(corners, (12, 9)), drawn(REACHING_OUT))


def test_numbers_are_cut_towards_zero():
    assert np.argwhere(paint_polygon([(-0.9, 2.9)], (3, 4))).tolist() == [[2, 0]]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 12)), min_size=1, max_size=9))
def test_an_outline_is_drawn_whole_and_never_exceeded(corners):
    painted = paint_polygon(corners, (16, 13))
    outline = set().union(*(bresenham(a, b) for a, b in zip(corners, [*corners[1:], corners[0]], strict=True)))
    assert all(painted[y, x] for x, y in outline)
    for y, row in enumerate(painted):
        columns = np.flatnonzero(row)
        assert not len(columns) or {(columns[0], y), (columns[-1], y)} <= outline


def test_what_lies_around_the_picture_fills_it_and_what_lies_beside_it_does_not():
    assert paint_polygon([(-3, -3), (40, -3), (40, 40), (-3, 40)], (16, 13)).all()
    assert not paint_polygon([(20, 2), (30, 2), (30, 9)], (16, 13)).any()
    assert not paint_polygon([(2, -9), (9, -9), (5, -2)], (16, 13)).any()
