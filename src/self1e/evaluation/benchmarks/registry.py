"""Every benchmark by its name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from self1e.data.published import BENCHMARKS as PUBLISHED
from self1e.errors import SettingError, did_you_mean
from self1e.evaluation.benchmarks import masks
from self1e.evaluation.benchmarks.classes import CLASS_BENCHMARKS
from self1e.evaluation.benchmarks.drawn_classes import scene_classes
from self1e.evaluation.benchmarks.interface import Benchmark
from self1e.evaluation.benchmarks.own import own
from self1e.evaluation.benchmarks.vqa import VQA_BENCHMARKS

_MAKERS: dict[str, Callable[[], Benchmark]] = {
    **{name: partial(masks.published, name) for name in PUBLISHED},
    **{name: partial(CLASS_BENCHMARKS.__getitem__, name) for name in CLASS_BENCHMARKS},
    **{name: partial(VQA_BENCHMARKS.__getitem__, name) for name in VQA_BENCHMARKS},
    "scenes/val": partial(masks.scenes, "val"),
    "scenes/test": partial(masks.scenes, "test"),
    "scenes-held-out/test": partial(masks.scenes, "test", held_out=True),
    "scenes-classes/test": scene_classes,
    "ccp/val": partial(masks.clothing, "val"),
}

BENCHMARKS = tuple(_MAKERS)
"""Every name but those of your own data, ``own:PATH`` and ``own:PATH#SPLIT``."""


def find_benchmark(name: str) -> Benchmark:
    """Find a benchmark; nothing is opened.

    Raises:
        SettingError: There is none of that name.
    """
    if name.startswith("own:"):
        return own(name.removeprefix("own:"))
    if name not in _MAKERS:
        raise SettingError(
            f"Unknown benchmark {name!r}.{did_you_mean(name, _MAKERS)} Known: {', '.join(_MAKERS)}, own:PATH."
        )
    return _MAKERS[name]()
