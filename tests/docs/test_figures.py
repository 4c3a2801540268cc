"""The script that draws the figures works on any model with the published switches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import self1e
from self1e.figures.sheet import _runs

SCRIPT = Path(__file__).parents[2] / "scripts" / "draw_figures.py"


@pytest.fixture(scope="module")
def figures(load_script):
    return load_script("draw_figures")


def test_every_figure_is_drawn_and_twice_the_same(figures, tiny_model_folder, tmp_path, capsys):
    figures.main(["--model", str(tiny_model_folder), "--out", str(tmp_path)])
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {path.name for path in paths} == {"teaser.png", "dual-perception.png", "rfr.png", "rfa.png"}
    for path in paths:
        with Image.open(path) as image:
            assert image.mode == "RGBA"
            assert image.getpixel((0, 0))[3] == 0  # rounded corners
            assert len(image.convert("L").resize((64, 64)).getcolors()) > 8  # something is on it
    figures.main(["--model", str(tiny_model_folder), "--out", str(tmp_path / "again"), "--only", "rfr"])
    assert (tmp_path / "again" / "rfr.png").read_bytes() == (tmp_path / "rfr.png").read_bytes()


def test_a_model_with_other_switches_is_refused(figures, make_tiny_model, tmp_path):
    model = self1e.load(make_tiny_model(tmp_path / "none", fine="none"), device="cpu")
    with pytest.raises(SystemExit, match="published switches"):
        figures.look(model, figures.scene(), "it")


def test_an_unknown_figure_is_refused(figures, tiny_model_folder, tmp_path):
    with pytest.raises(SystemExit, match="choose from teaser"):
        figures.main(["--model", str(tiny_model_folder), "--out", str(tmp_path), "--only", "teasre"])


def test_equal_features_get_equal_colours(figures):
    features = torch.randn(5, 4, 7, generator=torch.Generator().manual_seed(0))
    first, second = figures.principal_colours([features, features[:2]])
    assert first.shape == (5, 4, 3)
    assert (first[:2] == second).all()


def test_indices_stand_above_each_other():
    assert _runs("F_{V1}^{HQ}: fine") == [("F", 0), ("V1", -1), ("HQ", 1), (": fine", 0)]
    assert _runs("plain") == [("plain", 0)]
