"""``--vqa-adapter``: the same questions to the model as trained and to its base."""

from __future__ import annotations

import json

import pytest

from self1e.cli.main import main
from self1e.errors import SettingError
from self1e.evaluation.benchmarks import vqa
from self1e.evaluation.vqa_adapter import check_adapter

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folders(trained_folder, base_folder):
    return trained_folder, base_folder


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def said(out):
    [path] = (out / "scenes-questions-test" / "gen").glob("rows-*.jsonl")
    header, *rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return header, {row["id"]: row["prediction"] for row in rows}


def test_on_and_off_answer_differently_and_are_never_mixed(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vqa, "SCENES", 2)
    trained, base = folders
    common = ("eval", "scenes-questions/test", "--model", trained, "--base", base, "--device", "cpu")
    assert run(*common, "--out", tmp_path / "on") == 0
    assert run(*common, "--out", tmp_path / "off", "--vqa-adapter", "off") == 0
    (on, as_trained), (off, as_base) = said(tmp_path / "on"), said(tmp_path / "off")
    assert as_trained.keys() == as_base.keys()
    assert as_trained != as_base
    assert "adapter off" in off["model"]
    assert "adapter off" not in on["model"]
    assert run(*common, "--out", tmp_path / "on", "--vqa-adapter", "off") == 1
    assert "rows of another run" in capsys.readouterr().err


def test_a_merged_model_is_refused(tiny_model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vqa, "SCENES", 1)
    arguments = ("eval", "scenes-questions/test", "--model", tiny_model_folder, "--out", tmp_path, "--device", "cpu")
    assert run(*arguments, "--vqa-adapter", "off") == 1
    assert "its adapters are merged into the weights" in capsys.readouterr().err


def test_masks_are_not_asked_of_the_base():
    with pytest.raises(SettingError, match="refcoco/val need them"):
        check_adapter("off", ["pope", "refcoco/val"])
    with pytest.raises(SettingError, match=r"choose on \(as trained\) or off"):
        check_adapter("maybe", ["pope"])
    check_adapter("on", ["pope", "refcoco/val"])
