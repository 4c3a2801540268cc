"""Tiny seeded models, the same that `scripts/record_goldens.py` records."""

from __future__ import annotations

from types import ModuleType

import pytest


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    """Every test here is about tiny models."""


@pytest.fixture(scope="session")
def tiny(load_script) -> ModuleType:
    """The module of tiny models: ``tiny_config``, ``tiny_model``, ``tiny_batch``."""
    return load_script("record_goldens")
