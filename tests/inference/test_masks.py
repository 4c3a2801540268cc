"""Logits become run-length codes without a mask of pixels in between."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from torch.nn import functional as F

from self1e.inference import masks
from self1e.structures import Segmentation, compressed_counts, encode_edges, run_lengths


def _dense(logits: torch.Tensor, size_wh: tuple[int, int], threshold: float) -> np.ndarray:
    width, height = size_wh
    across = F.interpolate(logits.T[None, None], size=(width, len(logits)), mode="bilinear", align_corners=False)
    return (F.interpolate(across, size=(width, height), mode="bilinear", align_corners=False)[0, 0] > threshold).numpy()


@pytest.mark.parametrize("seed", range(12))
def test_codes_are_those_of_pycocotools_byte_for_byte(monkeypatch, seed):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(rng.choice([-2, 0, 3]), 1, (5, 7)).astype(np.float32))
    if seed % 3 == 0:
        logits[:, 2:5] = -9  # strips without foreground lie between others
    width, height = (int(side) for side in rng.integers(1, 40, 2))
    monkeypatch.setattr(masks, "STRIP", 2 * height + 1)  # two columns per strip
    threshold = float(rng.choice([0, -2.5, 1]))
    rle, score = masks.enlarge(logits, (width, height), threshold)
    expected = _dense(logits, (width, height), threshold)  # columns first
    assert rle == coco.encode(np.asfortranarray(expected.T.astype(np.uint8)))
    assert (score > 0) == expected.any()


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_nothing_and_everything_are_coded(monkeypatch, value):
    monkeypatch.setattr(masks, "STRIP", 7)
    rle, _ = masks.enlarge(torch.full((3, 3), value), (5, 7))
    assert rle == coco.encode(np.full((7, 5), value > 0, dtype=np.uint8, order="F"))


def test_counts_of_any_size_are_written_as_pycocotools_does():
    rng = np.random.default_rng(0)
    for most in (2, 40, 2**11, 2**20):
        counts = rng.integers(1, most + 1, 200)
        counts[0] = 0
        total = int(counts.sum())
        expected = coco.frPyObjects([{"size": [total, 1], "counts": counts.tolist()}], total, 1)[0]["counts"]  # type: ignore[arg-type]
        assert compressed_counts(counts) == expected
        assert np.array_equal(run_lengths(expected), counts)
        edges = np.cumsum(counts)
        assert encode_edges(edges, (total, 1)) == ({"size": [total, 1], "counts": expected}, int(counts[1::2].sum()))


def test_decoded_results_keep_their_masks():
    pixels = np.random.default_rng(0).random((3, 6, 5)) > 0.5
    result = Segmentation.from_masks(pixels, [0.5] * 3, ["a", "b", "c"])
    kept = result.decoded()
    assert kept == result
    assert kept.masks is kept.masks
    assert np.array_equal(kept.masks, pixels)
    assert np.shares_memory(kept.mask(-1), kept.masks)
    assert np.array_equal(kept[1].mask(), pixels[1])
    assert not kept.masks.flags.writeable
    assert result.masks is not result.masks


def _measured(monkeypatch, size_wh: tuple[int, int], queries: int) -> dict[str, float]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from postprocessing import measure  # type: ignore[import-not-found]

    return measure(size_wh, queries, "cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_many_masks_need_less_memory_than_their_pixels(monkeypatch):
    found = _measured(monkeypatch, (2000, 1500), 150)
    assert found["pixels_bytes"] == 450_000_000
    assert found["peak_bytes"] < 225_000_000  # a strip's, whatever the number of masks: 20 to 150 MB in this process


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_150_queries_on_24_megapixels_need_less_than_a_gigabyte(monkeypatch):
    found = _measured(monkeypatch, (6000, 4000), 150)
    assert found["pixels_bytes"] == 3_600_000_000
    assert found["peak_bytes"] < 1_000_000_000


@pytest.mark.parametrize("threshold", [0.0, -2.0])
@pytest.mark.parametrize("size_wh", [(50, 70), (3, 2), (33, 1)])
def test_scores_count_pixels_and_nothing_behind_the_last(size_wh, threshold):
    """Below 0 even the zeros that fill up short stretches would be foreground."""
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(2))
    width, height = size_wh
    across = F.interpolate(logits.T[None, None], size=(width, 6), mode="bilinear", align_corners=False)
    whole = F.interpolate(across, size=(width, height), mode="bilinear", align_corners=False)
    rle, score = masks.enlarge(logits, size_wh, threshold)
    assert coco.area(rle) == int((whole > threshold).sum())
    assert score == pytest.approx(whole[whole > threshold].sigmoid().mean().item(), rel=1e-6)
