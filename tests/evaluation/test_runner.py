"""Rows come once, whatever the processes; what was computed is never lost; what failed is wrong and is listed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import another_run_in

from self1e.errors import DatasetError, OutputError, SettingError
from self1e.evaluation import runner
from self1e.evaluation.benchmarks import Opened, Options, find_benchmark
from self1e.evaluation.benchmarks.masks import failed_targets
from self1e.evaluation.tables import read_results, write_tables

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Five small pictures with masks of two classes, in the indexed format."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    for k in range(5):
        size = (40 + 8 * k, 36)
        Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(size).save(folder / f"images/{k}.png")
        labels = np.zeros(size[::-1], np.uint8)
        labels[4:20, 3 + k : 25] = 1
        labels[22:30, 5:20] = 2
        Image.fromarray(labels).save(folder / f"masks/{k}.png")
    (folder / "classes.txt").write_text("0 background\n1 box\n2 bar\n", "utf-8")
    return folder


def tables_bytes(out: Path) -> tuple[bytes, bytes]:
    write_tables(out)
    return (out / "tables.md").read_bytes(), (out / "tables.json").read_bytes()


def run_all(model: Any, name: str, out: Path, processes: int = 1, **options: Any) -> None:
    for rank in range(processes):
        for job in runner.plan(model, [name], [], out, **options):
            runner.evaluate(job, model, _Alone(rank, processes))


class _Alone(runner.Processes):
    """One of several processes that never meet, so that a test can run them one after the other."""

    def wait(self) -> None:
        pass


def test_every_number_of_processes_gives_the_same_tables(tiny_model: Any, own: Path, tmp_path: Path) -> None:
    for count in (1, 2, 3):
        run_all(tiny_model, f"own:{own}", tmp_path / str(count), processes=count)
    assert tables_bytes(tmp_path / "1") == tables_bytes(tmp_path / "2") == tables_bytes(tmp_path / "3")
    [result] = read_results(tmp_path / "2")
    assert len(result.rows) == len({row["id"] for row in result.rows}) == 10
    assert not result.partial


@pytest.mark.parametrize("cut", [0.3, 0.55, 0.8])
def test_a_run_that_stopped_anywhere_goes_on_and_ends_the_same(
    tiny_model: Any, own: Path, tmp_path: Path, cut: float
) -> None:
    run_all(tiny_model, f"own:{own}", tmp_path / "whole")
    [rows] = (tmp_path / "whole").rglob("rows-*.jsonl")
    torn = tmp_path / "torn" / rows.relative_to(tmp_path / "whole")
    torn.parent.mkdir(parents=True)
    content = rows.read_bytes()
    torn.write_bytes(content[: int(cut * len(content))])
    run_all(tiny_model, f"own:{own}", tmp_path / "torn", processes=2, limit=4)  # with other processes than before
    run_all(tiny_model, f"own:{own}", tmp_path / "torn", processes=3)
    assert tables_bytes(tmp_path / "torn") == tables_bytes(tmp_path / "whole")


def test_what_is_there_is_not_measured_again(
    tiny_model: Any, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all(tiny_model, f"own:{own}", tmp_path / "out", limit=3)
    measured: list[int] = []
    real = runner.measure
    monkeypatch.setattr(runner, "measure", lambda job, model, index: measured.append(index) or real(job, model, index))
    run_all(tiny_model, f"own:{own}", tmp_path / "out")
    assert measured == [3, 4]


def test_part_of_a_benchmark_is_called_partial(tiny_model: Any, own: Path, tmp_path: Path) -> None:
    run_all(tiny_model, f"own:{own}", tmp_path, limit=2)
    [result] = read_results(tmp_path)
    assert result.partial == "2 of 5 pictures measured"
    write_tables(tmp_path)
    assert "partial†" in (tmp_path / "tables.md").read_text("utf-8")


def test_one_encoding_gives_the_rows_of_one_by_one(tiny_model: Any, own: Path) -> None:
    from self1e.data.own import open_data
    from self1e.data.sample import Sample

    benchmark, samples = find_benchmark(f"own:{own}"), open_data(own)
    options = Options(exact="plain")
    for k in range(len(samples)):
        together = benchmark.measure(tiny_model, samples[k], options)
        for j, target in enumerate(samples[k].targets):
            alone = Sample(image=samples[k].image, targets=(target,), source=samples[k].source)
            [row] = benchmark.measure(tiny_model, alone, options)
            for key in ("U", "I", "pred_area", "gt_area"):
                assert abs(row[key] - together[j][key]) <= 1  # a pixel on the border, by rounding
            assert row["score"] == pytest.approx(together[j]["score"], abs=1e-5)


def test_a_picture_that_cannot_be_read_counts_as_wrong_and_is_listed(
    tiny_model: Any, own: Path, tmp_path: Path
) -> None:
    picture = own / "images" / "3.png"
    picture.write_bytes(picture.read_bytes()[:60])
    run_all(tiny_model, f"own:{own}", tmp_path / "out")
    [result] = read_results(tmp_path / "out")
    [failed] = [row for row in result.rows if row["failed"]]
    assert "3.png" in failed["error"]
    write_tables(tmp_path / "out")
    assert f"`{failed['id']}`" in (tmp_path / "out" / "tables.md").read_text("utf-8")
    [line] = [one for one in result.lines if one.protocol == "res.sentence" and not one.subset]
    assert (line.samples, line.failed) == (9, 1)


def test_failed_samples_are_measured_again_once_their_lines_are_gone(
    tiny_model: Any, own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, picture = f"own:{own}", own / "images" / "3.png"
    whole = picture.read_bytes()
    run_all(tiny_model, name, tmp_path / "whole")
    picture.write_bytes(whole[:60])
    run_all(tiny_model, name, tmp_path / "out")
    picture.write_bytes(whole)
    run_all(tiny_model, name, tmp_path / "out")
    assert sum(row["failed"] for row in read_results(tmp_path / "out")[0].rows) == 1  # what is there is not done again
    [path] = (tmp_path / "out").rglob("rows-*.jsonl")
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"failed": true' not in line), "utf-8")
    run_all(tiny_model, name, tmp_path / "out")
    assert tables_bytes(tmp_path / "out") == tables_bytes(tmp_path / "whole")
    path.write_text("".join(lines[:2]), "utf-8")  # a picture of two queries, killed after the first
    with pytest.raises(DatasetError, match="No rows under"):
        read_results(tmp_path / "out")
    assert "holds no complete picture yet; it is left out of the tables" in caplog.text


def test_a_query_on_which_the_model_fails_takes_no_other_with_it(
    tiny_model: Any, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from self1e.data.own import open_data

    real = type(tiny_model).segment

    def segment(self: Any, picture: Any, queries: Any, **options: Any) -> Any:
        if "the bar" in queries:
            raise RuntimeError("out of memory")
        return real(self, picture, queries, **options)

    monkeypatch.setattr(type(tiny_model), "segment", segment)
    rows = find_benchmark(f"own:{own}").measure(tiny_model, open_data(own)[0], Options())
    assert [(row["query"], row["failed"]) for row in rows] == [("the box", False), ("the bar", True)]
    assert rows[1]["error"] == "RuntimeError: out of memory"
    assert rows[1]["iou"] == 0


def test_rows_of_another_model_or_protocol_are_refused_before_anything_runs(
    tiny_model: Any, own: Path, tmp_path: Path
) -> None:
    run_all(tiny_model, f"own:{own}", tmp_path, limit=1)
    [path] = tmp_path.rglob("rows-*.jsonl")
    before = path.read_bytes()
    header, *rows = before.split(b"\n")
    for key, value in (("model", "another"), ("protocol", "res.ref_concat"), ("annotations", "other")):
        path.write_bytes(b"\n".join([json.dumps(json.loads(header) | {key: value}).encode(), *rows]))
        kept = path.read_bytes()
        with pytest.raises(DatasetError, match=f"rows of another run .*{key} '{value}'"):
            runner.plan(tiny_model, [f"own:{own}"], [], tmp_path)
        assert path.read_bytes() == kept


def test_all_problems_of_the_data_are_told_at_once(tiny_model: Any, own: Path, tmp_path: Path) -> None:
    shutil.copytree(own, tmp_path / "ccp")
    (tmp_path / "ccp" / "val.txt").write_text("0\n1\n", "utf-8")
    with pytest.raises(DatasetError) as caught:
        runner.plan(tiny_model, ["ccp/val", "refcoco/val", "camvid/val"], [tmp_path], tmp_path / "out")
    told = str(caught.value)
    assert "3 problems; nothing was run" in told
    assert "- ccp/val: 2 files are missing: " in told
    assert "0.jpg" in told
    assert "- refcoco/val: No file" in told
    assert "- camvid/val: No file" in told
    assert not (tmp_path / "out").exists()


def test_half_of_the_data_missing_names_what_is_there(tiny_model: Any, own: Path, tmp_path: Path) -> None:
    names = ["scenes/test", "refcoco/val", f"own:{own}", "pope", "pc-59/val"]
    with pytest.raises(DatasetError) as caught:
        runner.plan(tiny_model, names, [tmp_path], tmp_path / "out")
    told = str(caught.value)
    assert told.startswith("3 problems; nothing was run:")
    assert f"To measure what is there, name it: self1e eval scenes/test own:{own} ..." in told
    with pytest.raises(DatasetError, match="1 problem; nothing") as caught:
        runner.plan(tiny_model, ["refcoco/val"], [tmp_path], tmp_path / "out")
    assert "what is there" not in str(caught.value)


def test_masks_of_one_name_in_several_folders_are_several_samples(tiny_model: Any, own: Path, tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        for folder in ("a", "b"):
            (own / kind / "val" / folder).mkdir(parents=True)
        for k, path in enumerate(sorted((own / kind).glob("*.png"))):
            path.rename(own / kind / "val" / "ab"[k % 2] / f"{k // 2}.png")
    run_all(tiny_model, f"own:{own}", tmp_path / "out")
    [result] = read_results(tmp_path / "out")
    assert len({row["id"] for row in result.rows}) == len(result.rows) == 10
    assert len({row["group"] for row in result.rows}) == 5


def test_a_picture_of_malformed_annotations_is_one_wrong_sample() -> None:
    class Units(list):
        split, image_ids = "val", (581857,)

        def targets(self, index: int) -> Any:
            raise DatasetError("a polygon with three numbers")

    [row] = failed_targets(Opened(units=Units([None]), annotations="a"), 0)
    assert (row["id"], row["failed"]) == ("units/val/581857-0", True)


def test_other_masks_under_the_same_names_are_other_data(tiny_model: Any, own: Path, tmp_path: Path) -> None:
    run_all(tiny_model, f"own:{own}", tmp_path / "out", limit=2)
    path = own / "masks" / "4.png"
    labels = np.asarray(Image.open(path)).copy()
    labels[:10] = 2
    Image.fromarray(labels).save(path)
    with pytest.raises(DatasetError, match=r"rows of another run .*annotations"):
        runner.plan(tiny_model, [f"own:{own}"], [], tmp_path / "out")


def test_the_name_of_a_model_and_its_fingerprint_stay_what_stored_runs_have(tiny_model: Any) -> None:
    import hashlib

    import torch

    from self1e.inference.folder import fingerprint

    digest = hashlib.sha256()
    for name, tensor in sorted(tiny_model.model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(flat[:: max(1, len(flat) // 4096)].to("cpu", torch.float32).numpy().tobytes())
    assert f"@{digest.hexdigest()[:12]} (" in runner.model_name(tiny_model)
    assert len(fingerprint(tiny_model)) == 16


def test_a_calibration_runs_again_for_another_share(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from self1e.cli.main import main

    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    command = ["calibrate", "--benchmark", "scenes/val", "--model", str(folder), "--limit", "4", "--device", "cpu"]
    told = []
    for run, share in enumerate(("0.5", "1", "0.5")):
        if run == 2:  # as if two processes had written them
            [path] = (tmp_path / "rows").rglob("rows-*.jsonl")
            header, *lines = path.read_text("utf-8").splitlines(keepends=True)
            path.write_text(header + "".join(lines[::2]), "utf-8")
            path.with_name("rows-00001.jsonl").write_text(header + "".join(lines[1::2]), "utf-8")
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--out", str(tmp_path / "rows"), "--t-acc", share])
        assert stopped.value.code == 0, capsys.readouterr().err
        told.append((capsys.readouterr().out, (folder / "config.json").read_bytes()))
    assert told[0] == told[2] != told[1]
    assert len(list((tmp_path / "rows").rglob("rows-*.jsonl"))) == 2
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--out", str(tmp_path / "other"), "--t-acc", "95"])
    assert stopped.value.code == 2
    assert "t_acc=95" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()  # told before anything was measured


def test_settings_that_cannot_work_are_refused(tiny_model: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"Unknown benchmark 'refcoc/val'. Did you mean 'refcoco/val'"):
        runner.plan(tiny_model, ["refcoc/val"], [], tmp_path)
    with pytest.raises(SettingError, match="limit=0"):
        runner.plan(tiny_model, ["scenes/val"], [], tmp_path, limit=0)
    with pytest.raises(SettingError, match="refcoco/val needs --data"):
        find_benchmark("refcoco/val").open(None)


def test_other_weights_are_another_model(tiny_model_folder: Path) -> None:
    import torch

    import self1e

    model = self1e.load(tiny_model_folder, device="cpu")
    before = runner.model_name(model)
    assert runner.model_name(model) == before
    assert runner.model_name(model, "plain") != before
    with torch.no_grad():
        model.model.lm_head.weight.mul_(1.001)
    assert runner.model_name(model) != before


def test_generated_answers_without_seg_are_rejections(tiny_model: Any, own: Path, tmp_path: Path) -> None:
    run_all(tiny_model, f"own:{own}", tmp_path, answers=["generated"], limit=1)
    [result] = read_results(tmp_path)
    assert result.run.answer == "generated"
    assert result.run.protocol == "gres.official"
    assert result.run.rejection == "generated"
    for row in result.rows:
        assert row["pred_nt"] == ("[SEG]" not in row["text"])
        assert not (row["pred_nt"] and row["pred_area"])


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_a_second_run_into_the_same_folder_is_refused(tiny_model: Any, own: Path, tmp_path: Path) -> None:
    run_all(tiny_model, f"own:{own}", tmp_path, limit=1)
    [path] = tmp_path.rglob("rows-*.jsonl")
    before = path.read_bytes()
    with another_run_in(path.parent), pytest.raises(OutputError, match="another run is measuring in this folder"):
        run_all(tiny_model, f"own:{own}", tmp_path)
    assert path.read_bytes() == before
    run_all(tiny_model, f"own:{own}", tmp_path)  # a killed run keeps nobody out
    assert len(read_results(tmp_path)[0].rows) == 10


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_torchrun_with_two_processes_gives_the_tables_of_one(
    tiny_model_folder: Path, own: Path, tmp_path: Path
) -> None:
    arguments = ["-m", "self1e", "eval", f"own:{own}", "--model", str(tiny_model_folder), "--device", "cpu", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    subprocess.run([sys.executable, *arguments, str(tmp_path / "1")], check=True, env=environment)
    subprocess.run([*torchrun, *arguments, str(tmp_path / "2")], check=True, env=environment)
    assert len(list((tmp_path / "2").rglob("rows-*.jsonl"))) == 2
    for name in ("tables.md", "tables.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_process_is_gone_on_with_to_identical_tables(tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "self1e", "eval", "scenes/val", "--model", str(tiny_model_folder)]
    command += ["--device", "cpu", "--limit", "30", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, str(out)], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not any(path.stat().st_size > 1000 for path in out.rglob("rows-*.jsonl")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "tables.md").exists()
    [path] = out.rglob("rows-*.jsonl")
    computed = path.read_bytes()
    computed = computed[: computed.rfind(b"\n") + 1]
    subprocess.run([*command, str(out)], check=True, env=environment)
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment)
    assert path.read_bytes().startswith(computed)  # nothing that was computed is lost
    for name in ("tables.md", "tables.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
