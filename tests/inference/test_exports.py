"""What other programs read from our files is the mask: with their own library where it is installed, else as the
format is published."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from self1e.data.own.coco import read_instances
from self1e.data.own.indexed import read_indexed
from self1e.data.own.label_studio import read_label_studio
from self1e.data.own.regions import Brush
from self1e.errors import MissingDependencyError
from self1e.evaluation.coco_results import read_coco_results
from self1e.inference.export import write_outputs
from self1e.inference.exports.label_studio import pack_brush
from self1e.inference.exports.rings import one_line
from self1e.inference.exports.yolo import yolo_names
from self1e.outlines import trace_polygons
from self1e.structures import Segmentation

SIZE_WH = (47, 33)


def need(name: str) -> ModuleType:
    """Import the library of a format, or skip and say so."""
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"LIBRARY MISSING: {name}, so its own reading of our files is not checked; pip install it.")


def ring_and_crumbs() -> np.ndarray:
    """A ring with a block in its hole, a piece at the border, and two pixels that touch at a corner."""
    mask = np.zeros(SIZE_WH[::-1], dtype=bool)
    mask[3:20, 4:25] = True
    mask[7:16, 8:20] = False
    mask[10:12, 12:15] = True
    mask[25:33, 30:47] = True
    mask[2, 40] = mask[3, 41] = True
    return mask


def block() -> np.ndarray:
    mask = np.zeros(SIZE_WH[::-1], dtype=bool)
    mask[18:28, 20:36] = True
    return mask


@pytest.fixture
def result() -> Segmentation:
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE_WH[::-1], 3), dtype=np.uint8)
    masks = [ring_and_crumbs(), block() & ~block(), block()]
    return Segmentation.from_masks(
        masks, [0.61, 0.9, 0.87], ["the cup", 'no: "dog"', "面"], image=Image.fromarray(noise), source="in/p1.png"
    )


@pytest.fixture
def write(tmp_path: Path, result: Segmentation) -> Callable[[str], list[Path]]:
    assert result.image is not None
    result.image.save(tmp_path / "p1.png")
    return lambda name: write_outputs(result, tmp_path, "p1", [name])


def filled(line: np.ndarray) -> np.ndarray:
    """Fill a closed line by the even-odd rule, at the middles of pixels."""
    x, y = np.arange(SIZE_WH[0]) + 0.5, np.arange(SIZE_WH[1]) + 0.5
    mask = np.zeros(SIZE_WH[::-1], dtype=bool)
    for (x0, y0), (x1, y1) in zip(line, np.roll(line, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (y > min(y0, y1)) & (y < max(y0, y1))
            at = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
            mask ^= crosses[:, None] & (x[None] > at[:, None])
    return mask


def read_yolo(path: Path) -> list[tuple[int, np.ndarray]]:
    """Read a label file as the format is published: class, then x and y in parts of the sides."""
    found = []
    for line in path.read_text("utf-8").splitlines():
        number, *values = line.split()
        places = np.array([float(value) for value in values]).reshape(-1, 2)
        assert ((places >= 0) & (places <= 1)).all()
        assert len(places) >= 3
        found.append((int(number), places * SIZE_WH))
    return found


# ---------------------------------------------------------------------- COCO and codes


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own, with NumPy 2
def test_pycocotools_reads_instances_and_results(write: Callable[[str], list[Path]], result: Segmentation):
    [instances], [results] = write("coco"), write("coco-results")
    with contextlib.redirect_stdout(io.StringIO()):
        coco: Any = COCO(str(instances))  # its stubs know no score
        loaded: Any = coco.loadRes(str(results))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(result.queries)
    assert coco.loadImgs([1])[0]["file_name"] == "p1.png"
    for one in (coco, loaded):
        annotations = one.loadAnns(one.getAnnIds())
        assert [entry["category_id"] for entry in annotations] == [1, 3]
        for entry, k in zip(annotations, (0, 2), strict=True):
            np.testing.assert_array_equal(one.annToMask(entry).astype(bool), result.mask(k))
            assert entry["score"] == pytest.approx(float(result.scores[k]), abs=1e-6)
            x, y, width, height = entry["bbox"]
            assert [x, y, x + width, y + height] == result.boxes_xyxy[k].tolist()
            assert entry["area"] == result.areas[k]
    assert [one.score for one in read_coco_results(results)] == pytest.approx([0.61, 0.87], abs=1e-6)


def test_our_own_reader_reads_coco(write: Callable[[str], list[Path]], result: Segmentation, tmp_path: Path):
    parsed = read_instances(write("coco")[0], "train", tmp_path)
    decoded = {query.text: query for query in parsed.records[0].annotation.queries}  # type: ignore[union-attr]
    assert len(decoded) == 2
    [mask] = [region.decode(SIZE_WH) for _, region in decoded["the cup"].regions]
    np.testing.assert_array_equal(mask, result.mask(0))


def test_run_lengths_are_cocos(write: Callable[[str], list[Path]], result: Segmentation):
    from pycocotools import mask as codec

    [short], [long] = write("rle"), write("rle-uncompressed")
    for k, (entry, plain) in enumerate(zip(json.loads(short.read_bytes()), json.loads(long.read_bytes()), strict=True)):
        assert (entry["query"], plain["query"]) == (result.queries[k],) * 2
        assert plain["counts"][0] == int(np.argmax(np.append(result.mask(k).T.ravel(), True)))  # background first
        again: Any = codec.frPyObjects([{"size": plain["size"], "counts": plain["counts"]}], *plain["size"])  # type: ignore[arg-type]
        assert again[0]["counts"].decode() == entry["counts"] == result.to_coco_rle()[k]["counts"]


def test_parts_are_instances_of_one_category(tmp_path: Path, result: Segmentation):
    parts = result.parts()
    [path] = write_outputs(parts, tmp_path, "p1", ["coco"])
    content = json.loads(path.read_bytes())
    assert [category["name"] for category in content["categories"]] == list(result.queries)
    assert [entry["category_id"] for entry in content["annotations"]] == [1, 1, 1, 1, 3]
    assert len({entry["id"] for entry in content["annotations"]}) == 5


# ---------------------------------------------------------------------- polygons


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.5, 0.8]))
def test_rings_in_one_line_fill_to_the_mask(seed: int, share: float):
    mask = np.random.default_rng(seed).random((9, 11)) < share
    if mask.any():
        np.testing.assert_array_equal(filled(one_line(trace_polygons(mask)))[:9, :11], mask)


def test_yolo_lines_fill_to_the_masks(write: Callable[[str], list[Path]], result: Segmentation):
    import yaml

    labels, names = write("yolo")
    found = read_yolo(labels)
    assert [number for number, _ in found] == [0, 2]
    for number, line in found:
        np.testing.assert_allclose(line, line.round(), atol=1e-4)
        np.testing.assert_array_equal(filled(line.round()), result.mask(number))
    assert yaml.safe_load(names.read_text("utf-8"))["names"] == dict(enumerate(result.queries))


def test_names_of_yolo_are_read_back_whatever_they_are():
    import yaml

    names = [
        "the cup",
        'a "b" \\ c',
        "\U0001f600 \u043a\u043e\u0448\u043a\u0430",
        "x\ny\t",
        "{a}: #b",
        "\\U0001f600",
        "\udc80",
    ]
    content = yolo_names(names)
    assert content.isascii()
    assert yaml.safe_load(content)["names"] == dict(enumerate(names))


def test_ultralytics_reads_yolo(write: Callable[[str], list[Path]], result: Segmentation, tmp_path: Path):
    utils = need("ultralytics.data.utils")
    labels, _ = write("yolo")
    (tmp_path / "p1.txt").write_bytes(labels.read_bytes())
    found = utils.verify_image_label((str(tmp_path / "p1.png"), str(tmp_path / "p1.txt"), "", False, 3, 0, 0, False))
    classes, segments, corrupt, message = found[1], found[3], found[8], found[9]
    assert (corrupt, message) == (0, "")
    assert classes[:, 0].tolist() == [0, 2]
    for segment, k in zip(segments, (0, 2), strict=True):
        drawn = utils.polygon2mask(SIZE_WH[::-1], [(segment * SIZE_WH).reshape(-1)]).astype(bool)
        # It draws the line as well, which lies on the pixels' edges: a pixel more at the right and below.
        assert not (result.mask(k) & ~drawn).any()
        assert (result.mask(k) & drawn).sum() / (result.mask(k) | drawn).sum() > 0.7


# ---------------------------------------------------------------------- Label Studio


def accepted(path: Path) -> Path:
    """What Label Studio exports when a person accepts the predictions as they are."""
    tasks = json.loads(path.read_bytes())
    for task in tasks:
        task["annotations"] = [{"was_cancelled": False, "result": task.pop("predictions")[0]["result"]}]
    path.write_text(json.dumps(tasks), "utf-8")
    return path


@pytest.mark.parametrize("name", ["label-studio", "label-studio-polygons"])
def test_a_task_is_ready_to_import(write: Callable[[str], list[Path]], result: Segmentation, name: str):
    [task] = json.loads(write(name)[0].read_bytes())
    assert task["data"] == {"image": "p1.png"}
    [prediction] = task["predictions"]
    assert prediction["score"] == pytest.approx(0.74, abs=1e-6)
    kind = "brushlabels" if name == "label-studio" else "polygonlabels"
    assert {region["type"] for region in prediction["result"]} == {kind}
    assert [region["value"][kind] for region in prediction["result"]][-1] == ["面"]
    assert len({region["id"] for region in prediction["result"]}) == len(prediction["result"])
    for region in prediction["result"]:
        assert (region["original_width"], region["original_height"], region["image_rotation"]) == (*SIZE_WH, 0)
        assert region["to_name"] == "image"
        assert region["score"] in (pytest.approx(0.61, abs=1e-6), pytest.approx(0.87, abs=1e-6))


@pytest.mark.parametrize(("name", "least"), [("label-studio", 1.0), ("label-studio-polygons", 0.95)])
def test_accepted_predictions_are_our_readers_masks(
    write: Callable[[str], list[Path]], result: Segmentation, tmp_path: Path, name: str, least: float
):
    parsed = read_label_studio(accepted(write(name)[0]), "train", tmp_path)
    [record] = parsed.records
    assert record.picture == tmp_path / "p1.png"
    queries = {query.text: query for query in record.annotation.queries}  # type: ignore[union-attr]
    for k, text in ((0, "the cup"), (2, "the 面")):
        mask = np.any([region.decode(SIZE_WH) for _, region in queries[text].regions], axis=0)
        expected = result.mask(k)
        assert (mask & expected).sum() / (mask | expected).sum() >= least  # pycocotools rounds polygons its own way


def test_polygons_of_label_studio_fill_to_the_mask(write: Callable[[str], list[Path]], result: Segmentation):
    [task] = json.loads(write("label-studio-polygons")[0].read_bytes())
    found = np.zeros(SIZE_WH[::-1], dtype=bool)
    regions = [one for one in task["predictions"][0]["result"] if one["value"]["polygonlabels"] == ["the cup"]]
    for region in regions:
        line = np.array(region["value"]["points"]) / 100 * SIZE_WH
        found |= filled(line.round())
    np.testing.assert_array_equal(found, result.mask(0))
    assert len(regions) == 5  # corners do not join


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_brush_strokes_unpack_to_the_mask(seed: int, height: int, width: int, share: float):
    mask = np.random.default_rng(seed).random((height, width)) < share
    np.testing.assert_array_equal(Brush(pack_brush(mask).tolist(), (width, height)).decode((width, height)), mask)


def test_long_runs_are_several():
    mask = np.zeros((500, 700), dtype=bool)
    mask[200:, :] = True
    np.testing.assert_array_equal(Brush(pack_brush(mask), (700, 500)).decode((700, 500)), mask)
    assert len(pack_brush(mask)) < 100


def test_label_studios_own_decoder_unpacks_brush_strokes(write: Callable[[str], list[Path]], result: Segmentation):
    brush = need("label_studio_sdk.converter.brush")
    [task] = json.loads(write("label-studio")[0].read_bytes())
    for region, k in zip(task["predictions"][0]["result"], (0, 2), strict=True):
        values = brush.decode_rle(region["value"]["rle"]).reshape(*SIZE_WH[::-1], 4)
        np.testing.assert_array_equal(values[..., 3] > 0, result.mask(k))
        np.testing.assert_array_equal(values[..., 0], values[..., 3])


# ---------------------------------------------------------------------- pictures


def test_indexed_maps_are_our_readers_masks(write: Callable[[str], list[Path]], result: Segmentation, tmp_path: Path):
    picture, classes = write("indexed")
    with Image.open(picture) as image:
        assert image.mode == "P"
    for name in ("images", "masks"):
        (tmp_path / "set" / name).mkdir(parents=True)
    (tmp_path / "p1.png").rename(tmp_path / "set/images/p1.png")
    picture.rename(tmp_path / "set/masks/p1.png")
    classes.rename(tmp_path / "set/classes.txt")
    [record] = read_indexed(tmp_path / "set", "train").records
    decoded = {one.text: one.mask for one in record.annotation.decode(SIZE_WH)}  # type: ignore[union-attr]
    assert set(decoded) == {"the cup", "the 面"}
    np.testing.assert_array_equal(decoded["the 面"], result.mask(2))  # the higher score is on top
    np.testing.assert_array_equal(decoded["the cup"], result.mask(0) & ~result.mask(2))


def test_cutouts_are_transparent_around_the_mask(write: Callable[[str], list[Path]], result: Segmentation):
    paths = write("cutout")
    assert [path.name for path in paths] == ["p1.cutout0.png", "p1.cutout2.png"]  # nothing of what is not there
    assert result.image is not None
    for path, k in zip(paths, (0, 2), strict=True):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGBA", SIZE_WH)
            pixels = np.asarray(image)
        np.testing.assert_array_equal(pixels[..., 3], result.mask(k) * 255)
        np.testing.assert_array_equal(pixels[..., :3], np.asarray(result.image))


# ---------------------------------------------------------------------- supervision


def test_supervision_takes_detections(result: Segmentation):
    supervision = need("supervision")
    found = result.to_supervision()
    assert isinstance(found, supervision.Detections)
    np.testing.assert_array_equal(found.mask, result.masks[[0, 2]])
    np.testing.assert_array_equal(found.xyxy, result.boxes_xyxy[[0, 2]])
    assert found.class_id.tolist() == [0, 2]
    assert found["class_name"].tolist() == ["the cup", "面"]
    np.testing.assert_allclose(found.confidence, [0.61, 0.87], atol=1e-6)
    np.testing.assert_array_equal(found.area, result.areas[[0, 2]])
    assert result.image is not None
    scene = np.asarray(result.image).copy()
    assert supervision.MaskAnnotator().annotate(scene, found).shape == scene.shape
    assert result[1].to_supervision().is_empty()


def test_without_supervision_the_message_says_what_to_install(result: Segmentation, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match=r"self1e\[supervision\]"):
        result.to_supervision()


def test_detections_are_what_supervision_is_given(result: Segmentation, monkeypatch: pytest.MonkeyPatch):
    """Without the library: the arguments, as its ``Detections`` documents them."""
    import sys

    given: list[dict[str, Any]] = []
    stand_in = ModuleType("supervision")
    stand_in.Detections = lambda **arguments: given.append(arguments)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", stand_in)
    result.to_supervision()
    [arguments] = given
    assert (arguments["xyxy"].shape, arguments["xyxy"].dtype) == ((2, 4), np.float32)
    assert (arguments["mask"].shape, arguments["mask"].dtype) == ((2, *SIZE_WH[::-1]), bool)
    assert arguments["class_id"].tolist() == [0, 2]
