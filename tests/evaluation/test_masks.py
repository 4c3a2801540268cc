"""Mask metrics: METRICS' golden vectors, and 10,000 random cases against pycocotools and two naive counters."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pycocotools import mask as coco

from self1e.errors import DatasetError, SettingError
from self1e.evaluation.metrics import MaskIoU, box_iou, intersection_union, mask_box, mask_row, split_truth
from self1e.evaluation.metrics.generalized import GeneralizedIoU, rejection_curve

CASES = 10_000


def masks_with(*, both: int, only_p: int = 0, only_g: int = 0):
    """A row of pixels with so many in both, in P alone, in G alone, and one in neither."""
    p = np.array([[True] * both + [True] * only_p + [False] * only_g + [False]])
    g = np.array([[True] * both + [False] * only_p + [True] * only_g + [False]])
    return p, g


def of_counts(intersection, union):
    return masks_with(both=intersection, only_g=union - intersection)


def random_case(rng):
    """Prediction and target with values 0, 1, 2 (two polygons overlap) and 255 (ignored); often an empty one."""
    shape = tuple(rng.integers(1, 9, 2))
    prediction = rng.random(shape) < rng.choice([0.0, 0.3, 0.7, 1.0])
    target = rng.choice(
        np.array([0, 1, 2, 255], np.uint8), shape, p=[[0.5, 0.3, 0.1, 0.1], [1, 0, 0, 0]][rng.random() < 0.2]
    )
    return prediction, target


def naive_by_pixel(prediction, target, foreground):
    """Counts from the words of METRICS 0.1, pixel by pixel."""
    intersection = union = 0
    for p, t in zip(prediction.ravel().tolist(), target.ravel().tolist(), strict=True):
        if t == 255:
            continue
        intersection += p and t in foreground
        union += p or t in foreground
    return intersection, union


def naive_by_sets(prediction, target, foreground):
    """The same with sets of places."""
    p = {k for k, v in enumerate(prediction.ravel()) if v}
    g = {k for k, v in enumerate(target.ravel()) if int(v) in foreground}
    off = {k for k, v in enumerate(target.ravel()) if v == 255}
    return len((p & g) - off), len((p | g) - off)


# --- RefCOCO, ReasonSeg -----------------------------------------------------------------------------------------------


@pytest.fixture
def res_rows():
    """METRICS 9.1."""
    metric = MaskIoU()
    for k, counts in enumerate([(2, 6), (4, 4), (0, 5), (0, 0)]):
        metric.update(k, *of_counts(*counts))
    return metric


def test_golden_res(res_rows):
    found = res_rows.result()
    assert found["ciou"] == 0.4
    assert found["giou"] == pytest.approx(0.583333, abs=5e-7)
    assert (found["pr@0.5"], found["pr@0.9"], found["samples"], found["failed"]) == (0.5, 0.5, 4, 0)


def test_golden_res_with_published_epsilons(res_rows):
    published = MaskIoU(eps="lisa").add_rows(res_rows.rows).result()
    assert published["ciou"] == pytest.approx(0.4, abs=1e-9)
    # METRICS 9.1 prints 58.33326, the mean with the epsilon in unions alone; 1.5 adds another to the number of samples.
    assert published["giou"] * (4 + 1e-5) / 4 == pytest.approx(0.5833326, abs=5e-8)


def test_golden_ignore():
    truth, ignored = split_truth(np.array([[1, 1, 255, 0]], np.uint8))
    row = mask_row(0, np.array([[True, False, True, True]]), truth, ignored=ignored)
    assert (row["I"], row["U"], row["pred_area"], row["gt_area"]) == (1, 3, 2, 2)


def test_10000_random_masks_equal_pycocotools_and_two_naive_counters():
    rng = np.random.default_rng(0)
    metric = MaskIoU()
    naive, kinds = [], set()
    for k in range(CASES):
        prediction, target = random_case(rng)
        truth, ignored = split_truth(target)
        row = metric.update(k, prediction, truth, ignored=ignored)
        counts = row["I"], row["U"]
        assert counts == naive_by_pixel(prediction, target, {1, 2}) == naive_by_sets(prediction, target, {1, 2})
        published, _ = split_truth(target, overlaps="published")
        assert intersection_union(prediction, published, ignored=ignored) == naive_by_pixel(prediction, target, {1})
        rles = [coco.encode(np.asfortranarray((m & ~ignored).astype(np.uint8))) for m in (prediction, truth)]
        assert counts == (coco.area(coco.merge(rles, intersect=True)), coco.area(coco.merge(rles)))
        assert (row["pred_area"], row["gt_area"]) == tuple(coco.area(rles))
        naive.append((counts[0] / counts[1]) if counts[1] else 1.0)
        if counts[1]:  # pycocotools calls the IoU of two empty masks 0
            assert row["iou"] == pytest.approx(coco.iou(rles[:1], rles[1:], [0])[0, 0], abs=1e-12)
        kinds.add((bool(ignored.any()), bool((target == 2).any()), counts[0] > 0, counts[1] > 0))
    found = metric.result()
    assert found["giou"] == pytest.approx(sum(naive) / CASES, abs=1e-12)
    assert found["ciou"] == sum(row["I"] for row in metric.rows) / sum(row["U"] for row in metric.rows)
    assert found["pr@0.7"] == sum(value >= 0.7 for value in naive) / CASES
    assert len(kinds) == 10  # all there are: with and without ignored and overlapping pixels, a hit, anything at all


def test_counts_beyond_what_float32_holds():
    rows = [mask_row(k, *of_counts(1, 1)) | {"I": 2**24 + 1, "U": 2**24 + 1} for k in range(3)]
    rows = [row | {"pred_area": row["I"], "gt_area": row["I"]} for row in rows]
    rows.append(mask_row(3, *of_counts(0, 1)))
    assert MaskIoU().add_rows(rows).ciou == (3 * 2**24 + 3) / (3 * 2**24 + 4)


def test_a_failed_sample_counts_and_earns_nothing():
    metric = MaskIoU()
    _, truth = of_counts(2, 3)
    metric.update("a", truth, truth)
    metric.update("b", None, truth)
    metric.update("c", None, np.zeros((1, 3), bool))
    found = metric.result()
    assert (found["samples"], found["failed"]) == (3, 2)
    assert found["giou"] == pytest.approx(1 / 3)
    assert found["ciou"] == 0.5
    published = MaskIoU(eps="lisa").add_rows(metric.rows).result()
    assert published["giou"] == pytest.approx(1 / 3, abs=1e-4)


def test_boxes_of_masks():
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:7] = True
    assert mask_box(mask) == (3, 2, 7, 4)
    assert mask_box(mask, half_open=False) == (3, 2, 6, 3)
    assert mask_box(np.zeros((3, 3), bool)) is None
    assert box_iou((0, 0, 4, 2), (2, 0, 6, 2)) == pytest.approx(4 / 12)
    assert box_iou((0, 0, 1, 1), (3, 3, 4, 4)) == 0
    metric = MaskIoU()
    metric.update("hit", mask, mask, truth_box_xywh=(3, 2, 4, 2))
    metric.update("half", mask, mask, truth_box_xywh=(3, 2, 4, 4))  # exactly 0.5 is not above it
    metric.update("empty", np.zeros_like(mask), mask, truth_box_xywh=(3, 2, 4, 2))
    metric.update("without a box", mask, mask)
    assert metric.result()["acc@0.5"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: intersection_union(np.zeros((2, 2), bool), np.zeros((2, 3), bool)), r"\(2, 2\) but the truth \(2, 3"),
        (lambda: intersection_union(np.zeros((2, 2)), np.zeros((2, 2), bool)), "dtype float64, expected bool: thresho"),
        (
            lambda: intersection_union(*[np.zeros((2, 2), bool)] * 2, ignored=np.zeros((1, 2), bool)),
            "ignored pixels are",
        ),
        (lambda: split_truth(np.zeros((2, 2))), "expected integers"),
        (lambda: MaskIoU(eps="LISA"), "known are 'none' and 'lisa'"),  # type: ignore[arg-type]
        (lambda: MaskIoU().update("", *of_counts(1, 2)), "id is ''"),
        (lambda: MaskIoU().update("a", *of_counts(1, 2), score=float("nan")), "a: score is nan"),
        (lambda: mask_row("a", *of_counts(1, 2), gt_nt=True), "a: gt_nt says .* 2 pixels"),
    ],
)
def test_what_cannot_be_measured_is_said(call, message):
    with pytest.raises(SettingError, match=message):
        call()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"I": 9}, "I=9, U=6 do not follow"), ({"U": 5}, "U=5"), ({"I": 2.0}, "expected pixel counts")],
)
def test_damaged_rows_are_refused(change, message):
    with pytest.raises(DatasetError, match=message):
        MaskIoU().add_row(mask_row("a", *masks_with(both=2, only_p=1, only_g=3)) | change)


def test_rows_of_another_metric_are_refused():
    with pytest.raises(DatasetError, match="has no I, U, pred_area"):
        MaskIoU().add_row({"id": "a", "failed": False, "prediction": "yes"})


# --- gRefCOCO ---------------------------------------------------------------------------------------------------------


GRES_ROWS = [  # METRICS 9.2: truth absent, rejected, P, G
    (False, False, *masks_with(both=6, only_p=1, only_g=1)),
    (False, True, *masks_with(both=6, only_p=1, only_g=1)),
    (False, False, *masks_with(both=0, only_g=5)),
    (True, True, *masks_with(both=0, only_p=7)),
    (True, False, *masks_with(both=0, only_p=7)),
    (True, False, *masks_with(both=0)),
]


def gres(rule="official", cases=GRES_ROWS, **options):
    metric = GeneralizedIoU(rule, **options)
    for k, (gt_nt, pred_nt, prediction, truth) in enumerate(cases):
        metric.update(k, prediction, truth, gt_nt=gt_nt, pred_nt=pred_nt)
    return metric.result()


def rounded(found, *names):
    return tuple(round(100 * found[name], 4) for name in names)


def test_golden_gres_official():
    found = gres()
    assert rounded(found, "giou", "ciou_rela", "t_acc", "n_acc") == (29.1667, 21.4286, 66.6667, 33.3333)
    assert rounded(found, "pr@0.7", "pr@0.8") == (33.3333, 0)
    assert found["ciou"] == 6 / (8 + 7 + 5 + 0 + 7 + 0)  # ours: the rejected mask is gone, |G| = 7 stays
    assert (found["samples"], found["no_target"]) == (6, 3)


def test_golden_gres_gsva_and_mask_empty():
    found = gres("gsva")
    assert rounded(found, "giou", "ciou") == (41.6667, 42.8571)
    assert "ciou_rela" not in found
    found = gres("mask_empty")
    assert rounded(found, "giou", "ciou", "ciou_rela", "t_acc", "n_acc") == (
        *(41.6667, 34.2857, 34.2857),
        *(66.6667, 33.3333),
    )


def naive_gres(cases, *, cleared):
    """The table of METRICS 2.2, line by line, on arrays."""
    tp = fn = fp = tn = 0
    total_i = total_u = 0
    values = []
    for gt_nt, pred_nt, p, g in cases:
        if pred_nt and cleared:
            p = np.zeros_like(p)
        if gt_nt and pred_nt:
            tp, value = tp + 1, 1.0
        elif gt_nt:
            fn, value = fn + 1, 0.0
            total_u += int(p.sum())
        elif pred_nt:
            fp, value = fp + 1, 0.0
            total_u += int((p | g).sum())
        else:
            tn += 1
            i, u = int((p & g).sum()), int((p | g).sum())
            value = i / u if u else 0.0
            total_i, total_u = total_i + i, total_u + u
        values.append(value)
    return {
        "giou": sum(values) / len(values),
        "ciou": total_i / total_u if total_u else None,
        "n_acc": tp / (tp + fn) if tp + fn else None,
        "t_acc": tn / (tn + fp) if tn + fp else None,
    }


def random_gres(rng, count):
    cases = []
    for _ in range(count):
        shape = tuple(rng.integers(1, 7, 2))
        gt_nt, pred_nt = (bool(flag) for flag in rng.random(2) < 0.4)
        prediction = rng.random(shape) < rng.choice([0.0, 0.5])
        truth = (rng.random(shape) < rng.choice([0.0, 0.5, 0.9])) & (not gt_nt)
        cases.append((gt_nt, pred_nt, prediction, truth))
    return cases


def test_10000_random_queries_equal_a_naive_reading_of_the_official_table():
    rng = np.random.default_rng(1)
    cases = random_gres(rng, CASES)
    starts = [0]
    while starts[-1] < CASES:  # sets of 1 to 40 queries, so that some have no target, or only targets
        starts.append(min(CASES, starts[-1] + int(rng.integers(1, 41))))
    undefined = 0
    for start, end in itertools.pairwise(starts):
        part = cases[start:end]
        found, cleared, raw = gres(cases=part), naive_gres(part, cleared=True), naive_gres(part, cleared=False)
        for name in ("giou", "n_acc", "t_acc"):
            assert found[name] == pytest.approx(cleared[name], abs=1e-12)
        assert found["ciou"] == cleared["ciou"]
        assert found["ciou_rela"] == raw["ciou"]
        by_mask = [(gt_nt, not p.any(), p, g) for gt_nt, _, p, g in part]
        assert gres("mask_empty", part)["ciou_rela"] == naive_gres(by_mask, cleared=False)["ciou"]
        area = [(gt_nt, p.sum() <= 5, p, g) for gt_nt, _, p, g in part]
        small, naive = gres("mask_empty", part, empty_area=5), naive_gres(area, cleared=False)
        assert (small["ciou_rela"], small["n_acc"]) == (naive["ciou"], naive["n_acc"])
        undefined += found["n_acc"] is None
    assert undefined


def test_a_crash_is_neither_a_right_rejection_nor_a_mask():
    _, truth = of_counts(2, 3)
    for rule in ("official", "mask_empty", "gsva"):
        metric = GeneralizedIoU(rule)
        metric.update("absent", None, np.zeros_like(truth), gt_nt=True)
        metric.update("there", None, truth, gt_nt=False)
        found = metric.result()
        assert (found["giou"], found["ciou"], found["n_acc"], found["t_acc"]) == (0, 0, 0, 0), rule


def test_rejection_must_be_said():
    with pytest.raises(DatasetError, match=r"pred_nt must be true or false.*rule='mask_empty'"):
        GeneralizedIoU().update("a", *of_counts(1, 2), gt_nt=False)
    with pytest.raises(SettingError, match="only 'mask_empty' has one"):
        GeneralizedIoU(empty_area=50)


def test_scores_tell_absent_from_present():
    def rows(scores):
        return [{"score": score, "gt_nt": absent, "failed": False} for score, absent in scores]

    found = rejection_curve(rows([(0.9, False), (0.5, False), (0.5, True), (0.1, True)]))
    assert found["rejection_auroc"] == (1 + 1 + 1 + 0.5) / 4
    assert found["n_acc@t_acc=0.99"] == 0.5
    rng = np.random.default_rng(2)
    scores = [(float(s), bool(a)) for s, a in zip(rng.integers(0, 30, 400) / 30, rng.random(400) < 0.3, strict=True)]
    absent, there = ([s for s, a in scores if a == wanted] for wanted in (True, False))
    found = rejection_curve(rows(scores))
    wins = [(a < t) + (a == t) / 2 for a in absent for t in there]
    assert found["rejection_auroc"] == pytest.approx(sum(wins) / len(wins), abs=1e-12)
    for at in (0.99, 0.97, 0.95):  # every threshold there is
        kept = [x for x in np.arange(-1, 32) / 30 if sum(t >= x for t in there) >= at * len(there)]
        best = max(sum(a < x for a in absent) for x in kept)
        assert found[f"n_acc@t_acc={at}"] == best / len(absent)
    assert rejection_curve(rows([(0.5, False)]))["rejection_auroc"] is None
    assert rejection_curve(rows([(None, False), (0.1, True)]))["rejection_auroc"] is None
