"""Threads that fit a container."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from self1e.inference import threads


@pytest.fixture
def restored_threads(monkeypatch):
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("told", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("max 100000", None), ("nonsense", None)],
)
def test_the_quota_of_a_container(tmp_path, monkeypatch, told, cores):
    (tmp_path / "cpu.max").write_text(told + "\n")
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(threads, "_OLD_QUOTA", (tmp_path / "quota", tmp_path / "period"))
    assert threads.allowed_cores() == cores


def test_the_quota_of_an_old_container(tmp_path, monkeypatch):
    (tmp_path / "quota").write_text("300000\n")
    (tmp_path / "period").write_text("100000\n")
    monkeypatch.setattr(threads, "_QUOTA", Path(tmp_path / "missing"))
    monkeypatch.setattr(threads, "_OLD_QUOTA", (tmp_path / "quota", tmp_path / "period"))
    assert threads.allowed_cores() == 3
    (tmp_path / "quota").write_text("-1\n")
    assert threads.allowed_cores() is None


@pytest.mark.usefixtures("restored_threads")
def test_threads_are_lowered_but_never_raised_and_never_against_a_choice(monkeypatch):
    monkeypatch.setattr(threads, "allowed_cores", lambda: 2)
    torch.set_num_threads(3)
    assert threads.fit_threads() == 2
    torch.set_num_threads(1)
    assert threads.fit_threads() == 1
    torch.set_num_threads(3)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.fit_threads() == 3
