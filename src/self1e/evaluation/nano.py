"""Measure `nano` in full, with benchmarks that need no published data set.

    python -m self1e.evaluation.nano --model nano --data DATA --out docs/results

writes ``nano.json`` (every figure) and ``nano.md`` (the tables of the model card): expressions, absent things,
reasoning, classes and questions on drawn scenes that it never saw; the validation photographs of clothing; and, as data
from outside its domain, street scenes (CamVid) by the protocol of open-vocabulary segmentation. Everything is measured
by the runner of ``self1e eval``. Beside each mask figure stands the ceiling of the model's grid: the score of the
truth, averaged to its resolution and enlarged again.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch.nn import functional as F

from self1e.data.scenes import Scenes
from self1e.errors import DatasetError
from self1e.evaluation import runner
from self1e.evaluation.intervals import Interval, interval, interval_of
from self1e.evaluation.metrics import MaskIoU
from self1e.evaluation.metrics.masks import iou, mask_row, split_truth
from self1e.evaluation.metrics.rows import Row
from self1e.evaluation.metrics.semantic import SemanticIoU
from self1e.evaluation.protocols import protocol
from self1e.evaluation.report import provenance
from self1e.files import atomic_write_all
from self1e.inference.info import mask_side
from self1e.inference.segmenter import Self1E, load

SCENE_SIZE = (160, 160)
DRAWN = ("scenes/test", "scenes-held-out/test", "scenes-questions/test", "scenes-classes/test")
PHOTOGRAPHS = ("ccp/val", "camvid/val")
FEWEST = 5
"""Pictures that an interval needs."""

# ---------------------------------------------------------------------- the ceiling of the grid


def ceiling_mask(truth: np.ndarray, grid: int) -> np.ndarray:
    """What a perfect square grid of logits would give: bool ``(H, W)`` to bool ``(H, W)``.

    The truth is averaged to ``grid x grid`` and enlarged bilinearly, as logits are; above one half is foreground.
    """
    shares = F.adaptive_avg_pool2d(torch.from_numpy(truth.astype(np.float32))[None, None], grid)
    back = F.interpolate(shares, size=truth.shape, mode="bilinear", align_corners=False)
    return (back[0, 0] > 0.5).numpy()


def ceiling_labels(truth: np.ndarray, grid: int, count: int) -> np.ndarray:
    """The same for class maps, integer ``(H, W)``: the class with the largest share wins, of those that are there."""
    there = [label for label in np.unique(truth).tolist() if label < count]
    if not there:
        return np.zeros(truth.shape, np.int64)
    planes = torch.from_numpy(np.stack([truth == label for label in there]).astype(np.float32))[None]
    back = F.interpolate(F.adaptive_avg_pool2d(planes, grid), size=truth.shape, mode="bilinear", align_corners=False)
    return np.array(there)[back[0].argmax(0).numpy()]


def ceiling_rows(units: Any, indices: Sequence[int], grid: int) -> dict[str, Row]:
    """Rows of perfect logits for the units of a benchmark of masks or classes, by id."""
    found: dict[str, Row] = {}
    for index in indices:
        unit = units[index]
        for row in _ceiling_of_classes(units, unit, grid) if hasattr(unit, "labels") else _ceiling_of_masks(unit, grid):
            found[row["id"]] = row
    return found


def _ceiling_of_masks(unit: Any, grid: int) -> list[Row]:
    rows = []
    for k, target in enumerate(unit.targets):
        truth, ignored = split_truth(target.mask)
        best = ceiling_mask(truth, grid)
        rows.append(mask_row(f"{unit.source}-{k}", best, truth, ignored=ignored if ignored.any() else None))
    return rows


def _ceiling_of_classes(units: Any, unit: Any, grid: int) -> list[Row]:
    labels = units.label_set
    best = ceiling_labels(unit.labels, grid, len(labels.classes))
    return [SemanticIoU(labels.classes, ignore=labels.ignore).update(unit.source, best, unit.labels)]


# ---------------------------------------------------------------------- measuring


def measure(
    model: Self1E, names: Sequence[str], data: Sequence[Path], out: Path, *, limit: int | None = None
) -> dict[str, tuple[list[Row], dict[str, Row]]]:
    """Run benchmarks; masks with [SEG] given, questions with generated answers.

    Args:
        model: To be measured.
        names: Of benchmarks.
        data: Folders of data.
        out: Where rows go; a run that was stopped goes on.
        limit: Pictures of each; None is all.

    Returns:
        Per benchmark its rows, and those of perfect logits by id (none for questions).
    """
    grid = mask_side(model.model.config)
    found: dict[str, tuple[list[Row], dict[str, Row]]] = {}
    for job in runner.plan(model, names, data, out, limit=limit, save_masks=True):
        runner.evaluate(job, model)
        is_question = job.run.answer == "generated"
        rows = [as_answered(row) for row in runner.all_rows(job)]
        found[job.run.dataset] = rows, {} if is_question else ceiling_rows(job.opened.units, job.indices, grid)
    return found


def as_answered(row: Row) -> Row:
    """What `segment` gives: a mask that scores less than a calibrated model's threshold is empty."""
    if not row.get("pred_nt"):
        return row
    return row | {"I": 0, "U": row["gt_area"], "iou": iou(0, row["gt_area"]), "pred_area": 0}


def table(rows: Sequence[Row], ceilings: dict[str, Row], groups: Callable[[Row], Sequence[str]]) -> dict[str, Any]:
    """Figures of masks by group, with 95 % intervals over pictures.

    Args:
        rows: Of a benchmark of masks.
        ceilings: See `measure`.
        groups: Names of the groups that a row belongs to.
    """
    members: dict[str, list[Row]] = {}
    for row in rows:
        for group in groups(row):
            members.setdefault(group, []).append(row)
    return {group: _mask_figures(some, ceilings) for group, some in sorted(members.items())}


def _mask_figures(rows: Sequence[Row], ceilings: dict[str, Row]) -> dict[str, Any]:
    metric = MaskIoU().add_rows(rows)
    best = MaskIoU().add_rows(ceilings[row["id"]] for row in rows)
    ratios = metric.ratios(metric.rows)
    found: dict[str, Any] = {"queries": len(rows)}
    for name in ("ciou", "giou"):
        found |= _figure(name, interval(ratios[name], by_group=True))
    found |= {f"ceiling_{name}": _rounded(getattr(best, name)) for name in ("ciou", "giou")}
    absent = [row for row in rows if not row["gt_area"]]
    if absent:
        is_empty = [not row["pred_area"] for row in absent]
        found["empty_when_absent"] = _rounded(float(np.mean(is_empty)))
    return found


def _figure(name: str, value: Interval) -> dict[str, Any]:
    """A figure and its interval; of very few pictures an interval would be narrow by mistake."""
    ends = (value.low, value.high) if value.units >= FEWEST else (None, None)
    return {name: _rounded(value.value), f"{name}_95": [_rounded(end) for end in ends]}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def figures(rows: Sequence[Row], name: str, wanted: Sequence[str], ceilings: dict[str, Row]) -> dict[str, Any]:
    """Any figures of a protocol with their intervals, and the ceilings of the grid if there are any."""
    metric = protocol(name).metric().add_rows(rows)
    found: dict[str, Any] = {"samples": len(rows)}
    for figure in wanted:
        found |= _figure(figure, interval_of(metric, figure))
    if ceilings:
        best = protocol(name).metric().add_rows(ceilings[row["id"]] for row in rows).result()
        found |= {f"ceiling_{figure}": _rounded(best[figure]) for figure in wanted}
    return found


def questions(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Share of right answers, by tag and in all."""
    metric = protocol("scenes.exact").metric().add_rows(rows)
    found: dict[str, dict[str, Any]] = {}
    for name, ratio in metric.ratios(metric.rows).items():
        share = interval(ratio, by_group=True)
        counted = int(ratio.denominators.sum())
        found[name.removeprefix("accuracy/").replace("accuracy", "all")] = {
            "questions": counted,
            **_figure("right", share),
        }
    return dict(sorted(found.items()))


def scene_groups(row: Row) -> list[str]:
    """Group by tag; single targets are the headline."""
    return ["all", *row["subsets"]]


def evaluate(model: Self1E, data: Path | None, out: Path, *, limit: int | None = None) -> dict[str, Any]:
    """Measure everything.

    Args:
        model: To be measured.
        data: Folder with ``ccp/`` and ``camvid/``; None measures drawn scenes alone, and what is missing is left out.
        out: Where rows go.
        limit: Pictures of each benchmark; None is all.
    """
    start = time.perf_counter()
    report: dict[str, Any] = {"grid": mask_side(model.model.config), "no_target_threshold": model.no_target_threshold}
    drawn = measure(model, DRAWN, [], out, limit=limit)
    rows, best = drawn["scenes/test"]
    report["scenes"] = table(rows, best, scene_groups)
    report["scenes_absent"] = figures(rows, "gres.mask_empty", ("giou", "ciou", "n_acc", "t_acc"), {})
    report["scenes_held_out"] = table(*drawn["scenes-held-out/test"], scene_groups)
    rows, best = drawn["scenes-classes/test"]
    report["scenes_classes"] = figures(rows, "ovs.d2/scenes", ("miou_cls", "miou_cls_mmseg"), best)
    report["questions"] = questions(drawn["scenes-questions/test"][0])
    if data is not None:
        for name in PHOTOGRAPHS:
            _measure_photographs(model, name, data, out, limit, report)
    report["seconds"] = round(time.perf_counter() - start, 1)
    return report


def _measure_photographs(
    model: Self1E, name: str, data: Path, out: Path, limit: int | None, report: dict[str, Any]
) -> None:
    if not (data / name.partition("/")[0]).is_dir():
        typer.echo(f"No {data / name.partition('/')[0]}: {name} is left out.", err=True)
        return
    rows, best = measure(model, [name], [data], out, limit=limit)[name]
    if name == "camvid/val":
        report["camvid"] = figures(rows, "ovs.d2/camvid", ("miou_cls", "miou_cls_mmseg"), best)
        return
    from self1e.data.clothing import Clothing

    counts = Clothing(data / "ccp", "train").count_parts()

    def groups(row: Row) -> list[str]:
        if "named parts" not in row["subsets"]:
            return [row["query"]]
        common = ["named parts, 20 or more in training"] if counts[row["query"]] >= 20 else []
        return ["named parts", *common, row["query"]]

    report["photographs"] = table(rows, best, groups)


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


# ---------------------------------------------------------------------- writing

_TABLES = (
    ("scenes", "Referring expressions: drawn scenes, test split", "`res.sentence`, `scenes/test`"),
    (
        "scenes_held_out",
        "Drawn scenes, colour-kind pairs never seen in training",
        "`res.sentence`, `scenes-held-out/test`",
    ),
    ("photographs", "Clothing photographs, validation split", "`res.sentence`, `ccp/val`"),
)


def as_markdown(report: dict[str, Any], command: str) -> str:
    """Write the tables of the model card."""
    lines = ["# nano: what it reaches", "", f"Command: `{command}`. {report['machine']}.", ""]
    lines += ["Training: [log](nano_log.json), model card: [nano](../../src/self1e/assets/nano/README.md).", ""]
    lines += ["![Losses of both stages](nano_curve.png)", ""]
    lines += [
        "[SEG] is given (teacher forcing, as in published tables), masks are compared at the picture's own size,",
        "threshold 0; questions are answered in its own words. In brackets: 95 % intervals, bootstrap over pictures,",
        f"where there are at least {FEWEST}.",
        *_calibration(report["no_target_threshold"]),
        f"Mask grid {report['grid']} x {report['grid']} per picture; the ceiling is what the truth scores, averaged to",
        "this grid and enlarged again: logits can beat it where things are smaller than a cell.",
        f"One query on one core, encoding included: {report['query_seconds']:.3f} s (median of 5). All tables took "
        f"{report['seconds']:.0f} s.",
        "",
    ]
    (first, *more) = _TABLES
    lines += _mask_table(report, *first)
    lines += _absent_table(report)
    lines += _reasoning(report)
    lines += _class_table(report)
    lines += _question_table(report)
    for entry in more:
        lines += _mask_table(report, *entry)
    return "\n".join(lines).rstrip() + "\n"


def _calibration(threshold: float | None) -> list[str]:
    if threshold is None:
        return []
    return [
        f"A mask that scores less than {threshold:.3g} counts as empty, here as in `segment`: fitted on the validation",
        "scenes by `self1e calibrate --benchmark scenes/val --t-acc 0.97`, kept in config.json.",
    ]


def _mask_table(report: dict[str, Any], key: str, title: str, how: str) -> list[str]:
    if key not in report:
        return []
    lines = [f"## {title}", "", f"Protocol {how}.", ""]
    lines += ["| group | queries | cIoU | gIoU | ceiling cIoU | ceiling gIoU | empty when absent |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for group, row in report[key].items():
        empty = f"{row['empty_when_absent']:.3f}" if "empty_when_absent" in row else ""
        lines.append(
            f"| {group} | {row['queries']} | {_shown(row, 'ciou')} | {_shown(row, 'giou')} | "
            f"{_plain(row['ceiling_ciou'])} | {_plain(row['ceiling_giou'])} | {empty} |"
        )
    return [*lines, ""]


def _absent_table(report: dict[str, Any]) -> list[str]:
    row = report["scenes_absent"]
    lines = ["## Things that are not there: drawn scenes, test split", ""]
    lines += ["Protocol `gres.mask_empty`, `scenes/test`: a mask without a pixel says that nothing fits.", ""]
    lines += ["| queries | gIoU | cIoU | N-acc | T-acc |", "|---|---|---|---|---|"]
    shown = " | ".join(_shown(row, name) for name in ("giou", "ciou", "n_acc", "t_acc"))
    return [*lines, f"| {row['samples']} | {shown} |", ""]


def _reasoning(report: dict[str, Any]) -> list[str]:
    row = report["scenes"].get("reasoning")
    if row is None:
        return []
    lines = ["## Reasoning: questions whose answer is a thing", ""]
    lines += [
        'Protocol `res.sentence`, those sentences of `scenes/test` that hint at a thing: "Which one could roll?"',
        "",
    ]
    lines += ["| queries | gIoU | cIoU | ceiling gIoU | ceiling cIoU |", "|---|---|---|---|---|"]
    return [
        *lines,
        f"| {row['queries']} | {_shown(row, 'giou')} | {_shown(row, 'ciou')} | {_plain(row['ceiling_giou'])} "
        f"| {_plain(row['ceiling_ciou'])} |",
        "",
    ]


def _class_table(report: dict[str, Any]) -> list[str]:
    lines = ["## Open-vocabulary classes", ""]
    lines += ["Every class is asked about every picture, the highest logit per pixel wins. Street scenes are from"]
    lines += ["outside its domain: it never saw one.", ""]
    lines += ["| pictures | n | mIoU (d2) | mIoU (mmseg) | ceiling mIoU (d2) | protocol |", "|---|---|---|---|---|---|"]
    for key, title, how in (
        ("scenes_classes", "drawn scenes, 14 kinds of shapes", "`ovs.d2/scenes`"),
        ("camvid", "CamVid val, 11 classes", "`ovs.d2/camvid`"),
    ):
        if key in report:
            row = report[key]
            lines.append(
                f"| {title} | {row['samples']} | {_shown(row, 'miou_cls')} | {_shown(row, 'miou_cls_mmseg')} "
                f"| {_plain(row['ceiling_miou_cls'])} | {how} |"
            )
    return [*lines, ""]


def _question_table(report: dict[str, Any]) -> list[str]:
    lines = ["## Questions about drawn scenes", "", "Protocol `scenes.exact`, `scenes-questions/test`.", ""]
    lines += ["| tag | questions | right |", "|---|---|---|"]
    lines += [f"| {tag} | {row['questions']} | {_shown(row, 'right')} |" for tag, row in report["questions"].items()]
    return [*lines, ""]


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _shown(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_95"]
    return _plain(row[name]) + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def main(
    model: Annotated[str, typer.Option(help="nano, a folder or a hub id.")] = "nano",
    data: Annotated[Path | None, typer.Option(help="Folder that holds ccp/ and camvid/.")] = None,
    out: Annotated[Path, typer.Option(help="Where nano.json and nano.md go.")] = Path("docs/results"),
    limit: Annotated[int | None, typer.Option(help="Pictures per table; left out, all.")] = None,
    rows: Annotated[
        Path | None, typer.Option(help="Keep the rows here, for `self1e eval --tables --report --out ROWS`.")
    ] = None,
) -> None:
    """Measure a model and write the tables."""
    if data is not None and not data.is_dir():
        raise DatasetError(f"--data {data} is not a folder; expected one that holds ccp/ and camvid/.")
    segmenter = load(model)
    with tempfile.TemporaryDirectory() as temporary:
        report = evaluate(segmenter, data, rows or Path(temporary), limit=limit)
    report["query_seconds"] = round(query_seconds(segmenter), 4)
    report["parameters"] = sum(parameter.numel() for parameter in segmenter.model.parameters())
    report["model"] = model
    hardware, kind = provenance.hardware(segmenter.device), str(segmenter.dtype).removeprefix("torch.")
    report["machine"] = f"{hardware}, torch {torch.__version__}, {kind}"
    shown = "".join(
        f" --{name} {value}" for name, value in (("data", data and "DATA"), ("limit", limit)) if value is not None
    )
    text = as_markdown(report, f"python -m self1e.evaluation.nano --model {model}{shown}")
    out.mkdir(parents=True, exist_ok=True)
    content = json.dumps(report, indent=1) + "\n"
    atomic_write_all([(out / "nano.json", content.encode()), (out / "nano.md", text.encode())])
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
