"""cgF1: matching against all permutations, and the formulas worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from self1e.errors import DatasetError, SettingError
from self1e.evaluation.metrics.concepts import ConceptF1, best_pairs


def strip(left, right):
    mask = np.zeros((1, 100), bool)
    mask[0, left:right] = True
    return mask


def test_pairs_are_the_best_of_all_permutations():
    rng = np.random.default_rng(0)
    for _ in range(300):
        rows, columns = (int(n) for n in rng.integers(1, 6, 2))
        worth = np.where(rng.random((rows, columns)) < 0.4, 0.0, np.round(rng.random((rows, columns)), 1))
        pairs = best_pairs(worth)
        assert len({r for r, _ in pairs}) == len({c for _, c in pairs}) == len(pairs) == min(rows, columns)
        wide = worth if rows <= columns else worth.T
        best = max(
            sum(wide[k, c] for k, c in enumerate(p)) for p in itertools.permutations(range(wide.shape[1]), len(wide))
        )
        assert sum(worth[pair] for pair in pairs) == pytest.approx(best)
    assert best_pairs(np.zeros((0, 3))) == []


def test_taking_the_best_first_would_be_wrong():
    assert best_pairs(np.array([[0.9, 0.8], [0.85, 0.1]])) == [(0, 1), (1, 0)]


def test_cgf1_by_hand():
    metric = ConceptF1()
    # IoU 0.8 and 1; a third prediction is below the score, one of three true instances stays without
    metric.update("two of three", [strip(0, 8), strip(20, 30), strip(50, 60)], [0.9, 0.5, 0.49],
                  [strip(0, 10), strip(20, 30), strip(50, 60)])  # fmt: skip
    metric.update("one too many", [strip(0, 10), strip(40, 50)], [1, 1], [strip(0, 10)])
    metric.update("absent, kept silent", [strip(0, 10)], [0.2], [])
    metric.update("absent, false alarm", [strip(0, 10)], [0.7], [])
    found = metric.result()
    low, high = 2 * 3 / (4 + 4), 2 * 2 / (4 + 4)  # t up to 0.80: three hits; above: two
    assert found["pmf1"] == pytest.approx((7 * low + 3 * high) / 10)
    assert (found["pmf1@0.5"], found["pmf1@0.75"]) == (low, low)
    assert found["il_mcc"] == pytest.approx((2 * 1 - 1 * 0) / math.sqrt(3 * 2 * 2 * 1))
    assert found["cgf1"] == pytest.approx(found["pmf1"] * found["il_mcc"])


def test_a_model_that_never_rejects_gets_nothing():
    metric = ConceptF1()
    for k in range(6):
        metric.update(k, [strip(0, 10)], [1.0], [strip(0, 10)] if k % 2 else [])
    found = metric.result()
    assert (found["pmf1"], found["il_mcc"], found["cgf1"]) == (1, 0, 0)


def test_failures_are_wrong_on_both_sides():
    metric = ConceptF1()
    metric.update("there", None, [], [strip(0, 10)])
    metric.update("absent", None, [], [])
    found = metric.result()
    assert (found["failed"], found["cgf1"], found["il_mcc"]) == (2, 0, -1)
    assert ConceptF1().result()["cgf1"] is None


def test_what_cannot_be_counted():
    with pytest.raises(SettingError, match="1 scores for 2 masks"):
        ConceptF1().update("a", [strip(0, 1)] * 2, [1.0], [])
    with pytest.raises(SettingError, match="score is nan"):
        ConceptF1().update("a", [strip(0, 1)], [float("nan")], [])
    with pytest.raises(DatasetError, match="at most as many as either"):
        ConceptF1().add_row({"id": "a", "failed": False, "num_truth": 1, "num_predicted": 3, "ious": [1.0, 0.5]})
