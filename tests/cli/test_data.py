"""``self1e data``: what it prints, draws and answers."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from self1e.cli.main import main
from self1e.data.sources import SOURCES, Archive, Expected, Source


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run the command in an empty folder; returns status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["data", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture
def root(tmp_path) -> Path:
    """Sound data: one picture with two queries, another without the thing."""
    folder = tmp_path / "own"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in (0, 1):
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    box = [[2, 2, 8, 2, 8, 7, 2, 7]]
    write(
        folder,
        {"image": "0.png", "queries": [{"query": "the box", "mask": box}, {"query": "the dog", "mask": None}]},
        {"image": "1.png", "query": "the dog", "mask": None},
    )
    return folder


def write(folder: Path, *lines: object, split: str = "train") -> None:
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_check_of_sound_data_ends_with_0_and_draws_a_sheet(run, root):
    status, out, err = run("check", "own")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "own: json-lines",
        "  split     records  pictures   queries    absent",
        "  train           2         2         3         2",
        "No problem found.",
        f"Contact sheet: {Path('self1e-output/data-check.png')}",
    ]
    with Image.open("self1e-output/data-check.png") as sheet:
        assert min(sheet.size) > 200


def test_check_of_bad_data_ends_with_1_and_names_the_place(run, root):
    missing = [{"image": f"no{n}.png", "query": "x", "mask": None} for n in range(12)]
    write(root, {"image": "0.png", "query": "x", "mask": [[1, 2]]}, *missing)
    status, out, _ = run("check", "own", "--no-sheet")
    assert status == 1
    assert "13 problems" in out
    assert "missing-file: 12 (a picture or mask that is not there)" in out
    assert "  and 2 more: --all lists them" in out
    assert f"{Path('own/train.jsonl')}, line 1: 1 points; expected at least 3. Draw the polygon again" in out
    assert not Path("self1e-output").exists()
    _, out, _ = run("check", "own", "--no-sheet", "--all")
    assert out.count(", line ") == 13
    status, out, _ = run("check", "own", "--ignore", "missing-file", "--ignore", "bad-polygon")
    assert status == 0


def test_check_as_json(run, root):
    write(root, {"image": "no.png", "query": "x", "mask": None})
    status, out, err = run("check", "own", "--json")
    found = json.loads(out)
    assert (status, err) == (1, "")
    assert found["problem_counts"] == {"missing-file": 1}
    assert found["problems"][0]["where"] == "line 1"
    assert set(found["problems"][0]) == {"kind", "file", "where", "found", "expected", "advice", "split"}
    assert found["sheet"] is None
    assert not found["clean"]


def test_leaks_between_splits_and_from_elsewhere(run, root, tmp_path):
    write(root, {"image": "1.png", "query": "x", "mask": None}, split="test")
    status, out, _ = run("check", "own", "--no-sheet")
    assert status == 1
    assert "leak: 1 (one picture in two splits)" in out
    tests = tmp_path / "tests"
    tests.mkdir()
    Image.open(root / "0.png").save(tests / "other name.bmp")
    status, out, _ = run("check", "own", "--split", "train", "--against", "tests", "--no-sheet")
    assert status == 1
    assert "other name.bmp" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["check"], "Missing argument"),
        (["check", "nowhere"], "no such file or folder"),
        (["check", "own", "--format", "cocoo"], "Did you mean 'coco'?"),
        (["check", "own", "--split", "trian"], "Did you mean 'train'?"),
        (["check", "own", "--ignore", "leaks"], "Did you mean 'leak'?"),
        (["check", "own", "--against", "nowhere"], "--against nowhere is not a folder"),
        (["check", "own", "--pictures", "nowhere"], "--pictures nowhere is not a folder"),
        (["show", "own", "-i", "2"], "has samples 0 to 1"),
        (["prepare", "refcocoo"], "Did you mean 'refcoco'?"),
        (["prepare", "refcoco", "--root", "nowhere"], "--root nowhere is not a folder"),
    ],
)
def test_what_was_not_understood_ends_with_2(run, root, arguments, told):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert told in err
    assert "Traceback" not in err


def test_a_folder_without_annotations_ends_with_1(run, tmp_path):
    (tmp_path / "empty").mkdir()
    status, _, err = run("check", "empty")
    assert status == 1
    assert "holds no annotations that are known" in err
    assert len(err.splitlines()) == 1


def test_stats(run, root):
    status, out, _ = run("stats", "own")
    assert status == 0
    for words in ("12 x 9", "different queries       2", "       2  the dog"):
        assert words in out
    status, out, _ = run("stats", "own", "--json")
    summary = json.loads(out)["splits"]["train"]
    assert summary["most_frequent"] == {"the dog": 2, "the box": 1}
    assert summary["mask_share_quartiles"] == [pytest.approx(30 / 108, abs=1e-4)] * 5


def test_stats_leave_out_what_is_broken_and_say_so(run, root):
    write(root, {"image": "no.png", "query": "x", "mask": None}, {"image": "0.png", "query": "y", "mask": None})
    status, out, err = run("stats", "own")
    assert status == 0
    assert "1  y" in out
    assert err == "self1e: 1 problems left out; see: self1e data check own\n"


def test_show(run, root):
    status, out, _ = run("show", "own", "-i", "0", "-i", "1", "--out", "o/x.png")
    assert status == 0
    assert out.splitlines() == [
        "0 train.jsonl/line-1 12x9",
        "  'the box' 27.78% (phrase)",
        "  'the dog' not there (phrase, absent)",
        "1 train.jsonl/line-2 12x9",
        "  'the dog' not there (phrase, absent)",
        "Drawn: o/x.png",
    ]
    assert Path("o/x.png").is_file()


def test_prepare_lists_and_describes(run):
    status, out, _ = run("prepare")
    assert status == 0
    assert len(out.splitlines()) == len(SOURCES)
    status, out, _ = run("prepare", "reasonseg")
    assert status == 0
    for words in (
        "https://github.com/dvlab-research/LISA",
        "non-commercial",
        "reason_seg/ReasonSeg/train: 239 .jpg files",
    ):
        assert words in out


def test_prepare_unpacks_counts_and_goes_on(run, tmp_path, monkeypatch):
    source = Source(
        name="toy",
        title="Toy",
        page="https://example.org",
        licence="unknown",
        archives=(Archive("toy.zip", "toy"),),
        expected=(Expected("toy", "files", 2, ".jpg"),),
        note="Made up.",
    )
    monkeypatch.setitem(SOURCES, "toy", source)
    (tmp_path / "root").mkdir()
    status, out, _ = run("prepare", "toy", "--root", "root")
    assert status == 1
    for words in ("toy: not complete", "missing", "download  toy.zip into root", "https://example.org", "Made up."):
        assert words in out
    with zipfile.ZipFile("toy.zip", "w") as file:
        file.writestr("1.jpg", b"x")
        file.writestr("2.jpg", b"x")
    status, out, _ = run("prepare", "toy", "--root", "root", "--downloads", ".")
    assert status == 0
    assert "toy.zip: 2 files, 2 of them now" in out
    assert "ok        ROOT/toy: 2 .jpg files, found 2" in out
    status, out, _ = run("prepare", "toy", "--root", "root", "--json")
    assert status == 0
    assert json.loads(out)[0]["unpacked"][0]["new"] == 0
