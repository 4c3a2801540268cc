"""Strictness: one error that names everything which does not fit, and no pickles."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from self1e.errors import CheckpointError

HEAD = "mask_head."
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def refuse_pickles(path: Any, subfolder: str = "") -> None:
    """Raise for pickled weights, a file or a folder that has nothing else: loading a pickle runs whatever it contains.

    Args:
        path: A file, a folder, or a name on the hub (of which transformers downloads safetensors only).
        subfolder: Where in the folder.
    """
    place = Path(str(path)) / subfolder
    if place.is_file() and place.suffix in _PICKLES:
        pickles = [place.name]
    elif not place.is_dir() or any(place.glob("*.safetensors")):
        return
    else:
        pickles = sorted(file.name for file in place.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{place} holds pickled weights only ({', '.join(pickles)}); expected *.safetensors. Convert them where "
            "you trust them: safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')."
        )


def check_loaded(info: Mapping[str, Any], source: Any, *, new_mask_head: bool) -> None:
    """Raise one error for what transformers' loading report holds.

    Args:
        info: The report.
        source: Where the weights came from, for the message.
        new_mask_head: The checkpoint is a base model: the mask head, as a whole, may be missing.
    """
    missing = set(info["missing_keys"])
    if new_mask_head:
        missing = {name for name in missing if not name.startswith(HEAD)}
    misshapen = [f"{name} {tuple(was)} instead of {tuple(wanted)}" for name, was, wanted in info["mismatched_keys"]]
    raise_misfits(source, missing=missing, unexpected=info["unexpected_keys"], misshapen=misshapen)


def raise_misfits(source: Any, *, missing: Iterable[str], unexpected: Iterable[str], misshapen: Iterable[str]) -> None:
    """Raise one error that lists all of them; return if there is none.

    Raises:
        CheckpointError: With the hint that helps.
    """
    missing = set(missing)
    problems = [*_listed("missing", missing), *_listed("unexpected", unexpected), *_listed("misshapen", misshapen)]
    if not problems:
        return
    hint = "Use the config.json that belongs to the weights."
    if missing and all(name.startswith(HEAD) for name in missing):
        hint = "A base model has no mask head: pass new_mask_head=True to start one, e.g. for training."
    raise CheckpointError(f"The weights in {source} do not fit the model:\n" + "\n".join(problems) + f"\n{hint}")


def _listed(kind: str, names: Iterable[str]) -> list[str]:
    ordered = sorted(
        names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    )
    return [f"  {kind}: {name}" for name in ordered]
