"""Two models on the same samples: paired differences with intervals, wins and losses, and where they differ most.

Both models have the same hard samples, so their difference is surer than either figure: two intervals that overlap say
nothing, the interval of the difference does. Pictures are drawn together, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from self1e.errors import DatasetError, SettingError
from self1e.evaluation.intervals import Interval, difference_of
from self1e.evaluation.protocols import Run, printed, protocol
from self1e.evaluation.runner import SHORT
from self1e.evaluation.scores import sample_scores, score_name
from self1e.evaluation.tables import Measured, markdown_cell, protocols_of, read_results, shown_figures

_SAME = ("annotations", "prompt", "threshold", "resolution")
"""What two runs must share, besides a protocol; models differ, and so may how they say "not there"."""
MOST_DIFFERENT = 10


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of both models."""

    protocol: str
    name: str
    first: float | None
    second: float | None
    difference: Interval
    """First minus second."""

    @property
    def is_clear(self) -> bool:
        """The interval of the difference does not hold 0."""
        low, high = self.difference.low, self.difference.high
        return low is not None and high is not None and (low > 0 or high < 0)


@dataclass(frozen=True, kw_only=True)
class Differing:
    """A sample on which the models differ."""

    id: str
    words: str
    first: float
    second: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One benchmark, asked in one way."""

    first: Run
    second: Run
    samples: int
    failed: tuple[int, int]
    """Samples on which each model failed; they count as wrong."""
    partial: str
    """Why it is not the whole benchmark; empty if it is."""
    figures: tuple[Figure, ...]
    score: str
    """What wins are counted by, see `self1e.evaluation.scores`."""
    wins: int
    """Samples on which the first scores higher."""
    losses: int
    ties: int
    most_different: tuple[Differing, ...]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two folders."""

    comparisons: tuple[Comparison, ...]
    only_first: tuple[str, ...]
    """Runs that the second folder has not."""
    only_second: tuple[str, ...]


def compare(first: Path, second: Path, *, seed: int = 0) -> Compared:
    """Compare every benchmark that both folders hold.

    Args:
        first: Written by ``self1e eval --out``.
        second: Another one.
        seed: Of the bootstrap.

    Raises:
        DatasetError: A folder has no rows; they have no benchmark in common; or one was measured on other samples.
        SettingError: One was measured by another protocol, prompt or threshold, or on other data; or a folder holds
            several models.
    """
    one, other = _by_name(first), _by_name(second)
    both = [name for name in one if name in other]
    if not both:
        raise DatasetError(
            f"{first} and {second} have no benchmark in common: {', '.join(one)} there, {', '.join(other)} here."
        )
    return Compared(
        comparisons=tuple(compare_runs(one[name], other[name], seed=seed) for name in both),
        only_first=tuple(name for name in one if name not in other),
        only_second=tuple(name for name in other if name not in one),
    )


def _by_name(folder: Path) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    for measured in read_results(folder):
        name = f"{measured.run.dataset}, {SHORT[measured.run.answer]}"
        if name in found:
            raise SettingError(
                f"{folder} holds {name} of two models, {found[name].run.model} and {measured.run.model}: give the "
                "folder of one."
            )
        found[name] = measured
    return found


def compare_runs(first: Measured, second: Measured, *, seed: int = 0) -> Comparison:
    """Compare one benchmark; see `compare`."""
    _check_same(first, second)
    common = shared_protocols(first.run, second.run)
    scores = [sample_scores(replace(one.run, protocol=common[0]), one.rows) for one in (first, second)]
    pairs = {name: (scores[0][name], scores[1][name]) for name in scores[0] if name in scores[1]}
    words = {row["id"]: row.get("query", "") for row in first.rows}
    order = sorted(pairs, key=lambda name: (-abs(pairs[name][0] - pairs[name][1]), name))
    return Comparison(
        first=first.run,
        second=second.run,
        samples=len(first.rows),
        failed=(sum(row["failed"] for row in first.rows), sum(row["failed"] for row in second.rows)),
        partial=first.partial or second.partial,
        figures=tuple(_figures(first, second, common, seed)),
        score=score_name(first.run),
        wins=sum(a > b for a, b in pairs.values()),
        losses=sum(a < b for a, b in pairs.values()),
        ties=sum(a == b for a, b in pairs.values()),
        most_different=tuple(
            Differing(id=name, words=words[name], first=pairs[name][0], second=pairs[name][1])
            for name in order[:MOST_DIFFERENT]
            if pairs[name][0] != pairs[name][1]
        ),
    )


def shared_protocols(first: Run, second: Run) -> list[str]:
    """Protocols that the rows of both can be read by: a calibrated model's can be read as those of any other."""
    known = protocols_of(second)
    return [name for name in protocols_of(first) if name in known]


def _check_same(first: Measured, second: Measured) -> None:
    ours, theirs = asdict(first.run), asdict(second.run)
    asked = _SAME if shared_protocols(first.run, second.run) else ("protocol", *_SAME)
    differ = [f"{name} {ours[name]!r} and {theirs[name]!r}" for name in asked if ours[name] != theirs[name]]
    if differ:
        raise SettingError(
            f"{first.run.dataset} was measured in two ways ({'; '.join(differ)}): such numbers do not compare. Measure "
            "both alike."
        )
    ids = {row["id"] for row in first.rows}, {row["id"] for row in second.rows}
    odd = sorted(ids[0] ^ ids[1])
    if odd:
        raise DatasetError(
            f"{first.run.dataset}: {len(ids[0])} samples in the first folder, {len(ids[1])} in the second, and "
            f"{len(odd)} only in one, e.g. {odd[0]!r}: finish the shorter run, or give both the same --limit."
        )


def _figures(first: Measured, second: Measured, protocols: Sequence[str], seed: int) -> list[Figure]:
    found = []
    for name in protocols:
        metrics = [protocol(name).metric().add_rows(rows) for rows in (first.rows, second.rows)]
        results = [metric.result() for metric in metrics]
        for figure in shown_figures(name, results[0]):
            if any(not isinstance(result.get(figure), int | float) for result in results):
                continue
            gap = difference_of(metrics[0], metrics[1], figure, seed=seed)
            values = [result[figure] for result in results]
            found.append(Figure(protocol=name, name=figure, first=values[0], second=values[1], difference=gap))
    return found


def as_markdown(compared: Compared) -> str:
    """Write a comparison for people."""
    lines = ["# A against B", "", "Differences are A - B, with paired 95 % intervals (bootstrap over pictures);"]
    lines += ["**bold** where the interval leaves 0 out.", ""]
    for one in compared.comparisons:
        lines += _markdown_of(one)
    for folder, names in (("A", compared.only_first), ("B", compared.only_second)):
        if names:
            lines += [f"Only in {folder}: {', '.join(names)}.", ""]
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()  # words may hold half of a surrogate pair


def _markdown_of(one: Comparison) -> list[str]:
    lines = [f"## {one.first.dataset}, {SHORT[one.first.answer]}", ""]
    counted = "1 sample" if one.samples == 1 else f"{one.samples} samples"
    lines += [f"A: {one.first.model}. B: {one.second.model}. {counted}.", ""]
    if one.partial:
        lines += [f"**Not the whole benchmark: {one.partial}.**", ""]
    if any(one.failed):
        lines += [f"Failed, and counted as wrong: {one.failed[0]} (A), {one.failed[1]} (B).", ""]
    if one.first.rejection != one.second.rejection:
        lines += [f'"Not there" is said by: {one.first.rejection} (A), {one.second.rejection} (B).', ""]
    lines += ["| protocol | figure | A | B | A - B |", "|---|---|---|---|---|"]
    for figure in one.figures:
        gap = figure.difference
        text = _signed(figure, gap.value)
        if gap.low is not None and gap.high is not None:
            text += f" [{_signed(figure, gap.low)}, {_signed(figure, gap.high)}]"
        shown = f"**{text}**" if figure.is_clear else text
        values = [printed(figure.name, value) for value in (figure.first, figure.second)]
        lines.append(f"| `{figure.protocol}` | {markdown_cell(figure.name)} | {values[0]} | {values[1]} | {shown} |")
    lines += ["", f"By {one.score}: A wins {one.wins}, loses {one.losses}, ties {one.ties}.", ""]
    if one.most_different:
        lines += ["Most different:", ""]
        lines += [
            f"- A {case.first:.2f}, B {case.second:.2f}: `{case.id}` {' '.join(case.words.split())}".rstrip()
            for case in one.most_different
        ]
        lines += [""]
    return lines


def _signed(figure: Figure, value: float | None) -> str:
    text = printed(figure.name, value)
    return text if value is None or text.startswith("-") else f"+{text}"
