"""The service under more load than it takes; ``benchmarks/service.py`` does the same for longer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
def test_the_service_stands_load_bad_uploads_and_kills(tmp_path: Path, load_script: Callable[..., ModuleType]) -> None:
    found = load_script("service", "benchmarks").prove(tmp_path / "log", clients=200, seconds=60, pictures=4)
    load = found["load"]
    assert load["answers"] > 0
    assert load["wrong"] == 0
    assert set(load["refused"]) == {"429 busy"}  # more clients than it takes, and no other refusal
    assert load["refused_without_retry_after"] == 0
    assert load["latency_seconds"]["longest"] < 120  # its deadline
    memory = load["memory_megabytes"]
    assert memory["second_half"] < 1.1 * memory["first_half"] + 20
    assert found["uploads"] == {"slow": 408, "oversized": 413, "right_afterwards": 1}
    stop = found["restart"]["stop"]
    assert stop["wrong"] == 0
    assert stop["answers"] + sum(stop["refused"].values()) == 8
    assert found["restart"]["right_afterwards"] == 2
    log = (tmp_path / "log").read_text("utf-8")
    assert '"status": 500' not in log
