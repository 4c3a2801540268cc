"""Recipes: one function is one complete run, and its docstring is the lab notebook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from self1e.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """Everything that decides a run, besides where its data lies."""

    name: str
    pictures: int
    """Pictures in the whole run."""
    batch_size: int
    """Pictures per optimiser step; each brings its queries."""
    queries: int = 4
    """Mask queries per picture."""
    photographs: float = 0.4
    """Share of photographs among the pictures, where there are any."""
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.05
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    decay_steps: int = 0
    """Steps in which the learning rate falls to 0 in the end (cosine); constant before. A run can be prolonged
    from any checkpoint of its constant part and still be the run that its recipe describes."""
    mean_decay: float | None = 0.998
    """Decay of the moving mean of the weights that is saved in the end; None saves the last weights."""
    bf16: bool = True
    """Matrix products in bfloat16, everything else in float32."""
    attention: str = "eager"
    """Attention implementation; with bfloat16 on a CPU eager is faster than SDPA at this size."""
    target_side: int | None = 128
    """Side of the masks that the loss sees."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pictures < self.batch_size or self.batch_size < 1:
            raise SettingError(
                f"pictures={self.pictures} and batch_size={self.batch_size}: a run needs at least one batch."
            )

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.pictures // self.batch_size


def nano() -> TrainRecipe:
    """Train `nano`, the model inside, from scratch.

        self1e train nano --data DATA --out runs/nano

    DATA holds ``ccp/`` (Clothing Co-Parsing) and ``coco_mini/``. Log and figures: docs/results/nano.md.
    """
    return TrainRecipe(name="nano", pictures=64_000, batch_size=16, decay_steps=1000)


def nano_smoke() -> TrainRecipe:
    """Take a few steps on drawn scenes: seconds, to see that everything works."""
    return TrainRecipe(name="nano_smoke", pictures=16, batch_size=4, queries=2, warmup_steps=1, decay_steps=1)


RECIPES: dict[str, Callable[[], TrainRecipe]] = {"nano": nano, "nano_smoke": nano_smoke}
"""Recipes by name."""


def run(recipe: TrainRecipe, *, data: Path | None, out: Path, resume: bool = False, save_steps: int = 200) -> Path:
    """Run a recipe and save the model.

    Args:
        recipe: What to do.
        data: Folder of the photographs; None trains on drawn scenes alone.
        out: Folder for checkpoints, the log and the final model in ``out/model``.
        resume: Go on from the newest checkpoint in ``out``; the same items follow as without the break.
        save_steps: Steps between checkpoints; the last two are kept.

    Returns:
        The folder of the final model.
    """
    import json
    from dataclasses import asdict

    import torch
    from transformers import TrainingArguments, set_seed
    from transformers.trainer_utils import get_last_checkpoint

    from self1e.training import nano as parts
    from self1e.training.collate import Collator
    from self1e.training.trainer import make_trainer

    set_seed(recipe.seed)
    processor = parts.build_processor()
    model = parts.build_model(processor, seed=recipe.seed)
    model.set_attn_implementation(recipe.attention)
    mixture = parts.build_mixture(
        data,
        length=recipe.steps * recipe.batch_size,
        seed=recipe.seed,
        photographs=recipe.photographs if data is not None else 0.0,
        queries=recipe.queries,
    )
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=recipe.batch_size,
        max_steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        adam_beta2=recipe.adam_beta2,
        max_grad_norm=recipe.max_grad_norm,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": recipe.decay_steps, "decay_type": "cosine"},
        bf16=recipe.bf16,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=20,
        save_steps=save_steps,
        save_total_limit=2,
        dataloader_num_workers=1,
        remove_unused_columns=False,
        report_to=[],
        seed=recipe.seed,
    )
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = get_last_checkpoint(str(out)) if resume else None
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    collator = Collator(processor, target_side=recipe.target_side)
    trainer, mean = make_trainer(model, mixture, collator, arguments, mean_decay=recipe.mean_decay)
    if mean is not None and checkpoint is not None:
        mean.load(Path(checkpoint))
    trainer.train(resume_from_checkpoint=checkpoint)
    if mean is not None:
        mean.apply(model)
    (out / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")
    # What runs is decided where it runs: training's choice of kernels is not the user's.
    model.set_attn_implementation("sdpa")
    final = out / "model"
    small: Any = model
    small.to(torch.bfloat16).save_pretrained(final)  # half the file: `nano` travels in every installation
    processor.save_pretrained(final)
    return final
