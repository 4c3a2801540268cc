"""ADE20K-150, Pascal Context 59 and 459, VOC 20: small folders in the published layouts, from pictures to Table 4.

Truth and predictions are compared by a second, naive implementation of METRICS 4.3, class by class and pixel by pixel.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from self1e.cli.main import main
from self1e.evaluation.dump import read_rows
from self1e.evaluation.saved_masks import decode_text_rle

pytestmark = pytest.mark.usefixtures("one_thread")

PHOTOS = ("2011_000003", "2011_000006")


Predict = Callable[[Path], np.ndarray]
"""From a picture to the model's class at every pixel."""


@dataclass(frozen=True)
class Picture:
    """One picture of a set."""

    truth: np.ndarray
    """-1 where a pixel counts nowhere."""
    predicted: np.ndarray
    """By asking every class on one encoding and enlarging here."""


@dataclass(frozen=True)
class Published:
    """One of the four sets as it lies on the disk."""

    name: str
    column: int
    """In Table 4."""
    whole: int
    """Pictures of the published set."""
    make: Callable[[Path, Path, Predict], dict[str, Picture]]
    """Writes the layout; returns its pictures by name."""
    classes: str
    """File of the class list, index order."""


def ade20k(root: Path, conformance: Path, predict: Predict) -> dict[str, Picture]:
    """Real pictures and maps: 0 is unlabelled, k is class k - 1."""
    truths = {}
    for folder in ("images", "annotations"):
        shutil.copytree(conformance / "ade20k" / folder, root / "ade20k" / folder / "validation")
    for picture in sorted((root / "ade20k" / "images" / "validation").iterdir()):
        shrink(picture, Image.Resampling.BILINEAR)
        stored = shrink(
            root / "ade20k" / "annotations" / "validation" / f"{picture.stem}.png", Image.Resampling.NEAREST
        )
        truths[picture.stem] = Picture(np.where(stored == 0, -1, stored.astype(int) - 1), predict(picture))
    return truths


def voc(root: Path, conformance: Path, predict: Predict) -> dict[str, Picture]:
    """Real VOC 2012 pictures with their maps in palette mode: 0 is background, 255 the border."""
    source = conformance / "voc2012_labelme" / "data_dataset_voc"
    home = root / "VOCdevkit" / "VOC2012"
    truths = {}
    for folder in ("JPEGImages", "SegmentationClass"):
        shutil.copytree(source / folder, home / folder)
    (home / "ImageSets" / "Segmentation").mkdir(parents=True)
    (home / "ImageSets" / "Segmentation" / "val.txt").write_text("".join(f"{name}\n" for name in PHOTOS), "utf-8")
    for name in PHOTOS:
        picture = home / "JPEGImages" / f"{name}.jpg"
        shrink(picture, Image.Resampling.BILINEAR)
        stored = shrink(home / "SegmentationClass" / f"{name}.png", Image.Resampling.NEAREST)
        nowhere = (stored == 0) | (stored == 255)
        truths[name] = Picture(np.where(nowhere, -1, stored.astype(int) - 1), predict(picture))
    return truths


def context(
    root: Path, conformance: Path, predict: Predict, folder: str, labels: np.ndarray, ignore: int
) -> dict[str, Picture]:
    """Real pictures with maps as the public preparation for detectron2 writes them.

    Labels come in blocks, and a third of the blocks hold what the model predicts most: so that something is right.
    """
    home = root / "VOCdevkit" / "VOC2010"
    (home / "JPEGImages").mkdir(parents=True)
    (home / "annotations_detectron2" / folder).mkdir(parents=True)
    truths = {}
    for number, name in enumerate(PHOTOS):
        picture = home / "JPEGImages" / f"{name}.jpg"
        shutil.copy(conformance / "voc2012_labelme" / "data_dataset_voc" / "JPEGImages" / f"{name}.jpg", picture)
        shrink(picture, Image.Resampling.BILINEAR)
        predicted = predict(picture)
        most = np.bincount(predicted.ravel()).argmax()
        rows, columns = np.indices(predicted.shape) // 24
        stored = labels[(rows * 7 + columns * 3 + number * 5) % len(labels)]
        stored = np.where(((rows + columns) % 3 == 0) & (predicted == most), most, stored).astype(labels.dtype)
        path = home / "annotations_detectron2" / folder / name
        if stored.dtype == np.uint16:
            Image.fromarray(stored).save(f"{path}.tif", compression="tiff_lzw")  # OpenCV's default
        else:
            Image.fromarray(stored).save(f"{path}.png")
        truths[name] = Picture(np.where(stored == ignore, -1, stored.astype(int)), predicted)
    return truths


def context59(root: Path, conformance: Path, predict: Predict) -> dict[str, Picture]:
    """Labels 0 to 58, background is 255."""
    return context(root, conformance, predict, "pc59_val", np.array([0, 12, 255, 58, 33, 7, 0, 21], np.uint8), 255)


def context459(root: Path, conformance: Path, predict: Predict) -> dict[str, Picture]:
    """Sixteen bits: 255 is a class, 65535 is ignored."""
    return context(
        root, conformance, predict, "pc459_val", np.array([0, 255, 65535, 458, 300, 255, 17], np.uint16), 65535
    )


def shrink(path: Path, how: Image.Resampling) -> np.ndarray:
    """Make a file smaller in place, mode and palette kept: many classes are asked."""
    with Image.open(path) as opened:
        opened.load()
        small = opened.resize((opened.width // 4, opened.height // 4), how)
    small.save(path, quality=95)  # of JPEG
    return np.asarray(small)


SETS = [
    Published("ade20k-150/val", 0, 2000, ade20k, "ade20k_classes.json"),
    Published("pc-59/val", 1, 5105, context59, "pascal_context_59.txt"),
    Published("pc-459/val", 2, 5105, context459, "pascal_context_459.txt"),
    Published("pas-20/val", 3, 1449, voc, "pascal_voc_20.txt"),
]


@pytest.fixture(scope="module")
def nano() -> Any:
    """The model that is inside the package."""
    import self1e

    return self1e.load("nano", device="cpu")


def names_of(path: Path) -> list[str]:
    if path.suffix == ".json":
        found = json.loads(path.read_text("utf-8"))
        return [name if isinstance(name, str) else name["name"] for name in found]
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def naive_miou(pairs: list[tuple[np.ndarray, np.ndarray]], count: int) -> tuple[float, float]:
    """Both averages of METRICS 4.3, from truths (-1 is ignored) and predictions."""
    truth = np.concatenate([a.ravel() for a, _ in pairs])
    given = np.concatenate([b.ravel() for _, b in pairs])
    given = given[truth >= 0]
    truth = truth[truth >= 0]
    d2, mmseg = [], []
    for label in range(count):
        hits = int(np.sum((truth == label) & (given == label)))
        union = int(np.sum((truth == label) | (given == label)))
        if union:
            mmseg.append(hits / union)
            if np.any(truth == label):
                d2.append(hits / union)
    return float(np.mean(d2)), float(np.mean(mmseg))


MANY = ("ade20k-150/val", "pc-459/val")  # names, and so seconds


@pytest.mark.parametrize(
    "one",
    [pytest.param(one, id=one.name, marks=[pytest.mark.slow] if one.name in MANY else []) for one in SETS],
)
def test_a_published_layout_is_measured_from_pictures_to_table_4(
    one: Published, conformance: Path, nano: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = names_of(conformance / "class_lists" / one.classes)

    def predict(picture: Path) -> np.ndarray:
        with Image.open(picture) as opened:
            shape_hw = opened.size[::-1]
        asked = nano.segment(picture, names, kind="phrase", return_logits=True).mask_logits
        enlarged = interpolate(torch.from_numpy(asked)[None], shape_hw, mode="bilinear", align_corners=False)
        return enlarged[0].argmax(0).numpy()

    pictures = one.make(tmp_path / "dataset", conformance, predict)
    assert len(pictures) == 2
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        main(["eval", one.name, "--data", str(tmp_path), "--out", str(out), "--device", "cpu", "--report"])
    assert stopped.value.code == 0
    [path] = out.rglob("rows-*.jsonl")
    run, rows = read_rows(path)
    assert run.protocol == f"ovs.d2/{one.name.split('/')[0]}"
    assert f"{len(names)} names" in run.prompt
    pairs = []
    for row in rows:
        picture = pictures[row["id"].rpartition("/")[2]]
        truth, given = picture.truth, np.full(picture.truth.shape, -1)
        for label, rle in row["map"]:
            given[decode_text_rle(rle)] = label
        assert given.min() >= 0  # every pixel has a class, also where the truth is ignored
        assert sum(pixels for _, _, pixels in row["confusion"]) == np.count_nonzero(truth >= 0)
        assert np.mean(picture.predicted == given) > 0.99  # rounding may tie classes
        pairs.append((truth, given))
    content = json.loads((out / "tables.json").read_text("utf-8"))
    figures = content["runs"][0]["lines"][0]["figures"]
    d2, mmseg = naive_miou(pairs, len(names))
    assert figures["miou_cls"]["value"] == pytest.approx(d2, abs=1e-12)
    assert figures["miou_cls_mmseg"]["value"] == pytest.approx(mmseg, abs=1e-12)
    if one.make in (context59, context459):
        assert 0 < mmseg < d2 < 1  # something is right, and something was predicted that is nowhere
    if one.name == "pc-459/val":
        without = [(np.where(truth == 255, -1, truth), given) for truth, given in pairs]
        assert naive_miou(without, len(names))[0] != pytest.approx(d2)  # 255 is a class and counts
    [table] = [entry for entry in content["tables"] if entry["table"] == 4]
    [cells] = table["measured"].values()
    assert [k for k, cell in enumerate(cells) if cell] == [one.column]
    assert cells[one.column]["number"]["value"] == figures["miou_cls"]["value"]
    assert f"2 of {one.whole} samples" in content["runs"][0]["partial"]
    assert "wrong class" in (out / "report.html").read_text("utf-8")
    assert "Table 4" in capsys.readouterr().out
