"""Own data as a run trains on it: epochs of all pictures, in words as people ask, masks empty where nothing is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from self1e.configuration import Self1EConfig
from self1e.data.epoch import Epoch
from self1e.data.files import Chosen
from self1e.data.mixture import Part, shift_colours
from self1e.data.own.splitting import Pictures
from self1e.data.sample import Sample
from self1e.errors import DatasetError
from self1e.inference.loading import find_model, reading
from self1e.model import Self1EForConditionalGeneration
from self1e.processing.prompts import SEG_TOKEN
from self1e.training.recipes.settings import Recipe
from self1e.training.training_data import TrainingData, seg_answers

logger = logging.getLogger(__name__)

OWN = "own"
VALIDATION_PROMPT = 0.5
"""Chance that a query stands in the prompt of inference, not in one of the published training prompts."""
WRITTEN = 0.2
"""Chance that a query comes a second time, to learn to write [SEG] (see `Mixture`)."""


@dataclass(frozen=True, kw_only=True)
class OwnAugment:
    """Change colours a little and, if asked to, mirror. Every mask and every word stays true but left and right."""

    colour: float = 0.1
    """Most relative change; 0 changes nothing."""
    mirror: bool = False

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Augment one sample."""
        pixels = np.asarray(sample.image)
        if self.colour:
            pixels = shift_colours(pixels, self.colour, rng)
        targets = sample.targets
        if self.mirror and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
            targets = tuple(replace(target, mask=target.mask[:, ::-1]) for target in targets)
        return replace(sample, image=Image.fromarray(pixels), targets=targets)


@dataclass(frozen=True)
class OwnEpochs:
    """Makes epochs of own pictures: each once, in another order (picklable)."""

    pictures: Sequence[Sample]
    recipe: Recipe

    def __call__(self, epoch: int) -> Epoch:
        """Make epoch ``epoch``."""
        data = self.recipe.data
        answers = seg_answers(self.recipe.model.num_seg_tokens)
        augment = OwnAugment(colour=data.colour, mirror=data.mirror) if data.colour or data.mirror else None
        return Epoch(
            # Lower-case phrases, because they will be asked for so: "the Fire Hydrant" is no other thing.
            {OWN: Part(samples=self.pictures, augment=augment, absent=data.absent, lower=True, one_article=True)},
            batch_size=self.recipe.optim.micro_batch,
            queries=data.queries,
            seed=self.recipe.seed,
            epoch=epoch,
            answers=answers if data.answers == "published" else (SEG_TOKEN * self.recipe.model.num_seg_tokens,),
            validation_prompt=VALIDATION_PROMPT,
            written=WRITTEN,
        )


def own_training_data(recipe: Recipe, training: Pictures, validation: Sequence[Sample]) -> TrainingData:
    """Put opened pictures into the form that `run` takes.

    Args:
        recipe: Of the run.
        training: What is trained on.
        validation: What is measured; of it, at most ``evaluation.pictures``, and those that can be read.
    """
    measured = Chosen(Readable(validation), recipe.evaluation.pictures) if len(validation) else ()
    return TrainingData(
        make_epoch=OwnEpochs(training, recipe),
        counts={OWN: len(training)},
        validation=measured,
        noted=training.fingerprint,
    )


def count_base(name: str) -> int:
    """Count the parameters of a model without loading them.

    Raises:
        CheckpointError: It is not there, or is no model.
    """
    shown, path = find_model(name)
    with reading(shown), torch.device("meta"):
        model = Self1EForConditionalGeneration(Self1EConfig.from_pretrained(path))
    return sum(parameter.numel() for parameter in model.parameters())


class Readable(Sequence[Sample]):
    """Samples of which those that cannot be read any more have no target: measuring then goes on without them.

    Args:
        samples: Any data set; each problem is logged once.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self._known: set[int] = set()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.samples[index]
        except DatasetError as error:
            if index not in self._known:
                self._known.add(index)
                logger.warning("A held-out picture cannot be read and is not measured: %s", error)
            return Sample(image=Image.new("RGB", (1, 1)), source=f"unreadable/{index}")
