"""What tells models apart by their numbers: some of each tensor, for every digest that is made of weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def sampled_weights(model: Any, most: int) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    """Yield name, shape and evenly spread numbers of every tensor, by name.

    Training changes nearly all numbers of a tensor, and reading all of a large model's takes longer than loading it.

    Args:
        model: A ``Self1E``.
        most: Numbers per tensor, about; they come as the bytes of float32.
    """
    import torch

    for name, tensor in sorted(model.model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        numbers = flat[:: max(1, flat.numel() // most)].to("cpu", torch.float32)
        yield name, tuple(tensor.shape), numbers.numpy().tobytes()
