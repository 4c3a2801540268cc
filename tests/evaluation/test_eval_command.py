"""``self1e eval`` as it is typed: what goes wrong is told so that it can be put right."""

from __future__ import annotations

from pathlib import Path

import pytest

from self1e.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, list[str]]:
    """Status, and lines on stderr."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "self1e: Nothing to measure: name benchmarks, or a suite with --suite."),
        (["--suite", "papr"], "self1e: Unknown suite 'papr'. Did you mean 'paper'? Known:"),
        (["refcoc/val"], "self1e: Unknown benchmark 'refcoc/val'. Did you mean 'refcoco/val'? Known:"),
        (["refcoco/val", "--answer", "x"], "self1e: --answer 'x' is unknown; choose one of tf, gen, both."),
        (["refcoco/val", "--data", "not-there"], "self1e: --data not-there is not a folder."),
        (["refcoco/val", "--tables"], "self1e: --tables prints what lies in --out; it takes no benchmarks."),
        (["--compare", "a", "b"], "self1e: --compare a: no such folder; give two folders that `self1e eval --out`"),
        (["refcoco/val", "--compare", "a", "b"], "self1e: --compare A B compares what lies in two folders; it takes"),
    ],
)
def test_a_wrong_setting_is_told_in_one_line_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.setattr("self1e.evaluation.vqa_adapter.load_for_eval", None)  # calling it would fail
    status, lines = told(capsys, "eval", *arguments)
    assert status == 2
    assert len(lines) == 1
    assert lines[0].startswith(expected)


def test_every_problem_of_the_data_has_a_line(
    capsys: pytest.CaptureFixture[str], tiny_model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "dataset").mkdir()
    settings = ["--model", tiny_model_folder, "--data", tmp_path, "--out", tmp_path / "out", "--device", "cpu"]
    status, lines = told(capsys, "eval", "pas-20/val", "pope", "scenes/val", *settings)
    assert status == 1
    assert lines[0] == "self1e: 2 problems; nothing was run:"
    assert [line.split(":")[0] for line in lines[1:3]] == ["- pas-20/val", "- pope"]
    assert lines[3] == "To measure what is there, name it: self1e eval scenes/val ..."
    assert len(lines) == 4
    status, lines = told(capsys, "eval", "refcoco/val", "--model", tiny_model_folder, "--out", tmp_path / "out")
    assert lines[1].startswith("- refcoco/val needs --data: the folder that holds dataset/")


def test_an_output_that_cannot_be_written_is_told(
    capsys: pytest.CaptureFixture[str], tiny_model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way", "utf-8")
    settings = ["--model", tiny_model_folder, "--limit", "1", "--device", "cpu"]
    status, lines = told(capsys, "eval", "scenes/val", "--out", tmp_path / "file", *settings)
    assert status == 1
    assert len(lines) == 1
    assert str(tmp_path / "file") in lines[0]
