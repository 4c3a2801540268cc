"""One training loop: transformers' `Trainer`, with our losses logged by part and our items in order."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from self1e.model import Self1EForConditionalGeneration
from self1e.training.collate import Collator

logger = logging.getLogger(__name__)


class Self1ETrainer(Trainer):
    """A `Trainer` whose data set is a `Mixture`: the order is the mixture's own, so it is not shuffled again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._parts: dict[str, list[torch.Tensor]] = {}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)  # type: ignore[arg-type]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run the model's own loss and remember its parts for the log."""
        outputs = model(**inputs)
        for name, value in (outputs.get("losses") or {}).items():
            self._parts.setdefault(name, []).append(value.detach())
        return (outputs["loss"], outputs) if kwargs.get("return_outputs") else outputs["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of each part of the loss since the last log line."""
        if "loss" in logs:
            for name, values in self._parts.items():
                logs[f"loss_{name}"] = round(float(torch.stack(values).float().mean()), 4)
            self._parts.clear()
        super().log(logs, *args, **kwargs)


class MeanOfWeights(TrainerCallback):
    """Keep an exponential moving mean of the weights, and put it in place when training ends.

    Args:
        decay: Share of the mean that stays at each step; it grows from 0 as the steps do.
    """

    def __init__(self, decay: float = 0.998) -> None:
        self.decay = decay
        self.mean: dict[str, torch.Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name not in self.mean:
                    self.mean[name] = parameter.detach().clone()
                else:
                    # What was loaded from a checkpoint is on the CPU.
                    self.mean[name] = self.mean[name].to(parameter.device).lerp_(parameter.detach(), 1 - decay)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.mean and state.is_world_process_zero and folder.is_dir():
            from safetensors.torch import save_file

            save_file(self.mean, folder / "mean_of_weights.safetensors")

    def load(self, folder: Path) -> None:
        """Go on with the mean that a checkpoint holds."""
        path = folder / "mean_of_weights.safetensors"
        if path.is_file():
            from safetensors.torch import load_file

            self.mean = load_file(path)
        else:
            logger.warning("%s holds no mean of weights; the mean starts anew from here.", folder)

    def apply(self, model: torch.nn.Module) -> None:
        """Put the mean in place of the weights."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.mean:
                    parameter.copy_(self.mean[name])


def make_trainer(
    model: Self1EForConditionalGeneration,
    mixture: Any,
    collator: Collator,
    arguments: TrainingArguments,
    *,
    mean_decay: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> tuple[Self1ETrainer, MeanOfWeights | None]:
    """Put model, data and settings together."""
    mean = MeanOfWeights(mean_decay) if mean_decay else None
    trainer = Self1ETrainer(
        model=model,
        args=arguments,
        train_dataset=mixture,
        data_collator=collator,
        callbacks=[mean] if mean else None,
        optimizers=(optimizer, None),
    )
    return trainer, mean
