"""Memory that a step on a CPU has freed goes back to the system while the step still runs."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from self1e.inference import memory
from self1e.model import Self1EForConditionalGeneration

FEWEST_PARAMETERS = 100_000_000
"""A smaller model takes little memory, and its steps are too short to look for more."""


def release_between_towers(model: Self1EForConditionalGeneration, device: torch.device) -> list[RemovableHandle]:
    """Let each step in training give freed memory back after vision, after language, and on the way back between them.

    With activation checkpointing little of what a layer computes is kept, yet glibc's heap grew by 17 to 20 MB with
    each layer of InternVL3-1B, of which 2 MB were in use (docs/log.md). Numbers do not change. CUDA has an allocator
    of its own: there, and for models of fewer than `FEWEST_PARAMETERS`, nothing happens.

    Args:
        model: To be trained; it may still lie elsewhere.
        device: Where it will be trained.

    Returns:
        Handles of the hooks, whose ``remove`` ends it.
    """
    if device.type != "cpu" or model.num_parameters() < FEWEST_PARAMETERS:
        return []
    language = model.model.language_model
    return [
        model.model.vision_tower.register_forward_hook(_release_after),
        language.register_forward_pre_hook(_release_on_the_way_back, with_kwargs=True),
        language.register_forward_hook(_release_after),
    ]


def _release(*gradient: Any) -> None:
    memory.release(torch.device("cpu"))


def _release_after(*call: Any) -> None:
    if torch.is_grad_enabled():  # not while it only answers
        _release()


def _release_on_the_way_back(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    embeddings = kwargs.get("inputs_embeds")
    if embeddings is not None and embeddings.requires_grad:
        embeddings.register_hook(_release)
