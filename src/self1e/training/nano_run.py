"""Running a recipe of `nano`: the first stage alone for the vision encoder, then everything."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from self1e.errors import SettingError
from self1e.files import atomic_write, replace_folder
from self1e.locking import only_run
from self1e.machine import process_count, process_index
from self1e.training.recipes.nano import TrainRecipe
from self1e.training.recipes.overriding import differences

MODEL, RECIPE = "model", "recipe.json"


def run(recipe: TrainRecipe, *, data: Path | None, out: Path, resume: bool = False, save_steps: int = 200) -> Path:
    """Run a recipe, and what it says follows, and save the model.

    Args:
        recipe: What to do.
        data: Folder of the photographs; None trains on drawn scenes alone.
        out: Folder for checkpoints, the log and the model in ``out/model``; runs that follow have ``out/polish-1``
            and so on.
        resume: Go on from the newest checkpoint in ``out``; the same items follow as without the break.
        save_steps: Steps between checkpoints; the last two are kept.

    Under ``torchrun`` the pictures of a batch are shared out to the processes. On a CPU one process per core is
    faster than one process with as many threads: most of a step at this size is too small to be shared by threads.

    Returns:
        The folder of the final model.

    Raises:
        SettingError: The batch cannot be shared out, or ``out`` holds another run.
        OutputError: Another run is training in ``out``.
        CheckpointError: There is no such model to start from.
    """
    workers, parts = process_count(), recipe.parts()
    for batch in (size for part in parts for size in (part.batch_size, part.encoder_batch_size)):
        if batch % workers:
            raise SettingError(f"A batch of {batch} pictures cannot be shared out to {workers} processes evenly.")
    out.mkdir(parents=True, exist_ok=True)
    with only_run(out) if process_index() == 0 else nullcontext():
        folders = [out, *(out / f"polish-{number}" for number in range(1, len(parts)))]
        final = _run(parts[0], data=data, out=out, resume=resume, save_steps=save_steps)
        for part, folder in zip(parts[1:], folders[1:], strict=True):
            here = replace(part, start=str(final))
            final = _run(here, data=data, out=folder, resume=resume, save_steps=save_steps)
        return final


def _is_finished(recipe: TrainRecipe, out: Path) -> bool:
    """Tell whether a folder holds the model of exactly this run: it is put there whole, with its recipe, at the end."""
    known = out / MODEL / RECIPE
    return known.is_file() and not differences(json.loads(known.read_text("utf-8")), recipe)


def _run(recipe: TrainRecipe, *, data: Path | None, out: Path, resume: bool, save_steps: int) -> Path:
    import torch
    from transformers import set_seed

    from self1e.data.mixture import PhotoAugment
    from self1e.inference.loading import find_model, reading
    from self1e.model import Self1EForConditionalGeneration
    from self1e.processing.processor import Self1EProcessor
    from self1e.training import nano as parts
    from self1e.training.collate import Collator
    from self1e.training.guards import Guarded
    from self1e.training.trainer import make_trainer

    if resume and _is_finished(recipe, out):
        return out / MODEL
    set_seed(recipe.seed)
    model: Any
    if recipe.start is None:
        processor = parts.build_processor()
        model = parts.build_model(processor, seed=recipe.seed)
    else:
        _, path = find_model(recipe.start)
        with reading(recipe.start):
            processor = Self1EProcessor.from_pretrained(path)
            model = Self1EForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
        if recipe.text_layers is not None:
            parts.deepen(model, recipe.text_layers)
    model.set_attn_implementation(recipe.attention)
    if recipe.compiled:
        parts.compile_layers(model)
    out.mkdir(parents=True, exist_ok=True)
    _check_folder(recipe, out, resume)
    resolved = (json.dumps(asdict(recipe), indent=2) + "\n").encode()
    atomic_write(out / RECIPE, resolved)  # in one piece: another process of the same run may be reading it
    photographs = recipe.photographs if data is not None else 0.0
    if recipe.encoder_pictures:
        _train_encoder(recipe, model, processor, data=data, out=out / "encoder", resume=resume, save_steps=save_steps)
    if recipe.frozen_vision:
        model.model.vision_tower.requires_grad_(False)
    mixture = parts.build_mixture(
        data,
        length=recipe.steps * recipe.batch_size,
        seed=recipe.seed,
        photographs=photographs,
        queries=recipe.queries,
        augment=PhotoAugment(smallest=recipe.smallest_cut, recolour=recipe.recolour),
        absent=recipe.absent,
        few_absent=recipe.few_absent,
        questions=recipe.questions,
        comparisons=recipe.comparisons,
        hard=recipe.hard,
    )
    arguments = _arguments(
        recipe, out, steps=recipe.steps, batch=recipe.batch_size, rate=recipe.learning_rate, save_steps=save_steps
    )
    collator = Collator(processor, target_side=recipe.target_side)
    trainer, mean = make_trainer(
        model,
        Guarded(mixture),
        collator,
        arguments,
        mean_decay=recipe.mean_decay,
        optimizer=_optimizer(model, arguments, recipe.matrix_learning_rate),
    )
    trainer.train(resume_from_checkpoint=True if resume else None)
    if mean is not None:
        mean.apply(model)
    final = out / MODEL
    if trainer.is_world_process_zero():
        atomic_write(out / "log.json", (json.dumps(trainer.state.log_history, indent=1) + "\n").encode())
        # What runs is decided where it runs: training's choice of kernels is not the user's.
        model.set_attn_implementation("sdpa")
        small: Any = model
        small.to(torch.bfloat16)  # half the file: `nano` travels in every installation

        def write(folder: Path) -> None:
            small.save_pretrained(folder)
            processor.save_pretrained(folder)
            (folder / RECIPE).write_bytes(resolved)

        replace_folder(final, write)
    trainer.accelerator.wait_for_everyone()  # the others may start from it
    return final


def _train_encoder(
    recipe: TrainRecipe, model: Any, processor: Any, *, data: Path | None, out: Path, resume: bool, save_steps: int
) -> None:
    """Run the first stage, or take its result if it is done."""
    from safetensors.torch import load_file, save_file

    from self1e.training import nano as parts
    from self1e.training.encoder import SpotClassifier
    from self1e.training.trainer import Self1ETrainer

    done = out / "encoder.safetensors"
    if resume and done.is_file():
        model.load_state_dict(load_file(done), strict=False)  # the parts that the stage trained
        return
    steps = recipe.encoder_steps
    labels = parts.build_spot_labels(
        data,
        processor,
        length=steps * recipe.encoder_batch_size,
        seed=recipe.seed,
        photographs=recipe.encoder_photographs if data is not None else 0.0,
    )
    classifier = SpotClassifier(
        model,
        labels.words(),
        token_ids=lambda word: processor.tokenizer(f" {word}", add_special_tokens=False).input_ids,
    )
    arguments = _arguments(
        recipe,
        out,
        steps=steps,
        batch=recipe.encoder_batch_size,
        rate=recipe.encoder_learning_rate,
        save_steps=save_steps,
        decay_steps=steps // 2,
    )
    optimizer = _optimizer(classifier, arguments, recipe.encoder_matrix_learning_rate)
    trainer = Self1ETrainer(model=classifier, args=arguments, train_dataset=labels, optimizers=(optimizer, None))
    trainer.train(resume_from_checkpoint=True if resume else None)
    if not trainer.is_world_process_zero():
        return
    (out / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")
    trained = {id(parameter) for parameter in classifier.parameters()}
    save_file({name: tensor.detach() for name, tensor in model.named_parameters() if id(tensor) in trained}, done)


def _optimizer(model: Any, arguments: Any, matrix_learning_rate: float | None) -> Any:
    """Make Muon with AdamW, or leave AdamW to the trainer."""
    if matrix_learning_rate is None:
        return None
    from self1e.training.optimizers import MuonWithAdamW

    return MuonWithAdamW(
        model,
        learning_rate=arguments.learning_rate,
        matrix_learning_rate=matrix_learning_rate,
        weight_decay=arguments.weight_decay,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
    )


def _check_folder(recipe: TrainRecipe, out: Path, resume: bool) -> None:
    """Refuse to mix two runs in one folder."""
    has_checkpoints = any(out.glob("checkpoint-*")) or (out / "encoder").is_dir()
    if not has_checkpoints:
        return
    if not resume:
        raise SettingError(f"{out} holds the checkpoints of a run; empty it, choose another folder, or resume.")
    known = out / RECIPE
    if not known.is_file():
        return
    changed = differences(json.loads(known.read_text("utf-8")), recipe)
    # A longer or shorter run is the same run as long as its learning rate has not begun to fall (`decay_steps`).
    changed = [change for change in changed if not change.startswith("pictures:")]
    if changed:
        raise SettingError(
            f"{out} holds a run of another recipe ({'; '.join(changed)}); resuming would mix the two. "
            "Use the old settings, or another folder."
        )


def _arguments(
    recipe: TrainRecipe,
    out: Path,
    *,
    steps: int,
    batch: int,
    rate: float,
    save_steps: int,
    decay_steps: int | None = None,
) -> Any:
    import torch
    from transformers import TrainingArguments

    workers = process_count()
    return TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=batch // workers,
        max_steps=steps,
        learning_rate=rate,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        adam_beta2=recipe.adam_beta2,
        max_grad_norm=recipe.max_grad_norm,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={
            "num_decay_steps": recipe.decay_steps if decay_steps is None else decay_steps,
            "decay_type": "cosine",
        },
        bf16=recipe.bf16,
        use_cpu=not torch.cuda.is_available(),
        ddp_backend="gloo" if workers > 1 and not torch.cuda.is_available() else None,
        logging_steps=20,
        save_steps=save_steps,
        save_total_limit=2,
        dataloader_num_workers=1,
        remove_unused_columns=False,
        report_to=[],
        seed=recipe.seed,
    )
