"""What tests of several folders call; fixtures are in conftest.py."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

STAND_IN = """
import numpy as np
from self1e.structures import Segmentation

class StandIn:
    name, dtype = "stand-in", "float32"

    def segment(self, picture, queries, **settings):
        grey = np.asarray(picture.image.convert("L"))
        masks = [grey > 60 * (k + 1) for k in range(len(queries))]
        scores = [mask.mean() for mask in masks]
        return Segmentation.from_masks(masks, scores, queries, image=picture.image, source=picture.source)
"""
"""A model that needs no torch, which takes processes many seconds to import."""


HOLD = """
import sys, time
from pathlib import Path
from self1e.locking import only_run

with only_run(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(300)
"""


@contextmanager
def another_run_in(folder: Path) -> Iterator[None]:
    """Have another process run in a folder until the block ends; then it is killed."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "in\n"
            yield
        finally:
            other.kill()


def load_script(name: str, folder: str = "scripts") -> ModuleType:
    """Import a file that is in no package."""
    path = Path(__file__).parents[1] / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def in_float64(model: Any) -> Any:
    """Make RMS norms compute in float64 too: the library's work in float32, whatever the weights are."""
    for module in model.double().modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, m=module: (
                m.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + m.variance_epsilon))
            )
    return model


def draw_levels(tiles: int) -> Tensor:
    """Bytes of random tiles, ``(tiles, 3, 16, 16)``."""
    return torch.randint(0, 256, (tiles, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
