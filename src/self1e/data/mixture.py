"""The training mixture: which picture, which queries, which words. All randomness lives here, and is seeded.

Item ``i`` is the same item on every machine, whatever the number of workers: a run can stop and go on anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from self1e.data.files import peek
from self1e.data.sample import Outline, Question, Sample, Target
from self1e.errors import DatasetError, SettingError
from self1e.processing import prompts

_MOST_TRIES = 100

Augment = Callable[[Sample, np.random.Generator], Sample]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sequence about a picture: a question, its answer and, if the answer is [SEG], its mask."""

    question: str
    answer: str
    mask: np.ndarray | None
    """Bool ``(H, W)`` at the item's picture size."""
    learn: Literal["both", "mask", "text"] = "both"
    """What the row teaches. ``both`` is as published. ``text`` teaches to write the answer up to [SEG] as it will be
    generated: [SEG] is a label but no input, so the row stays causal. ``mask`` teaches the mask, and what follows."""
    before: tuple[tuple[str, str], ...] = ()
    """Earlier turns of the conversation, questions with answers; then the first of them holds the picture."""

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """Every question with its answer, in order; the first question begins with ``<image>``."""
        return (*self.before, (self.question, self.answer))


@dataclass(frozen=True, kw_only=True)
class Item:
    """A picture with the rows that are asked about it in one step; it is encoded once for all of them."""

    image: Image.Image
    rows: tuple[Row, ...]
    source: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """One data set of the mixture."""

    samples: Sequence[Sample]
    weight: float = 1.0
    """Share of items, relative to the other parts."""
    augment: Augment | None = None
    absent: float = 0.0
    """Chance that a query is replaced by one of ``extra["absent"]``, whose mask is empty."""
    favourites: Mapping[str, float] = field(default_factory=dict)
    """Chance per expression that it is among the queries when the picture has it."""
    bare: float = 0.0
    """Chance that a phrase loses its leading "the"."""
    lower: bool = False
    """Lower-case phrases, as published (METHOD 7.1); sentences stay as they are."""
    one_article: bool = False
    """Whether a phrase loses its own article where the question brings one, as two of METHOD 3.6 do: "segment the
    mug", not "segment the the mug". Published phrases keep both."""


class Mixture(Dataset[Item]):
    """Items drawn from parts by weight, with templates and answers drawn as published (METHOD 3.6)."""

    def __init__(
        self,
        parts: Mapping[str, Part],
        *,
        length: int,
        queries: int,
        questions: int = 0,
        seed: int = 0,
        validation_prompt: float = 0.5,
        answers: Sequence[str] = prompts.TRAINING_ANSWERS,
        written: float | None = None,
    ) -> None:
        """Describe the mixture.

        Args:
            parts: By name.
            length: Items in one epoch.
            queries: Most mask queries per picture, drawn without replacement.
            questions: Most text questions per picture.
            seed: Another seed is another order, other queries, other words.
            validation_prompt: Chance of the prompt that inference uses (with its space after the newline)
                instead of one of the published training prompts.
            answers: Drawn one at random per query; each holds ``[SEG]``.
            written: None teaches mask and text in one row, as published; there the words of the answer can be read
                off the image tokens, which see [SEG], which sees the answer. Otherwise mask rows have no text loss
                up to [SEG], and this share of them comes a second time as a row that only learns to write it.
        """
        if not parts or min(part.weight for part in parts.values()) <= 0:
            raise SettingError("A mixture needs at least one part, each with a weight above 0; remove unused parts.")
        self.parts = dict(parts)
        self.length, self.queries, self.questions, self.seed = length, queries, questions, seed
        self.validation_prompt = validation_prompt
        self.answers = tuple(answers)
        self.written = written
        weights = np.array([part.weight for part in parts.values()])
        self._shares = weights / weights.sum()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        rng = np.random.default_rng((self.seed, index))
        for _ in range(_MOST_TRIES):
            part, position = self._draw(index, rng)
            item = self._item(part, position, rng)
            if item.rows:  # a cut may leave nothing that could be asked about
                return item
        raise DatasetError(f"{_MOST_TRIES} items drawn in turn have nothing to ask, the last is {item.source}.")

    def peek(self, index: int, *, with_size: bool = False) -> Outline:
        """Outline the sample that item ``index`` shows, before any augmentation, without decoding its picture."""
        part, position = self._draw(index, np.random.default_rng((self.seed, index)))
        return peek(part.samples, position, with_size=with_size)

    def _draw(self, index: int, rng: np.random.Generator) -> tuple[Part, int]:
        """Choose a part and a sample of it: here at random, by weight."""
        name = list(self.parts)[int(rng.choice(len(self._shares), p=self._shares))]
        part = self.parts[name]
        # Two different items may show one picture of a small set: with other queries, cut otherwise.
        return part, int(rng.integers(len(part.samples)))

    def _item(self, part: Part, position: int, rng: np.random.Generator) -> Item:
        sample = part.samples[position]
        if part.augment is not None:
            sample = part.augment(sample, rng)
        rows = [self._query_row(target, part, sample, rng) for target in self._choose(sample, part, rng)]
        if self.written is not None:
            written = [replace(row, mask=None, learn="text") for row in rows if rng.random() < self.written]
            rows = [*(replace(row, learn="mask") for row in rows), *written]
        for chosen in rng.permutation(len(sample.questions))[: self.questions]:
            rows.append(_question_row(sample.questions[int(chosen)]))
        return Item(image=sample.image, rows=tuple(rows), source=sample.source)

    def _choose(self, sample: Sample, part: Part, rng: np.random.Generator) -> list[Target]:
        order = [sample.targets[int(i)] for i in rng.permutation(len(sample.targets))]
        first = [t for t in order if t.text in part.favourites and rng.random() < part.favourites[t.text]]
        return [*first, *(t for t in order if t.text not in part.favourites)][: self.queries]

    def _query_row(self, target: Target, part: Part, sample: Sample, rng: np.random.Generator) -> Row:
        absent = sample.extra.get("absent")
        if part.absent and isinstance(absent, tuple) and absent and rng.random() < part.absent:
            text = str(absent[int(rng.integers(len(absent)))])
            target = Target(text=text, mask=np.zeros_like(target.mask), tag="absent")
        text = target.text
        if target.aliases:
            text = (text, *target.aliases)[int(rng.integers(1 + len(target.aliases)))]
        if part.lower and target.kind == "phrase":
            text = text.lower()
        if part.bare and rng.random() < part.bare and target.kind == "phrase":
            text = text.removeprefix("the ")
        if rng.random() < self.validation_prompt:
            question = prompts.VALIDATION_QUESTIONS[target.kind].format(text=text)
        else:
            templates = prompts.TRAINING_QUESTIONS[target.kind]
            template = templates[int(rng.integers(len(templates)))]
            if part.one_article and "the {text}" in template:
                text = prompts.without_article(text)
            question = template.format(text=text)
        return Row(question=question, answer=self.answers[int(rng.integers(len(self.answers)))], mask=target.mask)


class Turn(Dataset[Item]):
    """One mixture up to an item, another from there on: what comes late builds on what came first.

    Args:
        first: Gives items 0 to ``at - 1``.
        then: Gives the others, under the same numbers.
        at: The first item of ``then``.
    """

    def __init__(self, first: Dataset[Item], then: Mixture, *, at: int) -> None:
        self.first, self.then, self.at = first, then, at

    def __len__(self) -> int:
        return len(self.then)

    def __getitem__(self, index: int) -> Item:
        return (self.first if index < self.at else self.then)[index]


def _question_row(question: Question) -> Row:
    first, *later = [text for text, _ in question.before] + [question.text]
    asked = [f"{prompts.IMAGE_PLACEHOLDER}\n{first}", *later]
    before = tuple(zip(asked, (answer for _, answer in question.before), strict=False))
    return Row(question=asked[-1], answer=question.answer, mask=None, before=before)


@dataclass(frozen=True, kw_only=True)
class PhotoAugment:
    """Cut, mirror and recolour a photograph; masks follow. Parts that are cut away become absent.

    Mirroring suits names that know no left and right: not for relations.
    """

    smallest: float = 0.25
    """Least share of the picture's area that a cut keeps."""
    aspect: float = 1.4
    """Most that a cut stretches or squeezes the picture."""
    colour: float = 0.3
    """Most relative change of each channel's gain, and of brightness."""
    whole: float = 0.25
    """Chance that the picture is not cut."""
    fewest_pixels: int = 60
    recolour: float = 0.0
    """Chance that the colour channels are mixed: skin, hair and clothes of colours that the pictures do not have."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        width, height = sample.image.size
        box = (0, 0, width, height)
        if rng.random() >= self.whole:
            scale = np.sqrt(rng.uniform(self.smallest, 1.0))
            stretch = np.sqrt(np.exp(rng.uniform(-np.log(self.aspect), np.log(self.aspect))))
            cut_w, cut_h = min(width, int(width * scale * stretch)), min(height, int(height * scale / stretch))
            left, top = int(rng.integers(width - cut_w + 1)), int(rng.integers(height - cut_h + 1))
            box = (left, top, left + cut_w, top + cut_h)
        mirrored = rng.random() < 0.5
        pixels = np.asarray(sample.image)[box[1] : box[3], box[0] : box[2]]
        pixels = shift_colours(pixels, self.colour, rng)
        if self.recolour and rng.random() < self.recolour:
            # Rows add up to 1, so that grey stays grey.
            mixing = rng.dirichlet((0.5, 0.5, 0.5), size=3).astype(np.float32)
            pixels = (pixels @ mixing.T).astype(np.uint8)
        targets = []
        absent = list(sample.extra.get("absent", ()))  # type: ignore[call-overload]
        for target in sample.targets:
            mask = target.mask[box[1] : box[3], box[0] : box[2]]
            if int(mask.sum()) < self.fewest_pixels:
                # A sliver that is left is neither there nor absent: it is not asked about.
                if not mask.any():
                    absent.append(target.text)
                continue
            ignore = None if target.ignore is None else target.ignore[box[1] : box[3], box[0] : box[2]]
            if mirrored:
                mask, ignore = mask[:, ::-1], None if ignore is None else ignore[:, ::-1]
            targets.append(replace(target, mask=mask, ignore=ignore))
        image = Image.fromarray(pixels[:, ::-1] if mirrored else pixels)
        # Questions go: a cut or a mirror image may have another answer.
        extra = {**sample.extra, "absent": tuple(absent)}
        return replace(sample, image=image, targets=tuple(targets), questions=(), extra=extra)


def shift_colours(pixels: np.ndarray, most: float, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and each channel's gain at random.

    Args:
        pixels: uint8 ``(H, W, 3)``.
        most: Largest relative change, 0..1.
        rng: Where chance comes from.
    """
    gain = (1 + rng.uniform(-most, most)) * (1 + rng.uniform(-most, most, 3) / 2)
    lift = rng.uniform(-40, 40) * most
    table = np.clip(np.arange(256)[:, None] * gain + lift, 0, 255).astype(np.uint8)  # (256, 3)
    return np.stack([table[pixels[..., c], c] for c in range(3)], axis=-1)
