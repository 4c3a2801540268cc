"""Files that other programs can read, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from self1e import files
from self1e.errors import SettingError
from self1e.files import atomic_write, atomic_write_all
from self1e.inference.export import FORMATS, write_outputs
from self1e.structures import Segmentation, decode_rle


def cup_and_dog(source: str = "kitchen/p1.jpg") -> Segmentation:
    cup = np.zeros((48, 64), dtype=bool)
    cup[20:24, 10:16] = True
    cup[21, 12] = False
    image = Image.new("RGB", (64, 48), "green")
    return Segmentation.from_masks([cup, ~cup & cup], [0.97, 0], ("茶碗", "a dog"), image=image, source=source)


def test_every_format_writes_its_files(tmp_path: Path) -> None:
    paths = write_outputs(cup_and_dog(), tmp_path / "new" / "folder", "p1", tuple(FORMATS))
    endings = (
        "overlay.png mask0.png mask1.png coco.json polygons.json json cutout0.png indexed.png classes.txt rle.json "
        "rle-uncompressed.json coco-results.json yolo.txt yolo.yaml label-studio.json label-studio-polygons.json"
    )
    names = [f"p1.{ending}" for ending in endings.split()]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(names)


def test_mask_pictures_hold_0_and_255(tmp_path: Path) -> None:
    result = cup_and_dog()
    for k, path in enumerate(write_outputs(result, tmp_path, "p1", ("mask",))):
        with Image.open(path) as image:
            assert image.mode == "L"
            np.testing.assert_array_equal(np.asarray(image), result.mask(k) * 255)


def test_coco_has_an_annotation_for_what_is_there(tmp_path: Path) -> None:
    [path] = write_outputs(cup_and_dog(), tmp_path, "p1", ("coco",))
    content = json.loads(path.read_text("utf-8"))
    assert content["images"] == [{"id": 1, "file_name": "p1.jpg", "width": 64, "height": 48}]
    assert content["categories"] == [{"id": 1, "name": "茶碗"}, {"id": 2, "name": "a dog"}]
    [cup] = content["annotations"]
    assert (cup["bbox"], cup["area"], cup["category_id"], cup["score"]) == ([10, 20, 6, 4], 23, 1, 0.97)
    np.testing.assert_array_equal(
        decode_rle(cup["segmentation"] | {"counts": cup["segmentation"]["counts"].encode()}), cup_and_dog().mask(0)
    )


def test_polygons_and_everything(tmp_path: Path) -> None:
    polygons, everything = write_outputs(cup_and_dog(), tmp_path, "p1", ("polygons", "json"))
    cup, dog = json.loads(polygons.read_text("utf-8"))["queries"]
    assert cup["polygons"][0]["exterior"] == [[10, 20], [16, 20], [16, 24], [10, 24]]
    assert len(cup["polygons"][0]["holes"]) == 1
    assert dog == {"query": "a dog", "polygons": []}
    content = json.loads(everything.read_text("utf-8"))
    assert (content["source"], content["size_wh"]) == ("kitchen/p1.jpg", [64, 48])
    cup, dog = content["queries"]
    assert (cup["score"], cup["area"], cup["box_xyxy"], cup["text"]) == (0.97, 23, [10, 20, 16, 24], "[SEG].")
    assert dog["is_empty"]
    assert not cup["is_empty"]


def test_a_source_that_is_not_unicode_is_still_json(tmp_path: Path) -> None:
    [path] = write_outputs(cup_and_dog("caf\udce9.jpg"), tmp_path, "p1", ("json",))
    assert json.loads(path.read_bytes())["source"] == "caf\udce9.jpg"


def test_a_result_without_queries_can_be_written(tmp_path: Path) -> None:
    result = Segmentation.from_masks([], [], [], image=Image.new("RGB", (6, 4)))
    assert len(write_outputs(result, tmp_path, "p1", tuple(FORMATS))) == 13  # no mask and no cutout, all else


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        (("ovrlay",), "Unknown output format 'ovrlay'. Did you mean 'overlay'\\? Known: overlay, mask"),
        (("json", "xyz123"), "Unknown output format 'xyz123'. Known"),
        ((), "formats is empty"),
    ],
)
def test_an_unknown_format_is_named_before_anything_is_written(
    tmp_path: Path, formats: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        write_outputs(cup_and_dog(), tmp_path / "out", "p1", formats)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stem", ["", "a/b", ".."])
def test_a_stem_is_a_bare_name(tmp_path: Path, stem: str) -> None:
    with pytest.raises(SettingError, match="bare file name"):
        write_outputs(cup_and_dog(), tmp_path, stem, ("json",))


def test_when_one_format_fails_no_file_is_left(tmp_path: Path) -> None:
    result = cup_and_dog()
    object.__setattr__(result, "image", None)  # the masks can be written, the overlay then cannot
    with pytest.raises(SettingError, match="needs the picture"):
        write_outputs(result, tmp_path, "p1", ("mask", "overlay"))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    assert atomic_write(path, b"old") == path

    def no_space(self: Path, target: Path) -> Path:
        raise OSError("No space left on device")

    monkeypatch.setattr(files.Path, "replace", no_space)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_replaced_and_readable_by_others(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    paths = atomic_write_all((tmp_path / name, name.encode()) for name in ("a", "b", "a" * 255))
    assert [path.read_bytes() for path in paths] == [b"a", b"b", b"a" * 255]
    assert {path.stat().st_mode for path in paths} == {plain.stat().st_mode}
