"""What smaller weights cost in masks and save in memory.

    python benchmarks/precision.py

Drift is measured with nano on drawn scenes: the masks of each precision against those of bfloat16, which is what
models run in on a GPU. Memory of published sizes is counted from their configurations, weights only: int8 leaves vision
encoder, projector, mask head and the vocabulary's matrices in bfloat16 (`self1e.inference.quantising`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, SIZES, facts, published_config

import self1e
from self1e.data.scenes import Scenes
from self1e.inference.loading import choose_device
from self1e.inference.quantising import weight_bytes
from self1e.model import Self1EForConditionalGeneration

PRECISIONS = ("float32", "bfloat16", "float16", "int8")
REFERENCE = "bfloat16"


def stored_bytes(model: torch.nn.Module) -> int:
    """Add up what the weights occupy; quantised ones say it through their parts."""
    total = 0
    for parameter in model.parameters():
        parts = getattr(parameter, "tensor_data_names", None)
        tensors = [getattr(parameter, name) for name in parts] if parts else [parameter]
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return total


def masks_of(precision: str, scenes: Scenes, device: str) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Segment every scene; masks, and the weights' size."""
    model = self1e.load("nano", device=device, dtype=precision)
    found: list[np.ndarray] = []
    for sample in scenes:
        result = model.segment(sample.image, [target.text for target in sample.targets], reject=False)
        found += list(result.masks)
    return found, {"weights_bytes": stored_bytes(model.model), "other_weights": str(model.dtype).removeprefix("torch.")}


def drift(found: list[np.ndarray], reference: list[np.ndarray]) -> dict[str, Any]:
    """Compare masks: IoU over all pixels, and of the masks one by one (1 where both are empty)."""
    common = [int((a & b).sum()) for a, b in zip(found, reference, strict=True)]
    either = [int((a | b).sum()) for a, b in zip(found, reference, strict=True)]
    each = [c / e if e else 1.0 for c, e in zip(common, either, strict=True)]
    return {"masks": len(each), "iou": sum(common) / max(sum(either), 1), "mean_iou": float(np.mean(each))}


def counted(name: str) -> dict[str, Any]:
    """Weights of a published size, per precision."""
    with torch.device("meta"):
        model = Self1EForConditionalGeneration(published_config(name))
    return {"model": name, **{precision: weight_bytes(model, precision) for precision in PRECISIONS}}


def as_markdown(report: dict[str, Any]) -> str:
    """Lay the figures out for a page."""
    lines = [
        "# Precision: drift and memory",
        "",
        f"`{report['command']}`, commit {report['commit']}, {report['date']}, {report['hardware']}, "
        f"{report['threads']} threads, torch {report['torch']}, transformers {report['transformers']}.",
        "",
    ]
    if report["measured"]:
        lines += [
            f"nano on {report['scenes']} drawn scenes ({report['measured'][0]['masks']} masks): IoU with the masks of "
            f"{REFERENCE}, over all pixels and as the mean of masks.",
            "",
            "| precision | IoU | mean IoU | weights | of int8: the others are |",
            "|---|---|---|---|---|",
        ]
    for row in report["measured"]:
        lines.append(
            f"| {row['precision']} | {row['iou']:.4f} | {row['mean_iou']:.4f} | {row['weights_bytes'] / 1e6:.1f} MB "
            f"| {row['other_weights'] if row['precision'] == 'int8' else ''} |"
        )
    lines += [
        "",
        "Weights of published sizes, GB, counted:",
        "",
        f"| model | {' | '.join(PRECISIONS)} |",
        "|---" * (1 + len(PRECISIONS)) + "|",
    ]
    for row in report["counted"]:
        lines.append(f"| {row['model']} | {' | '.join(f'{row[name] / 1e9:.2f}' for name in PRECISIONS)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=32, help="how many; 0 only counts")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help=f"beside {REFERENCE}")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/precision", help="without ending")
    chosen = parser.parse_args()
    device = choose_device(chosen.device)
    report = facts(device, torch.bfloat16) | {"scenes": chosen.scenes, "measured": [], "counted": []}
    if chosen.scenes:
        scenes = Scenes("test", length=chosen.scenes)
        reference, facts_of_it = masks_of(REFERENCE, scenes, str(device))
        for precision in filter(None, chosen.precisions.split(",")):
            found, more = (
                (reference, facts_of_it) if precision == REFERENCE else masks_of(precision, scenes, str(device))
            )
            report["measured"].append({"precision": precision, **drift(found, reference), **more})
            print(json.dumps(report["measured"][-1]), flush=True)
    report["counted"] = [counted(name) for name in SIZES]
    chosen.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    chosen.out.with_suffix(".md").write_text(as_markdown(report))
    print(as_markdown(report))


if __name__ == "__main__":
    main()
