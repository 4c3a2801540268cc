"""Which token comes next: greedily to the bit, or drawn, the same under a seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from self1e.errors import SettingError
from self1e.inference.choosing import Sampling

LOGITS = torch.tensor([1.0, 3.0, 2.0, 3.0, -torch.inf])


def drawn(sampling: Sampling, logits: torch.Tensor, count: int, forbidden: tuple[int, ...] = ()) -> np.ndarray:
    """Shares of each token among many draws."""
    draws = sampling.draws(0)
    found = [sampling.choose(logits, draws, forbidden) for _ in range(count)]
    return np.bincount(found, minlength=len(logits)) / count


def test_without_a_temperature_the_first_of_the_likeliest_is_taken():
    greedy = Sampling()
    draws = greedy.draws(0)
    assert [greedy.choose(LOGITS, draws) for _ in range(3)] == [1, 1, 1]
    assert greedy.choose(LOGITS, draws, [1]) == 3
    assert greedy.choose(LOGITS, draws, [1, 3, 99]) == 2
    assert LOGITS.tolist() == [1.0, 3.0, 2.0, 3.0, -torch.inf]  # what was passed stays as it was


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_shares_are_those_of_the_softmax(temperature):
    expected = (LOGITS.double() / temperature).softmax(0).numpy()
    found = drawn(Sampling(temperature=temperature, seed=0), LOGITS, 20_000)
    assert np.abs(found - expected).max() < 0.015  # four standard deviations of a share of a half
    assert found[4] == 0


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    for top_p, kept in [(0.4, {1}), (0.51, {1, 3}), (0.76, {1, 2, 3}), (1.0, {0, 1, 2, 3})]:
        found = drawn(Sampling(temperature=1.0, top_p=top_p, seed=3), logits, 2000)
        assert set(np.flatnonzero(found)) == kept
    assert found[1] == pytest.approx(0.5, abs=0.05)
    assert drawn(Sampling(temperature=1.0, top_p=0.4, seed=3), logits, 50, forbidden=(1,))[3] == 1


def test_extremes_are_no_numbers_that_are_none():
    nearly = Sampling(temperature=5e-324, seed=1)
    assert set(np.flatnonzero(drawn(nearly, LOGITS, 50))) == {1, 3}
    flat = drawn(Sampling(temperature=100, seed=1), LOGITS, 4000)
    assert np.abs(flat[:4] - 0.25).max() < 0.05
    assert drawn(Sampling(temperature=1.0, top_p=1e-12, seed=1), LOGITS, 20)[1] == 1
    half = drawn(Sampling(temperature=1.0, seed=1), torch.tensor([6e4, -6e4], dtype=torch.float16), 20)
    assert half.tolist() == [1, 0]


def test_a_seed_repeats_the_draws_of_a_turn_and_of_no_other():
    def run(seed, turn):
        sampling = Sampling(temperature=2.0, seed=seed)
        draws = sampling.draws(turn)
        return [sampling.choose(torch.zeros(50), draws) for _ in range(20)]

    assert run(7, 0) == run(7, 0) == run(np.int64(7), 0)
    assert len({tuple(run(seed, turn)) for seed in (7, 8, 2**63 - 1) for turn in (0, 1)}) == 6
    assert run(None, 0) != run(None, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1 must be from 0"),
        ({"temperature": float("nan")}, "temperature=nan must be a finite number"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"temperature": True}, "temperature=True"),
        ({"temperature": 101}, "temperature=101"),
        ({"temperature": 1.0, "top_p": 0}, "top_p=0 must be above 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p=1.5"),
        ({"temperature": 1.0, "top_p": None}, "top_p=None"),
        ({"top_p": 0.9}, "top_p=0.9 has no effect with temperature=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**63}, "seed=9223372036854775808"),
        ({"seed": 1.0}, "seed=1.0"),
        ({"seed": False}, "seed=False"),
    ],
)
def test_values_that_cannot_work_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        Sampling(**settings)
