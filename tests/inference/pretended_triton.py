"""As much of Triton as our kernel uses, in plain torch, one program after the other.

Triton has no build for every system; this checks a kernel's arithmetic, places and edges everywhere. What it cannot
check: types that Triton infers, and what its compiler makes of them.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_programs: list[int] = []


class Pointer:
    """Memory from a place on, or from many."""

    def __init__(self, memory: Tensor, place: Any = 0) -> None:
        self.memory, self.place = memory, place

    def __add__(self, step: Any) -> Pointer:
        return Pointer(self.memory, self.place + step)


def _load(pointer: Pointer, mask: Tensor | None = None, other: float = 0.0) -> Tensor:
    place = torch.as_tensor(pointer.place)
    if mask is None:
        return pointer.memory[place]
    mask = mask.expand(place.shape)
    return torch.where(mask, pointer.memory[torch.where(mask, place, 0)], other)


def _store(pointer: Pointer, values: Tensor, mask: Tensor) -> None:
    pointer.memory[pointer.place[mask]] = values[mask]


class _Kernel:
    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            # A view of each tensor: what the kernel writes is written there.
            given = [Pointer(x.view(-1)) if isinstance(x, Tensor) else x for x in arguments]
            for programs in itertools.product(*map(range, grid)):
                _programs[:] = programs
                self._function(*given, **constants)

        return launch


@contextmanager
def pretended() -> Iterator[None]:
    """Let ``import triton`` find this."""
    triton: Any = ModuleType("triton")
    language: Any = ModuleType("triton.language")
    triton.language = language
    triton.jit = _Kernel
    triton.cdiv = lambda a, b: -(-a // b)
    language.constexpr = int
    language.float32, language.int32, language.int64 = torch.float32, torch.int32, torch.int64
    language.program_id = lambda axis: torch.tensor(_programs[axis])
    language.arange = torch.arange
    language.zeros = lambda shape, dtype: torch.zeros(shape, dtype=dtype)
    language.maximum = lambda x, least: x.clamp(min=least)
    language.minimum = lambda x, most: x.clamp(max=most)
    language.sum = lambda x, axis: x.sum(axis)
    language.math = ModuleType("triton.language.math")
    language.math.erf = torch.erf
    language.load, language.store = _load, _store
    names = {"triton": triton, "triton.language": language}
    own = "self1e.inference.epilogue_triton"
    before = {name: sys.modules.pop(name, None) for name in (*names, own)}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
