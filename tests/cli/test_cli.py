"""The command line: what it prints, where it writes, and how it fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from self1e.cli import demo as demo_module
from self1e.cli.main import main
from self1e.inference.loading import NANO
from self1e.structures import Segmentation


@pytest.fixture
def run(capsys, tiny_model_folder):
    """Run the command with the tiny model; returns status, stdout and stderr."""

    def run(*arguments: object, model: bool = True) -> tuple[int, str, str]:
        given = [str(argument) for argument in arguments]
        if model:
            given += ["--model", str(tiny_model_folder), "--device", "cpu"]
        with pytest.raises(SystemExit) as end:
            main(given)
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture
def folder(tmp_path, pictures, monkeypatch):
    """Where the command runs: two pictures, a broken one, and a file that is none."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    pictures[0].save("in/one.png")
    pictures[1].save("in/two.jpg")
    Path("in/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    Path("in/notes.txt").write_text("no picture")
    return tmp_path


def test_one_picture(run, folder):
    status, out, err = run("segment", "in/one.png", "-q", "the red block", "-q", "blue")
    assert (status, err) == (0, "")
    assert out.startswith("in/one.png: 'the red block' ")
    assert out.endswith("-> self1e-output/one.overlay.png\n")
    with Image.open("self1e-output/one.overlay.png") as overlay:
        assert overlay.size == (90, 60)


def test_every_format(run, folder):
    status, _, _ = run("segment", "in/one.png", "-q", "blue", "-f", "overlay,mask,coco,polygons,json", "--out", "o")
    assert status == 0
    assert sorted(path.name for path in Path("o").iterdir()) == [
        "one.coco.json",
        "one.json",
        "one.mask0.png",
        "one.overlay.png",
        "one.polygons.json",
    ]


def test_a_broken_picture_is_reported_and_stops_nothing(run, folder):
    status, out, err = run("segment", "in", "-q", "blue", "--out", "o")
    assert status == 1
    assert len(out.splitlines()) == 2
    assert len(err.splitlines()) == 1
    assert err.startswith(f"self1e: {Path('in/broken.png')}: ")
    names = ["manifest.jsonl", "one.png.overlay.png", "two.jpg.overlay.png"]
    assert sorted(path.name for path in Path("o").iterdir()) == names


def test_a_missing_picture_stops_nothing(run, folder):
    status, out, err = run("segment", "in/three.png", "in/one.png", "-q", "blue")
    assert status == 1
    assert err == "self1e: in/three.png: no such file or folder\n"
    assert len(out.splitlines()) == 1


def test_globs_and_repeated_pictures(run, folder):
    status, out, _ = run("segment", "in/*.jpg", "in/two.jpg", "-q", "blue")
    assert status == 0
    assert len(out.splitlines()) == 1


def test_json_is_one_line_per_picture_and_nothing_else(run, folder):
    status, out, err = run("segment", "in", "-q", "blue", "-q", "the red block", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 1
    assert [Path(line["picture"]).name for line in lines] == ["broken.png", "one.png", "two.jpg"]
    assert "error" in lines[0]
    assert [query["query"] for query in lines[1]["queries"]] == ["blue", "the red block"]
    first = lines[1]["queries"][0]
    mask = Segmentation(("blue",), (first["rle"],), np.array([first["score"]]), tuple(lines[1]["size_wh"])).mask()
    assert mask.sum() == first["area"]
    assert lines[1]["files"] == []
    assert not Path("self1e-output").exists()
    assert len(err.splitlines()) == 1


def test_json_with_files(run, folder):
    _, out, _ = run("segment", "in/one.png", "-q", "blue", "--json", "--out", "o", "--format", "mask")
    assert json.loads(out)["files"] == [str(Path("o/one.mask0.png"))]
    assert Path("o/one.mask0.png").is_file()


def test_same_names_from_different_folders_do_not_overwrite(run, folder, pictures):
    Path("other").mkdir()
    pictures[2].save("other/one.png")
    pictures[3].save("other/One.jpg")
    status, out, _ = run("segment", "in/one.png", "other", "-q", "blue", "--out", "o")
    assert status == 0
    assert len(out.splitlines()) == len(list(Path("o").iterdir())) == 3


def test_a_second_run_leaves_out_what_the_first_one_drew(run, folder):
    run("segment", "in/one.png", "-q", "blue", "--out", "in", "--format", "overlay,mask")
    _, out, err = run("segment", "in", "-q", "blue", "--out", "in")
    assert len(out.splitlines()) == 2
    assert "left out 2 pictures" in err


def test_a_second_run_skips_what_is_finished(run, folder):
    _, first, _ = run("segment", "in", "-q", "blue", "--out", "o")
    before = Path("o/one.png.overlay.png").stat().st_mtime_ns
    status, out, err = run("segment", "in", "-q", "blue", "--out", "o")
    assert (status, out) == (1, "")  # the broken one is tried again
    assert err.splitlines()[-1] == "self1e: 2 of 3 were finished before; --overwrite does them again"
    assert Path("o/one.png.overlay.png").stat().st_mtime_ns == before
    status, out, err = run("segment", "in", "-q", "red", "--out", "o")
    assert (status, out) == (2, "")
    assert "made otherwise" in err
    assert run("segment", "in", "-q", "blue", "--out", "o", "--overwrite")[1] == first
    assert len(run("segment", "in", "-q", "red", "--out", "o", "--update")[1].splitlines()) == 2
    assert run("segment", "in", "-q", "red", "--out", "o", "--update", "--overwrite")[0] == 2


def test_queries_per_picture(run, folder):
    Path("in/q.csv").write_text("image,query\none.png,blue\none.png,red\ntwo.jpg,green\n", encoding="utf-8")
    status, out, err = run("segment", "--queries-file", "in/q.csv", "--out", "o", "--json", "--format", "mask")
    assert (status, err) == (0, "")
    found = {Path(line["picture"]).name: line for line in map(json.loads, out.splitlines())}
    assert [query["query"] for query in found["one.png"]["queries"]] == ["blue", "red"]
    assert found["two.jpg"]["files"] == [str(Path("o/two.jpg.mask0.png"))]
    status, out, _ = run("segment", "in", "--queries-file", "in/q.csv", "-q", "sky", "--json")
    assert [[query["query"] for query in json.loads(line)["queries"]] for line in out.splitlines()] == [
        ["sky", "blue", "red"],
        ["sky", "green"],
    ]
    Path("in/q.csv").write_text("image,query\none.png\none.png,\n", encoding="utf-8")
    status, _, err = run("segment", "--queries-file", "in/q.csv")
    assert status == 2
    assert "2 mistakes: line 2: 1 fields, the header has 2; line 3: " in err


@pytest.mark.parametrize(
    ("limit", "told"),
    [("--max-pixels=5399", "more than max_pixels=5,399"), ("--max-bytes=100", "more than max_bytes=100")],
)
@pytest.mark.parametrize("source", ["in/one.png", "in"])
def test_limits_of_pictures_are_settings(run, folder, limit, told, source):
    Path("in/two.jpg").unlink()
    Path("in/broken.png").unlink()
    status, out, err = run("segment", source, "-q", "blue", limit)
    assert (status, out) == (1, "")
    assert told in err
    assert run("segment", source, "-q", "blue", "--max-pixels=0", "--max-bytes=0", "--max-seconds=0")[0] == 0


def test_queries_from_a_file(run, folder):
    Path("queries.txt").write_text("# colours\nthe red block\n\n  blue  \n", encoding="utf-8")
    _, out, _ = run("segment", "in/one.png", "-q", "green", "--queries-file", "queries.txt", "--json")
    assert [query["query"] for query in json.loads(out)["queries"]] == ["green", "the red block", "blue"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["in/one.png"], "No query"),
        (["in/one.png", "-q", "  "], "empty query"),
        (["in/one.png", "-q", "x", "--format", "overlai"], "Did you mean 'overlay'?"),
        (["in/one.png", "-q", "x", "--kind", "poem"], "kind='poem'"),
        (["in/one.png", "-q", "x", "--max-tiles", "13"], "--max-tiles 13"),
        (["in/one.png", "-q", "x", "--dtype", "int3"], "dtype='int3'"),
        (["in/one.png", "--queries-file", "missing.txt"], "missing.txt"),
        (["in/one.png", "-q", "x", "--out", "in/notes.txt"], "is a file"),
        (["-q", "x"], "Missing argument"),
        (["in/one.png", "-q", "x", "--nonsense"], "nonsense"),
    ],
)
def test_what_was_not_understood_ends_with_2(run, folder, arguments, told):
    status, out, err = run("segment", *arguments)
    assert status == 2
    assert out == ""
    assert told in err
    assert "Traceback" not in err


def test_a_model_that_is_not_there_ends_with_1_and_one_line(run, folder):
    status, _, err = run("segment", "in/one.png", "-q", "x", "--model", "./nowhere", model=False)
    assert status == 1
    assert err.startswith("self1e: ./nowhere: no such folder")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "processor_config.json"])
def test_a_damaged_model_ends_with_1_and_one_line(run, folder, tiny_model_folder, file):
    shutil.copytree(tiny_model_folder, "damaged")
    (Path("damaged") / file).write_text("{")
    status, _, err = run("segment", "in/one.png", "-q", "x", "--model", "damaged", model=False)
    assert status == 1
    assert err.startswith("self1e: ")
    assert "damaged" in err
    assert len(err.splitlines()) == 1


def test_debug_shows_where_an_error_comes_from(folder):
    with pytest.raises(Exception, match="no such folder"):
        main(["--debug", "segment", "in/one.png", "-q", "x", "--model", "./nowhere"])


def test_pipes_get_no_progress_bar(folder, tiny_model_folder):
    command = [sys.executable, "-m", "self1e", "segment", "in/one.png", "in/two.jpg", "-q", "blue", "--device", "cpu"]
    found = subprocess.run([*command, "-m", str(tiny_model_folder)], capture_output=True, text=True, check=True)
    assert found.stderr == ""
    assert len(found.stdout.splitlines()) == 2


def test_info(run, tiny_model_folder):
    status, out, _ = run("info", tiny_model_folder, model=False)
    assert status == 0
    for words in ("73.19 k parameters", "mask head", "seg_readout", "[SEG]", "internvl2_5", "bfloat16", "12 tiles"):
        assert words in out
    status, out, _ = run("info", tiny_model_folder, "--json", model=False)
    assert json.loads(out)["sizes"]["tile"] == 56


def test_info_of_nothing(run, tmp_path):
    status, _, err = run("info", tmp_path / "missing", model=False)
    assert status == 1
    assert "no such folder" in err


def test_version(run):
    import self1e

    expected = (0, f"self1e {self1e.__version__}\n", "")
    assert run("version", model=False) == expected
    assert run("--version", model=False) == expected


def test_doctor_reports_and_its_status_says_whether_all_works(run):
    status, out, _ = run("doctor", model=False)
    for words in ("Python", "torch", "transformers", "torchvision", "nano", "device"):
        assert words in out
    assert status == (0 if (NANO / "config.json").is_file() else 1)
    assert ("BROKEN" in out) == bool(status)


def test_doctor_goes_on_after_a_broken_part(run, monkeypatch):
    from self1e.cli import doctor

    def broken():
        raise RuntimeError("no such luck")
        yield

    monkeypatch.setattr(doctor, "_torchvision", broken)
    status, out, _ = run("doctor", model=False)
    assert status == 1
    assert "RuntimeError: no such luck" in out
    assert "packages" in out


def test_demo(run, tmp_path, monkeypatch, pictures):
    pictures[0].save(tmp_path / "photograph.jpg")
    monkeypatch.setattr(demo_module, "PHOTOGRAPH", tmp_path / "photograph.jpg")
    status, out, _ = run("demo", "--out", tmp_path / "o")
    assert status == 0
    assert "IoU with the truth" in out
    assert "'the person'" in out
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"scene.overlay.png", "astronaut.overlay.png"}
    assert str(tmp_path / "o" / "astronaut.overlay.png") in out


@pytest.mark.skipif(not (NANO / "config.json").is_file(), reason="nano is not in this checkout yet")
def test_nano_says_what_it_knows(run, folder):
    status, _, err = run("segment", "in/one.png", "-q", "the person", model=False)
    assert status == 0
    assert "clothing" in err
    assert "--model" in err
