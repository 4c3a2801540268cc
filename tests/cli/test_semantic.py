"""``self1e semantic``, and the options of ``self1e segment`` about parts and formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from self1e.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Run a command with the tiny model, where there is a folder ``in`` with two pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in/deep").mkdir(parents=True)
    for number, name in enumerate(("in/one.png", "in/deep/two.png")):
        values = np.random.default_rng(number).integers(0, 256, (5, 8, 3), dtype=np.uint8)
        Image.fromarray(values).resize((80, 50 + number)).save(name)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--model", str(tiny_model_folder), "--device", "cpu"])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def test_one_picture(run: Any):
    status, out, err = run("semantic", "in/one.png", "-c", "sky, road,sky light", "--background", "none", "--out", "o")
    assert (status, err) == (0, "")
    assert out.startswith("in/one.png: ")
    assert "background" not in out
    assert sorted(path.name for path in Path("o").iterdir()) == [
        "one.legend.png",
        "one.semantic.json",
        "one.semantic.overlay.png",
        "one.semantic.png",
    ]
    content = json.loads(Path("o/one.semantic.json").read_text("utf-8"))
    assert [entry["name"] for entry in content["classes"]] == ["sky", "road", "sky light"]
    assert sum(entry["area"] for entry in content["classes"]) == 80 * 50
    assert content["background"] is None


def test_a_folder_goes_on_where_it_stopped(run: Any):
    Path("classes.txt").write_text("# things\nsky\n\nroad\n", "utf-8")
    Path("in/broken.png").write_bytes(b"no picture")
    command = ["semantic", "in", "-c", "classes.txt", "--out", "in", "--json"]
    status, out, err = run(*command)
    assert status == 1
    assert "in/broken.png: " in err
    assert sorted(json.loads(line)["picture"] for line in out.splitlines()) == [
        "in/broken.png",
        "in/deep/two.png",
        "in/one.png",
    ]
    assert Path("in/deep/two.png.semantic.png").is_file()
    Path("in/broken.png").unlink()
    status, out, err = run(*command)  # what was drawn into the folder is not segmented
    assert (status, out) == (0, "")
    assert "2 of 2 were finished before" in err
    Path("classes.txt").write_text("sky\nroad\ntree\n", "utf-8")
    status, out, err = run(*command)
    assert len(out.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-c", "a,b,a"], "'a' twice"),
        (["-c", "nowhere.txt"], "no such file"),
        (["-c", "a", "--background", "much"], "expected a logit"),
        (["-c", "a", "--max-tiles", "13"], "max_tiles=13"),
    ],
)
def test_what_cannot_work_is_told_before_a_model_is_loaded(run: Any, arguments: list[str], told: str):
    status, out, err = run("semantic", "in", *arguments)
    assert (status, out) == (2, "")
    assert told in err
    assert not Path("self1e-output").exists()


def test_segment_splits_and_writes_every_format(run: Any):
    formats = "cutout,indexed,rle,rle-uncompressed,coco,coco-results,yolo,label-studio,label-studio-polygons"
    options = ["-q", "blue", "-f", formats, "--split", "--fill-holes", "--min-area", "20"]
    status, _, err = run("segment", "in", *options, "--out", "o")
    assert status == 0, err
    assert "for all pictures: o/coco.json, o/coco-results.json, o/yolo/data.yaml" in err
    coco = json.loads(Path("o/coco.json").read_bytes())
    assert [category["name"] for category in coco["categories"]] == ["blue"]
    assert all(entry["area"] >= 20 for entry in coco["annotations"])
    status, _, _ = run("segment", "in/one.png", *options, "--out", "p")
    assert status == 0
    own = json.loads(Path("p/one.coco.json").read_bytes())["annotations"]
    image = next(image["id"] for image in coco["images"] if image["file_name"] == "one.png")
    assert [entry["segmentation"] for entry in coco["annotations"] if entry["image_id"] == image] == [
        entry["segmentation"] for entry in own
    ]


def test_a_wrong_format_is_told_with_a_suggestion(run: Any):
    status, _, err = run("segment", "in/one.png", "-q", "blue", "-f", "labelstudio")
    assert status == 2
    assert "Did you mean 'label-studio'?" in err
