"""Compiled stages and captured graphs: the same functions, with less time between their kernels.

`Compiled` hands a stage to ``torch.compile``, whole or not at all: a graph break is an error, and shapes are static, so
there is one graph per shape; `self1e.inference.layout.Buckets` keeps shapes few. `Captured` records what a function
launches on a CUDA device once per shape, and launches it again as one CUDA graph: with one picture and few queries a
large model would otherwise wait for Python between hundreds of small kernels.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from self1e.errors import SettingError

_SHAPES = 1024
"""Most graphs of one stage. Torch's own limit of 8 is meant for shapes that nobody rounds."""
_GRAPHS_KEPT = 16
_WARM_UPS = 2  # before a capture, so that libraries have chosen their kernels and compilers are done
_COMPILERS = ("c++", "g++", "clang++", "cl")


class Compiled:
    """A function of tensors, compiled once per shape.

    Args:
        function: Without a branch on what a tensor holds.
        backend: What ``torch.compile`` takes: ``"inductor"``; ``"eager"`` and ``"aot_eager"`` only trace.
    """

    def __init__(self, function: Callable[..., Any], backend: Any) -> None:
        self._run = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)

    def __call__(self, *inputs: Any) -> Any:
        import torch._dynamo.config as limits

        with limits.patch(recompile_limit=_SHAPES, accumulated_recompile_limit=8 * _SHAPES):  # type: ignore[attr-defined]
            return self._run(*inputs)


@dataclass(frozen=True, eq=False)
class _Graph:
    """What was recorded."""

    graph: Any
    places: Sequence[Tensor]
    """Where it reads its inputs."""
    results: Sequence[Tensor]
    """Where it writes."""
    function: Callable[..., Any]
    """Keeps alive what else it reads."""


class Captured:
    """Functions of tensors on a CUDA device, each launched as one CUDA graph per shape.

    Graphs share memory, so one runs at a time, and results are copied out of it.
    """

    def __init__(self) -> None:
        self._graphs: dict[Any, _Graph] = {}
        self._pool: Any = None
        self._lock = Lock()

    def __call__(self, name: Any, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run a function, or its recording.

        Args:
            name: Of the function and of all that it reads beside the inputs.
            function: Launches the same kernels for all inputs of one shape, and gives tensors.
            inputs: On a CUDA device.
        """
        assert all(x.device.type == "cuda" for x in inputs), "only CUDA devices have graphs"
        key = (name, *((x.shape, x.dtype) for x in inputs))
        with self._lock:
            found = self._graphs.pop(key, None) or self._capture(function, inputs)
            self._graphs[key] = found  # the most recently used is last
            while len(self._graphs) > _GRAPHS_KEPT:
                self._graphs.pop(next(iter(self._graphs)))
            for place, x in zip(found.places, inputs, strict=True):
                place.copy_(x, non_blocking=True)
            found.graph.replay()
            return [result.clone() for result in found.results]

    def _capture(self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> _Graph:
        places = [x.clone() for x in inputs]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                function(*places)
        torch.cuda.current_stream().wait_stream(aside)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = list(function(*places))
        return _Graph(graph, places, results, function)


def has_compiler() -> bool:
    """Tell whether there is a C++ compiler, which ``torch.compile`` needs on a CPU."""
    return any(shutil.which(name) for name in _compilers())


def _compilers() -> tuple[str, ...]:
    named = os.environ.get("CXX")
    return (named,) if named else _COMPILERS


def check_backend(backend: Any, device: torch.device) -> None:
    """Say what is missing before minutes are spent.

    Raises:
        SettingError: There is no such backend, or no compiler for what it writes.
    """
    if backend is None or callable(backend):
        return
    import torch._dynamo

    known = torch._dynamo.list_backends(exclude_tags=())
    if backend not in known:
        from self1e.errors import did_you_mean

        raise SettingError(
            f"backend={backend!r} is unknown.{did_you_mean(str(backend), known)} Known: {', '.join(sorted(known))}."
        )
    if backend == "inductor" and device.type == "cpu" and not has_compiler():
        raise SettingError(
            f"compile: torch.compile needs a C++ compiler on a CPU and found none (looked for "
            f"{', '.join(_compilers())}). Install g++, or load without compile=True."
        )
