"""From a run or a checkpoint in training to a plain model that everything loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from self1e.configuration import Self1EConfig
from self1e.errors import CheckpointError, SettingError
from self1e.files import check_is_new, new_folder
from self1e.inference.loading import reading
from self1e.model.checkpoints.adapters import read_scale
from self1e.model.checkpoints.files import read_tensors
from self1e.processing.processor import Self1EProcessor
from self1e.training import checkpointing
from self1e.training.adapters import merged_tensors, plain_model
from self1e.training.card import write_card

_LORA_A = ".lora_A.default.weight"


def merge_checkpoint(source: Path, target: Path, *, dtype: torch.dtype | None = torch.bfloat16) -> Path:
    """Merge the adapters of a checkpoint and write a complete model folder with its card.

    Args:
        source: ``checkpoint-N``, any folder with a model, or the folder of a run, whose newest checkpoint is taken.
        target: The folder to make; must not exist, or be empty.
        dtype: Of the weights; None keeps theirs.

    Raises:
        SettingError: ``target`` holds something already.
        CheckpointError: There is no checkpoint, or it is damaged.
    """
    check_is_new(target)
    folder = find_checkpoint(source)
    with reading(str(folder)):
        config: Any = Self1EConfig.from_pretrained(folder)
        processor = Self1EProcessor.from_pretrained(folder)
        stored = read_tensors(folder)
    ranks = {len(tensor) for name, tensor in stored.items() if name.endswith(_LORA_A)}
    if len(ranks) > 1:
        raise CheckpointError(f"{folder}: adapters of ranks {sorted(ranks)}; expected one rank.")
    scale = read_scale(folder, ranks.pop()) if ranks else 1.0
    tensors = merged_tensors(stored, scale=scale, seg_token_id=config.seg_token_id)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    model = plain_model(config, tensors)
    with new_folder(target) as written:
        model.save_pretrained(written)
        processor.save_pretrained(written)
        write_card(written, folder)
    return target


def find_checkpoint(source: Path) -> Path:
    """Find what to merge: the folder itself if it is a model, else the newest whole checkpoint of a run."""
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such folder; expected a run, or one of its checkpoints.")
    if (source / "config.json").is_file():
        if (source / checkpointing.MANIFEST).is_file():
            checkpointing.check(source)
        return source
    found = checkpointing.last_checkpoint(source)
    if found is None:
        raise CheckpointError(
            f"{source}: holds neither config.json nor a checkpoint-N; expected a run or a checkpoint."
        )
    return found


def push(folder: Path, name: str) -> str:
    """Upload a complete model folder to the Hugging Face hub, with its card.

    Args:
        folder: With a merged model.
        name: ``owner/model``.

    Returns:
        The address of the repository.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if name.count("/") != 1:
        raise SettingError(f"--push {name!r}: expected owner/model.")
    hub = HfApi()
    try:
        address = hub.create_repo(name, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Model of self1e")
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{name} could not be uploaded ({' '.join(str(error).split())}); the model is in {folder}. `hf auth login` "
            "signs in; run `self1e merge` on that folder again with --push, or upload it by hand."
        ) from error
    return str(address)
