"""Looking on while a model learns: measured on fixed pictures, drawn, and its best weights kept."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image
from safetensors import SafetensorError
from transformers import TrainerCallback

from self1e.data.sample import Sample, Target
from self1e.evaluation.metrics.masks import MaskIoU
from self1e.files import replace_folder
from self1e.structures import Segmentation
from self1e.training.adapters import export_model
from self1e.training.recipes.settings import EvaluationSettings

logger = logging.getLogger(__name__)

CHUNK = 8
"""Pictures per call."""
PANEL = 320
"""Longest side of a drawn picture, pixels."""
BEST = "best"
SAMPLES = "samples"


class Watching(TrainerCallback):
    """Every so many steps: segment the same pictures, log cIoU and gIoU, draw a few, keep the best weights.

    Reads and writes nothing that training depends on: a run with it takes the very same steps.

    Args:
        trainer: A `RunTrainer`.
        processor: Of the model.
        samples: What is segmented; processes share them.
        settings: How often, by which figure.
        out: Folder of the run: ``best/`` is a complete model, ``samples/step-0200.png`` are pictures.
        say: Told what was measured.
    """

    def __init__(
        self,
        trainer: Any,
        processor: Any,
        samples: Sequence[Sample],
        settings: EvaluationSettings,
        out: Path,
        *,
        say: Callable[[str], None] = logger.info,
    ) -> None:
        self.trainer, self.processor, self.samples = trainer, processor, samples
        self.settings, self.out, self.say = settings, out, say
        self._has_failed = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure when it is time, and after the last step; a signal to stop cuts it short, if steps are left."""
        if state.global_step % self.settings.every and state.global_step < state.max_steps:
            return
        started, should_log = time.perf_counter(), control.should_log
        model = self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped)
        can_stop = state.global_step < state.max_steps
        with evaluating(model, bf16=args.bf16):
            metric = self._measure(model, can_stop=can_stop)
            if can_stop and self.trainer.agree_to_stop():
                control.should_log = control.should_save = control.should_training_stop = True
                self.say(f"step {state.global_step}: not measured to the end, because the run is to stop")
                return
            if state.is_world_process_zero:
                self._draw(model, state.global_step)
        if not len(metric):
            self.trainer.pauses += time.perf_counter() - started
            self.say(f"step {state.global_step}: nothing is measured: no picture that is held out has a query")
            return
        found = {"eval_ciou": round(metric.ciou, 4), "eval_giou": round(metric.giou, 4)}
        name = f"eval_{self.settings.metric}"
        best = max((line[name] for line in state.log_history if name in line), default=-1.0)
        self.trainer.log(found)
        control.should_log = should_log  # which every log entry resets: the step's own is still to come
        is_best = found[name] > best or self._has_failed
        if is_best and state.is_world_process_zero:
            self._keep(model, {"step": state.global_step, **found})
        self.trainer.accelerator.wait_for_everyone()
        told = f"step {state.global_step}: cIoU {found['eval_ciou']:.4f}, gIoU {found['eval_giou']:.4f}"
        self.trainer.pauses += time.perf_counter() - started
        self.say(f"{told} on {len(metric)} queries{', the best so far' if is_best else ''}")

    def _measure(self, model: Any, *, can_stop: bool) -> MaskIoU:
        accelerator = self.trainer.accelerator
        mine = range(accelerator.process_index, len(self.samples), accelerator.num_processes)
        wanted = (self.samples[i] for i in takewhile(lambda _: not (can_stop and self.trainer.is_told_to_stop), mine))
        rows = list(measure(model, self.processor, wanted, names=mine))
        metric = MaskIoU()
        for row in gather_object(rows):
            metric.add_row(row)
        return metric

    def _draw(self, model: Any, step: int) -> None:
        shown = [self.samples[i] for i in range(min(self.settings.drawn, len(self.samples)))]
        if not shown:
            return
        folder = self.out / SAMPLES
        picture = draw_samples(model, self.processor, shown)
        temporary = folder / f".step-{step:04d}.partial.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(temporary)
            temporary.replace(folder / f"step-{step:04d}.png")
        except OSError as error:  # no reason to lose a run
            temporary.unlink(missing_ok=True)
            logger.warning("The samples of step %d could not be drawn into %s: %s", step, folder, error)

    def _keep(self, model: Any, facts: dict[str, Any]) -> None:
        """Replace ``best`` by the model as it is now; where that fails, the next one that is measured is kept."""

        def write(folder: Path) -> None:
            export_model(model, self.processor, folder, dtype=torch.bfloat16)
            (folder / "best.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")

        try:
            replace_folder(self.out / BEST, write)
            self._has_failed = False
        except (OSError, SafetensorError) as error:
            self._has_failed = True
            logger.warning("The best model, of step %d, could not be saved: %s", facts["step"], error)


@contextmanager
def evaluating(model: Any, *, bf16: bool) -> Iterator[None]:
    """Put a model in training into evaluation mode, and its random numbers back where they were."""
    was_training, states = model.training, torch.get_rng_state()
    device = next(model.parameters()).device
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            yield
    finally:
        model.train(was_training)
        torch.set_rng_state(states)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)


def measure(
    model: Any, processor: Any, samples: Iterable[Sample], *, names: Iterable[int] | None = None
) -> Iterator[dict[str, Any]]:
    """Segment every target of every sample, and give one row of `MaskIoU` per target.

    Args:
        model: In evaluation mode, with adapters or without.
        processor: Of the model.
        samples: Each with at least one target, or it counts for nothing.
        names: Numbers of the samples, by which rows are told apart.
    """
    metric = MaskIoU()
    numbers = iter(range(10**9)) if names is None else iter(names)
    for sample, number in zip(samples, numbers, strict=False):
        for start in range(0, len(sample.targets), CHUNK):
            targets = sample.targets[start : start + CHUNK]
            for k, (target, mask) in enumerate(zip(targets, _predict(model, processor, sample, targets), strict=True)):
                yield metric.update(f"{number:07d}/{start + k:04d}", mask, target.mask, ignored=target.ignore)


def _predict(model: Any, processor: Any, sample: Sample, targets: Sequence[Target]) -> list[np.ndarray]:
    """Segment targets of one picture, the plain way: folded weights would be of the step before."""
    from self1e.inference.segmenter import Self1E

    found: Any = Self1E(model, processor).segment(
        sample.image, [target.text for target in targets], kind=[t.kind for t in targets], exact="plain", reject=False
    )
    return [found.mask(k) for k in range(len(targets))]


def draw_samples(model: Any, processor: Any, samples: Sequence[Sample]) -> Image.Image:
    """Draw picture, truth and prediction side by side, one row per sample, its first few targets in colours."""
    rows = []
    for sample in samples:
        targets = sample.targets[:4]
        image = sample.image.convert("RGB")
        truth = [target.mask for target in targets]
        predicted = _predict(model, processor, sample, targets) if targets else []
        words = [target.text for target in targets]
        panels = [image] + [
            Segmentation.from_masks(masks, [1.0] * len(words), words, image=image).overlay() if words else image
            for masks in (truth, predicted)
        ]
        rows.append([_fit(panel) for panel in panels])
    width = max(sum(panel.width for panel in row) for row in rows)
    sheet = Image.new("RGB", (width, sum(row[0].height for row in rows)), "white")
    y = 0
    for row in rows:
        x = 0
        for panel in row:
            sheet.paste(panel, (x, y))
            x += panel.width
        y += row[0].height
    return sheet


def _fit(picture: Image.Image) -> Image.Image:
    scale = PANEL / max(picture.size)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
