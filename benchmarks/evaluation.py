"""What one encoding per picture saves in evaluation: all queries of a picture together against one by one.

    python benchmarks/evaluation.py                                  # writes docs/results/evaluation.md and .json
    python benchmarks/evaluation.py --models nano --out /tmp/evaluation

Both ways make the same rows of the same pictures; they take turns picture by picture, so that a busy machine slows both
down alike, and the ratio is of their sums. One by one, every query is a picture of its own, encoded anew.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, facts, published_config, random_model, timed

import self1e
from self1e.data.sample import Sample, Target
from self1e.data.scenes import Scenes
from self1e.evaluation.benchmarks import Options
from self1e.evaluation.benchmarks.masks import measure_targets
from self1e.inference.segmenter import Self1E
from self1e.processing.image import Self1EImageProcessor
from self1e.processing.processor import Self1EProcessor

NANO = ROOT / "src/self1e/assets/nano"


def load(name: str, device: str, dtype: torch.dtype) -> Self1E:
    """Load a model, or make one of published sizes with random weights."""
    if name == "nano":
        return self1e.load(name, device=device, dtype=dtype)
    model = random_model(published_config(name), device, dtype)
    tokenizer = Self1EProcessor.from_pretrained(NANO).tokenizer
    images = Self1EImageProcessor(size={"height": 448, "width": 448})
    processor = Self1EProcessor(images, tokenizer, image_seq_length=256)
    return Self1E(model, processor, name=f"{name} (random weights)")


def pictures(count: int, queries: int) -> list[Sample]:
    """Drawn scenes with so many queries each."""
    scenes = Scenes("val", size_wh=(160, 160), length=count)
    found = []
    for k in range(count):
        targets = [target for target in scenes[k].targets if target.mask.any()]
        nothing = Target(text="the grey bridge", mask=np.zeros((160, 160), dtype=bool))
        found.append(replace(scenes[k], targets=tuple((targets * queries + [nothing] * queries)[:queries])))
    return found


def measure(model: Self1E, samples: list[Sample]) -> dict[str, Any]:
    """Time both ways over the same pictures."""
    options = Options()
    one_by_one = [[replace(sample, targets=(target,)) for target in sample.targets] for sample in samples]
    measure_targets(model, samples[0], options)  # folds, and wakes everything
    together = alone = 0.0
    same = total = 0
    for sample, parts in zip(samples, one_by_one, strict=True):
        shared, seconds = timed(lambda sample=sample: measure_targets(model, sample, options), model.device)
        together += seconds
        single, seconds = timed(
            lambda parts=parts: [row for part in parts for row in measure_targets(model, part, options)], model.device
        )
        alone += seconds
        keys = ("I", "U", "pred_area")
        same += sum(all(a[key] == b[key] for key in keys) for a, b in zip(shared, single, strict=True))
        total += len(shared)
    return {
        "model": model.name,
        "pictures": len(samples),
        "queries_per_picture": len(samples[0].targets),
        "pictures_per_second": {"shared": len(samples) / together, "one_by_one": len(samples) / alone},
        "queries_per_second": {"shared": total / together, "one_by_one": total / alone},
        "ratio": alone / together,
        "rows_equal": same / total,
    }


def as_markdown(report: dict[str, Any]) -> str:
    """Write the table."""
    told = report["facts"]
    lines = ["# Evaluation: one encoding per picture against one by one", ""]
    lines += [f"`{told['command']}`, commit {told['commit']}, {told['date']}; {told['hardware']}, {told['dtype']}, "]
    lines[-1] += f"{told['threads']} threads, torch {told['torch']}, transformers {told['transformers']}."
    lines += [
        "",
        "The two ways take turns picture by picture; on a busy machine the ratio is what counts. Rows are equal if",
        "intersection, union and area agree to the pixel.",
    ]
    lines += [
        "",
        "| model | pictures | queries each | pictures/s | one by one | queries/s | one by one | ratio | equal |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for row in report["rows"]:
        pictures_, queries = row["pictures_per_second"], row["queries_per_second"]
        lines.append(
            f"| {row['model']} | {row['pictures']} | {row['queries_per_picture']} | {pictures_['shared']:.3f} | "
            f"{pictures_['one_by_one']:.3f} | {queries['shared']:.3f} | {queries['one_by_one']:.3f} | "
            f"{row['ratio']:.2f} | {100 * row['rows_equal']:.1f} % |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="*", default=["nano", "InternVL3-1B"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pictures", type=int, nargs="*", default=[20, 2], help="One number per model.")
    parser.add_argument("--queries", type=int, nargs="*", default=[3, 20])
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/evaluation")
    chosen = parser.parse_args()
    dtype = getattr(torch, chosen.dtype)
    rows = []
    for name, count in zip(chosen.models, chosen.pictures, strict=True):
        model = load(name, chosen.device, dtype)
        for queries in chosen.queries:
            rows.append(measure(model, pictures(count, queries)))
            print(rows[-1], flush=True)
        del model
    report = {"facts": facts(torch.device(chosen.device), dtype), "rows": rows}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    chosen.out.with_suffix(".md").write_text(as_markdown(report), "utf-8")


if __name__ == "__main__":
    main()
