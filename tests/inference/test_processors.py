"""Threads that fit a container, and a type that fits a processor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from self1e.inference import processors, segmenter


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
    monkeypatch.setattr(processors, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(processors, "_OLD_QUOTA", (tmp_path / "quota", tmp_path / "period"))
    assert processors.allowed_cores() == cores


def test_the_quota_of_an_old_container(tmp_path, monkeypatch):
    (tmp_path / "quota").write_text("300000\n")
    (tmp_path / "period").write_text("100000\n")
    monkeypatch.setattr(processors, "_QUOTA", Path(tmp_path / "missing"))
    monkeypatch.setattr(processors, "_OLD_QUOTA", (tmp_path / "quota", tmp_path / "period"))
    assert processors.allowed_cores() == 3
    (tmp_path / "quota").write_text("-1\n")
    assert processors.allowed_cores() is None


@pytest.mark.usefixtures("restored_threads")
def test_threads_are_lowered_but_never_raised_and_never_against_a_choice(monkeypatch):
    monkeypatch.setattr(processors, "allowed_cores", lambda: 2)
    torch.set_num_threads(3)
    assert processors.fit_threads() == 2
    torch.set_num_threads(1)
    assert processors.fit_threads() == 1
    torch.set_num_threads(3)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert processors.fit_threads() == 3


@pytest.mark.parametrize(("flags", "expected"), [("avx2 amx_bf16 amx_tile", True), ("avx2 avx512_bf16", False)])
def test_units_for_bfloat16(tmp_path, monkeypatch, flags, expected):
    monkeypatch.setattr(processors, "_PROCESSOR", tmp_path / "cpuinfo")
    assert not processors.computes_in_bfloat16()
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse\n", "utf-8")
    assert processors.computes_in_bfloat16() is expected


@pytest.mark.parametrize(
    ("dtype", "has_units", "width", "expected"),
    [
        ("auto", True, 1, torch.bfloat16),
        ("auto", True, 512, torch.float32),  # wider than the model
        ("auto", False, 1, torch.float32),
        ("float32", True, 1, torch.float32),
    ],
)
def test_wide_models_are_loaded_in_what_the_processor_multiplies(
    tiny_model_folder, monkeypatch, dtype, has_units, width, expected
):
    monkeypatch.setattr(segmenter, "computes_in_bfloat16", lambda: has_units)
    monkeypatch.setattr(segmenter, "_WIDE", width)
    assert segmenter.load(tiny_model_folder, device="cpu", dtype=dtype).dtype == expected
