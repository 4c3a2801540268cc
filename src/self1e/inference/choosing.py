"""Which token comes next: the likeliest, or one drawn by its probability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from self1e.errors import SettingError

MOST_TEMPERATURE = 100.0
"""Far beyond any use: all tokens are equally likely there."""
MOST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer's tokens are chosen; greedily unless there is a temperature.

    Raises:
        SettingError: A value cannot work, or would have no effect.
    """

    temperature: float = 0.0
    """Logits are divided by it; 0 takes the likeliest token, always."""
    top_p: float = 1.0
    """Draw from the fewest tokens that together have this probability."""
    seed: int | None = None
    """Of the draws: the same seed at the same turn of the same conversation gives the same answer. None: any."""

    def __post_init__(self) -> None:
        temperature = _number("temperature", self.temperature)
        if not 0 <= temperature <= MOST_TEMPERATURE:
            raise SettingError(f"temperature={self.temperature!r} must be from 0 (greedy) to {MOST_TEMPERATURE:g}.")
        if not 0 < _number("top_p", self.top_p) <= 1:
            raise SettingError(f"top_p={self.top_p!r} must be above 0 and at most 1 (all tokens).")
        if temperature == 0 and self.top_p < 1:
            raise SettingError(f"top_p={self.top_p!r} has no effect with temperature=0 (greedy): set a temperature.")
        seed = self.seed
        if seed is not None and (
            not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= int(seed) <= MOST_SEED
        ):
            raise SettingError(f"seed={seed!r} must be a whole number from 0 to {MOST_SEED}, or None.")
        plain = {"temperature": temperature, "top_p": float(self.top_p), "seed": None if seed is None else int(seed)}
        for name, value in plain.items():  # NumPy's numbers cannot be written as JSON
            object.__setattr__(self, name, value)

    def draws(self, turn: int) -> np.random.Generator:
        """Return where the draws of a turn come from.

        Args:
            turn: Its number: turns of one conversation must not repeat each other's draws.
        """
        return np.random.default_rng(None if self.seed is None else [self.seed, turn])

    def choose(self, logits: Tensor, draws: np.random.Generator, forbidden: Sequence[int] = ()) -> int:
        """Choose a token.

        Args:
            logits: Of the whole vocabulary, ``(V,)``.
            draws: From `draws`; not used if greedy.
            forbidden: Tokens that it cannot be; those beyond the vocabulary cannot be anyway.
        """
        allowed = logits.clone()
        allowed[[token for token in forbidden if token < len(allowed)]] = -torch.inf
        if self.temperature == 0:
            return int(allowed.argmax())
        scores = allowed.cpu().double().numpy()  # from here on alike on every device
        with np.errstate(over="ignore"):  # what is so unlikely that it overflows is impossible
            weights = np.exp((scores - scores.max()) / self.temperature)
        order = np.argsort(-weights, kind="stable")
        shares = np.cumsum(weights[order])
        kept = int(np.searchsorted(shares, self.top_p * shares[-1])) + 1
        drawn = int(np.searchsorted(shares[:kept], draws.random() * shares[kept - 1], side="right"))
        return int(order[min(drawn, kept - 1)])  # a product that is rounded up would be one too far


def _number(name: str, value: object) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise SettingError(f"{name}={value!r} must be a finite number.")
    return float(value)
