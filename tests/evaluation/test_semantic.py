"""Semantic segmentation: METRICS 9.3, a naive second implementation, class lists, and labels from logits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from self1e.errors import DatasetError, SettingError
from self1e.evaluation.metrics.semantic import LABEL_SETS, SemanticIoU, label_map, label_set

ABC = ("a", "b", "c")


def test_golden_semantic():
    metric = SemanticIoU(ABC)
    truth = np.array([[0, 0, 0, 0, 1, 1, 1, 1, 255, 255]], np.uint8)
    prediction = np.array([[0, 0, 1, 2, 1, 1, 1, 0, 2, 1]], np.uint8)
    metric.update("x", prediction, truth)
    found = metric.result()
    assert metric.confusion(metric.rows)[:, :3].tolist() == [[2, 1, 1], [1, 3, 0], [0, 0, 0]]
    assert found["iou_of"] == pytest.approx({"a": 0.4, "b": 0.6, "c": 0.0})
    assert found["miou_cls"] == pytest.approx(0.5)
    assert found["miou_cls_mmseg"] == pytest.approx(1 / 3)
    assert (found["pacc"], found["macc"], found["fwiou"]) == pytest.approx((5 / 8, 5 / 8, 0.5))


def naive(pairs, count):
    """METRICS 4.3 with dictionaries, one pixel after another."""
    tp, gt, pr = ({c: 0 for c in range(count)} for _ in range(3))
    for prediction, truth in pairs:
        for p, t in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if t == 255:
                continue
            gt[t] += 1
            pr[p] += 1
            tp[t] += p == t
    union = {c: gt[c] + pr[c] - tp[c] for c in tp}
    d2 = [tp[c] / union[c] for c in tp if gt[c] and union[c]]
    mmseg = [tp[c] / union[c] for c in tp if union[c]]
    total = sum(gt.values())
    return {
        "miou_cls": sum(d2) / len(d2) if d2 else None,
        "miou_cls_mmseg": sum(mmseg) / len(mmseg) if mmseg else None,
        "fwiou": sum(gt[c] / total * tp[c] / union[c] for c in tp if gt[c]) if total else None,
        "macc": sum(tp[c] / gt[c] for c in tp if gt[c]) / len(d2) if d2 else None,
        "pacc": sum(tp.values()) / total if total else None,
    }


def naive_by_class(pairs, count):
    """The same with one pair of sets of places per class, the data set laid end to end."""
    prediction, truth = (np.concatenate([pair[k].ravel() for pair in pairs]) for k in range(2))
    real = set(np.flatnonzero(truth != 255).tolist())
    ious, in_truth = {}, set()
    for c in range(count):
        p, t = ({k for k in real if labels[k] == c} for labels in (prediction, truth))
        if p | t:
            ious[c] = len(p & t) / len(p | t)
        if t:
            in_truth.add(c)
    d2 = [ious[c] for c in in_truth]
    return {
        "miou_cls": sum(d2) / len(d2) if d2 else None,
        "miou_cls_mmseg": sum(ious.values()) / len(ious) if ious else None,
    }


def test_10000_random_label_maps_equal_two_naive_counters():
    rng = np.random.default_rng(0)
    differ = done = 0
    while done < 10_000:
        count, pictures = int(rng.integers(1, 7)), int(rng.integers(1, 20))
        pairs = []
        metric = SemanticIoU([f"class {k}" for k in range(count)])
        for k in range(pictures):
            shape = tuple(rng.integers(1, 6, 2))
            values = [*range(int(rng.integers(1, count + 1))), 255]  # some classes are never in the truth
            prediction = rng.integers(0, count, shape).astype(np.uint8)
            truth = rng.choice(np.array(values, np.uint8), shape)
            metric.update(k, prediction, truth)
            pairs.append((prediction, truth))
        found = metric.result()
        for name, value in [*naive(pairs, count).items(), *naive_by_class(pairs, count).items()]:
            assert found[name] == pytest.approx(value, abs=1e-12), name
        differ += found["miou_cls"] != found["miou_cls_mmseg"]
        done += pictures
    assert differ > 50


def test_ignored_pictures_and_failures():
    metric = SemanticIoU(ABC)
    metric.update("ignored", np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
    assert metric.result()["miou_cls"] is None
    truth = np.array([[0, 1]], np.uint8)
    metric.update("good", truth, truth)
    assert metric.result()["miou_cls"] == 1
    metric.update("failed", None, truth)
    found = metric.result()
    assert (found["miou_cls"], found["macc"], found["pacc"], found["failed"]) == (0.5, 0.5, 0.5, 1)


def test_255_is_a_class_of_pc_459():
    metric = SemanticIoU.of("pc-459")
    stored = np.array([[0, 1, 256, 459]], np.uint16)
    truth = LABEL_SETS["pc-459"].from_stored(stored)
    assert truth.dtype == np.uint16
    assert truth.tolist() == [[65535, 0, 255, 458]]
    metric.update("x", np.array([[7, 0, 255, 0]], np.uint16), truth)
    found = metric.result()
    assert found["iou_of"][metric.classes[255]] == 1
    assert found["iou_of"]["wool"] == 0
    assert found["pacc"] == 2 / 3
    with pytest.raises(SettingError, match="uint8, which cannot hold 459"):
        metric.update("y", np.zeros((1, 4), np.uint8), truth)
    with pytest.raises(DatasetError, match="read it as uint16"):
        LABEL_SETS["pc-459"].from_stored(np.zeros((1, 4), np.uint8))
    with pytest.raises(SettingError, match="ignore=255 is the label of class"):
        SemanticIoU(metric.classes)


def test_stored_truths_lose_their_background():
    for name in ("ade20k-150", "pc-59", "pas-20"):
        labels = LABEL_SETS[name].from_stored(np.array([[0, 1, 20, 255]], np.uint8))
        assert labels.dtype == np.uint8
        assert labels.tolist() == [[255, 0, 19, 255]]
    with pytest.raises(DatasetError, match=r"pas-20: the stored truth holds labels \[21\], expected 0 to 20"):
        LABEL_SETS["pas-20"].from_stored(np.array([[21]], np.uint8))


def test_class_lists_are_the_published_ones(conformance):
    lists = conformance / "class_lists"
    names = {"pc-59": "pascal_context_59", "pc-459": "pascal_context_459", "pas-20": "pascal_voc_20"}
    published = {name: (lists / f"{file}.txt").read_text("utf-8").split("\n") for name, file in names.items()}
    published["ade20k-150"] = json.loads((lists / "ade20k_classes.json").read_text("utf-8"))
    assert set(published) == set(LABEL_SETS)
    for name, classes in published.items():
        classes = [entry for entry in classes if entry]
        assert label_set(name, classes).classes == tuple(classes)
        assert len(classes) == int(name.split("-")[1])


def test_wrong_class_lists_are_refused():
    voc = label_set("pas-20").classes
    with pytest.raises(SettingError, match="21 classes were given, pas-20 has 20 and no background"):
        label_set("pas-20", ("background", *voc))
    with pytest.raises(SettingError, match="class 19 is 'tvmonitor', pas-20 has 'tv'"):
        label_set("pas-20", (*voc[:-1], "tvmonitor"))
    with pytest.raises(SettingError, match="Did you mean 'pc-59'"):
        label_set("pc59")
    with pytest.raises(SettingError, match="holds 'background'"):
        SemanticIoU(("background", "cat"))
    with pytest.raises(SettingError, match="different names"):
        SemanticIoU(("cat", "cat"))


@pytest.mark.parametrize(
    ("prediction", "truth", "error", "message"),
    [
        (np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), SettingError, r"\(2, 2\) but the truth \(2, 3\)"),
        (np.zeros((2, 2)), np.zeros((2, 2), np.uint8), SettingError, "float64, expected integer labels"),
        (np.full((2, 2), 3), np.zeros((2, 2), np.uint8), SettingError, "labels 3 to 3, expected 0 to 2"),
        (np.zeros((2, 2), int), np.full((2, 2), 7), DatasetError, r"labels \[7\], expected 0 to 2 or 255"),
    ],
)
def test_labels_that_cannot_be_counted(prediction, truth, error, message):
    with pytest.raises(error, match=message):
        SemanticIoU(ABC).update("x", prediction, truth)


def test_rows_of_another_class_list_are_refused():
    with pytest.raises(DatasetError, match="does not fit 3 classes"):
        SemanticIoU(ABC).add_row({"id": "x", "failed": False, "confusion": [[3, 0, 5]]})


def test_labels_are_the_highest_enlarged_logit():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 3, 5)).astype(np.float32)
    enlarged = F.interpolate(torch.from_numpy(logits)[None], size=(7, 11), mode="bilinear", align_corners=False)[0]
    expected = enlarged.argmax(dim=0).numpy()
    labels = label_map((scores for scores in logits), (11, 7), 4)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, expected)
    assert not np.array_equal(expected, np.repeat(expected[:1], 7, axis=0))


def test_ties_go_to_the_lower_class_and_the_best_name_counts():
    low, high = np.full((1, 1), -1.0), np.full((1, 1), 2.0)
    assert label_map([low, high, high], (1, 1), 3)[0, 0] == 1
    assert label_map([high, low, high], (1, 1), 2, class_of=[1, 0, 0])[0, 0] == 0  # whatever the order of queries
    assert label_map([low, low, high], (1, 1), 2, class_of=[0, 1, 0])[0, 0] == 0
    assert label_map([low] * 300, (1, 1), 300).dtype == np.uint16


def test_every_class_is_asked():
    one = np.zeros((1, 1))
    with pytest.raises(SettingError, match="2 of 3 classes were asked"):
        label_map([one, one], (1, 1), 3)
    with pytest.raises(SettingError, match="More than 1 logit maps"):
        label_map([one, one], (1, 1), 1)
    with pytest.raises(SettingError, match="not -inf"):
        label_map([one, -np.inf * np.ones((1, 1))], (1, 1), 2)
