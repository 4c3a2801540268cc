"""Our own recorded numbers, for machines without the published goldens (`scripts/record_goldens.py`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "own"
SCRIPT = Path(__file__).parents[2] / "scripts" / "record_goldens.py"


@pytest.fixture(scope="module")
def recorder(load_script):
    return load_script("record_goldens")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.safetensors")), ids=lambda path: path.stem)
def test_numbers_are_as_recorded(recorder, path):
    recorded = load_file(path)
    found = recorder.observe(path.stem)
    assert found.keys() == recorded.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, recorded[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_every_case_is_recorded(recorder):
    assert {path.stem for path in FOLDER.glob("*.safetensors")} == set(recorder.CASES)


def test_text_and_pixels_are_as_recorded(recorder):
    recorded = json.loads((FOLDER / "processing.json").read_text("utf-8"))
    found = recorder.observe_processing()
    assert found["conversations"] == recorded["conversations"]
    assert found["pictures"].keys() == recorded["pictures"].keys()
    for name, picture in found["pictures"].items():
        assert picture["grid"] == recorded["pictures"][name]["grid"]
        for values in ("means", "corner"):
            # A resize that rounds one grey level elsewhere is 0.02; another filter or crop is far more.
            assert picture[values] == pytest.approx(recorded["pictures"][name][values], abs=1e-3), (name, values)
