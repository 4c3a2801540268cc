"""Fine-tuning on one's own pictures: defaults by the size of the model and of the data."""

from __future__ import annotations

from math import ceil

from self1e.training.recipes.settings import (
    AdapterSettings,
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    OptimSettings,
    Recipe,
    SavingSettings,
)

NAME = "finetune"
SMALL = 100_000_000
"""Parameters below which everything is trained: `nano` and its like. Larger models get adapters."""
LARGE = 5_000_000_000
"""From here on the published settings of 8B hold."""
LEAST_STEPS = 240
"""Of a small model on few pictures; a larger one takes half of it."""
EVALUATIONS = 8
"""Per run."""


def own(
    base: str,
    *,
    parameters: int,
    pictures: int,
    steps: int | None = None,
    epochs: int | None = None,
    measured_on: str = "held-out pictures",
) -> Recipe:
    """Fine-tune a finished model on a folder of pictures.

        self1e finetune --data DATA

    A small model learns whole. A larger one learns as published (METHOD 6.3): LoRA on both towers, projector and mask
    head whole; but of the embeddings the row of [SEG] alone, since a few pictures do not teach words anew.

    Args:
        base: Model that the run starts from, with the switches that it has.
        parameters: Of it.
        pictures: That are trained on.
        steps: Optimiser steps; None for ``epochs``.
        epochs: None for what a small data set needs: many.
        measured_on: What evaluation is on, in words.
    """
    is_small = parameters < SMALL
    batch = min(pictures, 8 if is_small else 16)
    per_epoch = max(1, pictures // batch)
    if steps is None and epochs is None:
        epochs = max(3, ceil((LEAST_STEPS if is_small else LEAST_STEPS // 2) / per_epoch))
    length = steps or (epochs or 1) * per_epoch
    every = max(1, ceil(length / EVALUATIONS))
    return Recipe(
        name=NAME,
        model=ModelSettings(base=base, keep_switches=True, frozen_dtype="float32" if is_small else "bfloat16"),
        adapters=_whole() if is_small else _adapted(parameters),
        data=DataSettings(
            source="own",
            epochs=epochs or ceil(length / per_epoch),
            target_side=128 if is_small else None,
            answers="bare" if is_small else "published",  # as `nano` learned it
            bucketed=False,
            workers=0 if is_small else 2,
        ),
        optim=OptimSettings(
            learning_rate=_rate(parameters),
            schedule="cosine",
            warmup_steps=min(20, ceil(length / 10)),
            global_batch=batch,
            micro_batch=batch if is_small else 2 - batch % 2,
            summed_micro_batches=1,
            steps=steps,
            bf16=not is_small,
            gradient_checkpointing=not is_small,
        ),
        evaluation=EvaluationSettings(on=measured_on, every=every, metric="ciou"),
        saving=SavingSettings(every=every, log_every=max(1, every // 4)),
    )


def _rate(parameters: int) -> float:
    """Larger models: as published."""
    if parameters < SMALL:
        return 1e-3
    return 1e-4 if parameters < LARGE else 6e-5


def _whole() -> AdapterSettings:
    return AdapterSettings(language="full", vision="full")


def _adapted(parameters: int) -> AdapterSettings:
    return AdapterSettings(rank=128 if parameters < LARGE else 64, input_embeddings="seg", output_embeddings="seg")
