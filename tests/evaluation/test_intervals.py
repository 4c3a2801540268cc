"""Bootstrap: against closed forms, seeded, paired."""

from __future__ import annotations

import numpy as np
import pytest

from self1e.errors import SettingError
from self1e.evaluation.intervals import Interval, difference, interval, interval_of, intervals, intervals_of
from self1e.evaluation.metrics import MaskIoU
from self1e.evaluation.metrics.concepts import ConceptF1
from self1e.evaluation.metrics.rows import ratio
from self1e.evaluation.metrics.semantic import SemanticIoU
from self1e.evaluation.metrics.yes_no import COGNITION, Mme


def figure(values, denominators=None, groups=None):
    rows = [{"id": f"{k:05d}", "group": None if groups is None else str(groups[k])} for k in range(len(values))]
    return ratio(rows, values, denominators)


def test_the_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).random(400)
    found = interval(figure(values), resamples=4000)
    error = values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    narrow = interval(figure(values), level=0.5)
    assert found.low < narrow.low < narrow.high < found.high


def test_it_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for k in range(100):
        union = rng.integers(50, 1000, 60)
        found = interval(figure(rng.binomial(union, 0.4), union), resamples=200, seed=k)
        hits += found.low <= 0.4 <= found.high
    assert 88 <= hits <= 99


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random(50)
    assert interval(figure(values), seed=5) == interval(figure(values), seed=5)
    assert interval(figure(values), seed=5) != interval(figure(values), seed=6)


def test_large_sets_are_drawn_in_parts():
    values = np.random.default_rng(0).random(30_000)
    found = interval(figure(values), resamples=100)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 30_000**0.5, rel=0.4)


def test_sentences_of_one_picture_are_not_independent():
    pictures = np.random.default_rng(0).random(40)
    values, groups = np.repeat(pictures, 10), np.repeat(np.arange(40), 10)
    alone, together = interval(figure(values, groups=groups)), interval(figure(values, groups=groups), by_group=True)
    assert (alone.units, together.units) == (400, 40)
    assert together.value == alone.value
    assert together.high - together.low == pytest.approx((alone.high - alone.low) * 10**0.5, rel=0.1)


def test_a_paired_difference_is_surer_than_either_figure():
    rng = np.random.default_rng(0)
    hard = rng.random(300)
    first, second = figure(hard + 0.02 + 0.01 * rng.random(300)), figure(hard)
    found = difference(first, second)
    assert 0.02 < found.low < found.value < found.high < 0.03
    alone = interval(first)
    assert found.high - found.low < (alone.high - alone.low) / 5
    swapped = difference(second, first)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    assert difference(first, first).low == difference(first, first).high == 0


def test_pairs_are_matched_by_name():
    values = np.arange(20) / 20
    rows = [{"id": str(k)} for k in range(20)]
    forward, backward = ratio(rows, values), ratio(rows[::-1], values[::-1])
    found = difference(forward, backward)
    assert (found.low, found.high) == (0, 0)
    with pytest.raises(SettingError, match="20 and 19 samples; 1 are only in one"):
        difference(forward, ratio(rows[:-1], values[:-1]))


def test_every_figure_of_a_metric():
    rng = np.random.default_rng(0)
    metric = MaskIoU()
    for k in range(60):
        truth = rng.random((8, 8)) < 0.5
        metric.update(k, truth ^ (rng.random((8, 8)) < 0.2), truth)
    found = intervals(metric, resamples=500)
    assert set(found) >= {"ciou", "giou", "pr@0.5"}
    for name in ("ciou", "giou"):
        assert found[name].low < found[name].value == metric.result()[name] < found[name].high
    assert str(found["ciou"]).startswith(f"{100 * metric.ciou:.2f} [")
    assert interval_of(metric, "ciou", resamples=500) == found["ciou"]


def test_figures_that_are_no_ratio():
    rng = np.random.default_rng(0)
    semantic, concepts, mme = SemanticIoU(("a", "b")), ConceptF1(), Mme()
    for k in range(30):
        truth = rng.integers(0, 2, (4, 4))
        semantic.update(k, np.where(rng.random((4, 4)) < 0.3, 0, truth), truth)
        mask = np.ones((1, 4), bool)
        predicted, true = (rng.random(2) < 0.6).astype(int).tolist()
        concepts.update(k, [mask] * predicted, [1.0] * predicted, [mask] * true)
        for task in COGNITION:
            for j in range(2):
                mme.update(f"{task}{k}{j}", str(rng.choice(["yes", "no"])), "yes", task=task, image=str(k))
    found = interval_of(semantic, "miou_cls", resamples=100)
    assert found.low < found.value == semantic.result()["miou_cls"] < found.high
    found = interval_of(concepts, "cgf1", resamples=100)
    assert found.low < found.value == concepts.result()["cgf1"] < found.high
    found = interval_of(mme, "cognition", resamples=50)
    assert found.low < found.value == mme.result()["cognition"] < found.high
    with pytest.raises(SettingError, match="has no figure 'miou'; it has miou_cls"):
        interval_of(semantic, "miou")


def test_figures_drawn_together_have_the_intervals_of_each():
    rng = np.random.default_rng(3)
    metric = SemanticIoU(("a", "b", "c"))
    for k in range(7):
        metric.update(k, rng.integers(0, 3, (4, 5)).astype(np.uint8), rng.integers(0, 3, (4, 5)).astype(np.uint8))
    names = ["miou_cls", "macc", "pacc"]
    together = intervals_of(metric, names, resamples=50)
    assert list(together) == names
    for name in names:
        assert together[name] == interval_of(metric, name, resamples=50)
    assert len({found.low for found in together.values()}) == 3
    with pytest.raises(SettingError, match="has no figure 'iou'; it has miou_cls"):
        intervals_of(metric, ["macc", "iou"], resamples=2)


def test_a_single_picture_has_no_interval():
    """Drawn again and again it gives itself: a width of 0 would look like certainty."""
    alone = figure([0.5])
    assert interval(alone) == Interval(0.5, None, None, 1)
    assert str(interval(alone)) == "50.00"
    assert interval(figure([0.5, 1.0], groups=[7, 7]), by_group=True) == Interval(0.75, None, None, 1)
    assert difference(alone, alone) == Interval(0.0, None, None, 1)
    semantic = SemanticIoU(("a", "b"))
    semantic.update("0", np.array([[0, 1]]), np.array([[0, 0]]))
    assert interval_of(semantic, "miou_cls") == Interval(0.5, None, None, 1)
    mme = Mme()
    for task in COGNITION:
        for j in range(2):
            mme.update(f"{task}{j}", "yes", "yes", task=task, image="0")
    assert interval_of(mme, "cognition").low is not None  # a picture per task


def test_nothing_has_no_interval():
    found = interval(figure([]))
    assert (found.value, found.low, found.high, str(found)) == (None, None, None, "-")
    assert interval(figure([0, 0], [0, 0])).low is None
    assert interval_of(ConceptF1(), "cgf1").value is None
    with pytest.raises(SettingError, match="level=95"):
        interval(figure([1.0]), level=95)
