"""Run a recipe: check everything, plan, train, measure, save. One loop for all recipes of nested settings."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from self1e.configuration import Self1EConfig
from self1e.errors import OutputError, SettingError
from self1e.files import atomic_write, replace_folder, restore_folder
from self1e.inference.loading import choose_device, find_model, reading
from self1e.inference.memory import free_memory
from self1e.locking import only_run
from self1e.machine import find_commit, process_count, process_index, versions
from self1e.model import Self1EForConditionalGeneration
from self1e.model.losses import LossWeights
from self1e.processing.processor import Self1EProcessor
from self1e.training import checkpointing, distributed, preflight
from self1e.training.adapters import attach_adapters, export_model
from self1e.training.card import write_card
from self1e.training.collate import Collator
from self1e.training.guards import Guarded
from self1e.training.order import Epochs
from self1e.training.recipes.overriding import differences
from self1e.training.recipes.settings import Recipe
from self1e.training.releasing import release_between_towers
from self1e.training.trainer import Self1ETrainer
from self1e.training.training_data import Bucketing, TrainingData, data_changes, open_training_data
from self1e.training.watching import BEST, Watching

logger = logging.getLogger(__name__)

RECIPE, FACTS = "recipe.json", "run.json"
MODEL = "model"
_MAY_CHANGE = (
    "name",
    "paper",
    "data.workers",
    "data.most_unreadable",
    "saving.",
    "evaluation.",
    "optim.most_skipped",
    "distributed.",
)
"""Settings that no step depends on."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run before it starts: everything is there and fits together, nothing heavy is loaded."""

    recipe: Recipe
    base: str
    """Name or folder that the weights come from."""
    config: Any
    data: TrainingData
    device: torch.device
    workers: int
    strategy: distributed.Strategy | None
    """How they share the run; None for a process alone."""
    steps: int
    epochs: int
    estimate: preflight.Estimate
    free: int
    """Bytes of memory on the device."""
    speed: float
    """Operations per second, measured."""

    def describe(self) -> str:
        """Tell what will be done, and what it takes."""
        told = preflight.describe(
            self.estimate, self.recipe, steps=self.steps, workers=self.workers, free=self.free, speed=self.speed
        )
        parts = ", ".join(f"{name} {count:,}" for name, count in self.data.counts.items())
        return f"{self.recipe.name} from {self.base} on {self.device}\ndata: {parts}\n{told}"

    def check_memory(self) -> None:
        """Refuse a run that will not fit.

        Raises:
            SettingError: It does not; the message names the nearest settings that do.
        """
        if self.estimate.total <= self.free * preflight.RESERVE:
            return
        found = preflight.nearest_that_fits(
            self.recipe,
            self.config,
            self.free,
            workers=self.workers,
            shards=distributed.shards(self.strategy, self.workers),
        )
        if found:
            advice = f"This fits: {' '.join(f'--set {setting}' for setting in found)}."
        else:
            advice = "No micro-batch and no rank fits; take a smaller base, a larger device, or FSDP on several."
        raise SettingError(
            f"{self.recipe.name} needs about {preflight.size_text(self.estimate.total)} on {self.device} and "
            f"{preflight.size_text(self.free)} are free. {advice}"
        )


def prepare(
    recipe: Recipe,
    *,
    data: TrainingData | Path | None = None,
    device: Any = "auto",
    free: int | None = None,
) -> Plan:
    """Check everything that can be checked before a run, and plan it.

    Args:
        recipe: What to do.
        data: Folder of the published data, or data that is open already.
        device: Where to train: ``auto``, or anything that ``torch.device`` reads.
        free: Bytes of memory that may be used; None asks the device.

    Raises:
        CheckpointError: The base is not there, or is damaged.
        DatasetError: Data is missing; the message lists all of it.
        SettingError: Settings do not fit each other.
    """
    if not recipe.optim.bf16 and recipe.model.frozen_dtype == "bfloat16":
        raise SettingError(
            "optim.bf16=false multiplies in float32, but model.frozen_dtype=bfloat16 keeps frozen weights in bfloat16: "
            "add --set model.frozen_dtype=float32."
        )
    workers = process_count()
    recipe.optim.accumulation(workers)  # refuses a global batch that cannot be shared out
    strategy = distributed.choose_strategy(recipe.distributed.strategy, processes=workers)
    shown, path = find_model(recipe.model.base)
    with reading(shown):
        config: Any = Self1EConfig.from_pretrained(path, **recipe.model.switches())
    opened = data if isinstance(data, TrainingData) else open_training_data(recipe, data)
    items = sum(opened.counts.values()) // recipe.optim.global_batch
    if items < 1:
        raise SettingError(
            f"An epoch has {sum(opened.counts.values())} pictures and a step takes {recipe.optim.global_batch}; "
            "set optim.global_batch (and optim.micro_batch) smaller."
        )
    steps = recipe.optim.steps or recipe.data.epochs * items
    chosen = choose_device(device)
    return Plan(
        recipe=recipe,
        base=path,
        config=config,
        data=opened,
        device=chosen,
        workers=workers,
        strategy=strategy,
        steps=steps,
        epochs=ceil(steps / items),
        estimate=preflight.plan(recipe, config, workers=workers, shards=distributed.shards(strategy, workers)),
        free=free_memory(chosen) if free is None else free,
        speed=preflight.measure_speed(chosen, bf16=recipe.optim.bf16),
    )


def run(
    recipe: Recipe,
    *,
    data: TrainingData | Path | None = None,
    out: Path,
    resume: str | Path = "auto",
    report_to: Sequence[str] = (),
    device: Any = "auto",
    say: Callable[[str], None] = logger.info,
    checked: Plan | None = None,
) -> Path:
    """Run a recipe and save the model.

    Args:
        recipe: What to do.
        data: See `prepare`.
        out: Folder for checkpoints (``checkpoint-N``), ``recipe.json``, ``run.json``, ``log.json``, pictures
            (``samples/``), the best model (``best/``) and the last one (``model/``).
        resume: ``auto`` goes on from the newest whole checkpoint in ``out`` if there is one, ``never`` refuses a folder
            that has some, a path goes on from there.
        report_to: Of ``tensorboard``, ``trackio``, ``wandb``, those that are installed.
        device: See `prepare`.
        say: Told a line about every log entry.
        checked: What `prepare` has returned for the same arguments, so that it is not done twice.

    Returns:
        The folder of the final model.

    Raises:
        SettingError: ``out`` holds a run of another recipe (the differences are listed), or it does not fit.
        OutputError, TrainingError, CheckpointError: See `Self1ETrainer.train`.
    """
    plan = prepare(recipe, data=data, device=device) if checked is None else checked
    plan.check_memory()
    check_report_to(report_to)
    facts = {
        "recipe": asdict(recipe),
        "steps": plan.steps,
        "data": plan.data.fingerprint(),
        "commit": find_commit(),
        "versions": versions("self1e", "torch", "transformers", "peft", "accelerate", "numpy", "pillow"),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"--out {out} cannot be a folder ({error.strerror}); choose another name.") from error
    with only_run(out) if process_index() == 0 else nullcontext():
        return _run(plan, facts, out, resume=resume, report_to=report_to, say=say)


def _run(
    plan: Plan,
    facts: Mapping[str, Any],
    out: Path,
    *,
    resume: str | Path,
    report_to: Sequence[str],
    say: Callable[[str], None],
) -> Path:
    recipe = plan.recipe
    start = _resume_from(facts, out, resume)
    if process_index() == 0:
        for name in (BEST, MODEL):
            restore_folder(out / name)
        atomic_write(out / RECIPE, _json(asdict(recipe)))
        atomic_write(out / FACTS, _json(facts))
    set_seed(recipe.seed)
    # First, or transformers would load it in pieces for ZeRO-3, past our own readers of checkpoints.
    model, processor = load(plan)
    args = arguments(plan, out, report_to=report_to)
    if plan.strategy == "fsdp2":
        distributed.shard(model, args.device, bf16=recipe.optim.bf16)
    release_between_towers(model, args.device)
    trainer = RunTrainer(
        model=model,
        args=args,
        train_dataset=training_items(plan),
        data_collator=Collator(
            processor,
            max_tiles=recipe.data.max_tiles,
            target_side=recipe.data.target_side,
            max_length=recipe.data.max_length,
        ),
        most_skipped=recipe.optim.most_skipped,
        processing_class=processor,
        beside={RECIPE: _json(asdict(recipe)), FACTS: _json(facts)},
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Telling(say))
    if len(plan.data.validation):
        _watch(trainer, processor, plan, out, say)
    trainer.train(resume_from_checkpoint=start)
    return finish(trainer, processor, out)


def load(plan: Plan) -> tuple[Any, Any]:
    """Load model and processor of a plan, with its adapters."""
    recipe = plan.recipe
    with reading(plan.base):
        processor = Self1EProcessor.from_pretrained(plan.base)
        model: Any = Self1EForConditionalGeneration.from_pretrained(
            plan.base, dtype=torch.float32, **recipe.model.switches()
        )
    model.set_attn_implementation(recipe.model.kernel)
    model.loss_weights = LossWeights(**asdict(recipe.loss))
    model.config.no_target_threshold = None  # was found for the weights before
    attach_adapters(model, recipe.adapters, frozen_dtype=getattr(torch, recipe.model.frozen_dtype))
    return model, processor


def training_items(plan: Plan) -> Any:
    """Put the epochs of a plan one behind the other; unreadable pictures are passed over, up to the recipe's limit."""
    recipe = plan.recipe
    make_epoch: Callable[[int], Any] = plan.data.make_epoch
    if recipe.data.bucketed:
        make_epoch = Bucketing(
            make_epoch,
            recipe.optim.micro_batch,
            recipe.data.max_tiles,
            plan.config.tile_size,
            plan.config.image_seq_length,
        )
    epochs = Epochs(make_epoch, plan.epochs, multiple=recipe.optim.global_batch)
    return Guarded(epochs, most=recipe.data.most_unreadable, stride=recipe.optim.micro_batch)


def arguments(plan: Plan, out: Path, *, report_to: Sequence[str] = ()) -> TrainingArguments:
    """Say it in transformers' words."""
    recipe = plan.recipe
    optim = recipe.optim
    is_cuda = plan.device.type == "cuda"
    schedules = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
    return TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=optim.micro_batch,
        gradient_accumulation_steps=optim.accumulation(plan.workers),
        max_steps=plan.steps,
        learning_rate=optim.learning_rate,
        lr_scheduler_type=schedules[optim.schedule],
        warmup_steps=min(optim.warmup_steps, plan.steps),
        weight_decay=optim.weight_decay,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        # As if so many micro-batches were added up (METHOD 6.4): Adam's step is the same, clipping begins earlier.
        adam_epsilon=optim.eps / optim.summed_micro_batches,
        max_grad_norm=optim.max_grad_norm / optim.summed_micro_batches,
        # On a CPU too: the other holds a copy of the largest tensor.
        optim="adamw_torch" if plan.device.type == "mps" else "adamw_torch_fused",
        bf16=optim.bf16,
        **_recomputing(optim.gradient_checkpointing),
        use_cpu=plan.device.type == "cpu",
        **distributed.trainer_settings(plan.strategy, is_cuda=is_cuda),
        logging_steps=recipe.saving.log_every,
        logging_first_step=True,
        save_steps=recipe.saving.every,
        save_total_limit=recipe.saving.keep,
        dataloader_num_workers=recipe.data.workers,
        dataloader_pin_memory=is_cuda,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=list(report_to) or "none",
        seed=recipe.seed,
    )


def _recomputing(wanted: bool) -> dict[str, Any]:
    """Gradient checkpointing, which newer versions of transformers call activation checkpointing."""
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if wanted else {name: False}


class RunTrainer(Self1ETrainer):
    """Writes what a run is beside each of its checkpoints, and how fast it goes into each line of its log.

    Args:
        beside: Files of each checkpoint, by name.
        args: Of `Self1ETrainer`.
        kwargs: Of `Self1ETrainer`.
    """

    def __init__(self, *args: Any, beside: Mapping[str, bytes], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.beside = beside
        self._tokens: list[torch.Tensor] = []
        self._since: tuple[float, int] | None = None
        self.pauses = 0.0
        """Seconds since the last log entry that were not spent on training."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run the model's own loss, and count tokens."""
        if self._since is None:
            self._since = (time.perf_counter(), self.state.global_step)
        self._tokens.append(inputs["attention_mask"].sum())
        return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add pictures and tokens per second over all processes, peak memory of this one, and seconds that are left."""
        if "loss" in logs and self._since is not None and self._tokens:
            now, step = time.perf_counter(), self.state.global_step
            seconds, steps = now - self._since[0] - self.pauses, step - self._since[1]
            if steps > 0 and seconds > 0:
                tokens = int(torch.stack(self._tokens).sum()) * self.args.world_size
                logs["pictures_per_second"] = round(steps * self._global_batch() / seconds, 3)
                logs["tokens_per_second"] = round(tokens / seconds, 1)
                logs["seconds_left"] = round(seconds / steps * (self.state.max_steps - step), 1)
                logs["memory_gb"] = round(_peak_memory(self.args.device) / 1e9, 3)
            self._tokens, self._since, self.pauses = [], (now, step), 0.0
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        for name, content in self.beside.items() if self.args.should_save else ():
            (Path(str(output_dir or self.args.output_dir)) / name).write_bytes(content)


class Telling(TrainerCallback):
    """One line per log entry for the person who waits."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Tell the losses, the speed and the time that is left."""
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        parts = ", ".join(f"{n} {logs[f'loss_{n}']:.3f}" for n in ("text", "bce", "dice") if f"loss_{n}" in logs)
        told = f"step {state.global_step:,}/{state.max_steps:,}: loss {float(logs['loss']):.4f}"
        told += f" ({parts})" if parts else ""
        told += f", lr {float(logs.get('learning_rate', 0)):.2e}"
        if "pictures_per_second" in logs:
            told += f", {logs['pictures_per_second']:.1f} pictures/s, {logs['tokens_per_second']:,.0f} tokens/s"
            told += f", {logs['memory_gb']:.1f} GB, {preflight.time_text(logs['seconds_left'])} left"
        self.say(told)


def finish(trainer: RunTrainer, processor: Any, out: Path) -> Path:
    """Save the trained model as a plain one: ``out/model``; and the log: ``out/log.json``.

    Raises:
        OutputError: They cannot be written; the last checkpoint has everything.
    """
    final = out / MODEL
    tensors: Any = None
    trained: Any = trainer.model
    if trainer.is_sharded:
        tensors = distributed.gather_model(trained, keep=trainer.args.should_save)
    elif trainer.is_deepspeed_enabled:
        tensors = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        distributed.forget_deepspeed()
    model: Any = trainer.accelerator.unwrap_model(trainer.model_wrapped)

    def write(folder: Path) -> None:
        export_model(model, processor, folder, state_dict=tensors)
        for name, content in trainer.beside.items():
            (folder / name).write_bytes(content)
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
        write_card(folder, folder)
        (folder / "trainer_state.json").unlink()

    if trainer.is_world_process_zero():
        # What runs is decided where it runs: training's choice of kernels is not the user's.
        model.set_attn_implementation("sdpa")
        try:
            atomic_write(out / "log.json", _json(trainer.state.log_history))
            replace_folder(final, write)
        except (OSError, SafetensorError) as error:
            saved = checkpointing.checkpoints(out)
            kept = f" {saved[-1]} is whole: make room, and run the same command again." if saved else ""
            raise OutputError(f"{final} could not be saved: {error}.{kept}") from error
    trainer.accelerator.wait_for_everyone()
    return final


def _watch(trainer: RunTrainer, processor: Any, plan: Plan, out: Path, say: Callable[[str], None]) -> None:
    if trainer.is_sharded or trainer.is_deepspeed_enabled:
        logger.warning("Evaluation during training is left out where weights are sharded; evaluate the checkpoints.")
        return
    trainer.add_callback(Watching(trainer, processor, plan.data.validation, plan.recipe.evaluation, out, say=say))


def _resume_from(facts: Mapping[str, Any], out: Path, resume: str | Path) -> Any:
    """Turn ``auto``, ``never`` or a path into what `Self1ETrainer.train` takes, and compare the two runs."""
    if resume == "never":
        checkpointing.check_is_new(out)  # before anything of that run is written over
        return None
    if resume == "auto":
        found = checkpointing.checkpoints(out)
        if not found:
            return None
        # The newest that says what it is of: any other is damaged, and the trainer will go back to the one before.
        check_same(next((path for path in reversed(found) if _read_facts(path) is not None), found[-1]), facts)
        return True
    checkpoint = Path(resume)
    if not checkpoint.is_dir():
        raise SettingError(f"--resume {resume}: no such folder; expected auto, never, or a folder checkpoint-N.")
    if not (checkpoint / checkpointing.MANIFEST).is_file():
        inside = checkpointing.checkpoints(checkpoint)
        advice = f"{inside[-1]} is one." if inside else "Or start from a model: --model."
        raise SettingError(f"--resume {resume}: this is no checkpoint; expected a folder checkpoint-N. {advice}")
    check_same(checkpoint, facts)
    return checkpoint


def check_same(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Refuse to go on with another recipe or other data.

    Raises:
        SettingError: Something that steps depend on differs; the message lists it.
    """
    known = _read_facts(checkpoint)
    if known is None:
        raise SettingError(
            f"{checkpoint} holds no {FACTS} that can be read: it is damaged, or not of `self1e train`. Choose another "
            "--out, and start from its weights with --model."
        )
    changed = [change for change in differences(known["recipe"], facts["recipe"]) if not change.startswith(_MAY_CHANGE)]
    if known["steps"] != facts["steps"] and not changed:
        changed.append(f"steps: {known['steps']} -> {facts['steps']}")
    changed += data_changes(known["data"], facts["data"])
    if changed:
        raise SettingError(
            f"{checkpoint} is of another run ({'; '.join(changed)}); going on would mix the two. Use the old settings, "
            "or another --out."
        )


def _read_facts(checkpoint: Path) -> dict[str, Any] | None:
    """Read what a checkpoint is of; None if it does not say."""
    try:
        known = json.loads((checkpoint / FACTS).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    is_whole = isinstance(known, dict) and all(isinstance(known.get(name), dict) for name in ("recipe", "data"))
    return known if is_whole and "steps" in known else None


def check_report_to(report_to: Sequence[str]) -> None:
    """Say at once if a tracker is unknown or not installed."""
    from importlib.util import find_spec

    for name in report_to:
        if name not in ("tensorboard", "trackio", "wandb"):
            raise SettingError(f"--report-to {name!r} is unknown; choose tensorboard, trackio or wandb.")
        if find_spec(name) is None and not (name == "tensorboard" and find_spec("tensorboardX")):
            raise SettingError(f"--report-to {name}: it is not installed; pip install {name}.")


def with_base(recipe: Recipe, base: str | None) -> Recipe:
    """Put another base into a recipe."""
    return recipe if base is None else replace(recipe, model=replace(recipe.model, base=base))


def _json(found: Any) -> bytes:
    return (json.dumps(found, indent=1) + "\n").encode()


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
