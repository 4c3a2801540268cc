"""What holds for every metric: two processes equal one, rows survive JSON, and no sample counts twice."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from self1e.errors import DatasetError, SettingError
from self1e.evaluation.metrics import MaskIoU
from self1e.evaluation.metrics.choices import ROTATION, MMBench
from self1e.evaluation.metrics.concepts import ConceptF1
from self1e.evaluation.metrics.generalized import GeneralizedIoU
from self1e.evaluation.metrics.semantic import SemanticIoU
from self1e.evaluation.metrics.vqa import ExactMatch, Submitted, VqaAccuracy
from self1e.evaluation.metrics.yes_no import POPE_FILES, Mme, Pope
from self1e.evaluation.protocols import PROTOCOLS


def masks(rng):
    return rng.random((5, 7)) < 0.5, rng.random((5, 7)) < 0.5


def feed_masks(metric, k, rng):
    metric.update(k, *masks(rng), ignored=rng.random((5, 7)) < 0.2, score=float(rng.random()), group=str(k // 3))


def feed_gres(metric, k, rng):
    prediction, truth = masks(rng)
    prediction &= bool(rng.random() < 0.7)
    gt_nt = bool(rng.random() < 0.4)
    metric.update(
        k, prediction, truth & (not gt_nt), gt_nt=gt_nt, pred_nt=bool(rng.random() < 0.4), score=float(rng.random())
    )


def feed_labels(metric, k, rng):
    truth = rng.choice(np.array([0, 1, 3, 255], np.uint8), (4, 4))
    metric.update(k, rng.integers(0, 4, (4, 4)).astype(np.uint8) if k % 7 else None, truth)


def feed_concepts(metric, k, rng):
    metric.update(k, masks(rng), rng.random(2).tolist(), masks(rng)[: int(rng.integers(0, 3))])


def feed_vqa(metric, k, rng):
    words = ["a cat", "cat", "Dog.", "two", "2"]
    metric.update(
        k, str(rng.choice(words)), rng.choice(words, 10).tolist(), answer_type=str(rng.choice(["number", "other"]))
    )


def feed_gqa(metric, k, rng):
    metric.update(k, str(rng.choice(["Yes.", "no"])), "yes")


def feed_submitted(metric, k, rng):
    metric.update(k, str(rng.choice(["yes", "two"])), submitted={"question_id": k})


def feed_pope(metric, k, rng):
    metric.update(k, str(rng.choice(["Yes", "No", "hm"])), str(rng.choice(["yes", "no"])), file=POPE_FILES[k % 3])


def feed_mme(metric, k, rng):
    metric.update(k, str(rng.choice(["Yes", "No"])), "yes", task=["OCR", "count"][k % 2], image=str(k // 4))


def feed_mmbench(metric, k, rng):
    metric.update(
        k // 2 + k % 2 * ROTATION, str(rng.choice(["A", "B"])), "A", {"A": "x", "B": "y"}, category=str(k % 5)
    )


METRICS = {
    "MaskIoU": (MaskIoU, feed_masks),
    "MaskIoU, published": (lambda: MaskIoU(eps="lisa"), feed_masks),
    "GeneralizedIoU": (GeneralizedIoU, feed_gres),
    "GeneralizedIoU, gsva": (lambda: GeneralizedIoU("gsva"), feed_gres),
    "GeneralizedIoU, mask_empty": (lambda: GeneralizedIoU("mask_empty", empty_area=3), feed_gres),
    "SemanticIoU": (lambda: SemanticIoU(("a", "b", "c", "d")), feed_labels),
    "ConceptF1": (ConceptF1, feed_concepts),
    "VqaAccuracy": (VqaAccuracy, feed_vqa),
    "VqaAccuracy, official": (lambda: VqaAccuracy("official"), feed_vqa),
    "ExactMatch": (ExactMatch, feed_gqa),
    "Submitted": (Submitted, feed_submitted),
    "Pope": (Pope, feed_pope),
    "Mme": (Mme, feed_mme),
    "MMBench": (MMBench, feed_mmbench),
}


@pytest.fixture(params=METRICS, name="made")
def made_fixture(request):
    """A way to make the metric, and one that has counted 40 samples."""
    make, feed = METRICS[request.param]
    metric = make()
    rng = np.random.default_rng(3)
    for k in range(40):
        feed(metric, k, rng)
    return make, metric


def test_every_protocol_is_tested_here():
    kinds = {make().__class__ for make, _ in METRICS.values()}
    assert {type(entry.metric()) for entry in PROTOCOLS.values()} <= kinds


def test_two_processes_equal_one(made):
    make, whole = made
    rows = whole.rows
    random.Random(0).shuffle(rows)
    first, second = make().add_rows(rows[:13]), make().add_rows(rows[13:])
    first.merge(second)
    assert first.result() == whole.result()
    assert first.rows == whole.rows
    assert whole.result()["samples"] == 40


def test_a_dump_recomputes_the_figures(made):
    make, metric = made
    lines = [json.dumps(row, allow_nan=False) for row in metric.rows]
    assert make().add_rows(json.loads(line) for line in reversed(lines)).result() == metric.result()
    json.dumps(metric.result(), allow_nan=False)


def test_figures_depend_on_the_rows(made):
    make, metric = made
    figures = {name: value for name, value in metric.result().items() if isinstance(value, float)}
    if isinstance(metric, Submitted):  # its truth lies with a server
        assert not figures
        return
    assert figures
    some = [row for row in metric.rows if int(row["id"]) % ROTATION < 8]  # no pair and no rotation is torn apart
    assert {name: metric.figures(some).get(name) for name in figures} != figures
    if "prediction" in metric.required:  # rows of the others hold counts that a failure would change
        assert make().add_rows(row | {"failed": True} for row in metric.rows).result() != metric.result()


def test_an_empty_metric_has_no_figures(made):
    make, _ = made
    found = make().result()
    assert (found["samples"], found["failed"]) == (0, 0)
    assert not any(isinstance(value, float) for value in found.values())


def test_no_sample_counts_twice(made):
    make, metric = made
    with pytest.raises(DatasetError, match="was counted before"):
        metric.add_row(metric.rows[0])
    other = make().add_rows(metric.rows[:1])
    with pytest.raises(DatasetError, match="sampler that does not pad"):
        metric.merge(other)


def test_other_rules_do_not_merge():
    with pytest.raises(SettingError, match=r"MaskIoU\({'eps': 'lisa'}\) cannot be merged into MaskIoU"):
        MaskIoU().merge(MaskIoU(eps="lisa"))
    with pytest.raises(SettingError, match="cannot be merged"):
        Mme().merge(Pope())


def test_part_of_a_benchmark_is_said():
    metric = MaskIoU()
    metric.update("a", *masks(np.random.default_rng(0)))
    metric.check_complete(1)
    metric.check_complete({"a"})
    with pytest.raises(DatasetError, match="1 samples were counted, expected 10834"):
        metric.check_complete(10_834)
    with pytest.raises(DatasetError, match=r"1 of 2 samples are missing, e.g. 'b'"):
        metric.check_complete({"a", "b"})
    with pytest.raises(DatasetError, match=r"1 of 0 samples are unknown, e.g. 'a'"):
        metric.check_complete(set())
