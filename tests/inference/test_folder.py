"""Runs over folders: what is written where, what is skipped, and what a kill costs."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import STAND_IN

from self1e.errors import OutputError, PictureError, SettingError
from self1e.inference import folder as folder_module
from self1e.inference.folder import FolderReport, segment_folder
from self1e.inference.manifest import Manifest, Record
from self1e.inference.segmenter import Self1E

NAMES = ("a/x.jpg", "b/x.jpg", "x.jpg", "x.png", "2.png", "10.png")


@pytest.fixture
def photos(tmp_path: Path, pictures: list[Image.Image]) -> Path:
    """Six pictures whose names get in each other's way."""
    for number, name in enumerate(NAMES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures[number % len(pictures)].resize((40 + number, 30)).save(path)
    return tmp_path / "photos"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file with its content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text("utf-8").splitlines()]


def test_every_picture_gets_its_own_files_and_a_line(tmp_path: Path, photos: Path, tiny_model: Self1E) -> None:
    report = segment_folder(tiny_model, photos, tmp_path / "o", ["blue", "red"], formats=["mask", "coco"])
    assert report == FolderReport(tmp_path / "o" / "manifest.jsonl", total=6, done=6)
    endings = ("mask0.png", "mask1.png", "coco.json")
    expected = {f"{name}.{ending}" for name in NAMES for ending in endings} | {"manifest.jsonl", "coco.json"}
    assert set(tree(tmp_path / "o")) == expected
    assert [line["picture"] for line in lines(tmp_path / "o")] == [
        "2.png",
        "10.png",
        "a/x.jpg",
        "b/x.jpg",
        "x.jpg",
        "x.png",
    ]
    line = lines(tmp_path / "o")[2]
    one = tiny_model.segment(photos / "a/x.jpg", ["blue", "red"])
    assert line["status"] == "done"
    assert (line["size_wh"], line["files"]) == ([40, 30], [f"a/x.jpg.{ending}" for ending in endings])
    assert [query["area"] for query in line["queries"]] == one.areas.tolist()
    with Image.open(tmp_path / "o" / "a" / "x.jpg.mask1.png") as mask:
        assert mask.tobytes() == (one.mask(1) * 255).astype("uint8").tobytes()


def test_a_bad_picture_is_recorded_and_tried_again(tmp_path: Path, photos: Path, tiny_model: Self1E) -> None:
    good = (photos / "b" / "x.jpg").read_bytes()
    (photos / "b" / "x.jpg").write_bytes(good[:200])
    report = segment_folder(tiny_model, photos, tmp_path / "o", "blue")
    assert (report.done, list(report.failed), report.remaining) == (5, ["b/x.jpg"], 0)
    [failed] = [line for line in lines(tmp_path / "o") if line["status"] == "failed"]
    assert failed["picture"] == "b/x.jpg"
    assert failed["error"].startswith("is cut short, or damaged")
    (photos / "b" / "x.jpg").write_bytes(good)
    before = tree(tmp_path / "o")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("*.png")}
    report = segment_folder(tiny_model, photos, tmp_path / "o", "blue")
    assert (report.kept, report.done, report.failed) == (5, 1, {})
    assert set(tree(tmp_path / "o")) == set(before) | {"b/x.jpg.mask0.png"}
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert segment_folder(tiny_model, photos, tmp_path / "o", "blue").kept == 6


def test_what_was_made_otherwise_is_not_written_over_unasked(tmp_path: Path, photos: Path, tiny_model: Self1E) -> None:
    def run(*queries: str, **settings: Any) -> FolderReport:
        return segment_folder(tiny_model, photos, tmp_path / "o", queries, **settings)

    run("blue", "red")
    before = tree(tmp_path / "o")
    with pytest.raises(
        SettingError, match=r"6 finished pictures were made otherwise .*queries were 'blue', 'red', are 'green'"
    ):
        run("green")
    with pytest.raises(SettingError, match=r"threshold was 0.0, is 0.5.*--update"):
        run("blue", "red", threshold=0.5)
    os.utime(photos / "2.png", ns=(1, 1))
    with pytest.raises(SettingError, match=r"1 finished picture was made otherwise \(2.png: its file has changed\)"):
        run("blue", "red")
    assert tree(tmp_path / "o") == before
    report = run("blue", "red", existing="update")
    assert (report.kept, report.done) == (5, 1)
    assert run("blue", "red", existing="overwrite").done == 6
    assert run("blue", formats=["json"], existing="update").done == 6
    # The files of queries and formats that are no more are gone.
    assert set(tree(tmp_path / "o")) == {f"{name}.json" for name in NAMES} | {"manifest.jsonl"}
    (tmp_path / "o" / "x.png.json").unlink()
    assert (run("blue", formats=["json"]).done, run("blue", formats=["json"]).kept) == (1, 6)


def test_other_weights_under_the_same_name_are_noticed(
    tmp_path: Path, photos: Path, make_tiny_model: Callable[..., Path], tiny_model_folder: Path
) -> None:
    import torch

    import self1e

    segment_folder(self1e.load(tiny_model_folder, device="cpu"), photos, tmp_path / "o", "blue")
    moved = self1e.load(tiny_model_folder, device="cpu")
    moved.name = "elsewhere"
    assert segment_folder(moved, photos, tmp_path / "o", "blue").kept == 6
    with torch.no_grad():
        next(iter(moved.model.mask_head.parameters())).mul_(1.01)
    with pytest.raises(SettingError, match="weights was"):
        segment_folder(moved, photos, tmp_path / "o", "blue")


def test_a_torn_last_line_and_garbage_cost_their_pictures_only(
    tmp_path: Path, photos: Path, tiny_model: Self1E, caplog: pytest.LogCaptureFixture
) -> None:
    segment_folder(tiny_model, photos, tmp_path / "o", "blue")
    expected, manifest = tree(tmp_path / "o"), tmp_path / "o" / "manifest.jsonl"
    whole = manifest.read_bytes()
    for torn in range(1, len(whole.splitlines()[-1]), 97):
        manifest.write_bytes(whole[:-torn])
        with Manifest(tmp_path / "o") as opened:
            assert (len(opened.records), opened.unreadable) == (5, 0)
        assert manifest.read_bytes() == b"".join(whole.splitlines(keepends=True)[:-1])
    report = segment_folder(tiny_model, photos, tmp_path / "o", "blue")
    assert (report.kept, report.done) == (5, 1)
    assert tree(tmp_path / "o") == expected
    first, rest = whole.split(b"\n", 1)
    manifest.write_bytes(b"\0" * len(first) + b"\n" + rest)
    assert segment_folder(tiny_model, photos, tmp_path / "o", "blue").done == 1
    assert "1 lines cannot be read" in caplog.text


def test_a_manifest_cannot_name_files_outside() -> None:
    line = Record(picture="x", status="done", source="x", settings={}, files=("../x.png",)).line()
    with pytest.raises(ValueError, match="outside"):
        Record.read(line)


def test_a_full_disk_stops_the_run_and_the_next_goes_on(
    tmp_path: Path, photos: Path, tiny_model: Self1E, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment_folder(tiny_model, photos, tmp_path / "expected", "blue")
    write, written = folder_module.write_outputs, []

    def full(*arguments: Any, **options: Any) -> list[Path]:
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(arguments)
        return write(*arguments, **options)

    monkeypatch.setattr(folder_module, "write_outputs", full)
    with pytest.raises(
        OutputError, match=r"No space left on device \(at b/x.jpg\).*Make room, then run the same again"
    ):
        segment_folder(tiny_model, photos, tmp_path / "o", "blue")
    monkeypatch.setattr(folder_module, "write_outputs", write)
    assert len(lines(tmp_path / "o")) == 3
    report = segment_folder(tiny_model, photos, tmp_path / "o", "blue")
    assert (report.kept, report.done) == (3, 3)
    assert tree(tmp_path / "o") == tree(tmp_path / "expected")


def test_a_name_too_long_for_its_files_fails_alone(tmp_path: Path, photos: Path, tiny_model: Self1E) -> None:
    long = "n" * 245 + ".png"
    (photos / "2.png").rename(photos / long)
    report = segment_folder(tiny_model, photos, tmp_path / "o", "blue")
    assert (report.done, list(report.failed)) == (5, [long])


def test_a_model_that_fails_on_a_picture_goes_on(
    tmp_path: Path, photos: Path, tiny_model: Self1E, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = tiny_model.segment

    def exhausted(picture: Any, *arguments: Any, **options: Any) -> Any:
        if picture.source.endswith("10.png"):
            raise RuntimeError("CUDA out of memory")
        return segment(picture, *arguments, **options)

    monkeypatch.setattr(tiny_model, "segment", exhausted)
    report = segment_folder(tiny_model, photos, tmp_path / "o", "blue")
    assert report.failed == {"10.png": "RuntimeError: CUDA out of memory"}
    assert report.done == 5


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path, photos: Path, tiny_model: Self1E) -> None:
    with Manifest(tmp_path / "o"), pytest.raises(OutputError, match="another run is writing"):
        segment_folder(tiny_model, photos, tmp_path / "o", "blue")
    assert segment_folder(tiny_model, photos, tmp_path / "o", "blue").done == 6


def test_a_stop_finishes_the_picture_in_flight(tmp_path: Path, photos: Path, tiny_model: Self1E) -> None:
    stop = threading.Event()

    def told(record: Record, result: Any, report: FolderReport) -> None:
        assert record.status == "done"
        assert result.queries == ("blue",)
        if report.done == 2:
            stop.set()

    report = segment_folder(tiny_model, photos, tmp_path / "o", "blue", stop=stop, on_record=told)
    assert report.stopped
    assert 2 <= report.done < 6
    assert report.remaining == 6 - report.done
    assert len(lines(tmp_path / "o")) == report.done


def test_an_interrupt_leaves_no_thread_and_what_is_finished(tmp_path: Path, photos: Path, tiny_model: Self1E) -> None:
    def told(record: Record, result: Any, report: FolderReport) -> None:
        if report.done == 2:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        segment_folder(tiny_model, photos, tmp_path / "o", "blue", on_record=told)
    assert threading.active_count() == before
    kept = len(lines(tmp_path / "o"))
    assert 2 <= kept <= 3  # what was being written then is written
    assert segment_folder(tiny_model, photos, tmp_path / "o", "blue").kept == kept


def test_opening_computing_and_writing_overlap(
    tmp_path: Path, photos: Path, tiny_model: Self1E, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, computed = threading.Event(), threading.Event()
    open_picture, segment, write = folder_module.open_picture, tiny_model.segment, folder_module.write_outputs
    calls: list[str] = []

    def opening(path: Path, **options: Any) -> Any:
        found = open_picture(path, **options)
        if path.name == "x.jpg":  # the third of the run
            opened.set()
        return found

    def computing(*arguments: Any, **options: Any) -> Any:
        calls.append("compute")
        assert opened.wait(20), "the third picture is not opened while the first is computed"
        if len(calls) == 2:
            computed.set()
        return segment(*arguments, **options)

    def writing(*arguments: Any, **options: Any) -> Any:
        assert computed.wait(20), "the second picture is not computed while the first is written"
        return write(*arguments, **options)

    monkeypatch.setattr(folder_module, "open_picture", opening)
    monkeypatch.setattr(tiny_model, "segment", computing)
    monkeypatch.setattr(folder_module, "write_outputs", writing)
    assert segment_folder(tiny_model, photos, tmp_path / "o", "blue").done == 6


def test_pictures_that_are_open_together_are_bounded(
    tmp_path: Path, photos: Path, tiny_model: Self1E, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "x.png").write_bytes(b"broken")
    (photos / "3.png").write_bytes((photos / "2.png").read_bytes()[:60])  # its size is known, its pixels are not there
    held: list[int] = []

    class Watched(folder_module._Memory):
        def enter(self, turn: int, pixels: int) -> None:
            super().enter(turn, pixels)
            held.append(self._held)

    monkeypatch.setattr(folder_module, "_Memory", Watched)
    monkeypatch.setattr(folder_module, "_PIXELS_AHEAD", 2500)  # two of them
    report = segment_folder(tiny_model, photos, tmp_path / "o", "blue")
    assert (report.done, len(report.failed)) == (5, 2)
    assert 1200 < max(held) <= 2500
    held.clear()
    monkeypatch.setattr(folder_module, "_PIXELS_AHEAD", 1)  # each comes in alone
    assert segment_folder(tiny_model, photos, tmp_path / "o", "blue", existing="overwrite").done == 5
    assert max(held) < 1400


def test_what_the_run_writes_below_its_source_is_not_read(tmp_path: Path, photos: Path, tiny_model: Self1E) -> None:
    for out in (photos / "deep" / "o", photos):
        segment_folder(tiny_model, photos, out, "blue", formats=["mask", "overlay"])
        report = segment_folder(tiny_model, photos, out, "blue", formats=["mask", "overlay"])
        assert (report.total, report.kept, report.left_out) == (6, 6, 12 if out != photos else 24)


def test_names_are_relative_to_what_was_given(tmp_path: Path, photos: Path, tiny_model: Self1E) -> None:
    segment_folder(tiny_model, [photos / "a", photos / "b", photos / "*.png"], tmp_path / "o", "blue")
    expected = {"a/x.jpg", "b/x.jpg", "2.png", "10.png", "x.png"}
    assert {line["picture"] for line in lines(tmp_path / "o")} == expected
    segment_folder(tiny_model, [photos / "a"], tmp_path / "p", "blue")
    assert [line["picture"] for line in lines(tmp_path / "p")] == ["x.jpg"]


def test_names_that_differ_in_case_only_stay_apart() -> None:
    base = Path("/p").absolute()
    names = folder_module._names([base / "a.jpg", base / "A.JPG", base / "b.jpg", base.parent / "q" / "c.jpg"], base)
    assert len({name.casefold() for name in names}) == 4
    assert names[2:] == [
        "b.jpg",
        "/".join([*[p.strip(":/\\") for p in base.parent.parts if p.strip(":/\\")], "q", "c.jpg"]),
    ]
    assert names[0].startswith("a.jpg-")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"existing": "maybe"}, "existing='maybe'"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"max_tiles": 13}, "max_tiles=13"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"formats": ["masks"]}, "Did you mean 'mask'"),
        ({"kind": "poem"}, "kind='poem'"),
        ({"queries": ["  "]}, "empty query"),
        ({"queries": []}, "No query"),
        ({"source": None}, "Neither source nor table"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tmp_path: Path, photos: Path, tiny_model: Self1E, settings: dict[str, Any], told: str
) -> None:
    given = {"source": photos, "queries": "blue"} | settings
    with pytest.raises(ValueError, match=told):
        segment_folder(tiny_model, out=tmp_path / "o", **given)
    assert not (tmp_path / "o").exists()


def test_a_folder_without_pictures_is_an_error(tmp_path: Path, tiny_model: Self1E) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PictureError, match="holds no picture"):
        segment_folder(tiny_model, tmp_path / "empty", tmp_path / "o", "blue")


# ---------------------------------------------------------------------- tables


def test_a_table_says_what_to_find_in_each_picture(tmp_path: Path, photos: Path, tiny_model: Self1E) -> None:
    table = photos / "queries.csv"
    table.write_text('image,query\na/x.jpg,blue\nx.png,"red, not green"\na/x.jpg,red\nmissing.png,red\n', "utf-8")
    report = segment_folder(tiny_model, None, tmp_path / "o", table=table)
    assert report.failed == {"missing.png": "no such file."}
    asked = {line["picture"]: [query["query"] for query in line["queries"]] for line in lines(tmp_path / "o")}
    assert asked == {"a/x.jpg": ["blue", "red"], "x.png": ["red, not green"], "missing.png": ["red"]}
    report = segment_folder(tiny_model, photos, tmp_path / "p", "sky", table=table)
    assert (report.total, report.left_out) == (2, 4)
    assert [query["query"] for query in lines(tmp_path / "p")[0]["queries"]] == ["sky", "blue", "red"]
    # An edited row: only its picture is done again.
    table.write_text(table.read_text("utf-8").replace("red, not green", "green"), "utf-8")
    report = segment_folder(tiny_model, photos, tmp_path / "p", "sky", table=table, existing="update")
    assert (report.kept, report.done) == (1, 1)


# ---------------------------------------------------------------------- signals

CHILD = (
    STAND_IN
    + """
import sys, time
from pathlib import Path
import self1e.cli.segment as command
import self1e.inference.folder as folder
from self1e.cli.main import main

gate, count = Path(sys.argv[1]), 0

class Waiting(StandIn):
    def segment(self, *arguments, **settings):
        global count
        count += 1
        while count == 4 and not gate.exists():
            time.sleep(0.02)
        return super().segment(*arguments, **settings)

command.load_quietly = lambda *arguments: Waiting()
folder.fingerprint = lambda model: "none"
main(sys.argv[2:])
"""
)


class Child:
    """The command, which waits at its fourth picture until there is a file ``gate``."""

    def __init__(self, photos: Path, out: Path, gate: Path) -> None:
        arguments = ["segment", photos, "-q", "blue", "-q", "red", "--out", out, "-f", "mask,coco,overlay"]
        command = [sys.executable, "-c", CHILD, str(gate), *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.out = out

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.end()

    def wait_for_lines(self, count: int) -> None:
        """Wait until the manifest has so many lines."""
        end = time.monotonic() + 120
        while not (self.out / "manifest.jsonl").exists() or len(lines(self.out)) < count:
            assert self.process.poll() is None, self.end()
            assert time.monotonic() < end, "no picture was finished"
            time.sleep(0.02)

    def end(self) -> tuple[int, str]:
        """Wait for its end; return its status and what it said on stderr."""
        _, told = self.process.communicate(timeout=120)
        return self.process.returncode, told


@pytest.fixture
def run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], FolderReport]:
    """The same run in this process."""
    names: dict[str, Any] = {}
    exec(STAND_IN, names)
    monkeypatch.setattr(folder_module, "fingerprint", lambda model: "none")

    def run(out: Path) -> FolderReport:
        formats = ["mask", "coco", "overlay"]
        return segment_folder(names["StandIn"](), photos, out, ["blue", "red"], formats=formats)

    run(out := photos.parent / "whole")
    assert len(tree(out)) == 6 * 4 + 2  # manifest and coco.json
    return run


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_loses_nothing_and_the_run_goes_on_to_the_same_bytes(
    tmp_path: Path, photos: Path, run: Callable[[Path], FolderReport]
) -> None:
    with Child(photos, tmp_path / "o", tmp_path / "gate") as child:
        child.wait_for_lines(3)
        child.process.send_signal(signal.SIGINT)
        assert child.process.stderr is not None
        told = child.process.stderr.readline()
        assert told == "self1e: stopping after this picture; once more to stop at once\n"
        (tmp_path / "gate").touch()
        assert child.end() == (
            130,
            "self1e: stopped; 4 of 6 pictures are finished. The same command goes on where this one stopped.\n",
        )
    assert len(lines(tmp_path / "o")) == 4
    assert run(tmp_path / "o").kept == 4
    assert tree(tmp_path / "o") == tree(tmp_path / "whole")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_twice_stops_at_once(tmp_path: Path, photos: Path, run: Callable[[Path], FolderReport]) -> None:
    with Child(photos, tmp_path / "o", tmp_path / "never") as child:
        child.wait_for_lines(3)
        assert child.process.stderr is not None
        child.process.send_signal(signal.SIGINT)
        child.process.stderr.readline()
        child.process.send_signal(signal.SIGINT)
        status, told = child.end()
    assert status == 130
    assert told.startswith("self1e: stopped at once; the same command goes on")
    assert len(told.splitlines()) == 1
    assert run(tmp_path / "o").kept == 3
    assert tree(tmp_path / "o") == tree(tmp_path / "whole")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_kill_loses_the_picture_in_flight_and_the_run_goes_on_to_the_same_bytes(
    tmp_path: Path, photos: Path, run: Callable[[Path], FolderReport]
) -> None:
    with Child(photos, tmp_path / "o", tmp_path / "never") as child:
        child.wait_for_lines(3)
        child.process.kill()
        assert child.end()[0] == -signal.SIGKILL
    assert len(lines(tmp_path / "o")) == 3
    (tmp_path / "o" / ("." + "0" * 32 + ".tmp")).write_bytes(b"half a mask")  # as a kill while writing leaves it
    assert run(tmp_path / "o").kept == 3
    assert tree(tmp_path / "o") == tree(tmp_path / "whole")
