"""Files for all pictures of a folder run: what is in them, and that stopping and adding pictures changes no id."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from self1e.data.own.coco import read_instances
from self1e.data.own.label_studio import read_label_studio
from self1e.errors import SettingError
from self1e.inference import folder as folder_module
from self1e.inference.folder import segment_folder
from self1e.inference.parts import PartOptions
from self1e.processing.pictures import OpenedPicture
from self1e.structures import Segmentation, decode_rle

FORMATS = ["coco", "coco-results", "yolo", "label-studio"]
WORDS = ["left", "a dog", "two blocks"]


class Blocks:
    """Stands for a model whose masks follow from the words."""

    name, dtype = "blocks", "none"

    def segment(self, picture: OpenedPicture, queries: Any, **options: Any) -> Segmentation:
        width, height = picture.image.size
        masks = []
        for words in queries:
            mask = np.zeros((height, width), dtype=bool)
            if words == "left":
                mask[:, : width // 3] = True
            if words == "two blocks":
                mask[2:8, 3:9] = mask[2:6, 12:20] = True
                mask[4, 5] = False
            masks.append(mask)
        return Segmentation.from_masks(
            masks, [0.8] * len(masks), queries, image=picture.image, source=picture.source, size_wh=(width, height)
        )


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "fingerprint", lambda model: "none")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, name in enumerate(("a/x.png", "b/x.png", "y.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30 + number, 20), (number, 90, 30)).save(path)
    return tmp_path / "photos"


def run(photos: Path, out: Path, **options: Any) -> Any:
    return segment_folder(Blocks(), photos, out, WORDS, **({"formats": FORMATS} | options))


def combined(out: Path) -> dict[str, bytes]:
    names = ["coco.json", "coco-results.json", "label-studio.json", "yolo/data.yaml"]
    return {name: (out / name).read_bytes() for name in names}


def test_one_coco_file_for_all_pictures(photos: Path, tmp_path: Path):
    report = run(photos, tmp_path / "o")
    assert [path.relative_to(tmp_path / "o").as_posix() for path in report.combined] == [
        "coco.json",
        "coco-results.json",
        "yolo/labels/a/x.txt",
        "yolo/labels/b/x.txt",
        "yolo/labels/y.txt",
        "yolo/data.yaml",
        "label-studio.json",
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "o/coco.json"))
        loaded = coco.loadRes(str(tmp_path / "o/coco-results.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == WORDS
    assert [entry["file_name"] for entry in coco.loadImgs(coco.getImgIds())] == ["a/x.png", "b/x.png", "y.png"]
    assert [entry["id"] for entry in coco.loadAnns(coco.getAnnIds())] == [1, 2, 3, 4, 5, 6]
    for image in coco.loadImgs(coco.getImgIds()):
        for one in (coco, loaded):
            found = one.loadAnns(one.getAnnIds(imgIds=image["id"]))
            assert [entry["category_id"] for entry in found] == [1, 3]
            mask = decode_rle(found[0]["segmentation"] | {"counts": found[0]["segmentation"]["counts"].encode()})
            assert mask.shape == (20, image["width"])
            assert mask.sum() == 20 * (image["width"] // 3) == found[0]["area"]


def test_our_own_readers_take_them_as_training_data(photos: Path, tmp_path: Path):
    run(photos, tmp_path / "o")
    parsed = read_instances(tmp_path / "o/coco.json", "train", photos)
    assert [record.picture for record in parsed.records] == [photos / "a/x.png", photos / "b/x.png", photos / "y.png"]
    assert all(record.picture.is_file() for record in parsed.records)
    tasks = json.loads((tmp_path / "o/label-studio.json").read_bytes())
    for task in tasks:
        task["annotations"] = task.pop("predictions")
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), "utf-8")
    parsed = read_label_studio(tmp_path / "tasks.json", "train", photos)
    assert [record.picture for record in parsed.records] == [photos / "a/x.png", photos / "b/x.png", photos / "y.png"]
    assert [len(record.annotation.queries) for record in parsed.records] == [2, 2, 2]  # type: ignore[union-attr]


def test_queries_of_each_picture_share_categories(photos: Path, tmp_path: Path):
    (photos / "q.csv").write_text("image,query\na/x.png,two blocks\nb/x.png,left\nb/x.png,two blocks\n", "utf-8")
    segment_folder(Blocks(), None, tmp_path / "o", table=photos / "q.csv", formats=FORMATS)
    coco = json.loads((tmp_path / "o/coco.json").read_bytes())
    assert [category["name"] for category in coco["categories"]] == ["two blocks", "left"]
    assert [(entry["image_id"], entry["category_id"]) for entry in coco["annotations"]] == [(1, 1), (2, 2), (2, 1)]
    lines = (tmp_path / "o/yolo/labels/b/x.txt").read_text("utf-8").splitlines()
    assert [line.split()[0] for line in lines] == ["1", "0"]
    assert (tmp_path / "o/yolo/data.yaml").read_text("utf-8").endswith('names:\n  0: "two blocks"\n  1: "left"\n')


def test_a_stopped_run_ends_with_the_same_files(photos: Path, tmp_path: Path):
    run(photos, tmp_path / "whole")
    stop = threading.Event()
    report = run(photos, tmp_path / "o", stop=stop, on_record=lambda *told: stop.set())
    assert report.stopped
    assert report.combined == []
    assert not (tmp_path / "o/coco.json").exists()
    assert run(photos, tmp_path / "o").kept > 0
    assert combined(tmp_path / "o") == combined(tmp_path / "whole")


def test_ids_stay_when_pictures_are_added_or_mended(photos: Path, tmp_path: Path):
    good = (photos / "b/x.png").read_bytes()
    (photos / "b/x.png").write_bytes(b"broken")
    assert len(run(photos, tmp_path / "o").failed) == 1
    before = json.loads((tmp_path / "o/coco.json").read_bytes())
    assert [(image["id"], image["file_name"]) for image in before["images"]] == [(1, "a/x.png"), (3, "y.png")]
    (photos / "b/x.png").write_bytes(good)
    Image.new("RGB", (30, 20)).save(photos / "0.png")  # the first by name
    run(photos, tmp_path / "o")
    after = json.loads((tmp_path / "o/coco.json").read_bytes())
    assert [(image["id"], image["file_name"]) for image in after["images"]] == [
        (1, "a/x.png"),
        (2, "b/x.png"),
        (3, "y.png"),
        (4, "0.png"),
    ]
    assert after["categories"] == before["categories"]


def test_parts_are_settings_of_a_run(photos: Path, tmp_path: Path):
    parts = PartOptions(split=True, fill_holes=True)
    run(photos, tmp_path / "o", parts=parts)
    coco = json.loads((tmp_path / "o/coco.json").read_bytes())
    assert [entry["category_id"] for entry in coco["annotations"] if entry["image_id"] == 1] == [1, 3, 3]
    assert [entry["area"] for entry in coco["annotations"] if entry["image_id"] == 1] == [200, 36, 32]
    line = json.loads((tmp_path / "o/manifest.jsonl").read_text("utf-8").splitlines()[0])
    assert [(entry["query"], entry["area"]) for entry in line["queries"]] == list(zip(WORDS, [200, 0, 68], strict=True))
    assert run(photos, tmp_path / "o", parts=parts).kept == 3
    with pytest.raises(SettingError, match="parts was"):
        run(photos, tmp_path / "o")
    assert run(photos, tmp_path / "plain").done == 3
    assert run(photos, tmp_path / "plain", parts=PartOptions()).kept == 3


def test_pictures_that_would_share_a_label_file_are_refused_before_the_run(photos: Path, tmp_path: Path):
    Image.new("RGB", (30, 20)).save(photos / "a/X.jpg")
    with pytest.raises(SettingError, match="differ only in their suffix"):
        run(photos, tmp_path / "o")
    assert run(photos, tmp_path / "p", formats=["coco"]).done == 4
