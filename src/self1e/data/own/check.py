"""Look at every picture and every mask of a data set once: what is wrong, what there is, and a sheet to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from self1e.data.own.fingerprints import Fingerprint, find_pairs, fingerprint
from self1e.data.own.opening import Found
from self1e.data.own.records import KINDS, Decoded, Flaw, Parsed, Problem, Record, make_sample
from self1e.data.sample import Sample, Target
from self1e.data.scenes.sheet import contact_sheet
from self1e.errors import PictureError, Self1EError
from self1e.processing.pictures import list_pictures, open_picture

_OUTSIDE = "--against"
_SHEET_PICTURES, _SHEET_TARGETS, _SHEET_SIDE = 12, 5, 384

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Wraps what is gone through and its length, e.g. by a progress bar."""


@dataclass
class Counts:
    """What one split holds; sizes in pixels."""

    pictures: int = 0
    """Different files that could be opened."""
    records: int = 0
    queries: int = 0
    """Of pictures that could be opened, those of absent things included."""
    absent: int = 0
    sizes_wh: list[tuple[int, int]] = field(default_factory=list)
    """Of every picture."""
    shares: list[float] = field(default_factory=list)
    """Of the picture that each mask covers, 0..1, absent ones left out."""
    texts: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        """Return counts and quantiles as JSON has them."""
        widths, heights = np.array(self.sizes_wh or [(0, 0)]).T
        areas = widths * heights
        smallest, median, largest = (np.argsort(areas)[i] for i in (0, len(areas) // 2, -1))
        sizes = {
            name: [int(widths[i]), int(heights[i])]
            for name, i in (("smallest", smallest), ("median", median), ("largest", largest))
        }
        shares = np.quantile(self.shares, [0, 0.25, 0.5, 0.75, 1]).round(5).tolist() if self.shares else []
        words = [len(text.split()) for text in self.texts.elements()]
        return {
            "pictures": self.pictures,
            "records": self.records,
            "queries": self.queries,
            "absent": self.absent,
            "different_queries": len(self.texts),
            "words_per_query": round(float(np.mean(words)), 2) if words else 0.0,
            "sizes_wh": sizes if self.sizes_wh else {},
            "mask_share_quartiles": shares,
            "most_frequent": dict(self.texts.most_common(20)),
        }


@dataclass
class Report:
    """What a check found."""

    root: str
    format: str
    problems: list[Problem]
    counts: dict[str, Counts]
    """By split."""
    samples: list[Sample]
    """Some that are sound, small, for the sheet."""

    @property
    def is_clean(self) -> bool:
        """No problem was found."""
        return not self.problems

    def count_kinds(self) -> dict[str, int]:
        """Count the problems of each kind that occurs."""
        counts = Counter(problem.kind for problem in self.problems)
        return {kind: counts[kind] for kind in KINDS if counts[kind]}

    def to_json(self) -> dict[str, Any]:
        """Return everything but the samples as JSON has it."""
        return {
            "root": self.root,
            "format": self.format,
            "clean": self.is_clean,
            "splits": {split: counts.summary() for split, counts in self.counts.items()},
            "problem_counts": self.count_kinds(),
            "problems": [asdict(problem) for problem in self.problems],
        }

    def sheet(self) -> Image.Image | None:
        """Draw some samples, each with its masks; None if there is none."""
        return contact_sheet(self.samples) if self.samples else None


@dataclass
class _Seen:
    """A picture with its place in the data."""

    path: Path
    problem_file: Path
    where: str
    split: str
    fingerprint: Fingerprint


def check_data(
    found: Found,
    *,
    splits: Sequence[str] | None = None,
    against: str | Path | None = None,
    ignore: Sequence[str] = (),
    progress: Progress = lambda things, _: things,
) -> Report:
    """Check everything: annotations, pictures, masks, duplicates and leaks.

    Args:
        found: What `recognise` returns.
        splits: Only these; all if None. Leaks are found between them.
        against: Folder of pictures that must not be in the data, such as a test set.
        ignore: Kinds of problems, keys of `KINDS`, that are left out.
        progress: Is told what is gone through.

    Returns:
        The report; no input makes this raise, except a folder ``against`` without pictures.
    """
    checker = _Checker()
    outside = [] if against is None else list(_hash_folder(against, progress))
    counts, samples = {}, []
    for split in splits or found.splits:
        parsed = _parse(found, split)
        checker.begin(split, parsed)
        drawn = -(-_SHEET_PICTURES // len(splits or found.splits))
        shown = {round(place) for place in np.linspace(0, len(parsed.records) - 1, drawn)}
        for number, record in enumerate(progress(parsed.records, len(parsed.records))):
            sample = checker.check(record, keep=number in shown)
            if sample is not None:
                samples.append(sample)
        counts[split] = checker.counts
    problems = [*checker.problems, *_find_copies(list(checker.seen.values()), outside)]
    order = list(KINDS)
    return Report(
        root=str(found.root),
        format=found.format,
        # The sort is stable: within a kind files keep their order.
        problems=sorted((p for p in problems if p.kind not in ignore), key=lambda p: order.index(p.kind)),
        counts=counts,
        samples=samples,
    )


class _Checker:
    """Goes through records and collects what it sees."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.seen: dict[tuple[str, Path], _Seen] = {}
        self.split = ""
        self.counts = Counts()
        self._asked: dict[tuple[Path, str], str] = {}

    def begin(self, split: str, parsed: Parsed) -> None:
        """Go on to another split."""
        self.split, self.counts, self._asked = split, Counts(records=len(parsed.records)), {}
        self.problems += parsed.problems
        if not parsed.records and not parsed.problems:
            flaw = Flaw("bad-record", "no record", "at least one", "Is it the right file?")
            self.problems.append(flaw.at(parsed.file, split=split))

    def check(self, record: Record, *, keep: bool) -> Sample | None:
        """Check one record; returns its sample, small, if it is sound and wanted."""
        before = len(self.problems)
        kept = []
        try:
            image = record.open()
            self._see(record, image)
            for decoded in self._check_queries(record, image.size):
                if keep:  # otherwise one mask at a time: a large picture may have a hundred
                    kept.append(decoded)
        except Flaw as flaw:
            self._report(flaw, record, "")
        except Exception as error:  # whatever one record holds, the others are to be checked
            self._report(_unforeseen(error), record, "")
        else:
            if keep and len(self.problems) == before:
                return _shrink(make_sample(record, image, kept))
        return None

    def _see(self, record: Record, image: Image.Image) -> None:
        key = (self.split, record.picture)
        if key in self.seen:
            return
        self.seen[key] = _Seen(
            record.picture, record.file, record.where, self.split, fingerprint(record.picture, image)
        )
        self.counts.pictures += 1
        self.counts.sizes_wh.append(image.size)

    def _check_queries(self, record: Record, size_wh: tuple[int, int]) -> Iterator[Decoded]:
        for decoded in record.annotation.decode(size_wh):
            for where, flaw in decoded.flaws:
                self._report(flaw, record, where)
            for where in decoded.empty or ((decoded.where,) if _is_empty(decoded) else ()):
                advice = "Draw it, or say that it is not in the picture."
                self._report(Flaw("empty-mask", f"no pixel of {decoded.text!r}", "at least one", advice), record, where)
            self._check_words(decoded, record)
            self.counts.queries += 1
            self.counts.absent += decoded.is_absent
            self.counts.texts[decoded.text] += 1
            if decoded.mask.any():
                self.counts.shares.append(float(decoded.mask.mean()))
            yield decoded

    def _check_words(self, decoded: Decoded, record: Record) -> None:
        key = (record.picture, decoded.text.casefold())
        if key in self._asked:
            advice = "Unite the masks under one query, or tell them apart in words."
            found = f"{decoded.text!r} again for {record.picture.name}"
            flaw = Flaw("duplicate-query", found, f"once (first at {self._asked[key]})", advice)
            self._report(flaw, record, decoded.where)
        else:
            self._asked[key] = decoded.where or record.where

    def _report(self, flaw: Flaw, record: Record, where: str) -> None:
        self.problems.append(flaw.at(record.file, where or record.where, self.split))


def _parse(found: Found, split: str) -> Parsed:
    try:
        return found.parse(split)
    except Exception as error:  # whatever a file holds, the others are to be checked
        parsed = Parsed(split, found.splits[split])
        parsed.report(_unforeseen(error))
        return parsed


def _is_empty(decoded: Decoded) -> bool:
    return not (decoded.is_absent or decoded.flaws or decoded.mask.any())


def _unforeseen(error: Exception) -> Flaw:
    told = " ".join(str(error).split())[:200]
    if isinstance(error, Self1EError):
        return Flaw("bad-record", told, "something that can be read", "Look at the entry.")
    found = f"an entry that fails with {type(error).__name__}: {told}"
    return Flaw("bad-record", found, "something that can be read", "Look at the entry, and report this to self1e.")


def _hash_folder(folder: str | Path, progress: Progress) -> Iterator[_Seen]:
    paths = list_pictures([folder])
    for path in progress(paths, len(paths)):
        try:
            yield _Seen(path, path, "", _OUTSIDE, fingerprint(path, open_picture(path).image))
        except (PictureError, OSError):  # it is not this folder that is checked
            continue


def _find_copies(seen: Sequence[_Seen], outside: Sequence[_Seen]) -> Iterator[Problem]:
    """Report pictures that are there twice, or that a test is made of."""
    every = [*outside, *seen]
    for i, j, is_equal in find_pairs([one.fingerprint for one in every]):
        first, second = every[i], every[j]
        if second.split == _OUTSIDE:
            continue
        same = "the same file as" if is_equal else "nearly the same picture as"
        if first.split == second.split:
            flaw = Flaw(
                "duplicate-picture",
                f"{second.path.name} is {same} {first.path.name}",
                "each picture once",
                "Take one out, or put all its queries into one entry.",
            )
        else:
            where = "that must not be in the data" if first.split == _OUTSIDE else f"of split {first.split!r}"
            flaw = Flaw(
                "leak",
                f"{second.path.name} is {same} {first.path} {where}",
                "pictures of one split only",
                "Take it out of the training split, or scores on the other mean nothing.",
            )
        yield flaw.at(second.problem_file, second.where, second.split)


def _shrink(sample: Sample) -> Sample:
    """Bring a sample to the size of a sheet, with few of its targets."""
    scale = min(1.0, _SHEET_SIDE / max(sample.image.size))
    size_wh = (max(1, round(sample.image.width * scale)), max(1, round(sample.image.height * scale)))
    targets = [_resize(target, size_wh) for target in islice(sample.targets, _SHEET_TARGETS)]
    return replace(sample, image=sample.image.resize(size_wh, Image.Resampling.BOX), targets=tuple(targets))


def _resize(target: Target, size_wh: tuple[int, int]) -> Target:
    small = Image.fromarray(target.mask).resize(size_wh, Image.Resampling.NEAREST)
    return replace(target, mask=np.asarray(small))
