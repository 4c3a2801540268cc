"""What is kept per browser session, and that it stays within bounds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from self1e.errors import PictureError, PromptError
from self1e.web import workspace
from self1e.web.workspace import Workspace, Workspaces, weigh


class Model:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.calls: list[int | None] = []

    def encode(self, opened: Any, max_tiles: int | None) -> Any:
        self.calls.append(max_tiles)
        return SimpleNamespace(image=opened.image)


def save(folder: Path, name: str, value: int = 0) -> str:
    Image.new("RGB", (40, 30), (value, 0, 0)).save(folder / name)
    return str(folder / name)


def test_a_picture_is_encoded_once_per_tiling(tmp_path):
    space, model = Workspace(), Model()
    picture = save(tmp_path, "a.png")
    first = space.encode(model, picture, 1)
    assert space.encode(model, picture, 1) is first
    assert space.encode(model, picture, 4) is not first
    assert model.calls == [1, 4]


def test_the_same_pixels_under_another_name_are_the_same_picture(tmp_path):
    space, model = Workspace(), Model()
    assert space.encode(model, save(tmp_path, "a.png"), 1) is space.encode(model, save(tmp_path, "b.png"), 1)


def test_another_picture_clears_the_desk(tmp_path):
    space, model = Workspace(), Model()
    space.encode(model, save(tmp_path, "a.png", 1), 1)
    space.found = space.session = space.classes = space.sight = object()  # type: ignore[assignment]
    space.messages = (object(),)  # type: ignore[assignment]
    space.open(save(tmp_path, "b.png", 2))
    assert (space.encoded, space.found, space.session, space.classes, space.sight) == (None,) * 5
    assert space.messages == ()


def test_errors_do_not_tell_where_the_server_keeps_files(tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"this is no picture")
    with pytest.raises(PictureError) as told:
        Workspace().open(str(bad))
    assert str(told.value).startswith("bad.png")
    assert str(tmp_path) not in str(told.value)
    with pytest.raises(PictureError, match=r"^gone.png: cannot be read any more"):
        Workspace().open(str(tmp_path / "gone.png"))
    with pytest.raises(PromptError, match="no picture yet"):
        Workspace().open(None)
    assert Workspace().open(save(tmp_path, "a.png")).source == "a.png"


def test_a_picture_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "MAX_PIXELS", 1000)
    with pytest.raises(PictureError, match="1,200 pixels, more than"):
        Workspace().open(save(tmp_path, "a.png"))


def test_sessions_are_separate_and_nobodys_is_not_kept():
    spaces = Workspaces()
    assert spaces.of("a") is spaces.of("a")
    assert spaces.of("a") is not spaces.of("b")
    assert spaces.of(None) is not spaces.of(None)
    spaces.drop("a")
    spaces.drop("never seen")
    assert len(spaces) == 1


def test_the_session_used_longest_ago_goes_first():
    spaces = Workspaces(max_count=2)
    first, second = spaces.of("a"), spaces.of("b")
    assert spaces.of("a") is first
    spaces.of("c")
    spaces.settle()
    assert len(spaces) == 2
    assert spaces.of("a") is first
    assert spaces.of("b") is not second


def test_memory_is_bounded_but_the_newest_stays(tmp_path):
    spaces = Workspaces(max_bytes=2 * 40 * 30 * 3 + 500)
    for name in "abcd":
        spaces.of(name).open(save(tmp_path, "a.png"))
        spaces.settle()
    assert len(spaces) == 2
    spaces.max_bytes = 1
    spaces.settle()
    assert len(spaces) == 1
    assert spaces.of("d").opened is not None


def test_weighing_counts_pixels_tensors_and_arrays_once():
    tensor = torch.zeros(10, dtype=torch.float16)
    nested = {"a": [tensor, tensor], "b": (np.zeros(3), Image.new("RGB", (4, 5))), "c": b"xyz", "d": 7, "e": None}
    assert weigh(nested) == 20 + 24 + 60 + 3


def test_a_workspace_weighs_what_it_holds(tmp_path):
    space = Workspace()
    space.open(save(tmp_path, "a.png"))
    alone = space.num_bytes
    assert 3600 <= alone < 3700
    space.session = SimpleNamespace(num_bytes=1000, turns=())  # type: ignore[assignment]
    assert space.num_bytes == alone + 1000
