"""What a result promises: exact masks, small memory, honest repr, errors that help."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco

from self1e.drawing import distinct_colors
from self1e.errors import SettingError
from self1e.outlines import trace_polygons
from self1e.structures import Segmentation, TileGrid, decode_rle, encode_mask

masks_hw = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


def picture(width: int = 64, height: int = 48) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def cup_and_dog(**changes: object) -> Segmentation:
    """A cup in 6x4 pixels at (10, 20) of 64x48, and no dog."""
    cup = np.zeros((48, 64), dtype=bool)
    cup[20:24, 10:16] = True
    values = {"image": picture(), "source": "kitchen.jpg"} | changes
    return Segmentation.from_masks([cup, ~cup & cup], [0.97, 0.4], ("the cup", "a dog"), **values)  # type: ignore[arg-type]


def fill_even_odd(rings: list[np.ndarray], shape_hw: tuple[int, int]) -> np.ndarray:
    """Test every pixel's centre against every ring: the textbook rule, slow and independent of the tracer."""
    height, width = shape_hw
    cy, cx = np.mgrid[:height, :width] + 0.5
    inside = np.zeros(shape_hw, dtype=bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y0 != y1:
                crosses = (cy > min(y0, y1)) & (cy < max(y0, y1))
                inside ^= crosses & (cx < x0 + (cy - y0) * (x1 - x0) / (y1 - y0))
    return inside


def rings_of(mask: np.ndarray) -> list[np.ndarray]:
    return [ring for polygon in trace_polygons(mask) for ring in (polygon["exterior"], *polygon["holes"])]


def signed_area(ring: np.ndarray) -> float:
    x, y = ring[:, 0].astype(float), ring[:, 1].astype(float)
    return 0.5 * float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))


def num_pieces(mask: np.ndarray) -> int:
    """Count 4-connected pieces by flooding."""
    left, pieces = {(int(y), int(x)) for y, x in np.argwhere(mask)}, 0
    while left:
        pieces += 1
        edge = [left.pop()]
        while edge:
            y, x = edge.pop()
            for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if near in left:
                    left.remove(near)
                    edge.append(near)
    return pieces


@given(masks_hw)
def test_run_length_code_gives_the_mask_back(mask: np.ndarray) -> None:
    result = Segmentation.from_masks([mask], [0.5], ["it"])
    np.testing.assert_array_equal(result.mask(), mask)
    np.testing.assert_array_equal(result.masks, mask[None])
    assert result.areas.tolist() == [mask.sum()]
    assert result.is_empty.tolist() == [not mask.any()]
    ys, xs = np.nonzero(mask)
    box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if mask.any() else [0, 0, 0, 0]
    assert result.boxes_xyxy.tolist() == [box]


@given(masks_hw)
@settings(max_examples=200)
def test_polygons_give_the_mask_back(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(fill_even_odd(rings_of(mask), mask.shape), mask)


@given(masks_hw)
def test_each_polygon_is_one_piece_with_its_own_holes(mask: np.ndarray) -> None:
    polygons = trace_polygons(mask)
    assert len(polygons) == num_pieces(mask)
    for polygon in polygons:
        assert signed_area(polygon["exterior"]) > 0  # clockwise where y points down
        assert all(signed_area(hole) < 0 for hole in polygon["holes"])
        piece = fill_even_odd([polygon["exterior"], *polygon["holes"]], mask.shape)
        assert num_pieces(piece) == 1
        assert not (piece & ~mask).any()


@given(masks_hw)
def test_no_polygon_has_a_point_on_a_straight_line(mask: np.ndarray) -> None:
    for ring in rings_of(mask):
        steps = np.roll(ring, -1, axis=0) - ring
        assert ((steps == 0).sum(axis=1) == 1).all()  # horizontal or vertical, never zero
        assert ((steps[:, 0] == 0) != (np.roll(steps[:, 0], -1) == 0)).all()  # in turn


@given(st.lists(st.integers(1, 20000), min_size=1, max_size=40), st.booleans())
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_decoding_agrees_with_pycocotools(runs: list[int], begins_inside: bool) -> None:
    column = np.repeat((np.arange(len(runs)) + begins_inside) % 2 == 1, runs)
    rle = encode_mask(column[:, None])
    np.testing.assert_array_equal(decode_rle(rle), coco.decode(rle))  # type: ignore[arg-type]


@pytest.mark.parametrize("counts", [b"", b"2", b"zzzz", b"01"])
def test_a_damaged_code_is_refused(counts: bytes) -> None:
    with pytest.raises(SettingError, match=r"An RLE of size \[2, 3\] codes .* pixels, expected 6"):
        decode_rle({"size": [2, 3], "counts": counts})


def test_a_ring_is_one_polygon_with_one_hole() -> None:
    mask = np.ones((5, 6), dtype=bool)
    mask[1:3, 2:4] = False
    [polygon] = trace_polygons(mask)
    assert polygon["exterior"].tolist() == [[0, 0], [6, 0], [6, 5], [0, 5]]
    assert [sorted(hole.tolist()) for hole in polygon["holes"]] == [[[2, 1], [2, 3], [4, 1], [4, 3]]]


def test_tracing_a_megapixel_takes_milliseconds() -> None:
    small = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8))
    mask = np.asarray(small.resize((1000, 1000), Image.Resampling.BICUBIC)) > 128
    start = time.perf_counter()
    assert len(trace_polygons(mask)) > 20
    assert time.perf_counter() - start < 1  # about 0.02 s on an idle machine


def test_an_empty_mask_scores_zero_and_has_no_polygon() -> None:
    result = cup_and_dog()
    assert result.scores.tolist() == [np.float32(0.97), 0]
    assert result.to_polygons()[1] == []


def test_repr_says_what_was_found() -> None:
    assert repr(cup_and_dog()) == "<Segmentation 2 queries, 64x48: 'the cup' 0.8% 0.97, 'a dog' not there>"
    assert repr(cup_and_dog()[1]) == "<Segmentation 1 query, 64x48: 'a dog' not there>"


def test_repr_stays_short() -> None:
    dot = np.zeros((100, 100), dtype=bool)
    dot[0, 0] = True
    result = Segmentation.from_masks([dot] * 150, [0.5] * 150, ["x" * 500] * 150)
    assert repr(result).endswith(", 147 more>")
    assert len(repr(result)) < 250
    tiny = Segmentation.from_masks([np.pad(dot, (0, 900))], [0.5], ["it"])
    assert repr(tiny) == "<Segmentation 1 query, 1000x1000: 'it' <0.1% 0.50>"


def test_a_result_without_queries_is_an_answer() -> None:
    result = Segmentation.from_masks([], [], [], size_wh=(64, 48), text=("I see no cup.",), image=picture())
    assert repr(result) == "<Segmentation 0 queries, 64x48, said 'I see no cup.'>"
    assert result.masks.shape == (0, 48, 64)
    assert result.boxes_xyxy.shape == (0, 4)
    assert list(result) == []
    assert result.to_coco_rle() == []
    assert result.to_polygons() == []
    assert result.overlay().tobytes() == picture().tobytes()


def test_indexing_and_iterating_give_results_of_one_query() -> None:
    logits = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    result = cup_and_dog(text=("It is [SEG].", "[SEG]."), mask_logits=logits)
    assert [one.queries for one in result] == [("the cup",), ("a dog",)]
    assert result[0].text == ("It is [SEG].",)
    assert result[-1] == result[1]
    np.testing.assert_array_equal(result[1].mask_logits, logits[1:])
    with pytest.raises(IndexError, match="Query 2 of 2"):
        result[2]


def test_equality_ignores_the_picture() -> None:
    assert cup_and_dog() == cup_and_dog(image=None)
    assert cup_and_dog() != cup_and_dog(source="garden.jpg")
    assert cup_and_dog() != cup_and_dog()[0]


def test_coco_rle_survives_json_form() -> None:
    result = cup_and_dog()
    entries = result.to_coco_rle()
    assert all(isinstance(entry["counts"], str) and entry["size"] == [48, 64] for entry in entries)
    assert dataclasses.replace(result, rles=tuple(entries)) == result


def test_a_hundred_masks_of_a_large_photo_stay_small() -> None:
    strip = np.zeros((4000, 6000), dtype=bool)
    strip[1000:1010] = True
    one = Segmentation.from_masks([strip], [0.5], ["it"])
    result = dataclasses.replace(one, queries=("it",) * 150, rles=one.rles * 150, scores=np.full(150, 0.5), text=())
    assert result.areas.tolist() == [60000] * 150
    assert result.boxes_xyxy[149].tolist() == [0, 1000, 6000, 1010]


def test_scores_cannot_be_changed() -> None:
    given = np.array([0.5, 0.0], dtype=np.float32)
    result = cup_and_dog()
    result = dataclasses.replace(result, scores=given)
    given[0] = 0.9
    assert result.scores[0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        result.scores[0] = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": "the cup"}, "single string 'the cup'"),
        ({"queries": ("the cup",)}, r"2 masks and 2 scores and 2 text for 1 queries"),
        ({"scores": [0.5]}, "1 scores for 2 queries"),
        ({"scores": [0.5, float("nan")]}, "scores holds nan; expected 0..1"),
        ({"scores": [[0.5, 0.5]]}, r"shape \(1, 2\), expected \(K,\)"),
        ({"text": ("one",)}, "1 text for 2 queries"),
        ({"size_wh": (48, 64)}, "Mask 0 is 64x48, expected 48x64"),
        ({"rles": ({"counts": [1, 2]},) * 2}, "expected compressed COCO RLE"),
        ({"image": Image.new("RGB", (48, 64))}, "kitchen.jpg: image is RGB 48x64, expected RGB 64x48"),
        ({"image": Image.new("L", (64, 48))}, "image is L 64x48, expected RGB"),
        ({"mask_logits": np.zeros((3, 4))}, r"mask_logits has shape \(3, 4\), expected \(2, h, w\)"),
    ],
)
def test_parts_that_disagree_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        dataclasses.replace(cup_and_dog(), **changes)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((2, 3)), "dtype float64, expected bool: threshold first"),
        (np.zeros((1, 2, 3), dtype=bool), r"shape \(1, 2, 3\), expected \(H, W\)"),
        (np.zeros((0, 3), dtype=bool), "at least one pixel"),
    ],
)
def test_what_is_not_a_mask_is_refused(mask: np.ndarray, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Segmentation.from_masks([mask], [0.5], ["it"])


def test_masks_of_different_sizes_are_refused() -> None:
    with pytest.raises(SettingError, match="Mask 1 is 3x3, expected 2x2"):
        Segmentation.from_masks([np.ones((2, 2), bool), np.ones((3, 3), bool)], [0.5, 0.5], ["a", "b"])


def test_integers_count_as_foreground_and_a_generator_will_do() -> None:
    result = Segmentation.from_masks((np.full((2, 3), value) for value in (0, 255)), [0.5, 0.5], ["a", "b"])
    assert result.areas.tolist() == [0, 6]
    assert result.text == ("[SEG].", "[SEG].")


def test_overlay_tints_the_mask_and_little_else() -> None:
    result = cup_and_dog()
    before, after = np.asarray(result.image), np.asarray(result.overlay(legend=False))
    changed = (before != after).any(axis=2)
    assert changed[20:24, 10:16].mean() > 0.9
    changed[19:25, 9:17] = False  # a halo of one pixel
    assert not changed.any()
    assert result.image is not None
    assert result.image.tobytes() == picture().tobytes()


def test_contour_shows_on_any_background() -> None:
    mask = np.zeros((60, 80), dtype=bool)
    mask[20:40, 20:60] = True
    for background in ("white", "black", "red"):
        result = Segmentation.from_masks([mask], [0.9], ["it"], image=Image.new("RGB", (80, 60), background))
        drawn = np.asarray(result.overlay(alpha=0, colors=["red"], legend=False)).astype(int)
        line, halo, outside = drawn[20, 40], drawn[19, 40], drawn[10, 40]
        assert max(abs(line - outside).max(), abs(halo - outside).max()) > 200


@pytest.mark.parametrize("size_wh", [(200, 133), (640, 480), (300, 900), (1800, 300)])
def test_legend_hides_little(size_wh: tuple[int, int]) -> None:
    assert 0 < legend_share(size_wh) < 0.25


@pytest.mark.parametrize("size_wh", [(1, 1), (60, 40), (90, 900)])
def test_small_pictures_have_no_legend(size_wh: tuple[int, int]) -> None:
    assert legend_share(size_wh) == 0


def legend_share(size_wh: tuple[int, int]) -> float:
    """Draw thirty queries, none of which is there, and return the part of the picture that changes."""
    width, height = size_wh
    empty = np.zeros((height, width), dtype=bool)
    queries = ["a very long query about\nthe cup closest to the edge of the table" * 20, "茶碗", "", *("abc" * 9)]
    result = Segmentation.from_masks([empty] * 30, [0.5] * 30, queries, image=Image.new("RGB", size_wh, (9, 99, 199)))
    return float((np.asarray(result.overlay()) != np.asarray(result.image)).any(axis=2).mean())


def test_legend_moves_away_from_the_mask() -> None:
    corner = np.zeros((200, 300), dtype=bool)
    corner[:100, :150] = True
    result = Segmentation.from_masks([corner], [0.9], ["it"], image=Image.new("RGB", (300, 200), "white"))
    with_legend, without = np.asarray(result.overlay()), np.asarray(result.overlay(legend=False))
    np.testing.assert_array_equal(with_legend[:100, :150], without[:100, :150])


def test_colors_are_distinct() -> None:
    assert len(set(distinct_colors(150))) == 150


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 2}, "alpha=2, expected 0"),
        ({"colors": ["red"]}, "for 2 queries; pass a list with one colour per query"),
        ({"colors": ["red", "rde"]}, "unknown color specifier"),
    ],
)
def test_overlay_names_a_wrong_argument(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        cup_and_dog().overlay(**arguments)  # type: ignore[arg-type]


def test_without_a_picture_there_is_no_overlay() -> None:
    with pytest.raises(SettingError, match="An overlay needs the picture"):
        cup_and_dog(image=None).overlay()
    with pytest.raises(SettingError, match="A cutout needs the picture"):
        cup_and_dog(image=None).cutout()


def test_cutout_is_opaque_on_the_mask_only() -> None:
    result = cup_and_dog()
    cut = np.asarray(result.cutout(0))
    np.testing.assert_array_equal(cut[..., 3] == 255, result.mask(0))
    np.testing.assert_array_equal(cut[..., :3], np.asarray(result.image))


def test_tile_grid_counts_tiles() -> None:
    grid = TileGrid(2, 3)
    assert (grid.num_tiles, grid.shape_hw) == (6, (2, 3))
    with pytest.raises(SettingError, match="0 rows x 3 columns"):
        TileGrid(0, 3)
