"""docs/how-to/your-own-data.md, as a newcomer follows it: every command, one after the other."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import self1e
from self1e.cli.main import main
from self1e.inference import loading
from self1e.training import merging
from self1e.training.recipes import own

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "your-own-data.md"
pytestmark = pytest.mark.usefixtures("one_thread")


def commands() -> list[str]:
    """Command lines of the first chapter, in their order: those on lines of their own, and those that upload."""
    chapter = PAGE.read_text("utf-8").split("\n## Ten minutes")[1].split("\n### ")[0]
    return re.findall(r"^(?: {4}|.*?`)(self1e [^`\n]*)`?", chapter, re.MULTILINE)


def test_the_ten_minutes_run(tiny_model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # A tiny model takes nano's place, and a few steps those of minutes: nothing else differs.
    monkeypatch.setattr(loading, "NANO", tiny_model_folder)
    monkeypatch.setattr(own, "LEAST_STEPS", 4)
    uploaded = []
    monkeypatch.setattr(merging, "push", lambda folder, name: uploaded.append((folder, name)) or name)
    lines = commands()
    assert [line.split()[1] for line in lines] == ["data", "data", "finetune", "segment", "info", "merge", "merge"]
    for line in lines:
        with pytest.raises(SystemExit) as end:
            main(shlex.split(line)[1:])
        assert not end.value.code, f"{line}: {capsys.readouterr().err}"
    assert Path("self1e-output/data-check.png").is_file()
    assert list(Path("runs/mine/samples").iterdir())
    for folder in ("runs/mine/model", "runs/mine/best", "merged"):
        self1e.load(folder, device="cpu")
    assert Path("merged/README.md").is_file()
    assert uploaded == [(Path("shared"), "me/my-model")]
    again = next(line for line in lines if "finetune" in line)
    with pytest.raises(SystemExit) as end:
        main(shlex.split(again)[1:])
    assert not end.value.code, "a run that is finished is finished, not an error"
