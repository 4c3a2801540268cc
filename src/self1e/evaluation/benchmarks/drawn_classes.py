"""Drawn scenes as class maps: every kind of shape is asked about every scene, the highest logit per pixel wins.

The background belongs to no kind and is ignored, as in the published benchmarks without background.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from self1e.data.scenes import Scenes
from self1e.data.scenes.shapes import KINDS
from self1e.evaluation.benchmarks.classes import LabelledPicture, failed_classes, measure_classes
from self1e.evaluation.benchmarks.interface import Benchmark, Opened, hash_names
from self1e.evaluation.benchmarks.masks import PROMPT
from self1e.evaluation.metrics.semantic import LabelSet

SCENE_CLASSES = LabelSet(name="scenes", classes=tuple(f"the {kind}" for kind in KINDS), ignore=255)
SCENES = 200


class DrawnClassMaps(Sequence[LabelledPicture]):
    """Unit ``i`` is scene ``i`` of the test split, each thing labelled by its kind."""

    label_set = SCENE_CLASSES

    def __init__(self, length: int) -> None:
        self.scenes = Scenes("test", size_wh=(160, 160), length=length)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> LabelledPicture:  # type: ignore[override]  # no slices
        sample = self.scenes[index]
        extra: Any = sample.extra
        kinds = [SCENE_CLASSES.ignore, *(KINDS.index(thing.kind) for thing in extra["things"])]
        return LabelledPicture(self.source(index), sample.image, np.array(kinds, np.uint8)[extra["owner"]])

    def source(self, index: int) -> str:
        """Name of a unit."""
        return f"scenes-classes/test/{index}"

    def labels(self, index: int) -> np.ndarray:
        """Class map of a unit."""
        return self[index].labels


def scene_classes() -> Benchmark:
    """Kinds of shapes in the test scenes."""

    def opener(data: Path | None) -> Opened:
        units = DrawnClassMaps(SCENES)
        return Opened(units=units, annotations=hash_names(SCENE_CLASSES.classes, "scenes 160x160 seed 0"))

    return Benchmark(
        name="scenes-classes/test",
        protocols=("ovs.d2/scenes",),
        prompt=f"{PROMPT}/phrase, {len(KINDS)} names",
        open=opener,
        measure=partial(measure_classes, labels=SCENE_CLASSES),
        failed=partial(failed_classes, labels=SCENE_CLASSES),
        expected=SCENES,
        answers=("teacher-forced",),
    )
