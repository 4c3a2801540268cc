"""One training loop: transformers' `Trainer`, which loses no work and no item, with our losses logged by part.

A run that is killed at any instant and resumed takes the very same steps as one that is not: checkpoints are whole or
not there (`checkpointing`), items are addressed by index (`order`), and everything random is part of a checkpoint.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import seed_worker

from self1e.errors import CheckpointError, OutputError, Self1EError, SettingError, TrainingError
from self1e.machine import versions
from self1e.model import Self1EForConditionalGeneration
from self1e.model.checkpoints.files import read_tensors
from self1e.training import checkpointing, distributed
from self1e.training.collate import Collator
from self1e.training.guards import Guarded
from self1e.training.order import GlobalBatches
from self1e.training.stopping import Interrupted, StopSignals, ignore_stop_signals

logger = logging.getLogger(__name__)

# A full disk comes as any of these, depending on who writes.
_WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
_COMPARED = ("self1e", "torch", "transformers")
"""What rounding depends on."""
_WRAPPERS = ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")


class Self1ETrainer(Trainer):
    """A `Trainer` whose data set is index-addressable and comes in its own order: a `Mixture`, `Epoch` or `Epochs`.

    * `train` with ``resume_from_checkpoint=True`` goes on from the newest whole checkpoint, or starts if there is none.
    * SIGTERM or SIGINT: the step is finished, a checkpoint saved, and `Interrupted` ends the process with 143 or 130.
    * A loss or gradient that is not a number changes no weight; it is an error that names the pictures, or is skipped.

    Args:
        args: Of `Trainer`.
        mean: Moving mean of the weights, saved and loaded with each checkpoint.
        most_skipped: Steps whose loss or gradient is not a number that are left out of the training; the next one is an
            error. Published: no such rule, so 0.
        kwargs: Of `Trainer`.
    """

    def __init__(self, *args: Any, mean: MeanOfWeights | None = None, most_skipped: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if most_skipped < 0:
            raise SettingError(f"most_skipped={most_skipped} must be at least 0.")
        self.mean, self.most_skipped = mean, most_skipped
        self.is_sharded = distributed.is_sharded(self.model)
        plugin: Any = getattr(self.accelerator.state, "deepspeed_plugin", None)
        self.zero_stage = 0 if plugin is None else int(plugin.zero_stage)
        if mean is not None and self.zero_stage == 3:
            raise SettingError("A mean of the weights needs whole weights, and ZeRO-3 divides them; use ddp or zero2.")
        if self.is_sharded:
            # Its processes are each other's already: neither DDP nor another FSDP around it.
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.batches: GlobalBatches | None = None
        self._parts: dict[str, list[torch.Tensor]] = {}
        self._bad: list[int] = []  # micro-batches of this step whose loss is not a number
        self._micro = 0
        self._unreadable = 0
        self._signals = StopSignals()
        self._stop = 0
        self._partial: Path | None = None
        self._saved_step: int | None = None
        self._parameters: dict[str, list[int]] = {}
        self._resumed: dict[str, Any] = {}
        if mean is not None:
            self.add_callback(mean)
        self.add_callback(_Turns(self))

    # Data: by index, the same items in each step on any number of processes.

    def get_train_dataloader(self) -> DataLoader:
        """Make the loader of this process's share of each step."""
        args, dataset = self.args, cast(Any, self.train_dataset)
        self.batches = GlobalBatches(
            len(dataset),
            batch_size=self._train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            processes=args.world_size,
            process=args.process_index,
        )
        loader = DataLoader(
            dataset,
            batch_sampler=cast(Any, self.batches),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=_StartWorker(args.dataloader_num_workers, args.process_index),
        )
        prepared: Any = self.accelerator.prepare(loader)
        shard = prepared.batch_sampler
        if shard is not self.batches:  # the shares are made already: accelerate is not to share them out again
            shard.num_processes, shard.process_index = 1, 0
        return prepared

    # Start and end.

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: Any = None) -> Any:
        """Train, or go on.

        Args:
            resume_from_checkpoint: True: from the newest whole checkpoint in ``output_dir``, if there is one. A path:
                from there; later checkpoints are set aside. None: from the start.
            trial: Of `Trainer`.
            ignore_keys_for_eval: Of `Trainer`.

        Raises:
            CheckpointError: The checkpoint is damaged, or of another model, optimiser or batch.
            SettingError: A new run in a folder that holds one.
            Interrupted: A signal has stopped the run; its checkpoint is saved.
            TrainingError: A loss or gradient is not a number; no weight has been changed by it.
            OutputError: A checkpoint could not be saved; those before are whole.
        """
        self._parameters = _parameters_of(self.model)
        checkpoint = self._start_from(resume_from_checkpoint)
        if checkpoint is not None and self.mean is not None:
            self.mean.load(checkpoint)
        self._stop, self._saved_step = 0, None
        with self._signals:
            result = super().train(None if checkpoint is None else str(checkpoint), trial, ignore_keys_for_eval)
        if self._stop and self.state.global_step < self.state.max_steps:
            saved = self._folder / f"checkpoint-{self.state.global_step}"
            if self.is_world_process_zero():
                logger.warning(
                    "Stopped after step %d of %d; %s is saved. Run the same command with resume to go on.",
                    self.state.global_step,
                    self.state.max_steps,
                    saved,
                )
            raise Interrupted(self._stop)
        return result

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        if not distributed.is_sharded(model):
            super()._move_model_to_device(model, device)

    def _start_from(self, resume: Any) -> Path | None:
        """Decide on the first process where to start, and tell the others."""
        decided: list[Any] = [None, None, {}]
        if self.is_world_process_zero():
            try:
                decided[0] = self._choose_checkpoint(resume)
                if decided[0] is not None:
                    decided[2] = checkpointing.read_manifest(decided[0])
            except Self1EError as error:
                decided[1] = error
        checkpoint, error, self._resumed = broadcast_object_list(decided)
        if error is not None:
            raise error
        if checkpoint is not None:
            checkpointing.check_parameters(checkpoint, self._resumed, self._parameters)
            self._compare_runs(checkpoint)
        return checkpoint

    def _choose_checkpoint(self, resume: Any) -> Path | None:
        folder = self._folder
        checkpointing.clean(folder)
        if not resume:
            checkpointing.check_is_new(folder)
            return None
        checkpoint = checkpointing.last_checkpoint(folder) if resume is True else Path(resume)
        if checkpoint is None:
            return None
        if resume is not True:
            checkpointing.check(checkpoint)
        if checkpoint.parent.resolve() == folder.resolve():
            checkpointing.set_aside(folder, checkpointing.step_of(checkpoint))
        return checkpoint

    def _compare_runs(self, checkpoint: Path) -> None:
        """Check that the steps to come see the items that follow those of the steps that were taken."""
        known, now = self._resumed.get("global_batch"), self._global_batch()
        if known is not None and known != now:
            raise CheckpointError(
                f"{checkpoint}: {known} items per step, and now {now} ({self.args.world_size} process(es), "
                f"{self.args.gradient_accumulation_steps} micro-batch(es) of {self._train_batch_size}): items would be "
                f"lost or seen twice. Choose processes x micro-batches x micro-batch size = {known}."
            )
        processes = self._resumed.get("processes", self.args.world_size)
        if (stage := self._resumed.get("zero_stage", 0)) != self.zero_stage or (
            stage and processes != self.args.world_size
        ):
            raise CheckpointError(
                f"{checkpoint} holds optimiser states of {_states(stage, processes)}, and this run is "
                f"{_states(self.zero_stage, self.args.world_size)}: DeepSpeed reads its own alone, on as many "
                "processes. Start as it was started, or a new run from its weights: --model."
            )
        if processes != self.args.world_size:
            logger.warning(
                "%s is of %d process(es), now %d: steps see the same items, but dropout and rounding are others.",
                checkpoint,
                processes,
                self.args.world_size,
            )
        then, now_used = self._resumed.get("versions", {}), versions(*_COMPARED)
        if changed := [
            f"{name} {then.get(name)} -> {used}" for name, used in now_used.items() if then.get(name) != used
        ]:
            logger.warning(
                "%s is of other versions (%s): results may differ in rounding.", checkpoint, ", ".join(changed)
            )

    @property
    def _folder(self) -> Path:
        return Path(cast(str, self.args.output_dir))

    def _global_batch(self) -> int:
        return self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    # Loss and gradient.

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run the model's own loss and remember its parts for the log."""
        outputs = model(**inputs)
        for name, value in (outputs.get("losses") or {}).items():
            self._parts.setdefault(name, []).append(value.detach())
        return (outputs["loss"], outputs) if kwargs.get("return_outputs") else outputs["loss"]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Take one micro-batch, and note a loss that is not a number."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            self._bad.append(self._micro)
        self._micro += 1
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # The last place before the optimiser's step, on every process, with the norm over all of them at hand.
        norm = distributed.full(super()._get_grad_norm(model, grad_norm=grad_norm))
        # Half precision finds its scale by overflowing: there the scaler skips the step.
        scaled = getattr(self.accelerator, "scaler", None) is not None
        is_bad = bool(self._bad) or not (scaled or norm is None or math.isfinite(float(norm)))
        is_bad, self._stop, *unreadable = self._agree(int(is_bad), self._signals.received, *self._unreadable_here())
        self._check_unreadable(sum(unreadable))
        if is_bad:
            self._skip_or_stop(norm)
            model.zero_grad(set_to_none=True)  # an optimiser leaves what has no gradient as it is, and its state too
            norm = torch.zeros(())
        self._bad, self._micro = [], 0
        return norm

    @property
    def is_told_to_stop(self) -> bool:
        """Whether a signal has come to this process."""
        return bool(self._signals.received)

    def agree_to_stop(self) -> bool:
        """Tell whether a signal has come to any process; all of them have to ask at the same place."""
        (self._stop,) = self._agree(max(self._stop, self._signals.received))
        return bool(self._stop)

    def _unreadable_here(self) -> list[int]:
        """Count the items that this process has passed over, in its place of a list of all processes."""
        if self.args.world_size == 1 or not isinstance(self.train_dataset, Guarded):
            return []
        counts = [0] * self.args.world_size
        counts[self.args.process_index] = self.train_dataset.count()
        return counts

    def _check_unreadable(self, total: int) -> None:
        """Hold all processes together to the limit that each of them holds itself to."""
        if not isinstance(self.train_dataset, Guarded) or total <= max(self.train_dataset.most, self._unreadable):
            return
        self._unreadable = total  # several may have met the same one: what they met is compared once
        self.train_dataset.check(gather_object(self.train_dataset.problems()))

    def _agree(self, *flags: int) -> list[int]:
        """Take the largest of each over all processes, so that all of them do the same."""
        if self.args.world_size == 1:
            return list(flags)
        largest = torch.tensor(flags, device=self.args.device)
        torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
        return largest.tolist()

    def _add_up(self, *numbers: float) -> list[float]:
        """Add each up over all processes."""
        if self.args.world_size == 1:
            return list(numbers)
        total = torch.tensor(numbers, device=self.args.device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def _skip_or_stop(self, norm: Any) -> None:
        step = self.state.global_step + 1
        what = "loss" if any(gather_object([bool(self._bad)])) else f"gradient (norm {float(norm)})"
        mine = [source for micro in self._bad or range(self._micro) for source in self._sources(micro)]
        # Where the loss itself is bad on some process, only its micro-batches are to blame.
        mine = mine if self._bad or what != "loss" else []
        names = ", ".join(gather_object(mine))
        skipped = sum("skipped" in line for line in self.state.log_history)
        if skipped >= self.most_skipped or self.is_deepspeed_enabled:
            before = f" {skipped} such step(s) before were skipped." if skipped else ""
            saved = checkpointing.checkpoints(self._folder)
            kept = f"{saved[-1]} is the last checkpoint" if saved else "there is no checkpoint yet"
            raise TrainingError(
                f"Step {step}: the {what} is not a number; no weight was changed by it.{before} Its items: {names}. "
                f"{kept[0].upper()}{kept[1:]}. Look at these items, lower learning_rate or max_grad_norm, "
                f"or pass over such steps with most_skipped."
            )
        logger.warning("Step %d is skipped, its %s is not a number. Its items: %s", step, what, names)
        # Part of a checkpoint: a run that is resumed has skipped as many.
        cast(Any, self.state.log_history).append({"skipped": what, "items": names, "step": step})

    def _sources(self, micro: int) -> list[str]:
        """Name the items of one micro-batch of this process; they are read again for it."""
        assert self.batches is not None
        return [
            f"{_source(self.train_dataset, i)} (item {i})" for i in self.batches.indices(self.state.global_step, micro)
        ]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of each part of the loss since the last log line, over all processes."""
        if "loss" in logs:
            for name, values in self._parts.items():
                numbers = torch.stack(values).float()
                numbers = numbers[numbers.isfinite()]  # of a step that was skipped
                total, count = self._add_up(float(numbers.sum()), len(numbers))
                if count:
                    logs[f"loss_{name}"] = round(total / count, 4)
            self._parts.clear()
        super().log(logs, *args, **kwargs)

    # Checkpoints.

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._partial is None else str(self._partial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        if self._saved_step == step:
            return
        folder, writes = Path(super()._get_output_dir(trial)), self.args.should_save
        needed = self._bytes_of_checkpoint()
        try:
            self._together(lambda: self._open(folder, step, needed), on=writes)
            self._together(lambda: self._write(folder, model, trial))
            self._together(lambda: checkpointing.publish(folder, step, self._facts()) and None, on=writes)
        except OutputError as error:
            free = shutil.disk_usage(folder).free if folder.is_dir() else 0
            if writes:
                shutil.rmtree(checkpointing.partial_folder(folder, step), ignore_errors=True)
            found = [path for path in checkpointing.checkpoints(folder) if path.name != f"checkpoint-{step}"]
            last = f"The last whole one is {found[-1]}" if found else "There is none before it"
            raise OutputError(
                f"The checkpoint of step {step} could not be saved: {error}. About {needed:,} bytes are needed in "
                f"{folder}, {free:,} are free. {last}; make room, then resume."
            ) from error
        self._saved_step = step
        if writes:
            best = self.state.best_model_checkpoint
            checkpointing.rotate(folder, self.args.save_total_limit, [] if best is None else [Path(best)])

    def _together(self, action: Callable[[], None], *, on: bool = True) -> None:
        """Do something where ``on`` is true and wait for all processes; what fails on one is an error on all."""
        caught = None
        if on:
            try:
                action()
            except _WRITE_ERRORS as error:
                caught = error
        messages = gather_object([] if caught is None else [f"{caught}"])
        if messages:
            raise OutputError(messages[0]) from caught

    def _open(self, folder: Path, step: int, needed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        checkpointing.clean(folder)
        checkpointing.check_space(folder, needed)
        checkpointing.open_partial(folder, step)

    def _write(self, folder: Path, model: Any, trial: Any) -> None:
        step = self.state.global_step
        final = folder / f"checkpoint-{step}"
        self._partial = checkpointing.partial_folder(folder, step)
        written = self._partial / final.name
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                if self.mean is not None:
                    self.mean.save(written)
                if self.state.best_model_checkpoint == str(written):  # where it is going to be
                    self.state.best_model_checkpoint = str(final)
                    self.state.save_to_json(str(written / "trainer_state.json"))
        finally:
            self._partial = None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.is_sharded and state_dict is None:
            sharded: Any = self.model
            state_dict = distributed.gather_model(sharded, keep=self.args.should_save)
        super()._save(output_dir, state_dict)
        # The settings as text: nothing that has to be unpickled.
        pickled = Path(output_dir or self._folder) / "training_args.bin"
        if pickled.is_file():
            pickled.with_suffix(".json").write_text(self.args.to_json_string() + "\n", "utf-8")
            pickled.unlink()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = distributed.gather_optimizer(self.optimizer, keep=self.args.should_save)
        if self.args.should_save:
            scheduler: Any = self.lr_scheduler
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.is_sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        checkpoint = Path(resume_from_checkpoint)
        sharded: Any = self.model
        distributed.load_model(sharded, read_tensors(checkpoint), checkpoint)

    def _facts(self) -> dict[str, Any]:
        return {
            "global_batch": self._global_batch(),
            "processes": self.args.world_size,
            "zero_stage": self.zero_stage,
            "optimizer": self._optimizer_name(),
            "parameters": self._parameters,
            "versions": versions(*_COMPARED),
        }

    def _optimizer_name(self) -> str:
        optimizer: Any = self.optimizer
        return type(getattr(optimizer, "optimizer", optimizer)).__name__

    def _bytes_of_checkpoint(self) -> int:
        """Estimate the size of a checkpoint from what is in memory, a little too large."""
        model: Any = self.model
        saved = list(model.parameters())  # frozen ones too: a checkpoint is a whole model
        optimizer: Any = self.optimizer
        if self.is_deepspeed_enabled:  # beside the model's weights its own copy, masters and both means of AdamW
            state = _bytes(saved) + 12 * sum(_numel(parameter) for parameter in saved if parameter.requires_grad)
        else:
            state = _bytes(optimizer.state_dict())
        mean = {} if self.mean is None else self.mean.mean
        return int(1.02 * (_bytes(saved) + state + _bytes(mean))) + 2**20

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        known = self._resumed.get("optimizer")
        if checkpoint is not None and known is not None and known != self._optimizer_name():
            raise CheckpointError(
                f"{checkpoint} holds the state of {known}, and the optimiser is {self._optimizer_name()}: resume with "
                "the settings that it was trained with."
            )
        if checkpoint is None or not self.is_sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        scheduler: Any = self.lr_scheduler
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=True)
        distributed.load_optimizer(self.optimizer, state)
        scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        name = "rng_state.pth" if self.args.world_size <= 1 else f"rng_state_{self.args.process_index}.pth"
        if checkpoint is not None and not (Path(checkpoint) / name).is_file():
            # Of another number of processes: new random numbers, but the same ones each time.
            set_seed((self.args.seed + 1_000_003 * self.state.global_step + self.args.process_index) % 2**32)
            return
        super()._load_rng_state(checkpoint)


class MeanOfWeights(TrainerCallback):
    """Keep an exponential moving mean of the weights that learn, and put it in place when training ends.

    Args:
        decay: Share of the mean that stays at each step; it grows from 0 as the steps do.
    """

    FILE = "mean_of_weights.safetensors"

    def __init__(self, decay: float = 0.998) -> None:
        self.decay = decay
        self.mean: dict[str, torch.Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not parameter.requires_grad:
                    continue
                if name not in self.mean:
                    self.mean[name] = parameter.detach().clone()
                else:
                    # What was loaded from a checkpoint is on the CPU.
                    self.mean[name] = self.mean[name].to(parameter.device).lerp_(parameter.detach(), 1 - decay)

    def save(self, folder: Path) -> None:
        """Write the mean into a checkpoint."""
        if self.mean:
            from safetensors.torch import save_file

            save_file(self.mean, folder / self.FILE)

    def load(self, folder: Path) -> None:
        """Go on with the mean that a checkpoint holds."""
        path = folder / self.FILE
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


class _Turns(TrainerCallback):
    """Stop after a step if a signal came, and log with each checkpoint, so that no mean of the log spans one."""

    def __init__(self, trainer: Self1ETrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        engine: Any = self.trainer.model_wrapped
        if distributed.is_zero3(engine):
            distributed.keep_whole(engine, engine.module.mask_head)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._stop:
            control.should_save = control.should_training_stop = True
        if control.should_save:
            control.should_log = True


class _StartWorker:
    """Begin a worker process of the loader; a class, so that it can be pickled."""

    def __init__(self, workers: int, process: int) -> None:
        self.workers, self.process = workers, process

    def __call__(self, worker: int) -> None:
        seed_worker(worker, self.workers, self.process)
        ignore_stop_signals()


def _parameters_of(model: Any) -> dict[str, list[int]]:
    """List names and shapes, as they are without the wrappers of a distributed run."""
    found = {}
    for name, parameter in model.named_parameters():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        found[name] = list(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 leaves an empty tensor in place
    return found


def _numel(tensor: Any) -> int:
    return getattr(tensor, "ds_numel", tensor.numel())  # ZeRO-3 leaves an empty tensor in place


def _states(stage: int, processes: int) -> str:
    return f"ZeRO-{stage} on {processes} process(es)" if stage else "one process alone, DDP or FSDP2"


def _bytes(found: Any) -> int:
    """Add up the tensors in lists and dicts."""
    if isinstance(found, torch.Tensor):
        return _numel(found) * found.element_size()
    if isinstance(found, dict):
        return sum(_bytes(value) for value in found.values())
    return sum(_bytes(value) for value in found) if isinstance(found, list | tuple) else 0


def _source(dataset: Any, index: int) -> str:
    try:
        item = dataset[index]
    except Exception as error:  # the name is for a message about something else
        return f"unreadable: {error}"
    source = item.get("source") if isinstance(item, dict) else getattr(item, "source", None)
    return str(source) if source else "no source"


def make_trainer(
    model: Self1EForConditionalGeneration,
    mixture: Any,
    collator: Collator,
    arguments: TrainingArguments,
    *,
    mean_decay: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    most_skipped: int = 0,
) -> tuple[Self1ETrainer, MeanOfWeights | None]:
    """Put model, data and settings together; ``most_skipped`` as `Self1ETrainer` takes it."""
    mean = MeanOfWeights(mean_decay) if mean_decay else None
    trainer = Self1ETrainer(
        model=model,
        args=arguments,
        train_dataset=mixture,
        data_collator=collator,
        mean=mean,
        optimizers=(optimizer, None),
        most_skipped=most_skipped,
    )
    return trainer, mean
