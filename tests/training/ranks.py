"""One of several processes that train together, or a process alone; `test_distributed` compares what they write.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python tests/training/ranks.py MODEL OUT JOB ...

Jobs: ``pass:ddp`` and ``pass:fsdp2`` run four micro-batches of all kinds once and write loss and gradients;
``train:STRATEGY`` runs a recipe of four steps, ``resume:STRATEGY:CHECKPOINT`` goes on from a checkpoint of one, and
``unreadable:ddp`` meets more broken pictures than it may, one on each of two processes.
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import distributed as dist
from transformers import TrainingArguments

from self1e.data.mixture import Item, Row
from self1e.errors import DatasetError
from self1e.machine import process_count, process_index
from self1e.model import Self1EForConditionalGeneration
from self1e.processing.processor import Self1EProcessor
from self1e.training import distributed, run
from self1e.training.adapters import attach_adapters
from self1e.training.collate import Collator
from self1e.training.recipes.settings import (
    AdapterSettings,
    DataSettings,
    DistributedSettings,
    EvaluationSettings,
    ModelSettings,
    OptimSettings,
    Recipe,
    SavingSettings,
)
from self1e.training.training_data import TrainingData

KINDS = "mttm tttt mmtt tmmt".replace(" ", "")
"""Of the items: with masks, or text alone. In each micro-batch of 2 or 4 processes some have masks and some have not;
in the second step nobody has."""
ADAPTERS = AdapterSettings(rank=2, dropout=0.0)
SMALL = {
    "reduce_bucket_size": 5000,
    "allgather_bucket_size": 5000,
    "stage3_prefetch_bucket_size": 4000,
    "stage3_param_persistence_threshold": 20,
    "stage3_max_live_parameters": 50000,
    "stage3_max_reuse_distance": 6000,
}
"""Of DeepSpeed: numbers of weights."""


class Items(torch.utils.data.Dataset):
    """Item ``i`` is always the same; one in three pictures is wide, and shown as two tiles."""

    def __init__(self, epoch: int = 0, *, num_seg_tokens: int = 1) -> None:
        self.epoch, self.answer = epoch, f"It is {'[SEG]' * num_seg_tokens}."

    def __len__(self) -> int:
        return len(KINDS)

    def __getitem__(self, index: int) -> Item:
        rng = np.random.default_rng(index)
        width, height = ((112, 56), (56, 56), (60, 50))[index % 3]
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        rows = [Row(question="<image>\nWhat is it?", answer="noise " * (index % 3 + 1), mask=None)]
        for number in range(index % 2 + 1 if KINDS[index] == "m" else 0):
            mask = np.zeros((height, width), dtype=bool)
            mask[10 : 20 + index, 5 * number : 30] = True
            rows.append(Row(question=f"<image>\nWhere is {number}?", answer=self.answer, mask=mask))
        return Item(image=image, rows=tuple(rows), source=f"noise/{index}")


def recipe(model: Path, strategy: str) -> Recipe:
    """Four steps of four micro-batches, on any number of processes."""
    return Recipe(
        name="ranks",
        model=ModelSettings(base=str(model), frozen_dtype="float32", keep_switches=True),
        adapters=ADAPTERS,
        data=DataSettings(source="scenes", pictures=len(KINDS), workers=0, max_tiles=2, bucketed=False),
        optim=OptimSettings(
            global_batch=4,
            micro_batch=1,
            summed_micro_batches=1,
            learning_rate=1e-3,
            warmup_steps=1,
            eps=1e-4,  # below it rounding decides the direction of a step
            bf16=False,
            gradient_checkpointing=strategy in ("zero2", "zero3"),  # exact, and as published
        ),
        evaluation=EvaluationSettings(on=None),
        saving=SavingSettings(every=2, log_every=1),
        distributed=DistributedSettings(strategy=None if strategy == "alone" else strategy),  # type: ignore[arg-type]
    )


class NotCalledCpu(TrainingArguments):
    """Told to use the CPU, transformers would leave DeepSpeed out."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings | {"use_cpu": False})


def let_deepspeed_use_the_cpu() -> None:
    """Have accelerate start DeepSpeed without a GPU: it knows gloo for its own processes only."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_TORCH_DEVICE": "cpu"}
    import deepspeed  # pyright: ignore[reportMissingImports]  # in a slow test, where it is installed
    from accelerate.state import DistributedType, PartialState

    # Built by a compiler for minutes at the first start, and no part of what is tested.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    patched: Any = PartialState
    patched._prepare_backend = lambda *_, **__: ("gloo", DistributedType.NO)
    run.TrainingArguments = NotCalledCpu  # type: ignore[misc]
    shipped = distributed.deepspeed_settings

    def small(strategy: Any) -> dict[str, Any]:
        """Divide, fetch and add up a few of the model's weights at a time, as of a large model."""
        settings = shipped(strategy)
        zero = settings["zero_optimization"]
        zero |= {name: size for name, size in SMALL.items() if name in zero}
        return settings

    distributed.deepspeed_settings = small


def train(model: Path, out: Path, strategy: str, checkpoint: str | None = None) -> None:
    """Run the recipe; gradients of each step go into ``out/gradients-STEP.safetensors``."""

    class Recording(run.RunTrainer):
        def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            if self.is_deepspeed_enabled and "step" not in vars(model):
                model.step = partial(recorded_step, model, model.step, self)
            return super().training_step(model, *args, **kwargs)

        def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
            norm = super()._get_grad_norm(model, grad_norm=grad_norm)
            if not self.is_deepspeed_enabled:  # which has taken the step already
                plain = self.accelerator.unwrap_model(model)
                write(gradients(plain), out / f"gradients-{self.state.global_step + 1}.safetensors")
            return norm

    def recorded_step(engine: Any, take: Any, trainer: Any) -> Any:
        if trainer.state.global_step == 0:  # others are told by their norm: gathering takes its time
            write(zero_gradients(engine.module, trainer.args.max_grad_norm), out / "gradients-1.safetensors")
        return take()

    if strategy in ("zero2", "zero3"):
        let_deepspeed_use_the_cpu()
    original, run.RunTrainer = run.RunTrainer, Recording  # type: ignore[misc]
    try:
        data = TrainingData(make_epoch=Items, counts={"noise": len(KINDS)})  # type: ignore[arg-type]
        resume = "never" if checkpoint is None else checkpoint
        run.run(recipe(model, strategy), data=data, out=out, resume=resume, device="cpu")
    finally:
        run.RunTrainer = original  # type: ignore[misc]


class Broken(Items):
    """The first two of each four cannot be read: on two processes the first of the one, and of the other."""

    def __getitem__(self, index: int) -> Item:
        if index % 4 in (0, 2):
            raise DatasetError(f"noise/{index % 4} is broken")
        return super().__getitem__(index)


def unreadable(model: Path, out: Path) -> None:
    """Run with one picture that may be passed over, and write what came of it."""
    settings = recipe(model, "ddp")
    settings = replace(settings, data=replace(settings.data, most_unreadable=1))
    data = TrainingData(make_epoch=Broken, counts={"noise": len(KINDS)})  # type: ignore[arg-type]
    try:
        run.run(settings, data=data, out=out, resume="never", device="cpu")
    except DatasetError as error:
        (out / f"told-{process_index()}.txt").write_text(str(error))


def micro_batches(model_folder: Path, num_seg_tokens: int = 1) -> dict[str, dict[str, Any]]:
    """Micro-batches of all kinds."""
    collator = Collator(Self1EProcessor.from_pretrained(model_folder), max_tiles=2)
    items = Items(num_seg_tokens=num_seg_tokens)
    ids = torch.arange(40, 60)[None]
    return {
        "masks": collator([items[0]]),
        "text about a picture": collator([items[1]]),
        "text alone": {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids},
        "masks on two grids": collator([items[14], items[9]]),
    }


def one_pass(model_folder: Path, out: Path, strategy: str) -> None:
    """Loss and gradient of four micro-batches: masks, text about a picture, text alone, masks on two grids."""
    processes, process = process_count(), process_index()
    model: Any = Self1EForConditionalGeneration.from_pretrained(model_folder, dtype=torch.float32)
    torch.manual_seed(0)
    attach_adapters(model, ADAPTERS)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # at first 0, and the gradient of A with it
            torch.nn.init.normal_(parameter, std=0.1)
    model.train()
    if strategy == "fsdp2":
        distributed.shard(model, torch.device("cpu"))
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if strategy == "ddp" else model
    batches = list(micro_batches(model_folder).values())
    share = len(batches) // processes
    losses = []
    for batch in batches[process * share : (process + 1) * share]:
        loss = wrapped(**batch).loss
        (loss / share).backward()
        losses.append(loss.detach())
    loss = torch.stack(losses).sum()
    if processes > 1:
        dist.all_reduce(loss)
    write({**gradients(model), "loss": loss / len(batches)}, out / "pass.safetensors")


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gather the gradient of every weight that learns; a missing one is an error."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = [name for name, parameter in trained.items() if parameter.grad is None]
    assert not missing, missing
    return {name: distributed.full(parameter.grad).clone() for name, parameter in trained.items()}


def zero_gradients(model: torch.nn.Module, largest: float) -> dict[str, torch.Tensor]:
    """Gather the gradients of DeepSpeed, clipped as it will clip them."""
    from deepspeed.utils import safe_get_full_grad  # pyright: ignore[reportMissingImports]

    found = {
        name: safe_get_full_grad(parameter).float()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    norm = torch.stack([gradient.norm() for gradient in found.values()]).norm()
    return {name: gradient * min(1.0, largest / (float(norm) + 1e-6)) for name, gradient in found.items()}


def write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    if process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def main(model: Path, out: Path, jobs: list[str]) -> None:
    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    for job in jobs:
        what, strategy, *rest = job.split(":")
        folder = out / f"{what}-{strategy}"
        if what == "pass":
            one_pass(model, folder, strategy)
        elif what == "unreadable":
            unreadable(model, folder)
        else:
            train(model, folder, strategy, *rest)
        if dist.is_initialized():
            dist.barrier()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # at once: the others may be waiting for this process
