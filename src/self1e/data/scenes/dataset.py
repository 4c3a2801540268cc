"""Scenes: endless pictures of shapes with words, masks and questions that are true by construction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast, get_args

import numpy as np

from self1e.data.sample import Question, Sample, Target
from self1e.data.scenes.expressions import HARD_MAKERS, TARGET_TAGS, Author, propose
from self1e.data.scenes.grammar import Expression
from self1e.data.scenes.questions import ask
from self1e.data.scenes.scene import HeldOut, Scene, compose
from self1e.errors import SettingError

Split = Literal["train", "val", "test"]
SizeWH = tuple[int, int]

_MIN_SIDE, _MAX_ASPECT = 48, 2.0
_MAX_TRIES = 500


class Scenes(Sequence[Sample]):
    """Sample ``i`` is always the same sample, in every process and in any order.

    Some pairs of colour and kind (`HELD_OUT`) never occur in training, neither painted nor named. To measure
    composition, ask the validation or test split only for those: ``Scenes("test", held_out="only")``.

    Each sample's ``extra`` holds ``things``, a tuple of `Thing`; ``owner``, uint8 ``(H, W)``, with 0 for background
    and ``i + 1`` for the pixels of thing ``i``; and ``denotes``: for each target, in order, the indices of the
    things it means.
    """

    def __init__(
        self,
        split: Split,
        *,
        size_wh: SizeWH | Sequence[SizeWH] = (128, 128),
        length: int = 10_000,
        seed: int = 0,
        tags: Sequence[str] | None = None,
        held_out: HeldOut = "never",
        comparisons: float = 1.0,
        hard: float = 0.0,
    ) -> None:
        """Describe the data; nothing is drawn yet.

        Args:
            split: Splits with one seed never share a sample.
            size_wh: Picture size, or several, of which each sample draws one.
            length: How many samples; sample ``i`` does not depend on it.
            seed: Another seed is another data set.
            tags: Keep only targets with these tags (see `TARGET_TAGS`); all if None.
            held_out: ``"never"`` shows and names no held-out pair. ``"only"`` names one in every target and every
                question (reasoning sentences name none, so they do not occur). ``"any"`` does not look.
            comparisons: How many times as often as another kind of question a comparison is asked first.
            hard: Share of the expressions that are of kinds learned last: "the second one from the left", "the star
                closest to the moon", a colour and a kind, relations and sizes that fit nothing.
        """
        if split not in get_args(Split):
            raise SettingError(f"scenes.split={split!r} must be one of {get_args(Split)}.")
        if held_out not in get_args(HeldOut):
            raise SettingError(f"scenes.held_out={held_out!r} must be one of {get_args(HeldOut)}.")
        if split == "train" and held_out != "never":
            raise SettingError(
                f"scenes.held_out={held_out!r} needs split='val' or 'test': training must never see a held-out pair."
            )
        if length < 1:
            raise SettingError(f"scenes.length={length} must be at least 1.")
        if seed < 0:
            raise SettingError(f"scenes.seed={seed} must be 0 or more.")
        if not comparisons > 0:
            raise SettingError(f"scenes.comparisons={comparisons} must be above 0; 1 asks all kinds equally often.")
        if not 0 <= hard <= 1:
            raise SettingError(f"scenes.hard={hard} is a share: expected 0 to 1.")
        self.split = split
        self.sizes_wh = _check_sizes(size_wh)
        self.length = length
        self.seed = seed
        self.tags = _check_tags(tags, held_out)
        self.held_out: HeldOut = held_out
        self.comparisons = comparisons
        self.hard = hard
        if hard and not any(tag in self.tags for tag, _, _ in HARD_MAKERS):
            raise SettingError(
                f"scenes.hard={hard} with tags={self.tags}: none of these has hard expressions; "
                f"expected one of {tuple(dict.fromkeys(tag for tag, _, _ in HARD_MAKERS))}, or hard=0."
            )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        if not -self.length <= index < self.length:
            raise IndexError(f"scenes/{self.split} has {self.length} samples, asked for {index}.")
        index %= self.length
        for attempt in range(_MAX_TRIES):
            # The seeds of the splits differ in their second number, so no two splits share a stream.
            rng = np.random.default_rng((self.seed, get_args(Split).index(self.split), index, attempt))
            size_wh = self.sizes_wh[int(rng.random() * len(self.sizes_wh))]
            scene = compose(rng, size_wh, self.held_out)
            author = Author(scene, rng, self.held_out)
            found = list(propose(author, self.tags, count=4 + int(rng.random() * 3), hard=self.hard))
            if found:
                targets = tuple(_target(scene, author, tag, expression, meaning) for tag, expression, meaning in found)
                questions = tuple(ask(author, 2, comparisons=self.comparisons))
                return self._sample(index, scene, targets, [meaning for _, _, meaning in found], questions)
        raise AssertionError(f"scenes/{self.split}/{index}: no scene in {_MAX_TRIES} supports tags {self.tags}")

    def _sample(
        self,
        index: int,
        scene: Scene,
        targets: tuple[Target, ...],
        meanings: list[frozenset[int]],
        questions: tuple[Question, ...],
    ) -> Sample:
        return Sample(
            image=scene.image(),
            targets=targets,
            questions=questions,
            source=f"scenes/{self.split}/{index}",
            extra={
                "things": scene.things,
                "owner": scene.owner,
                "denotes": tuple(tuple(sorted(meaning)) for meaning in meanings),
            },
        )


def _target(scene: Scene, author: Author, tag: str, expression: Expression, meaning: frozenset[int]) -> Target:
    return Target(
        text=expression.words(author.rng),
        mask=scene.mask(meaning),
        kind="sentence" if expression.is_sentence else "phrase",
        tag=tag,
    )


def _check_sizes(size_wh: SizeWH | Sequence[SizeWH]) -> tuple[SizeWH, ...]:
    is_one = len(size_wh) == 2 and all(isinstance(side, int) for side in size_wh)
    sizes = cast("tuple[SizeWH, ...]", (size_wh,) if is_one else tuple(size_wh))
    if not sizes:
        raise SettingError("scenes.size_wh is empty: give (width, height), or a list of such sizes.")
    for width, height in sizes:
        if min(width, height) < _MIN_SIDE or max(width, height) > _MAX_ASPECT * min(width, height):
            raise SettingError(
                f"scenes.size_wh=({width}, {height}) must have sides of at least {_MIN_SIDE} pixels "
                f"and be at most {_MAX_ASPECT:g} times as long as wide, or shapes become unreadable."
            )
    return sizes


def _check_tags(tags: Sequence[str] | None, held_out: HeldOut) -> tuple[str, ...]:
    chosen = TARGET_TAGS if tags is None else tuple(dict.fromkeys(tags))
    unknown = [tag for tag in chosen if tag not in TARGET_TAGS]
    if unknown or not chosen:
        raise SettingError(f"scenes.tags={tags!r} must be some of {TARGET_TAGS}.")
    if held_out == "only":
        chosen = tuple(tag for tag in chosen if tag != "reasoning")
        if not chosen:
            raise SettingError("scenes.tags=('reasoning',) with held_out='only': these sentences name no pair.")
    return chosen
