"""Before a run starts: what memory and time it will take, and the nearest settings that fit.

Weights, gradients and optimiser states are counted exactly, on a model without memory. Activations are an estimate:
what each layer keeps for the backward pass, by its widths. Time is products needed over products per second, which are
measured on the device in a fraction of a second.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from self1e.inference.info import mask_side
from self1e.model import Self1EForConditionalGeneration
from self1e.training.adapters import attach_adapters, count_parameters
from self1e.training.recipes.settings import Recipe

QUERIES = 3
"""Rows per picture, as published at most."""
WORDS = 80
"""Tokens of a row that are not the picture's."""
LABELLED = 12
"""Tokens of a row that have a label."""
UTILISATION = 0.4
"""Share of a matrix product's speed that a whole step reaches; a guess that errs on the slow side."""
RESERVE = 0.92
"""Of the free memory, what may be planned: allocators waste some."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes per process, and time."""

    trained: int
    """Parameters that learn."""
    frozen: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """An estimate; the rest is exact."""
    flops: float
    """Per step and process."""

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def seconds(self, flops_per_second: float) -> float:
        """Estimate one step."""
        return self.flops / (flops_per_second * UTILISATION)


def plan(recipe: Recipe, config: Any, *, workers: int = 1, shards: int = 1) -> Estimate:
    """Estimate a run without loading anything.

    Args:
        recipe: Of the run.
        config: Of the base model, with the recipe's switches.
        workers: Processes that train.
        shards: Processes over which weights, gradients and states are divided (FSDP, ZeRO-3).
    """
    model = planned_model(recipe, config)
    return estimate(model, recipe, workers=workers, shards=shards)


def planned_model(recipe: Recipe, config: Any) -> Self1EForConditionalGeneration:
    """Make the model of a recipe without memory, with what is trained marked."""
    with torch.device("meta"):
        model = Self1EForConditionalGeneration(copy.deepcopy(config))
        return attach_adapters(model, recipe.adapters, frozen_dtype=getattr(torch, recipe.model.frozen_dtype))


def estimate(model: torch.nn.Module, recipe: Recipe, *, workers: int = 1, shards: int = 1) -> Estimate:
    """Estimate a run of a model that is there, or planned."""
    counts = count_parameters(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    states = 2 * gradients + 4 * len(trained)  # two moments, and the number of steps in float32
    activations, forward = _activations(model, recipe)
    # Forward 1, gradient of activations 1, of weights 1 (behind a frozen weight there is none), the layers once more 1.
    passes = 2 + (counts["trained"] > counts["frozen"]) + recipe.optim.gradient_checkpointing
    return Estimate(
        trained=counts["trained"],
        frozen=counts["frozen"],
        weights=weights // shards,
        gradients=gradients // shards,
        optimizer=states // shards,
        activations=activations,
        flops=forward * passes * recipe.optim.accumulation(workers),
    )


def _activations(model: Any, recipe: Recipe) -> tuple[int, float]:
    """Bytes kept for the backward pass of one micro-batch, and operations of its forward pass."""
    config, optim = model.config, recipe.optim
    text, vision = config.text_config, config.vision_config
    size = 2 if optim.bf16 else 4
    tiles, rows = optim.micro_batch * recipe.data.max_tiles, optim.micro_batch * QUERIES
    patches = config.patches_per_side**2
    row = recipe.data.max_tiles * config.image_seq_length + WORDS
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = (text.num_attention_heads + 2 * text.num_key_value_heads) * head_dim
    lora = recipe.adapters.language == "lora", recipe.adapters.vision == "lora"
    layer = _layer_bytes(text.hidden_size, text.intermediate_size, heads, 3, size, has_lora=lora[0])
    eye = _layer_bytes(vision.hidden_size, vision.intermediate_size, 3 * vision.hidden_size, 2, size, has_lora=lora[1])
    scores = 4 * row * row * (text.num_attention_heads if recipe.model.kernel == "eager" else 1)
    layer, eye = layer * row * rows + scores * rows, eye * (patches + 1) * tiles
    kept = 4 * text.hidden_size * row * rows, 4 * vision.hidden_size * (patches + 1) * tiles
    if optim.gradient_checkpointing:
        towers = text.num_hidden_layers * kept[0] + vision.num_hidden_layers * kept[1] + max(layer, eye)
    else:
        towers = text.num_hidden_layers * layer + vision.num_hidden_layers * eye
    fine = mask_side(config) ** 2 * recipe.data.max_tiles
    head = size * fine * text.hidden_size * (6 * rows + 3 * optim.micro_batch)
    words = 3 * 4 * LABELLED * rows * text.vocab_size
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    copies = 2 * trained if optim.bf16 else 0  # autocast keeps a bfloat16 copy of what it has cast
    tokens = row * rows
    language = sum(p.numel() for n, p in model.named_parameters() if n.startswith("model.language_model.layers"))
    encoder = sum(p.numel() for n, p in model.named_parameters() if n.startswith("model.vision_tower"))
    heads_flops = 2 * fine * rows * 2 * text.hidden_size**2 + 2 * 5 * fine * optim.micro_batch * text.hidden_size**2
    forward = 2.0 * (language * tokens + encoder * (patches + 1) * tiles) + heads_flops
    return int(towers + head + words + copies), forward


def _layer_bytes(width: int, inner: int, heads: int, matrices: int, size: int, *, has_lora: bool) -> int:
    """Bytes that one layer keeps per token: norms and residuals in float32, products in ``size`` bytes."""
    kept = 4 * 4 * width + size * (heads + 2 * width + (matrices + 1) * inner)
    if has_lora:  # each adapter keeps its input after dropout, and where it dropped
        kept += (size + 1) * (5 * width + inner)
    return kept


def nearest_that_fits(
    recipe: Recipe, config: Any, free: int, *, workers: int = 1, shards: int = 1
) -> tuple[str, ...] | None:
    """Find the smallest change that makes a run fit.

    Args:
        recipe: Does not fit.
        config: See `plan`.
        free: Bytes.
        workers: Processes that train.
        shards: See `plan`.

    Returns:
        Settings for ``--set``; None if nothing that is tried fits.
    """
    for changes, candidate in _candidates(recipe, workers):
        if plan(candidate, config, workers=workers, shards=shards).total <= free * RESERVE:
            return changes
    return None


def _candidates(recipe: Recipe, workers: int) -> Iterator[tuple[tuple[str, ...], Recipe]]:
    """Milder changes first: they keep what is computed, up to the order of sums; a lower rank does not."""
    share = recipe.optim.global_batch // workers
    sizes = [n for n in range(recipe.optim.micro_batch, 0, -1) if share % n == 0]
    own = recipe.adapters.rank
    ranks = [own, *(own >> halving for halving in range(1, 5) if own >> halving >= 4)]
    for rank in ranks:
        for checkpointing in dict.fromkeys((recipe.optim.gradient_checkpointing, True)):
            for micro_batch in sizes:
                optim = replace(recipe.optim, gradient_checkpointing=checkpointing, micro_batch=micro_batch)
                candidate = replace(recipe, optim=optim, adapters=replace(recipe.adapters, rank=rank))
                changes = []
                if checkpointing != recipe.optim.gradient_checkpointing:
                    changes.append("optim.gradient_checkpointing=true")
                if micro_batch != recipe.optim.micro_batch:
                    changes.append(f"optim.micro_batch={micro_batch}")
                if rank != recipe.adapters.rank:
                    changes.append(f"adapters.rank={rank}")
                if changes:
                    yield tuple(changes), candidate


def measure_speed(device: torch.device, *, bf16: bool, seconds: float = 0.2) -> float:
    """Multiply matrices for a moment, and return the operations per second of this device."""
    side = 4096 if device.type == "cuda" else 512
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    _ = matrix @ matrix
    _wait(device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        _ = matrix @ matrix
        _wait(device)
        count += 1
    return count * 2 * side**3 / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def describe(found: Estimate, recipe: Recipe, *, steps: int, workers: int, free: int, speed: float) -> str:
    """Tell an estimate in a few lines."""
    seconds = found.seconds(speed)
    parts = ("weights", "gradients", "optimizer", "activations")
    memory = ", ".join(f"{name} {size_text(getattr(found, name))}" for name in parts)
    optim = recipe.optim
    return "\n".join(
        [
            f"{found.trained / 1e6:,.1f} M parameters learn, {found.frozen / 1e6:,.1f} M do not",
            f"memory per process: about {size_text(found.total)} ({memory}); free: {size_text(free)}",
            f"steps: {steps:,} of {optim.global_batch} pictures ({workers} x {optim.accumulation(workers)} x "
            f"{optim.micro_batch}: processes x accumulation x micro-batch)",
            f"time: about {time_text(seconds)} per step, {time_text(seconds * steps)} in all (rough)",
        ]
    )


def size_text(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def time_text(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
