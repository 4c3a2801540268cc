"""The check: every kind of problem is found and placed, and nothing that a file holds stops it."""

from __future__ import annotations

import copy
import io
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from self1e.data.own import recognise
from self1e.data.own.check import Report, check_data
from self1e.data.own.records import KINDS
from self1e.errors import Self1EError

ANNOTATIONS = {
    "json-lines": "train.jsonl",
    "coco": "annotations/instances_train.json",
    "coco-panoptic": "annotations/panoptic_train.json",
    "indexed": "classes.txt",
    "label-studio": "train.json",
}


def check(root: Path, **options: Any) -> Report:
    return check_data(recognise(root), **options)


def kinds(report: Report) -> dict[str, int]:
    return report.count_kinds()


def edit_lines(root: Path, *lines: object) -> None:
    with (root / "train.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def photograph(seed: int, size_wh: tuple[int, int] = (160, 120)) -> Image.Image:
    """Something with the spectrum of a photograph: blocks within blocks."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize(size_wh, Image.Resampling.BICUBIC),
            dtype=np.float64,
        )
        for n in (3, 6, 12, 40)
    ]
    return Image.fromarray(np.average(layers, axis=0, weights=(8, 4, 2, 1)).astype(np.uint8))


def test_sound_data_is_clean_and_counted(every_format):
    name, root = every_format
    report = check(root)
    assert report.is_clean, [str(problem) for problem in report.problems]
    counts = report.counts["train"]
    assert (counts.records, counts.pictures) == (2, 2)
    assert (counts.queries, counts.absent) == ((4, 1) if name == "json-lines" else (2, 0))
    summary = report.to_json()["splits"]["train"]
    assert summary["sizes_wh"]["largest"] == [20, 26]
    assert summary["mask_share_quartiles"][-1] == pytest.approx(180 / 520, abs=1e-4)


def test_the_sheet_shows_every_mask(every_format):
    _, root = every_format
    sheet = check(root).sheet()
    assert sheet is not None
    pink = (np.asarray(sheet) == (255, 0, 255)).all(axis=-1)  # the edge of a mask
    assert pink.sum() > 50


def test_every_problem_is_found_in_one_run(tmp_path, writers, made):
    root = writers["json-lines"](tmp_path)
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    made.save_mask(root / "masks" / "empty.png", np.zeros((18, 24), dtype=bool))
    made.save_mask(root / "masks" / "wide.png", np.ones((18, 25), dtype=bool))
    image = "images/0.png"
    shutil.copy(root / image, root / "copy.png")
    edit_lines(
        root,
        {"image": "no.png", "query": "x", "mask": None},
        {"image": "broken.png", "query": "x", "mask": None},
        {"image": image, "query": "a", "mask": "masks/empty.png"},
        {"image": image, "query": "b", "mask": "masks/wide.png"},
        {"image": image, "query": "c", "mask": [[1, 1, 2, 2]]},
        {"image": image, "query": "d", "mask": {"size": [18, 24], "counts": "??"}},
        {"image": image, "query": "The Red Block", "mask": None},
        {"image": image},
        {"image": "copy.png", "query": "x", "mask": None},
    )
    shutil.copy(root / "images" / "1.png", root / "leaked.png")
    (root / "val.jsonl").write_text(json.dumps({"image": "leaked.png", "query": "x", "mask": None}) + "\n")
    report = check(root)
    assert kinds(report) == {
        "bad-record": 1,
        "missing-file": 1,
        "unreadable-picture": 1,
        "size-differs": 1,
        "bad-mask": 1,
        "bad-polygon": 1,
        "empty-mask": 1,
        "duplicate-query": 1,
        "duplicate-picture": 1,
        "leak": 1,
    }
    where = {problem.kind: (Path(problem.file).name, problem.where) for problem in report.problems}
    assert where == {
        "missing-file": ("train.jsonl", "line 3"),
        "unreadable-picture": ("train.jsonl", "line 4"),
        "empty-mask": ("train.jsonl", "line 5"),
        "size-differs": ("train.jsonl", "line 6"),
        "bad-polygon": ("train.jsonl", "line 7"),
        "bad-mask": ("train.jsonl", "line 8"),
        "duplicate-query": ("train.jsonl", "line 9"),
        "bad-record": ("train.jsonl", "line 10"),
        "duplicate-picture": ("train.jsonl", "line 11"),
        "leak": ("val.jsonl", "line 1"),
    }
    for problem in report.problems:
        assert problem.found
        assert problem.expected
        assert problem.advice.endswith((".", "?"))
        assert problem.kind in KINDS


def test_a_kind_may_be_ignored_and_a_split_chosen(tmp_path, writers):
    root = writers["json-lines"](tmp_path)
    edit_lines(root, {"image": "no.png", "query": "x", "mask": None})
    shutil.copy(root / "train.jsonl", root / "val.jsonl")
    assert kinds(check(root)) == {"missing-file": 2, "leak": 2}
    assert kinds(check(root, ignore=["leak"])) == {"missing-file": 2}
    assert kinds(check(root, splits=["val"])) == {"missing-file": 1}


def test_one_empty_region_among_others_is_named(tmp_path, writers):
    root = writers["coco"](tmp_path)
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    empty = {"size": [18, 24], "counts": [18 * 24]}
    content["annotations"].append({"id": 77, "image_id": 10, "category_id": 5, "segmentation": empty})
    file.write_text(json.dumps(content))
    (problem,) = check(root).problems
    assert (problem.kind, problem.where) == ("empty-mask", "annotation 77")


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((80, 60), Image.Resampling.LANCZOS),
        lambda image: image.resize((240, 180), Image.Resampling.BICUBIC),
        lambda image: image,
    ],
    ids=["half", "larger", "same size"],
)
@pytest.mark.parametrize("quality", [95, 40])
def test_a_test_picture_that_was_compressed_anew_is_a_leak(tmp_path, change, quality):
    for number in range(6):
        photograph(number).save(tmp_path / f"{number}.png")
    leaked = io.BytesIO()
    change(photograph(3)).save(leaked, "JPEG", quality=quality)
    (tmp_path / "test.jpg").write_bytes(leaked.getvalue())
    names = {"train": ["0.png", "1.png", "2.png", "3.png"], "test": ["test.jpg", "4.png", "5.png"]}
    for split, pictures in names.items():
        lines = [json.dumps({"image": name, "query": "x", "mask": None}) + "\n" for name in pictures]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    (problem,) = check(tmp_path).problems
    assert problem.kind == "leak"
    assert "3.png is nearly the same picture as" in problem.found
    assert "test.jpg" in problem.found


def test_other_pictures_are_compared_on_request(tmp_path, tmp_path_factory, writers):
    root, tests = writers["coco"](tmp_path), tmp_path_factory.mktemp("tests")
    Image.open(root / "train" / "1.png").save(tests / "x.bmp")
    (tests / "broken.png").write_bytes(b"x")
    (problem,) = check(root, against=tests).problems
    assert problem.kind == "leak"
    assert "x.bmp" in problem.found
    assert problem.where == "image 11"


def test_an_empty_file_is_a_problem(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n")
    assert kinds(check(tmp_path)) == {"bad-record": 1}


JUNK: list[Any] = [
    None, True, 0, -1, 3.5, 1e308, float("nan"), 10**30, "", "x", "\0", "../../x", "a" * 5000, "\ud800", [], [[]], [1],
    [1, 2, 3, 4, 5, 6], [["a"]], {}, {"counts": "0"}, {"size": [1, 1], "counts": [1]}, {"file": "x"}, [None], [{}],
]  # fmt: skip


def _places(node: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    inner = node.items() if isinstance(node, dict) else enumerate(node[:9]) if isinstance(node, list) else ()
    for key, value in inner:
        yield from _places(value, (*place, key))


def _replaced(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    tree = copy.deepcopy(tree)
    node = tree
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return tree


def _broken(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    way = rng.choice(["cut", "flip", "insert"])
    place = rng.randrange(len(changed))
    if way == "cut":
        return bytes(changed[:place])
    if way == "insert":
        changed[place:place] = rng.randbytes(5)
    else:
        changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _variants(name: str, root: Path, rng: random.Random) -> Iterator[tuple[Path, bytes]]:
    """Annotations with junk at any place, and files with damaged bytes."""
    file = root / ANNOTATIONS[name]
    content = file.read_bytes()
    for _ in range(40):
        yield file, _broken(content, rng)
    for path in sorted(root.rglob("*.png")):
        for _ in range(6):
            yield path, _broken(path.read_bytes(), rng)
    if name == "indexed":
        return
    tree = [json.loads(line) for line in content.splitlines()] if name == "json-lines" else json.loads(content)
    places = list(_places(tree))
    for _ in range(120):
        new = _replaced(tree, rng.choice(places), rng.choice(JUNK))
        lines = new if name == "json-lines" and isinstance(new, list) else [new]
        yield file, "\n".join(map(json.dumps, lines)).encode()


def test_no_damage_stops_the_check(every_format):
    name, root = every_format
    rng = random.Random(0)
    found_problems = 0
    for path, content in list(_variants(name, root, rng)):
        before = path.read_bytes()
        path.write_bytes(content)
        try:
            report = check_data(recognise(root, format=name))
        except Self1EError:
            found_problems += 1  # not recognised at all, and said so
        else:
            json.dumps(report.to_json(), allow_nan=False)
            unforeseen = [str(problem) for problem in report.problems if "report this" in problem.advice]
            assert unforeseen == [], content[:200]
            found_problems += not report.is_clean
        path.write_bytes(before)
    assert found_problems > 50
    assert check(root).is_clean
