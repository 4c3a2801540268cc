"""Questions about drawn scenes that no model was trained on: made on the fly, nothing to download."""

from __future__ import annotations

from functools import partial

from PIL import Image

from self1e.data.scenes import Scenes
from self1e.data.scenes.dataset import Split
from self1e.data.vqa_benchmarks.asked import Asked


def read_scene_questions(scenes: int, *, size_wh: tuple[int, int], split: Split = "test") -> list[Asked]:
    """Draw the questions of the first scenes of a split, each tagged by what it asks for.

    Args:
        scenes: How many.
        size_wh: Of each picture.
        split: As `Scenes` takes it.
    """
    drawn = Scenes(split, size_wh=size_wh, length=scenes)
    return [
        Asked(
            id=f"{index}-{number}",
            prompt=question.text,
            picture=partial(_draw, drawn, index),
            picture_id=str(index),
            truth={"answer": question.answer, "group": str(index), "tag": question.tag},
        )
        for index in range(len(drawn))
        for number, question in enumerate(drawn[index].questions)
    ]


def _draw(drawn: Scenes, index: int) -> Image.Image:
    return drawn[index].image
