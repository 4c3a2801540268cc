"""What a run trains and is measured on, opened from a recipe; everything that is missing is told at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from self1e.data.epoch import Epoch
from self1e.data.files import Chosen
from self1e.data.mixture import Mixture, Part
from self1e.data.published import Rates, open_benchmark, published_mixture
from self1e.data.sample import Sample
from self1e.data.scenes import Scenes
from self1e.errors import DatasetError, SettingError
from self1e.processing import prompts
from self1e.training.batching import bucketed
from self1e.training.guards import UNREADABLE
from self1e.training.recipes.overriding import differences
from self1e.training.recipes.settings import Recipe

SCENES = "scenes"
SCENE_SIZE = (160, 160)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Data of a run, ready to be read."""

    make_epoch: Callable[[int], Mixture]
    """Makes epoch ``e``; picklable, since worker processes may be spawned."""
    counts: Mapping[str, int]
    """Items of one epoch, by part."""
    validation: Sequence[Sample] = ()
    """What evaluation during training segments."""
    noted: Callable[[], str] | None = None
    """Hashes all annotations, where they are small enough for it."""

    def fingerprint(self) -> dict[str, Any]:
        """Say what the data is, for a checkpoint: counts by part, and hashes of all annotations and of a few items.

        The items are up to 8, spread over the first epoch, with their questions, picture size and source, so that
        other files of the same number are noticed. Of one that cannot be read nothing is known: None.
        """
        epoch = self.make_epoch(0)
        shown = [_hash_item(epoch, index) for index in sorted({len(epoch) * step // 8 for step in range(8)})]
        found = {"counts": dict(self.counts), "items": len(epoch), "shown": shown}
        return found if self.noted is None else found | {"annotations": self.noted()}


def data_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Tell what differs between two fingerprints; what one of them does not know, differs in nothing."""
    changed = [
        f"data {line}"
        for line in differences(
            {name: before[name] for name in before if name in now and name != "shown"},
            {name: now[name] for name in now if name in before and name != "shown"},
        )
    ]
    pairs = zip(before.get("shown", ()), now.get("shown", ()), strict=False)
    others = sum(None not in pair and pair[0] != pair[1] for pair in pairs)
    if others and not changed:
        changed.append(f"data: {others} of {len(now['shown'])} items that were compared are others")
    return changed


def _hash_item(epoch: Mixture, index: int) -> str | None:
    try:
        item = epoch[index]
    except UNREADABLE:
        return None
    told = [item.source, item.image.size, [(row.question, row.answer) for row in item.rows]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class EpochOf:
    """Makes epochs of given parts, all published but their order (picklable)."""

    parts: Mapping[str, Part]
    with_masks: tuple[str, ...]
    micro_batch: int
    seed: int
    answers: tuple[str, ...] = prompts.TRAINING_ANSWERS
    queries: int = 3

    def __call__(self, epoch: int) -> Epoch:
        """Make epoch ``epoch``."""
        return Epoch(
            self.parts,
            with_masks=self.with_masks,
            batch_size=self.micro_batch,
            queries=self.queries,
            seed=self.seed,
            epoch=epoch,
            answers=self.answers,
            validation_prompt=0.0,
        )


@dataclass(frozen=True)
class ScenesOf:
    """Makes epochs of drawn scenes (picklable)."""

    length: int
    seed: int
    answers: tuple[str, ...] = prompts.TRAINING_ANSWERS

    def __call__(self, epoch: int) -> Mixture:
        """Make epoch ``epoch``."""
        parts = {SCENES: Part(samples=Scenes("train", size_wh=SCENE_SIZE, length=1_000_000_000))}
        seed = self.seed + 1_000_003 * epoch
        return Mixture(parts, length=self.length, queries=3, questions=1, seed=seed, answers=self.answers)


@dataclass(frozen=True)
class Bucketing:
    """Makes the same epochs in an order with little padding (picklable)."""

    make_epoch: Callable[[int], Mixture]
    micro_batch: int
    max_tiles: int
    tile_size: int
    tokens_per_tile: int

    def __call__(self, epoch: int) -> Any:
        """Make epoch ``epoch``."""
        return bucketed(
            self.make_epoch(epoch),
            micro_batch=self.micro_batch,
            max_tiles=self.max_tiles,
            tile_size=self.tile_size,
            tokens_per_tile=self.tokens_per_tile,
        )


def open_training_data(recipe: Recipe, folder: Path | None) -> TrainingData:
    """Open what a recipe names.

    Args:
        recipe: Its ``data`` and ``evaluation`` settings.
        folder: Holds the published data; drawn scenes need none.

    Raises:
        SettingError: There is no folder, but data is needed; or a setting is impossible.
        DatasetError: Files are missing; the message lists all of them, those of evaluation too.
    """
    answers = seg_answers(recipe.model.num_seg_tokens)
    problems: list[str] = []
    make_epoch: Callable[[int], Mixture] | None = None
    counts: dict[str, int] = {}
    settings = recipe.data
    if settings.source == SCENES:
        assert settings.pictures is not None  # checked by the settings
        make_epoch = ScenesOf(settings.pictures, recipe.seed, answers)
        counts = {SCENES: settings.pictures}
    elif settings.source == "own":
        raise SettingError("data.source=own: your own data is trained on by `self1e finetune --data PATH`.")
    elif folder is None:
        raise SettingError(
            f"{recipe.name} trains on the published data; say where it is: --data FOLDER, which holds dataset/ and "
            "data/ (`self1e data prepare` makes it). `--set data.source=scenes` needs none."
        )
    else:
        try:
            first = published_mixture(
                folder,
                rates=Rates(
                    semantic=settings.semantic,
                    referring=settings.referring_copies,
                    reasoning=settings.reasoning,
                    instructions=settings.instructions,
                ),
                referring=settings.referring,
                only=settings.sets,
                batch_size=recipe.optim.micro_batch,
                seed=recipe.seed,
            )
        except DatasetError as error:
            problems.append(str(error))
        else:
            make_epoch = EpochOf(first.parts, first.with_masks, recipe.optim.micro_batch, recipe.seed, answers)
            counts = dict(first.counts)
    validation: Sequence[Sample] = ()
    try:
        validation = open_validation(recipe, folder)
    except DatasetError as error:
        problems.append(f"{error} Or train without: --set evaluation.on=none.")
    if problems or make_epoch is None:
        raise DatasetError("\n".join(problems))
    return TrainingData(make_epoch=make_epoch, counts=counts, validation=validation)


def open_validation(recipe: Recipe, folder: Path | None) -> Sequence[Sample]:
    """Open what evaluation during training segments: always the same pictures, spread over the whole set."""
    settings = recipe.evaluation
    if settings.on is None:
        return ()
    if settings.on == SCENES:
        return Scenes("val", size_wh=SCENE_SIZE, length=settings.pictures)
    if folder is None:
        raise DatasetError(f"evaluation.on={settings.on!r} needs the published data: --data FOLDER.")
    samples = open_benchmark(folder, settings.on)
    return Chosen(samples, settings.pictures, seed=0)


def seg_answers(num_seg_tokens: int) -> tuple[str, ...]:
    """The published answers, with so many [SEG] in place of one."""
    many = prompts.SEG_TOKEN * num_seg_tokens
    return tuple(answer.replace(prompts.SEG_TOKEN, many) for answer in prompts.TRAINING_ANSWERS)
