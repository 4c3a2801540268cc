"""Own data as it comes from other people's tools and disks: what is read right, and what is refused."""

from __future__ import annotations

import gzip
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from self1e.data.own import open_data, recognise
from self1e.data.own.check import check_data
from self1e.data.own.splitting import Pictures
from self1e.errors import DatasetError

LINE: dict[str, Any] = {"image": "p.png", "query": "it", "mask": None}


def masks_of(sample) -> dict[str, np.ndarray]:
    return {target.text: target.mask for target in sample.targets}


def write_lines(root: Path, *lines: object, name: str = "train.jsonl", **how: Any) -> Path:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (root / name).write_bytes(text.encode(**how))
    return root


def edit(file: Path, change: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps(change(content) or content))


@pytest.fixture
def small(tmp_path) -> Path:
    """A folder with one picture, 12 x 10."""
    Image.new("RGB", (12, 10), "white").save(tmp_path / "p.png")
    return tmp_path


@pytest.fixture
def instances(tmp_path, writers) -> Path:
    return writers["coco"](tmp_path) / "annotations" / "instances_train.json"


# --------------------------------------------------------------------------- masks that would silently be others


def test_a_palette_that_shows_the_mask_the_other_way_round_is_refused(small):
    numbers = np.zeros((10, 12), dtype=np.uint8)
    numbers[2:9, 1:11] = 1  # which the palette below shows as the black background of a white frame
    mask = Image.fromarray(numbers).convert("P")
    mask.putpalette([255, 255, 255, 0, 0, 0])
    mask.save(small / "m.png")
    write_lines(small, LINE | {"mask": "m.png"})
    with pytest.raises(DatasetError, match=r'number 1 in black and 0, the background, in another.*"value": 0'):
        open_data(small)[0]
    write_lines(small, LINE | {"mask": {"file": "m.png", "value": 0}})
    assert np.array_equal(open_data(small)[0].targets[0].mask, numbers == 0)
    mask.putpalette([0, 0, 0, 224, 224, 192])  # as VOC has it
    mask.save(small / "m.png")
    write_lines(small, LINE | {"mask": "m.png"})
    assert np.array_equal(open_data(small)[0].targets[0].mask, numbers == 1)


def test_two_categories_of_one_name_are_one_query(instances, made):
    def change(content):
        content["categories"].append({"id": 99, "name": "red block"})
        other = dict(content["annotations"][0], id=9, category_id=99, segmentation=[[14, 13, 20, 13, 20, 17, 14, 17]])
        content["annotations"].append(other)

    edit(instances, change)
    (target,) = open_data(instances.parents[1])[0].targets
    assert target.text == "the red block"
    assert target.mask.sum() == made.truth(0).sum() + 6 * 4


def test_two_numbers_of_one_name_are_one_query(tmp_path, writers):
    root = writers["indexed"](tmp_path)
    (root / "classes.txt").write_text("0 background\n1 sock\n2 sock\n3 hat\n")
    path = root / "masks" / "train" / "0.png"
    numbers = np.asarray(Image.open(path)).copy()
    numbers[0, 0] = 2
    Image.fromarray(numbers).save(path)
    sample = open_data(root)[0]
    assert [target.text for target in sample.targets] == ["the sock"]
    assert sample.targets[0].mask.sum() == (numbers > 0).sum()
    assert sample.extra["absent"] == ("the hat",)


def test_what_is_noted_without_a_region_is_not_called_absent(instances):
    edit(
        instances,
        lambda content: content["annotations"].append({"id": 7, "image_id": 10, "category_id": 6, "segmentation": []}),
    )
    with pytest.raises(DatasetError, match=r"annotation 7: no segmentation; expected polygons"):
        open_data(instances)
    data = open_data(instances, ignore=["empty-mask"])
    assert masks_of(data[0]).keys() == {"the red block"}
    assert data[0].extra["absent"] == ()
    assert data[1].extra["absent"] == ("the red block",)


def test_ignored_regions_are_left_out_of_their_mask_and_others_are_not(instances, made):
    bad = [[[1, 2, 3, 4]], [[1, 2, 900, 4, 5, 6]]]

    def change(content):
        for number, segmentation in enumerate(bad):
            content["annotations"].append(dict(content["annotations"][0], id=7 + number, segmentation=segmentation))

    edit(instances, change)
    with pytest.raises(DatasetError, match="annotation 7: 2 points"):
        open_data(instances)[0]
    with pytest.raises(DatasetError, match="annotation 7: 2 points"):
        open_data(instances, ignore=["empty-mask", "bad-mask"])[0]
    assert np.array_equal(open_data(instances, ignore=["bad-polygon"])[0].targets[0].mask, made.truth(0))


def test_ignored_classes_without_a_name_leave_the_others(tmp_path, writers, made):
    root = writers["indexed"](tmp_path)
    (root / "classes.txt").write_text("0 background\n1 red_block\n")
    data = open_data(root, ignore=["unknown-class"])
    assert np.array_equal(masks_of(data[0])["the red block"], made.truth(0))
    assert [(target.text, target.mask.any()) for target in data[1].targets] == [("the red block", False)]


def test_one_segment_with_two_classes_is_refused(tmp_path, writers):
    root = writers["coco-panoptic"](tmp_path)
    file = root / "annotations" / "panoptic_train.json"
    edit(file, lambda c: c["annotations"][0]["segments_info"].append({"id": 70_000, "category_id": 6}))
    with pytest.raises(DatasetError, match="segment 70000 twice"):
        open_data(root)


def test_a_picture_without_a_panoptic_map_does_not_teach_that_nothing_is_there(tmp_path, writers):
    root = writers["coco-panoptic"](tmp_path)
    edit(root / "annotations" / "panoptic_train.json", lambda content: content["annotations"].pop() and None)
    with pytest.raises(DatasetError, match="image 11: no annotation; expected one with a map"):
        open_data(root)
    assert len(open_data(root, ignore=["bad-record"])) == 1


def test_ids_may_be_whole_floats_as_tables_write_them(instances, made):
    def change(content):
        for entry in content["annotations"]:
            entry["image_id"], entry["category_id"] = float(entry["image_id"]), float(entry["category_id"])

    edit(instances, change)
    assert np.array_equal(open_data(instances)[0].targets[0].mask, made.truth(0))
    edit(instances, lambda content: content["annotations"][0].update(image_id=True))
    with pytest.raises(DatasetError, match="image_id True"):
        open_data(instances)


def test_two_uploads_of_one_name_are_told_apart_or_refused(tmp_path, writers):
    root = writers["label-studio"](tmp_path)

    def change(tasks):
        tasks[0]["data"]["image"], tasks[1]["data"]["image"] = (
            f"/data/upload/1/{letters * 8}-cat.png" for letters in "ab"
        )

    edit(root / "train.json", change)
    (root / "images" / "0.png").rename(root / "images" / "cat.png")
    with pytest.raises(DatasetError, match=r"task 101: .*bbbbbbbb-cat.png' leads to .*task 100 has .*aaaaaaaa-cat.png"):
        open_data(root)
    (root / "images" / "cat.png").rename(root / "images" / "aaaaaaaa-cat.png")
    (root / "images" / "1.png").rename(root / "images" / "bbbbbbbb-cat.png")
    assert [record.picture.name[0] for record in open_data(root).records] == ["a", "b"]


def test_signed_addresses_of_one_picture_are_one_picture(tmp_path, writers):
    root = writers["label-studio"](tmp_path)

    def change(tasks):
        tasks[1] = json.loads(json.dumps(tasks[0])) | {"id": 7}
        tasks[0]["data"]["image"], tasks[1]["data"]["image"] = (f"https://host/a/0.png?signature={n}" for n in "xy")

    edit(root / "train.json", change)
    assert len(Pictures(open_data(root))) == 1


def test_labels_of_a_region_that_is_asked_for_in_other_words_are_not_absent(tmp_path, writers):
    root = writers["label-studio"](tmp_path)

    def change(tasks):
        value = tasks[0]["annotations"][1]["result"][0]["value"]
        value["polygonlabels"] = ["blue block"]
        words = {"id": "r0", "type": "textarea", "value": {"text": ["the one on the left"]}}
        tasks[0]["annotations"][1]["result"].append(words)

    edit(root / "train.json", change)
    sample = open_data(root)[0]
    assert masks_of(sample).keys() == {"the one on the left"}
    assert sample.extra["absent"] == ()


def test_a_region_of_no_use_is_not_absent_and_a_skipped_task_is_no_problem(tmp_path, writers):
    root = writers["label-studio"](tmp_path)

    def change(tasks):
        box = dict(tasks[0]["annotations"][1]["result"][0], id="box", type="rectanglelabels")
        box["value"] = {"x": 1, "y": 1, "width": 5, "height": 5, "rectanglelabels": ["blue block"]}
        tasks[0]["annotations"][1]["result"].append(box)
        tasks.append({"id": 5, "data": {"image": "9.png"}, "annotations": [{"was_cancelled": True, "result": []}]})

    edit(root / "train.json", change)
    with pytest.raises(DatasetError, match=r"region box: a region of type rectanglelabels.*PolygonLabels"):
        open_data(root)
    data = open_data(root, ignore=["bad-record"])
    assert len(data) == 2
    assert data[0].extra["absent"] == ()


# --------------------------------------------------------------------------- files and names


@pytest.mark.parametrize("name", ["sub\\b l\u00fcte.png", "sub/b lu\u0308te.png"])
def test_names_of_other_systems_lead_to_the_same_file(small, name):
    (small / "sub").mkdir()
    (small / "p.png").rename(small / "sub" / unicodedata.normalize("NFC", "b l\u00fcte.png"))
    Image.fromarray(np.eye(10, 12, dtype=np.uint8)).save(small / "sub" / "m \u00e9.png")
    write_lines(small, {"image": name, "query": "it", "mask": "sub\\m e\u0301.png"})
    assert open_data(small)[0].targets[0].mask.sum() == 10


def test_coco_of_windows_finds_its_pictures(instances):
    edit(
        instances,
        lambda content: (
            [image.update(file_name=f"train\\{image['file_name']}") for image in content["images"]] and None
        ),
    )
    assert len(open_data(instances.parents[1])[0].targets) == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
@pytest.mark.parametrize("end", ["\r\n", "\n\n", "\n \n"])
def test_marks_line_ends_and_empty_lines_do_not_matter(small, encoding, end):
    text = end.join(json.dumps({**LINE, "query": word}, ensure_ascii=False) for word in ("caf\u00e9", "a\u2028b", "c"))
    (small / "train.jsonl").write_bytes(text.encode(encoding))
    data = open_data(small)
    assert [sample.targets[0].text for sample in data] == ["caf\u00e9", "a b", "c"]


def test_a_compressed_file_says_so(small):
    write_lines(small, LINE)
    (small / "train.jsonl").write_bytes(gzip.compress((small / "train.jsonl").read_bytes()))
    with pytest.raises(DatasetError, match=r"compressed by gzip.*gunzip"):
        open_data(small)


def test_what_systems_leave_beside_files_is_no_split(small, tmp_path_factory, writers):
    write_lines(small, LINE)
    (small / "._train.jsonl").write_bytes(b"\0\5\x16\7")
    assert list(recognise(small).splits) == ["train"]
    write_lines(small, LINE, name="train.ndjson")
    with pytest.raises(DatasetError, match=r"train.jsonl and train.ndjson .* are both split 'train'"):
        open_data(small)
    root = writers["indexed"](tmp_path_factory.mktemp("indexed"))
    (root / "images" / ".ipynb_checkpoints").mkdir()
    assert list(recognise(root).splits) == ["train"]


def test_pictures_beside_folders_are_not_left_out(tmp_path, writers, made):
    root = writers["indexed"](tmp_path)
    made.picture(0).save(root / "images" / "more.png")
    made.save_mask(root / "masks" / "more.png", made.truth(0), 1)
    assert {record.picture.name for record in open_data(root).records} == {"0.png", "1.png", "more.png"}


def test_masks_in_capitals_and_lists_of_windows_are_found(tmp_path, writers):
    root = writers["indexed"](tmp_path)
    (root / "masks" / "train" / "0.png").rename(root / "masks" / "train" / "0.PNG")
    (root / "train.txt").write_bytes(b"\xef\xbb\xbftrain\\0\r\n./train/1.png\r\n")
    assert [len(sample.targets) for sample in open_data(root)] == [1, 1]


def test_an_empty_file_is_refused(small):
    (small / "train.jsonl").write_text("\n")
    with pytest.raises(DatasetError, match=r"train.jsonl holds no picture"):
        open_data(small)


def test_links_in_circles_and_impossible_names_are_missing_files(small):
    (small / "a.png").symlink_to("b.png")
    (small / "b.png").symlink_to("a.png")
    (small / "same.png").symlink_to("p.png")
    lines = [{**LINE, "image": name} for name in ("p.png", "same.png", "a.png", "nul\0.png", "x" * 5000 + ".png")]
    write_lines(small, *lines)
    data = open_data(small)
    assert len(Pictures(data)) == 4
    for number in (2, 3, 4):
        with pytest.raises(DatasetError, match="no such file"):
            data[number]
    assert check_data(recognise(small)).count_kinds()["missing-file"] == 3


# --------------------------------------------------------------------------- numbers and words


@pytest.mark.parametrize(
    "number", [10**400, -(10**400), 1e300, float("nan"), True], ids=["400 digits", "below 0", "1e300", "nan", "true"]
)
def test_huge_and_odd_coordinates_are_bad_polygons(small, number):
    (small / "train.jsonl").write_text(json.dumps(LINE | {"mask": [[1, 2, number, 4, 5, 6]]}) + "\n")
    with pytest.raises(DatasetError, match=r"expected (numbers|points within|\[\[x1)"):
        open_data(small)[0]
    assert check_data(recognise(small)).count_kinds() == {"bad-polygon": 1}


def test_half_a_surrogate_pair_is_no_word(small):
    (small / "train.jsonl").write_text('{"image": "p.png", "query": "a \\ud800", "mask": null}\n')
    with pytest.raises(DatasetError, match=r"query is 'a \\ud800'; expected words"):
        open_data(small)


# --------------------------------------------------------------------------- pictures


def test_pictures_of_every_mode_become_upright_rgb(small):
    plain = np.zeros((10, 12, 3), dtype=np.uint8)
    plain[:, :3] = 255
    Image.fromarray(plain).convert("CMYK").save(small / "cmyk.jpg", quality=100)
    Image.fromarray(plain).convert("P").save(small / "palette.png")
    Image.fromarray(plain[..., 0].astype(np.uint16) * 257).save(small / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    Image.fromarray(plain).transpose(Image.Transpose.ROTATE_90).save(small / "turned.png", exif=exif)
    names = ("cmyk.jpg", "palette.png", "deep.png", "turned.png")
    write_lines(small, *({"image": name, "query": "it", "mask": [[0, 0, 3, 0, 3, 10, 0, 10]]} for name in names))
    for name, sample in zip(names, open_data(small), strict=True):
        pixels = np.asarray(sample.image).astype(int)
        assert pixels.shape == (10, 12, 3), name
        inside = pixels[sample.targets[0].mask]
        outside = pixels[~sample.targets[0].mask]
        assert inside.min() > 240, name
        assert outside.max() < 16, name


# --------------------------------------------------------------------------- the same data


@pytest.mark.parametrize("change", ["nothing", "folder", "picture", "mask", "words"])
def test_a_fingerprint_is_of_what_is_noted_and_not_of_where_it_lies(tmp_path, tmp_path_factory, every_format, change):
    name, root = every_format
    before = Pictures(open_data(root)).fingerprint()
    expected = True
    if change == "folder":
        moved = tmp_path_factory.mktemp("elsewhere") / "data"
        root.rename(moved)
        root = moved
    elif change == "picture":
        for path in root.rglob("1.png"):
            if "mask" not in str(path) and "panoptic" not in str(path):
                path.write_bytes(b"broken")
    elif change == "mask":
        expected = False
        if name in ("indexed", "coco-panoptic"):
            path = next(path for path in root.rglob("0.png") if "mask" in str(path) or "panoptic" in str(path))
            pixels = np.asarray(Image.open(path)).copy()
            pixels[:3] = 0
            pixels[-1, -1] = pixels.max((0, 1))
            Image.fromarray(pixels).save(path)
        else:
            file = next(path for path in root.rglob("*.json*"))
            text = file.read_text()
            old = {"json-lines": "[3, 4, 13, 4", "coco": "[3, 4, 13, 4", "label-studio": '"rle": [0'}[name]
            assert old in text
            file.write_text(text.replace(old, old.replace("3", "2", 1).replace("[0", "[1")))
    elif change == "words":
        expected = False
        file = next(path for path in root.rglob("*") if path.suffix in (".json", ".jsonl", ".txt"))
        file.write_text(file.read_text().replace("red", "green"))
    assert (Pictures(open_data(root)).fingerprint() == before) is expected
