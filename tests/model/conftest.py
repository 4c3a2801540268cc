"""Tiny seeded models, the same that `scripts/record_goldens.py` records."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models this small lose more to waking threads than they win."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module of tiny models: ``tiny_config``, ``tiny_model``, ``tiny_batch``."""
    path = Path(__file__).parents[2] / "scripts" / "record_goldens.py"
    spec = importlib.util.spec_from_file_location("record_goldens", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
