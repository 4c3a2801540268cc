"""Real answer files and class lists: ``SELF1E_CONFORMANCE``, or ``../shared/data/1_conformance``.

Where the folder is missing, tests that need it skip and say so; on a build machine (``CI`` set) they fail. Another
folder of the same form will do: the figures to be met are read from its README.md (or its parent's).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

_MISSING = "CONFORMANCE DATA MISSING"


@pytest.fixture(scope="session")
def conformance() -> Path:
    """The folder with ``class_lists``, ``mme``, ``pope``, ``mmbench``, ``coco_results``."""
    given = os.environ.get("SELF1E_CONFORMANCE")
    folder = Path(given or Path(__file__).parents[2].parent / "shared" / "data" / "1_conformance").resolve()
    if not folder.is_dir():
        message = f"{_MISSING}: no folder {folder}; set SELF1E_CONFORMANCE."
        if os.environ.get("CI") or given:
            pytest.fail(message)
        pytest.skip(message)
    return folder


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say it once, in red, where it cannot be missed among the dots."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if _MISSING in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(
            f"{_MISSING}: {len(skipped)} tests skipped; set SELF1E_CONFORMANCE.", red=True, bold=True
        )
