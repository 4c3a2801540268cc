"""What becomes of mask logits: time and memory from the mask head's maps to run-length codes, beside dense masks.

    python benchmarks/postprocessing.py

The logits are those of a 3 x 4 grid of tiles: smooth random maps, half of them foreground. *Dense* is the published
way, every mask enlarged to the picture as float32 and kept as bool: measured with a few queries, since its memory is
what the formula says.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, Peak, facts
from PIL import Image
from torch.nn import functional as F

from self1e.inference.loading import choose_device
from self1e.inference.segmenter import EncodedPicture, finish
from self1e.structures import TileGrid

GRID = TileGrid(3, 4)
_SIDE = 64  # of a tile's logits
_DENSE_QUERIES = 4


def logits_of(queries: int, device: torch.device) -> list[torch.Tensor]:
    """Make smooth random maps, seeded: ``(h, w)`` each, half foreground in blobs of a tile's size."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(queries, 1, 2 * GRID.rows, 2 * GRID.columns, generator=generator)
    size = (GRID.rows * _SIDE, GRID.columns * _SIDE)
    return list((4 * F.interpolate(coarse, size=size, mode="bicubic", align_corners=False))[:, 0].to(device))


def dense(logits: list[torch.Tensor], size_wh: tuple[int, int]) -> torch.Tensor:
    """Enlarge and threshold all masks at once, as published: bool ``(K, H, W)``."""
    size = (size_wh[1], size_wh[0])
    return F.interpolate(torch.stack(logits)[:, None], size=size, mode="bilinear", align_corners=False)[:, 0] > 0


def measure(size_wh: tuple[int, int], queries: int, device_name: str) -> dict[str, Any]:
    """Bring logits to a picture's size."""
    device = torch.device(device_name)
    nothing: Any = None  # what the encoder makes is not looked at
    picture = EncodedPicture(Image.new("RGB", size_wh), GRID, nothing)
    asked = [f"query {k}" for k in range(queries)]
    logits = logits_of(queries, device)
    finish(picture, asked[:1], logits[:1])  # libraries are loaded
    with Peak(device) as peak:
        start = time.perf_counter()
        result = finish(picture, asked, logits)
        seconds = time.perf_counter() - start
    few = logits[:_DENSE_QUERIES]
    with Peak(device) as dense_peak:
        start = time.perf_counter()
        masks = dense(few, size_wh)
        dense_seconds = time.perf_counter() - start
    pixels = size_wh[0] * size_wh[1]
    return {
        "size_wh": list(size_wh),
        "queries": queries,
        "seconds": seconds,
        "peak_bytes": peak.bytes,
        "codes_bytes": sum(len(rle["counts"]) for rle in result.rles),
        "foreground": float(np.mean(result.areas)) / pixels,
        "pixels_bytes": queries * pixels,
        "dense_bytes": queries * pixels * 5,
        "dense_seconds_per_query": dense_seconds / len(few),
        "dense_measured": {"queries": len(few), "peak_bytes": dense_peak.bytes, "kept_bytes": masks.numel()},
    }


def as_markdown(report: dict[str, Any]) -> str:
    """Lay the figures out for a page."""
    lines = [
        "# From logits to masks: measured",
        "",
        f"`{report['command']}`, commit {report['commit']}, {report['date']}, {report['hardware']}, "
        f"{report['threads']} threads, torch {report['torch']}.",
        "",
        "Peak memory above the model and the picture. Dense: all masks enlarged as float32 and kept as bool, 5 bytes "
        "per pixel and query, counted; its time is measured with "
        f"{report['measured'][0]['dense_measured']['queries']} queries.",
        "",
        "| picture | queries | time per query | peak | codes | dense: time per query | dense: memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["measured"]:
        lines.append(
            f"| {row['size_wh'][0]} x {row['size_wh'][1]} | {row['queries']} "
            f"| {1e3 * row['seconds'] / row['queries']:.0f} ms | {row['peak_bytes'] / 1e6:.0f} MB "
            f"| {row['codes_bytes'] / 1e6:.2f} MB | {1e3 * row['dense_seconds_per_query']:.0f} ms "
            f"| {row['dense_bytes'] / 1e9:.1f} GB |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1280x960,6000x4000", help="pictures, separated by commas")
    parser.add_argument("--queries", default="1,150", help="queries per picture, separated by commas")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/postprocessing", help="without ending")
    chosen = parser.parse_args()
    device = choose_device(chosen.device)
    report = facts(device, torch.float32) | {"measured": []}
    for size in chosen.sizes.split(","):
        width, height = (int(side) for side in size.split("x"))
        for queries in chosen.queries.split(","):
            report["measured"].append(measure((width, height), int(queries), str(device)))
            print(json.dumps(report["measured"][-1]), flush=True)
    chosen.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    chosen.out.with_suffix(".md").write_text(as_markdown(report))


if __name__ == "__main__":
    main()
