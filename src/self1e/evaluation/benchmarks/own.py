"""Your own data as a benchmark: ``own:PATH``, or ``own:PATH#SPLIT`` where there are several splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self1e.data.sample import Sample, Target
from self1e.errors import SettingError
from self1e.evaluation.benchmarks.interface import Benchmark, Opened, hash_files
from self1e.evaluation.benchmarks.masks import GRES, expressions_benchmark, summarise

if TYPE_CHECKING:
    from self1e.data.own import OwnData


class OwnUnits(Sequence[Sample]):
    """Unit ``i`` is sample ``i``, under a name that no other has: masks of one name may lie in several folders."""

    def __init__(self, samples: OwnData) -> None:
        self.samples = samples
        self.sources = unique_sources([(record.file, record.where) for record in samples.records])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        return replace(self.samples[index], source=self.sources[index])


def unique_sources(places: Sequence[tuple[Path, str]]) -> list[str]:
    """Name records by file and place in it; by the path below their common folder where the file's name is not enough.

    Args:
        places: File, and where in it (may be empty), of each.
    """
    names = [_joined(file.name, where) for file, where in places]
    shared = Counter(names)
    if max(shared.values(), default=1) == 1:
        return names
    folder = os.path.commonpath([file.parent for file, _ in places])
    return [
        _joined(file.relative_to(folder).as_posix(), where) if shared[name] > 1 else name
        for name, (file, where) in zip(names, places, strict=True)
    ]


def _joined(file: str, where: str) -> str:
    return "/".join(part for part in (file, where.replace(" ", "-")) if part)


def truth_files(samples: OwnData) -> list[Path]:
    """List the files that say what is asked and what is right: other masks under the same names are other data."""
    found: set[Path] = {samples.file}
    for record in samples.records:
        annotation: Any = record.annotation
        found |= {record.file, samples.file / getattr(annotation, "list_name", "")}
        held = [annotation, *(region for query in getattr(annotation, "queries", ()) for _, region in query.regions)]
        found |= {part.path for part in held if isinstance(getattr(part, "path", None), Path)}
    return sorted(path for path in found if path.is_file())


def own(path: str) -> Benchmark:
    """Your own data: ``PATH`` or ``PATH#SPLIT``.

    Raises:
        SettingError: No path is named.
    """
    place, _, split = path.partition("#")
    if not place:
        raise SettingError("own: names no data; write own:PATH, or own:PATH#SPLIT where there are several splits.")

    def opener(data: Path | None) -> Opened:
        from self1e.data.own import open_data

        samples = open_data(place, split=split or None)
        missing = [str(record.picture) for record in samples.records if not record.picture.is_file()]
        return Opened(
            units=OwnUnits(samples), annotations=hash_files(truth_files(samples)), problems=summarise(missing)
        )

    def subsets(target: Target) -> tuple[str, ...]:
        return (target.tag,) if target.tag else ()

    return expressions_benchmark(
        f"own:{path}",
        ("res.sentence", *GRES[:1]),
        opener,
        explicit=("gres.official",),
        subsets=subsets,
    )
