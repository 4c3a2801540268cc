"""Train a tiny model, kill it again and again, and compare with a run that nobody killed. Prints JSON.

    python tests/training/killing.py FOLDER --kills 3 --torn 2 --workers 1 [--model TINY]

Everything is imported once; every run is a fork of this process, so that a start costs nothing. There are two ways to
die: at a random instant after the first step, and before a random one of the calls that touch the run's folder (open,
mkdir, rename, unlink ...), wherever in saving, naming or removing a checkpoint that is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments, set_seed

from self1e.training.checkpointing import last_checkpoint, step_of
from self1e.training.optimizers import MuonWithAdamW
from self1e.training.order import Epochs
from self1e.training.trainer import make_trainer


class Numbers(torch.utils.data.Dataset):
    """Item ``i`` of epoch ``e`` is always the same."""

    def __init__(self, epoch: int, length: int = 50) -> None:
        self.epoch, self.length = epoch, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1000 * self.epoch + index)
        return {"x": torch.randn(16, generator=generator), "y": torch.randn(4, generator=generator)}


class Net(torch.nn.Module):
    """A few thousand parameters, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(16, 48),
            torch.nn.LayerNorm(48),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(48, 48),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(48, 4),
        )

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        loss = (self.layers(x) - y).square().mean()
        return {"loss": loss, "losses": {"square": loss}}


class Beat(TrainerCallback):
    """Tell the parent of each step."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        os.write(self.pipe, b".")


def real_parts(folder: Path) -> tuple[Any, Any, Any]:
    """A tiny Self1E with dropout in its attention, drawn scenes, and the collator."""
    from self1e.model import Self1EForConditionalGeneration
    from self1e.processing.processor import Self1EProcessor
    from self1e.training import nano
    from self1e.training.collate import Collator

    model: Any = Self1EForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.set_attn_implementation("eager")
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    data = nano.build_mixture(None, length=1000, seed=0, photographs=0.0, queries=2)
    return model, data, Collator(Self1EProcessor.from_pretrained(folder), target_side=16)


def train(out: Path, pipe: int, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    set_seed(0)
    if options.model:
        model, data, collator = real_parts(options.model)
    else:
        model, data, collator = Net(), Epochs(Numbers, 20, multiple=4), None
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=options.steps,
        learning_rate=1e-2,
        warmup_steps=3,
        logging_steps=1,
        save_steps=2,
        save_total_limit=2,
        use_cpu=True,
        dataloader_num_workers=options.workers,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )
    optimizer = MuonWithAdamW(model, learning_rate=1e-3, matrix_learning_rate=1e-2)
    trainer, _ = make_trainer(model, data, collator, arguments, mean_decay=0.9, optimizer=optimizer)
    trainer.add_callback(Beat(pipe))
    trainer.train(resume_from_checkpoint=True)


def touches(folder: Path, die_before: int | None, report: int) -> None:
    """Count the calls that touch a folder, and die before one of them."""
    count = 0
    watched = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir"}

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in watched and arguments and str(arguments[0]).startswith(str(folder)):
            count += 1
            if count == die_before:
                os.kill(os.getpid(), signal.SIGKILL)
            os.write(report, b"t")

    sys.addaudithook(hook)


def attempt(out: Path, options: argparse.Namespace, *, after: float | None = None, touch: int | None = None) -> Any:
    """Run in a fork; kill it ``after`` seconds from its first step, or before a ``touch`` of its folder.

    Returns:
        Whether it was killed, the seconds from its first step to its end, and how often it touched its folder.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            touches(out, touch, write)
            train(out, write, options)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(write)
    began, seen, killed = None, b"", False
    while True:
        left = None if after is None or began is None or killed else max(0.0, began + after - time.monotonic())
        if not select.select([read], [], [], left)[0]:
            os.kill(child, signal.SIGKILL)
            killed = True
            continue
        # A worker of a killed process holds the pipe open a little longer: the first end counts.
        piece = os.read(read, 65536)
        seen += piece
        if began is None and b"." in seen:
            began = time.monotonic()
        if not piece or killed:
            break
    os.close(read)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("A run failed by itself.")
    return os.WIFSIGNALED(status), time.monotonic() - (began or time.monotonic()), seen.count(b"t")


def result(out: Path) -> dict[str, Any]:
    """What two runs are compared by: each step's line of the log, and the bytes of weights and mean."""
    checkpoint = last_checkpoint(out)
    assert checkpoint is not None
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    names = ("model.safetensors", "mean_of_weights.safetensors")
    digests = {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in names}
    return {"log": state["log_history"], "step": step_of(checkpoint), **digests}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    for name, value in (("kills", 3), ("torn", 2), ("workers", 0), ("steps", 24), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    whole, broken = options.folder / "whole", options.folder / "broken"
    _, seconds, number = attempt(whole, options)
    reached, restarts = [], 0
    plan = ["instant"] * options.kills + ["touch"] * options.torn
    rng.shuffle(plan)
    share = 2 / (len(plan) + 1)  # so that the last kill comes before the end
    while plan:
        if plan[-1] == "instant":
            killed, _, _ = attempt(broken, options, after=rng.uniform(0, seconds * share))
        else:
            killed, _, _ = attempt(broken, options, touch=rng.randint(1, max(2, int(number * share))))
        if killed:
            found = last_checkpoint(broken)
            reached.append(0 if found is None else step_of(found))
            plan.pop()
        else:  # it got to its end before: another one from the start
            restarts += 1
            broken = options.folder / f"broken-{restarts}"
    attempt(broken, options)
    leftovers = sorted(path.name for path in broken.iterdir() if not path.name.startswith("checkpoint-"))
    same = result(whole) == result(broken)
    steps = len(result(whole)["log"])
    found = {"same": same, "steps": steps, "reached": reached, "restarts": restarts, "left": leftovers}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
