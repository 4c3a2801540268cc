"""The golden data: numbers of the published system, on tiny random models (see its README.md).

It lies in ``SELF1E_GOLDEN``, or beside the repository in ``../shared/golden``. Where it is missing, these tests
skip and say so; on a build machine (``CI`` set) they fail. Nothing here knows the name of a case: any folder of the
same form will do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def golden_folder() -> Path:
    """Where the golden data should be."""
    default = Path(__file__).parents[2].parent / "shared" / "golden"
    return Path(os.environ.get("SELF1E_GOLDEN") or default).resolve()


def golden_cases() -> list[Path]:
    """Every whole-model case, by name; empty if there are none."""
    return sorted(path.parent for path in golden_folder().glob("cases/*/config.json"))


def read_json(path: Path) -> Any:
    """Read one JSON file of the golden data."""
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def golden(find_shared: Callable[[str, str], Path]) -> Path:
    """The golden folder."""
    return find_shared("SELF1E_GOLDEN", "golden")


@pytest.fixture
def case(request: pytest.FixtureRequest, golden: Path) -> Path:
    """One whole-model case: a test that takes it runs on every case."""
    if request.param is None:
        pytest.fail(f"{golden / 'cases'} holds no case (a folder with config.json).")
    return request.param


@pytest.fixture(scope="session")
def function_file(golden: Path) -> Any:
    """Find a file of ``functions/``; the test skips if it is absent."""

    def find(name: str) -> Path:
        path = golden / "functions" / name
        if not path.is_file():
            pytest.skip(f"functions/{name} is not in {golden}.")
        return path

    return find


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = golden_cases()
        metafunc.parametrize("case", cases or [None], ids=[path.name for path in cases] or ["none"], indirect=True)
