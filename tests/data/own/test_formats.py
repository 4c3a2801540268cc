"""Readers: every format gives the same masks, lazily, and says what is wrong where."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_codec

from self1e.data.coco import CocoCategories
from self1e.data.mixture import Mixture, Part
from self1e.data.own import FORMATS, open_data, recognise
from self1e.data.own.records import Flaw
from self1e.data.own.regions import Brush, MaskFile, PercentPolygon, Polygons, RunLengths, parse_mask, unpack_brush
from self1e.errors import DatasetError, SettingError


def masks_of(sample) -> dict[str, np.ndarray]:
    return {target.text: target.mask for target in sample.targets}


def write_lines(root: Path, *lines: object) -> Path:
    root.mkdir(exist_ok=True)
    (root / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return root


@pytest.fixture
def small(tmp_path) -> Path:
    """A folder with one picture, 12 x 10."""
    Image.new("RGB", (12, 10), "white").save(tmp_path / "p.png")
    return tmp_path


def first(root: Path, mask: object) -> np.ndarray:
    data = open_data(write_lines(root, {"image": "p.png", "query": "it", "mask": mask}))
    return data[0].targets[0].mask


def told(root: Path, mask: object) -> str:
    with pytest.raises(DatasetError) as error:
        first(root, mask)
    return str(error.value)


def test_every_format_is_recognised_and_gives_the_same_masks(every_format, made):
    name, root = every_format
    assert recognise(root).format == name
    data = open_data(root)
    assert (len(data), data.split, data.format) == (2, "train", name)
    for number in (0, 1):
        sample = data[number]
        assert np.array_equal(np.asarray(sample.image), np.asarray(made.picture(number)))
        mask = masks_of(sample)[made.queries[number]]
        assert mask.dtype == bool
        assert np.array_equal(mask, made.truth(number))


def test_what_annotators_did_not_find_is_absent(every_format):
    name, root = every_format
    sample = open_data(root)[0]
    if name == "json-lines":
        assert [t.text for t in sample.targets if t.tag == "absent"] == ["the dog"]
        assert not masks_of(sample)["the dog"].any()
    else:
        assert sample.extra["absent"] == ("the blue block",)


def test_reading_is_lazy_and_repeatable(every_format):
    _, root = every_format
    data = open_data(root)
    before = pickle.loads(pickle.dumps(data))[1]  # as the workers of a loader get it
    for path in root.rglob("0.png"):
        path.unlink()
    again = data[1]
    assert [t.text for t in again.targets] == [t.text for t in before.targets]
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(again.targets, before.targets, strict=True))
    with pytest.raises(DatasetError, match=r"no such file.*expected a picture"):
        data[0]
    assert open_data(root)[-1].source == before.source


def test_samples_feed_the_mixture(every_format):
    _, root = every_format
    mixture = Mixture({"own": Part(samples=open_data(root), absent=0.5)}, length=8, queries=2)
    rows = [row for i in range(len(mixture)) for row in mixture[i].rows]
    assert all("[SEG]" in row.answer for row in rows)
    assert any(not row.mask.any() for row in rows)
    assert any(row.mask.any() for row in rows)


def test_a_format_may_be_named(every_format):
    name, root = every_format
    assert open_data(root, format=name).format == name
    other = next(known for known in FORMATS if known != name)
    with pytest.raises(DatasetError, match=f"is not {other}"):
        open_data(root, format=other)


def test_pictures_may_lie_elsewhere(every_format, tmp_path_factory):
    name, root = every_format
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "pictures"
    folder = next(root / f for f in ("images", "train") if (root / f).is_dir())
    shutil.move(folder, elsewhere)
    pictures = elsewhere.parent if name == "json-lines" else elsewhere
    if name == "json-lines":
        elsewhere.rename(elsewhere.parent / "images")
    if name == "indexed":
        (root / "train.txt").write_text("train/0\ntrain/1.png\n")
        pictures = elsewhere
        file: Path = root / "train.txt"
    else:
        file = root
    assert len(open_data(file, pictures=pictures)[1].targets) == 1


def test_splits_have_to_be_named_where_there_are_several(tmp_path, writers):
    root = writers["json-lines"](tmp_path)
    shutil.copy(root / "train.jsonl", root / "val.jsonl")
    with pytest.raises(DatasetError, match=r"holds 2 splits, train, val: name one, split="):
        open_data(root)
    with pytest.raises(DatasetError, match=r"no split 'vall'\. Did you mean 'val'"):
        open_data(root, split="vall")
    assert open_data(root, split="val").split == "val"
    assert open_data(root / "val.jsonl").split == "val"


def test_two_formats_in_one_folder_have_to_be_told_apart(tmp_path, writers):
    writers["json-lines"](tmp_path)
    writers["coco"](tmp_path)
    with pytest.raises(DatasetError, match="could be json-lines or coco: say which one"):
        open_data(tmp_path)
    assert open_data(tmp_path, format="coco").format == "coco"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"a": 1}\n{"a": 2}', "format='json-lines'"),
        ('{"a": 1}', "JSON with keys a; expected"),
        ("[1, 2]", "JSON with a list; expected"),
    ],
)
def test_unknown_files_say_what_is_known(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        open_data(tmp_path / "x.json")
    with pytest.raises(DatasetError, match="holds no annotations that are known"):
        open_data(tmp_path)


def test_wrong_arguments(tmp_path):
    with pytest.raises(SettingError, match="Did you mean 'coco'"):
        open_data(tmp_path, format="cocoo")
    with pytest.raises(SettingError, match="is no folder"):
        open_data(tmp_path, pictures=tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="no such file or folder"):
        open_data(tmp_path / "nowhere")


def test_every_notation_of_a_mask_means_the_same_pixels(small):
    expected = np.zeros((10, 12), dtype=bool)
    expected[3:7, 2:8] = True
    Image.fromarray(expected).save(small / "m.png")
    Image.fromarray(expected.astype(np.uint8) * 7).save(small / "seven.png")
    palette = Image.fromarray(expected.astype(np.uint8)).convert("P")
    palette.save(small / "palette.png")
    Image.fromarray(expected.astype(np.uint16) * 60000).save(small / "deep.png")
    Image.fromarray(expected).convert("RGB").save(small / "grey.png")
    code: Any = rle_codec.encode(np.asfortranarray(expected.astype(np.uint8)))
    flat = [2, 3, 8, 3, 8, 7, 2, 7]
    points = [[2, 3], [8, 3], [8, 7], [2, 7]]
    runs, last, length = [], False, 0
    for pixel in [*expected.T.ravel(), None]:
        if pixel == last:
            length += 1
        else:
            runs, last, length = [*runs, length], pixel, 1
    masks = [
        "m.png",
        "seven.png",
        "palette.png",
        "deep.png",
        "grey.png",
        {"file": "seven.png", "value": 7},
        {"size": [10, 12], "counts": code["counts"].decode()},
        {"size": [10, 12], "counts": runs},
        [flat],
        flat,
        [points],
        points,
        ["m.png", [flat], {"size": [10, 12], "counts": runs}],
    ]
    for mask in masks:
        assert np.array_equal(first(small, mask), expected), mask


def test_several_objects_are_united_not_summed(small):
    one, other = [0, 0, 6, 0, 6, 6, 0, 6], [4, 4, 10, 4, 10, 8, 4, 8]
    mask = first(small, [one, other])
    assert mask.dtype == bool
    assert mask.sum() == 36 + 24 - 4


def test_polygons_are_filled_as_coco_does(small):
    rng = np.random.default_rng(5)
    for _ in range(20):
        rings = [rng.uniform(-4, 16, 2 * int(rng.integers(3, 8))).tolist() for _ in range(2)]
        codec: Any = rle_codec
        code = codec.merge(codec.frPyObjects(rings, 10, 12))
        assert Polygons(rings).decode((12, 10)).sum() == codec.area(code)


def test_wordings_share_a_mask_and_a_query_may_have_its_own(small):
    data = open_data(
        write_lines(
            small,
            {"image": "p.png", "queries": ["the cup", "What is it?"], "mask": [[0, 0, 5, 0, 5, 5]], "tag": "x"},
            {"image": "p.png", "mask": None, "queries": [{"query": "a", "mask": [[0, 0, 9, 0, 9, 9]]}, "the  b "]},
        )
    )
    assert [(t.text, t.kind, t.tag) for t in data[0].targets] == [
        ("the cup", "phrase", "x"),
        ("What is it?", "sentence", "x"),
    ]
    assert np.array_equal(data[0].targets[0].mask, data[0].targets[1].mask)
    assert [(t.text, bool(t.mask.any())) for t in data[1].targets] == [("a", True), ("the b", False)]
    assert data[0].source == "train.jsonl/line-1"


def test_a_mask_without_pixels_is_left_out_not_called_absent(small):
    Image.new("L", (12, 10)).save(small / "m.png")
    data = open_data(write_lines(small, {"image": "p.png", "query": "it", "mask": "m.png"}))
    assert data[0].targets == ()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("no.png", "no mask .*no.png; expected a PNG"),
        ("grey.png", "holds 5 values .* expected 0 for background and one other value"),
        ("two.png", "holds 2 values .* expected 0 for background"),
        ("colour.png", "bands R.G.B; expected grey levels"),
        ("m.jpg", "m.jpg is JPEG; expected PNG"),
        ("wide.png", "wide.png is 13x10; expected 12x10"),
        ("broken.png", "broken.png is cut short, or damaged.*expected a PNG that can be decoded"),
        ({"file": "grey.png", "value": "x"}, "value 'x'; expected a whole number"),
        ([], "an empty list; expected a mask, or null. Write null"),
        (7, "7; expected a path, a run-length code, polygons"),
        ({"a": 1}, "expected a path, a run-length code, polygons"),
        ([[1, 2, 3, 4]], "2 points; expected at least 3"),
        ([[1, 2, 3, 4, 5, 6, 7]], "7 coordinates; expected pairs"),
        ([[0.1, 0.2, 0.9, 0.2, 0.9, 0.8]], "between 0 and 1; expected pixels of 12x10.*multiply"),
        ([[1, 2, 900, 4, 5, 6]], "a point at x=900; expected points within the picture, 12x10"),
        ([[1, 2, 3, 4, 5, float("inf")]], "not finite"),
        ([["1", 2, 3, 4, 5, 6]], "a polygon .'1', 2, 3, 4, 5, 6.; expected"),
        ({"size": [12, 10], "counts": [120]}, r"size \[12, 10\] \(it may be \[width, height\]\); expected \[10, 12\]"),
        ({"size": [10, 12], "counts": [100]}, "cannot be decoded.*runs of 120 pixels"),
        ({"size": [10, 12], "counts": [130, -10]}, "whole numbers from 0 on"),
        ({"size": [10, 12], "counts": "zzzz"}, "cannot be decoded"),
        ({"size": [10, 12], "counts": "\u00e4"}, "cannot be decoded"),
        ({"size": 3, "counts": "1"}, 'expected {"size"'),
    ],
)
def test_a_bad_mask_says_what_and_what_to_do(small, mask, message):
    grey = np.zeros((10, 12), dtype=np.uint8)
    grey[0, :4] = (10, 20, 30, 40)
    Image.fromarray(grey).save(small / "grey.png")
    Image.fromarray(np.where(grey > 0, 9, 3).astype(np.uint8)).save(small / "two.png")
    Image.fromarray(np.stack([grey, 0 * grey, grey], axis=-1)).save(small / "colour.png")
    Image.fromarray(grey).save(small / "m.jpg")
    Image.new("L", (13, 10)).save(small / "wide.png")
    (small / "broken.png").write_bytes((small / "grey.png").read_bytes()[:50])
    message_of = told(small, mask)
    assert re.search(message, message_of), message_of
    assert message_of.count("line 1") == 1
    assert "train.jsonl, line 1: " in message_of
    assert "self1e data check" in message_of


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected {"),
        ('{"image": 3, "query": "x", "mask": null}', "image is 3; expected a path"),
        ('{"image": "p.png", "mask": null}', "neither query nor queries"),
        ('{"image": "p.png", "query": "x", "queries": ["y"], "mask": null}', "both query and queries"),
        ('{"image": "p.png", "query": " ", "mask": null}', "query is ' '; expected words"),
        ('{"image": "p.png", "query": "x"}', "no mask; expected a mask, or null"),
        ('{"image": "p.png", "queries": [], "mask": null}', "at least one query"),
        ('{"image": "p.png", "queries": [4], "mask": null}', "query 1.*4; expected words"),
        ('{"image": "p.png", "query": "x", "msk": null}', "unknown key 'msk'.*Did you mean 'mask'"),
        ('{"image": "p.png", "query": "x", "mask": null, "kind": "poem"}', "kind is 'poem'"),
        ('{"image": "p.png", "query": "x", "mask": null, "tag": 1}', "tag is 1"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "not JSON"),
    ],
)
def test_a_bad_line_says_which_and_why(small, line, message):
    good = '{"image": "p.png", "query": "x", "mask": null, "note": "other keys are left alone"}'
    (small / "train.jsonl").write_text(f"{good}\n\n{line}\n{good}\n")
    with pytest.raises(DatasetError, match=message) as error:
        open_data(small)
    assert "train.jsonl, line 3" in str(error.value)


def test_lines_that_are_not_utf_8_are_named(small):
    good = b'{"image": "p.png", "query": "x", "mask": null}\n'
    (small / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + good + b'{"image": "caf\xe9.png"}\n')
    with pytest.raises(DatasetError, match=r"line 2: not UTF-8: byte 14 is 0xe9"):
        open_data(small)


def test_coco_equals_the_reader_of_the_published_layout(tmp_path, writers):
    root = writers["coco"](tmp_path)
    ours, theirs = open_data(root), CocoCategories(root, "train")
    for mine, other in zip(ours, theirs, strict=True):
        assert [t.text.replace("_", " ") for t in other.targets] == [t.text for t in mine.targets]
        assert all(np.array_equal(a.mask, b.mask) for a, b in zip(mine.targets, other.targets, strict=True))


def test_lvis_names_are_absent_only_where_they_were_looked_for(tmp_path, writers):
    root = writers["coco"](tmp_path)
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["images"][0]["neg_category_ids"] = []
    content["images"][1]["neg_category_ids"] = [5]
    file.write_text(json.dumps(content))
    assert [sample.extra["absent"] for sample in open_data(root)] == [(), ("the red block",)]


def test_a_picture_that_is_not_of_the_noted_size_says_so(tmp_path, writers):
    root = writers["coco"](tmp_path)
    Image.new("RGB", (18, 24)).save(root / "train" / "0.png")
    with pytest.raises(DatasetError, match=r"0.png is 18x24; expected 24x18, as noted.*EXIF") as error:
        open_data(root)[0]
    assert "instances_train.json, image 10" in str(error.value)


def test_a_picture_without_anything_is_asked_about_what_is_not_there(tmp_path, writers):
    root = writers["coco"](tmp_path)
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    del content["annotations"][0]
    file.write_text(json.dumps(content))
    sample = open_data(root)[0]
    assert [(t.text, t.tag, bool(t.mask.any())) for t in sample.targets] == [
        ("the red block", "absent", False),
        ("the blue block", "absent", False),
    ]


def test_two_pictures_of_one_mask_are_a_problem(tmp_path, writers):
    root = writers["indexed"](tmp_path)
    Image.new("RGB", (24, 18)).save(root / "images" / "train" / "0.bmp")
    with pytest.raises(DatasetError, match=r"0.png beside 0.bmp; expected one picture per mask"):
        open_data(root)


def test_panoptic_names_lose_their_history(tmp_path, writers):
    root = writers["coco-panoptic"](tmp_path)
    file = root / "annotations" / "panoptic_train.json"
    file.write_text(file.read_text().replace("red_block", "sky-other-merged").replace("blue block", "floor-wood"))
    assert [sample.targets[0].text for sample in open_data(root)] == ["the sky", "the floor-wood"]


@pytest.mark.parametrize("text", ["background\nred_block\nblue block\n", "0: void\n1: red_block\n2: blue block"])
def test_class_lists_may_be_written_otherwise(tmp_path, writers, text):
    root = writers["indexed"](tmp_path)
    (root / "classes.txt").write_text(text)
    assert [sample.targets[0].text for sample in open_data(root)] == ["the red block", "the blue block"]


def test_class_255_is_nothing_and_unknown_classes_are_named(tmp_path, writers):
    root = writers["indexed"](tmp_path)
    path = root / "masks" / "train" / "0.png"
    numbers = np.asarray(Image.open(path)).copy()
    numbers[0, 0] = 255
    Image.fromarray(numbers).save(path)
    assert [t.text for t in open_data(root)[0].targets] == ["the red block"]
    numbers[0, 0] = 9
    Image.fromarray(numbers).save(path)
    with pytest.raises(DatasetError, match=r"pixels of class 9; expected numbers in classes\.txt, or 255"):
        open_data(root)[0]


def test_lists_name_the_pictures_of_a_split(tmp_path, writers):
    root = writers["indexed"](tmp_path)
    (root / "val.txt").write_text("train/1\n\n")
    (root / "train.txt").write_text("train/0.png\n")
    assert list(recognise(root).splits) == ["train", "val"]
    assert open_data(root, split="val")[0].targets[0].text == "the blue block"
    (root / "val.txt").write_text("train/1\ntrain/7\n")
    with pytest.raises(DatasetError, match=r"val.txt, line 2: no picture train/7"):
        open_data(root, split="val")


def test_brush_strokes_are_unpacked_bit_by_bit():
    # Eight values: a run of two, three single ones, a run of three.
    bits = f"{8:032b}" + f"{7:05b}" + f"{0:04b}{1:04b}{2:04b}{7:04b}"
    bits += "1" + "00" + "1" + f"{200:08b}"  # twice 200, length in one bit
    bits += "0" + "10" + "010" + f"{1:08b}{2:08b}{3:08b}"  # three values, length in three bits
    bits += "1" + "11" + f"{2:08b}" + f"{9:08b}"  # three times 9, length in eight bits
    bits += "0" * (-len(bits) % 8)
    code = np.array([int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)], dtype=np.uint8)
    assert unpack_brush(code, 8).tolist() == [200, 200, 1, 2, 3, 9, 9, 9]
    with pytest.raises(DatasetError, match="the code says 8 values"):
        unpack_brush(code, 9)
    for cut in range(len(code)):
        with pytest.raises(DatasetError):
            unpack_brush(code[:cut], 8)


def test_words_written_to_a_region_are_its_queries(tmp_path, writers):
    root = writers["label-studio"](tmp_path)
    tasks = json.loads((root / "train.json").read_text())
    words = {"id": "r0", "type": "textarea", "value": {"text": ["the left one", "Which one is red?"]}}
    tasks[0]["annotations"][1]["result"] += [words, {"type": "choices", "value": {"choices": ["good"]}}]
    (root / "train.json").write_text(json.dumps(tasks))
    sample = open_data(root)[0]
    assert [(t.text, t.kind) for t in sample.targets] == [("the left one", "phrase"), ("Which one is red?", "sentence")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_rotation": 90}, "image_rotation 90; expected 0"),
        ({"original_width": None}, "no original_width"),
        ({"type": "rectanglelabels"}, "type rectanglelabels; expected an outline"),
        ({"value": {"points": [], "polygonlabels": ["x"]}}, "points is \\[\\]; expected an outline"),
        ({"value": {"points": [[1, 2], [3, 4], [50, 50]]}}, "a region without label and words"),
    ],
)
def test_regions_that_are_no_mask_are_named(tmp_path, writers, change, message):
    root = writers["label-studio"](tmp_path)
    tasks = json.loads((root / "train.json").read_text())
    tasks[0]["annotations"][1]["result"][0].update(change)
    (root / "train.json").write_text(json.dumps(tasks))
    with pytest.raises(DatasetError, match=message) as error:
        open_data(root)
    assert "task 100, region r0" in str(error.value)


@pytest.mark.parametrize(
    "reference",
    ["/data/local-files/?d=images%5C0.png", "s3://bucket/some/images/0.png", "https://host/a%20b/0.png?x=1", "0.png"],
)
def test_pictures_of_label_studio_are_found_by_name(tmp_path, writers, reference):
    root = writers["label-studio"](tmp_path)
    tasks = json.loads((root / "train.json").read_text())
    tasks[0]["data"] = {"note": 3, "picture": reference}
    (root / "train.json").write_text(json.dumps(tasks))
    assert open_data(root).records[0].picture == root / "images" / "0.png"


def test_regions_check_the_size_of_the_picture():
    for region in (
        RunLengths({"size": [4, 5], "counts": [20]}),
        Brush([0], (5, 4)),
    ):
        with pytest.raises(Flaw) as error:
            region.decode((6, 4))
        assert error.value.kind == "size-differs"
    assert PercentPolygon([[0, 0], [100, 0], [100, 100], [0, 100]]).decode((7, 5)).all()


def test_mask_files_cannot_be_bombs(small):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for side in (10_000, 60_000):  # below Pillow's limit and above it
        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
        (small / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
        with pytest.raises(Flaw) as error:
            MaskFile(small / "bomb.png").decode((12, 10))
        assert error.value.kind == ("size-differs" if side == 10_000 else "bad-mask")


def test_a_missing_picture_with_another_suffix_is_suggested(small):
    data = open_data(write_lines(small, {"image": "p.jpg", "query": "x", "mask": None}))
    with pytest.raises(DatasetError, match=r"p.jpg: no such file; expected a picture. Did you mean 'p.png'\?"):
        data[0]
    data = open_data(write_lines(small, {"image": "no/p.png", "query": "x", "mask": None}))
    with pytest.raises(DatasetError, match=r"There is no folder .*no either: .*--pictures"):
        data[0]


def test_paths_are_relative_to_the_annotations(small):
    (region,) = parse_mask({"file": "masks/x.png", "value": 3}, small)
    assert region == MaskFile(small / "masks" / "x.png", 3)
