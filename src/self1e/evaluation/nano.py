"""Measure `nano`: drawn scenes it never saw, and the validation photographs of clothing.

    python -m self1e.evaluation.nano --model nano --data DATA --out docs/results

writes ``nano.json`` (every figure) and ``nano.md`` (the tables of the model card). Protocol: the answer ``[SEG]``
is given (teacher forcing, as published), masks are compared at the picture's own size, threshold 0. Beside each
mask figure stands the ceiling of the model's grid: the score of perfect logits at its resolution.
"""

from __future__ import annotations

import json
import platform
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch.nn import functional as F

from self1e.data.sample import Sample
from self1e.data.scenes import SINGLE_TARGET_TAGS, Scenes
from self1e.evaluation.metrics import MaskIoU
from self1e.inference.info import mask_side
from self1e.inference.segmenter import Self1E, load

SCENE_SIZE = (160, 160)
CHUNK = 16  # pictures per call


def ceiling_mask(truth: np.ndarray, grid: int) -> np.ndarray:
    """What a perfect square grid of logits would give: bool ``(H, W)`` to bool ``(H, W)``.

    The truth is averaged to ``grid x grid`` and enlarged bilinearly, as logits are; above one half is foreground.
    """
    shares = F.adaptive_avg_pool2d(torch.from_numpy(truth.astype(np.float32))[None, None], grid)
    back = F.interpolate(shares, size=truth.shape, mode="bilinear", align_corners=False)
    return (back[0, 0] > 0.5).numpy()


class Scores:
    """Model and ceiling, in all and by group."""

    def __init__(self) -> None:
        self.model: dict[str, MaskIoU] = defaultdict(MaskIoU)
        self.ceiling: dict[str, MaskIoU] = defaultdict(MaskIoU)
        self.found_empty: dict[str, list[bool]] = defaultdict(list)

    def add(self, groups: Iterable[str], prediction: np.ndarray, truth: np.ndarray, grid: int) -> None:
        """Count one query in each of its groups."""
        best = ceiling_mask(truth, grid)
        for group in groups:
            self.model[group].add(prediction, truth)
            self.ceiling[group].add(best, truth)
            if not truth.any():
                self.found_empty[group].append(not prediction.any())

    def row(self, group: str) -> dict[str, Any]:
        """Figures of one group."""
        found: dict[str, Any] = {
            "queries": len(self.model[group]),
            "ciou": round(self.model[group].ciou, 4),
            "giou": round(self.model[group].giou, 4),
            "ceiling_ciou": round(self.ceiling[group].ciou, 4),
            "ceiling_giou": round(self.ceiling[group].giou, 4),
        }
        if self.found_empty[group]:
            found["empty_when_absent"] = round(float(np.mean(self.found_empty[group])), 4)
        return found


def measure_masks(model: Self1E, samples: Sequence[Sample], groups: Any, *, grid: int) -> Scores:
    """Segment every target of every sample.

    Args:
        model: Anything with ``segment_batch``.
        samples: Each with at least one target.
        groups: From a target to the names of its groups; a target in no group is not asked.
        grid: Side of the model's mask grid for one tile, for the ceiling.
    """
    scores = Scores()
    for start in range(0, len(samples), CHUNK):
        chunk = [samples[i] for i in range(start, min(start + CHUNK, len(samples)))]
        asked = [(sample, [t for t in sample.targets if groups(t)]) for sample in chunk]
        asked = [(sample, targets) for sample, targets in asked if targets]
        for kind in ("phrase", "sentence"):
            part = [(sample, [t for t in targets if t.kind == kind]) for sample, targets in asked]
            part = [(sample, targets) for sample, targets in part if targets]
            if not part:
                continue
            results = model.segment_batch([(s.image, [t.text for t in targets]) for s, targets in part], kind=kind)  # type: ignore[arg-type]
            for (_, targets), result in zip(part, results, strict=True):
                for k, target in enumerate(targets):
                    scores.add(groups(target), result.mask(k), target.mask, grid)
    return scores


def measure_answers(model: Self1E, samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """Ask every question; an answer is right if it equals the truth, ignoring case and a final full stop."""
    right: dict[str, list[bool]] = defaultdict(list)
    for i in range(len(samples)):
        sample = samples[i]
        for question in sample.questions:
            answer = model.chat(sample.image, question.text, max_new_tokens=8)
            is_right = answer.strip().rstrip(".").lower() == question.answer.lower()
            right[question.tag].append(is_right)
            right["all"].append(is_right)
    return {tag: {"questions": len(v), "right": round(float(np.mean(v)), 4)} for tag, v in sorted(right.items())}


def scene_groups(target: Any) -> list[str]:
    """Group by tag; single targets are the headline."""
    groups = ["all", target.tag]
    if target.tag in SINGLE_TARGET_TAGS:
        groups.append("single target")
    return groups


def evaluate(model: Self1E, data: Path | None, *, scenes: int, photographs: int | None = None) -> dict[str, Any]:
    """Measure everything.

    Args:
        model: To be measured.
        data: Folder with ``ccp/``; None measures drawn scenes alone.
        scenes: Drawn test scenes, of all compositions and again of held-out ones.
        photographs: How many validation photographs; None is all.
    """
    grid = mask_side(model.model.config)
    start = time.perf_counter()
    test = Scenes("test", size_wh=SCENE_SIZE, length=scenes)
    held_out = Scenes("test", size_wh=SCENE_SIZE, length=scenes, held_out="only")
    report: dict[str, Any] = {"grid": grid}
    drawn = measure_masks(model, test, scene_groups, grid=grid)
    report["scenes"] = {group: drawn.row(group) for group in sorted(drawn.model)}
    composed = measure_masks(model, held_out, scene_groups, grid=grid)
    report["scenes_held_out"] = {group: composed.row(group) for group in sorted(composed.model)}
    report["questions"] = measure_answers(model, Scenes("test", size_wh=SCENE_SIZE, length=max(1, scenes // 2)))
    if data is not None:
        from self1e.data.clothing import Clothing

        train_counts = Clothing(data / "ccp", "train").count_parts()

        def clothing_groups(target: Any) -> list[str]:
            if target.tag == "group":
                return [target.text]
            common = train_counts[target.text] >= 20
            return ["named parts", *(["named parts, 20 or more in training"] if common else []), target.text]

        validation = Clothing(data / "ccp", "val")
        if photographs is not None:
            validation.names = validation.names[:photographs]
        photos = measure_masks(model, validation, clothing_groups, grid=grid)
        report["photographs"] = {group: photos.row(group) for group in sorted(photos.model)}
    report["seconds"] = round(time.perf_counter() - start, 1)
    return report


def query_seconds(model: Self1E) -> float:
    """Median time of one query on an encoded picture plus encoding, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sample = Scenes("test", size_wh=SCENE_SIZE, length=1)[0]
        times = []
        for _ in range(7):
            start = time.perf_counter()
            model.segment(sample.image, sample.targets[0].text)
            times.append(time.perf_counter() - start)
        return float(np.median(times[2:]))
    finally:
        torch.set_num_threads(threads)


def as_markdown(report: dict[str, Any], command: str) -> str:
    """Write the tables of the model card."""
    lines = ["# nano: what it reaches", "", f"Command: `{command}`. {report['machine']}.", ""]
    lines += ["Training: [log](nano_log.json), model card: [nano](../../src/self1e/assets/nano/README.md).", ""]
    lines += ["![Losses of both stages](nano_curve.png)", ""]
    lines += [
        f"Mask grid {report['grid']} x {report['grid']} per picture; the ceiling is what perfect logits on it give.",
        f"One query on one core, encoding included: {report['query_seconds']:.3f} s (median of 5).",
        "",
    ]
    titles = {
        "scenes": "Drawn scenes, test split",
        "scenes_held_out": "Drawn scenes, colour-kind pairs never seen in training",
        "photographs": "Clothing photographs, validation split",
    }
    for key, title in titles.items():
        if key not in report:
            continue
        lines += [
            f"## {title}",
            "",
            "| group | queries | cIoU | gIoU | ceiling cIoU | ceiling gIoU | empty when absent |",
        ]
        lines.append("|---|---|---|---|---|---|---|")
        for group, row in report[key].items():
            empty = f"{row['empty_when_absent']:.3f}" if "empty_when_absent" in row else ""
            lines.append(
                f"| {group} | {row['queries']} | {row['ciou']:.3f} | {row['giou']:.3f} | {row['ceiling_ciou']:.3f} "
                f"| {row['ceiling_giou']:.3f} | {empty} |"
            )
        lines.append("")
    lines += ["## Questions about drawn scenes", "", "| tag | questions | right |", "|---|---|---|"]
    lines += [f"| {tag} | {row['questions']} | {row['right']:.3f} |" for tag, row in report["questions"].items()]
    return "\n".join(lines) + "\n"


def main(
    model: Annotated[str, typer.Option(help="nano, a folder or a hub id.")] = "nano",
    data: Annotated[Path | None, typer.Option(help="Folder that holds ccp/.")] = None,
    out: Annotated[Path, typer.Option(help="Where nano.json and nano.md go.")] = Path("docs/results"),
    scenes: Annotated[int, typer.Option(help="Drawn scenes per table.")] = 500,
) -> None:
    """Measure a model and write the tables."""
    segmenter = load(model)
    report = evaluate(segmenter, data, scenes=scenes)
    report["query_seconds"] = round(query_seconds(segmenter), 4)
    report["parameters"] = sum(parameter.numel() for parameter in segmenter.model.parameters())
    report["model"] = model
    report["machine"] = (
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {segmenter.dtype}"
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "nano.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    command = f"python -m self1e.evaluation.nano --model {model}{' --data DATA' if data else ''} --scenes {scenes}"
    (out / "nano.md").write_text(as_markdown(report, command), "utf-8")
    typer.echo((out / "nano.md").read_text("utf-8"))


if __name__ == "__main__":
    typer.run(main)
