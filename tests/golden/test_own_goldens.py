"""Our own recorded numbers, for machines without the published goldens (`scripts/record_goldens.py`)."""

from __future__ import annotations

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


def test_every_language_family_is_recorded(recorder):
    assert {path.stem for path in FOLDER.glob("*.safetensors")} == set(recorder.FAMILIES)
