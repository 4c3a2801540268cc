"""Pascal Context in each of its public layouts gives the same truth; what is numbered otherwise is told."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from self1e.data.class_names import PASCAL_CONTEXT_59, PASCAL_CONTEXT_459
from self1e.data.mat_files import read_mat
from self1e.errors import DatasetError, MissingDependencyError
from self1e.evaluation.benchmarks import find_benchmark
from self1e.evaluation.benchmarks.pascal_context import table_of_59

TREE, TABLE, ACCORDION, CAT = (PASCAL_CONTEXT_459.index(name) + 1 for name in ("tree", "table", "accordion", "cat"))
ORIGINAL = np.array([[0, TREE, TABLE], [ACCORDION, CAT, CAT]], np.uint16)
"""Numbers of the original download."""
OF_59 = np.where(ORIGINAL == ACCORDION, 0, ORIGINAL)  # an accordion is none of the 59 classes
LABELS_59 = [
    [255, PASCAL_CONTEXT_59.index("tree"), PASCAL_CONTEXT_59.index("diningtable")],
    [255, PASCAL_CONTEXT_59.index("cat"), PASCAL_CONTEXT_59.index("cat")],
]
LABELS_459 = np.where(ORIGINAL == 0, 65535, ORIGINAL.astype(int) - 1)


def mat_of(values: Any, name: str = "LabelMap", compressed: bool = False) -> bytes:
    file = io.BytesIO()
    savemat(file, {name: values}, do_compression=compressed)
    return file.getvalue()


def picture(path: Path, shape_hw: tuple[int, int] = (2, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = shape_hw
    Image.new("RGB", (width, height)).save(path)


def labels(path: Path, values: Any, dtype: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype)).save(path)


def detectron2(root: Path) -> None:
    picture(root / "VOCdevkit/VOC2010/JPEGImages/a.jpg")
    labels(root / "VOCdevkit/VOC2010/annotations_detectron2/pc59_val/a.png", LABELS_59)
    labels(root / "VOCdevkit/VOC2010/annotations_detectron2/pc459_val/a.tif", LABELS_459, np.uint16)


def one_folder(root: Path) -> None:
    picture(root / "pascal_ctx_d2/images/validation/a.jpg")
    labels(root / "pascal_ctx_d2/annotations_ctx59/validation/a.png", LABELS_59)
    labels(root / "pascal_ctx_d2/annotations_ctx459/validation/a.tif", LABELS_459, np.uint16)


def folder_each(root: Path) -> None:
    for name, values, dtype, ending in (
        ("pcontext", LABELS_59, np.uint8, ".png"),
        ("pcontext_full", LABELS_459, np.uint16, ".tif"),
    ):
        picture(root / name / "val/image/a.jpg")
        labels(root / name / f"val/label/a{ending}", values, dtype)


def mmseg(root: Path) -> None:
    home = root / "VOCdevkit" / "VOC2010"
    stored = np.where(np.array(LABELS_59) == 255, 0, np.array(LABELS_59) + 1)
    for name in ("a", "of-training"):
        picture(home / "JPEGImages" / f"{name}.jpg")
        labels(home / "SegmentationClassContext" / f"{name}.png", stored)
    (home / "ImageSets" / "SegmentationContext").mkdir(parents=True)
    (home / "ImageSets" / "SegmentationContext" / "val.txt").write_text("a\n", "utf-8")


def original(root: Path) -> None:
    home = root / "VOCdevkit" / "VOC2010"
    (home / "trainval").mkdir(parents=True)
    for name in ("a", "of-training"):
        picture(home / "JPEGImages" / f"{name}.jpg")
        (home / "trainval" / f"{name}.mat").write_bytes(mat_of(ORIGINAL))
    (home / "ImageSets" / "Main").mkdir(parents=True)
    (home / "ImageSets" / "Main" / "val.txt").write_text("a\n", "utf-8")


@pytest.mark.parametrize("name", ["pc-59", "pc-459"])
@pytest.mark.parametrize("lay", [detectron2, one_folder, folder_each, mmseg, original])
def test_every_layout_gives_the_same_truth(tmp_path: Path, lay: Callable[[Path], None], name: str) -> None:
    lay(tmp_path)
    if lay is mmseg and name == "pc-459":
        with pytest.raises(DatasetError, match=r"SegmentationClassContext has the 59 classes alone: unpack"):
            find_benchmark("pc-459/val").open(tmp_path)
        return
    opened = find_benchmark(f"{name}/val").open(tmp_path)
    assert not opened.problems
    [unit] = opened.units  # pictures of training are left out
    assert unit.labels.tolist() == (LABELS_59 if name == "pc-59" else LABELS_459.tolist())
    assert unit.source == f"{name}/val/a"


def test_the_59_are_found_by_name_among_the_459() -> None:
    table = table_of_59()
    assert sorted(table[table != 255]) == list(range(59))
    kept = np.flatnonzero(table != 255)
    assert (table[kept] == np.arange(59)).all()  # the order of the names is that of the numbers
    assert [kept[k] for k in (0, 1, 49, 58)] == [2, 9, 397, 458]  # as the public scripts list them


def test_labels_in_the_order_of_another_script_are_told(tmp_path: Path) -> None:
    detectron2(tmp_path)
    home = tmp_path / "VOCdevkit" / "VOC2010"
    labels(home / "SegmentationClass" / "a.png", [[0, 0, 11], [255, 8, 8]])  # VOC: 11 diningtable, 8 cat
    assert not find_benchmark("pc-59/val").open(tmp_path).problems
    assert not find_benchmark("pc-459/val").open(tmp_path).problems
    labels(home / "annotations_detectron2/pc59_val/a.png", [[255, 52, 10], [255, 7, 7]])  # 59_labels.txt: 7 is cat
    [problem] = find_benchmark("pc-59/val").open(tmp_path).problems
    assert "numbers its classes in another order than pc-59" in problem
    assert "0 % has the same name" in problem


def test_a_zero_for_the_background_in_maps_without_is_told(tmp_path: Path) -> None:
    detectron2(tmp_path)
    path = tmp_path / "VOCdevkit/VOC2010/annotations_detectron2/pc59_val/a.png"
    labels(path, [[0, 59, 50], [0, 15, 15]])
    [problem] = find_benchmark("pc-59/val").open(tmp_path).problems
    assert "holds the labels [59], expected 0 to 58 or 255" in problem


def test_pictures_of_training_are_not_measured_by_accident(tmp_path: Path) -> None:
    original(tmp_path)
    (tmp_path / "VOCdevkit/VOC2010/ImageSets/Main/val.txt").unlink()
    with pytest.raises(DatasetError, match=r"nothing says which are for validation: put pascalcontext_val\.txt or"):
        find_benchmark("pc-459/val").open(tmp_path)


def test_what_was_found_instead_is_named(tmp_path: Path) -> None:
    (tmp_path / "VOCdevkit" / "VOC2010" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "VOCdevkit" / "VOC2010" / "trainval_merged.json").touch()
    with pytest.raises(DatasetError) as caught:
        find_benchmark("pc-59/val").open(tmp_path)
    told = str(caught.value)
    assert "holds JPEGImages, trainval_merged.json. trainval_merged.json alone is not read: unpack" in told
    assert "annotations_detectron2/pc59_val/*.png, pascal_ctx_d2/" in told.replace("\\", "/")


@pytest.mark.parametrize("compressed", [False, True])
def test_numbers_keep_their_type_and_places(tmp_path: Path, compressed: bool) -> None:
    (tmp_path / "a.mat").write_bytes(mat_of(ORIGINAL, compressed=compressed))
    found = read_mat(tmp_path / "a.mat", "LabelMap")
    assert found.dtype == np.uint16
    assert found.tolist() == ORIGINAL.tolist()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "is missing"),
        (b"", "cannot be read as a MATLAB file below 7.3"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\x02IM", "cannot be read as a MATLAB file below 7.3"),
        (b"<!DOCTYPE html>" * 20, "cannot be read as a MATLAB file below 7.3"),
        (mat_of(ORIGINAL)[:-20], "cannot be read as a MATLAB file below 7.3"),
        (mat_of(ORIGINAL, compressed=True)[:-5], "cannot be read as a MATLAB file below 7.3"),
        (mat_of(ORIGINAL, "LabelMop"), "holds LabelMop, expected an array of numbers 'LabelMap'"),
        (mat_of("words"), "'LabelMap' holds <U5, expected numbers"),
    ],
)
def test_bad_files_are_told(tmp_path: Path, content: bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(DatasetError, match=told):
        read_mat(tmp_path / "a.mat", "LabelMap")


def test_without_scipy_the_way_to_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(MissingDependencyError, match=r"self1e\[mat\]"):
        read_mat(tmp_path / "a.mat", "LabelMap")


def test_a_map_of_another_size_than_its_picture_is_told(tmp_path: Path) -> None:
    original(tmp_path)
    picture(tmp_path / "VOCdevkit/VOC2010/JPEGImages/a.jpg", (5, 7))
    [problem] = find_benchmark("pc-59/val").open(tmp_path).problems
    assert "is 3x2 but the picture 7x5" in problem
