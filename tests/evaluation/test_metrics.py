"""Mask metrics, against values worked out by hand."""

import math

import numpy as np
import pytest

from self1e.errors import SettingError
from self1e.evaluation.metrics import MaskIoU
from self1e.evaluation.nano import ceiling_mask


def boxes(*spans):
    masks = []
    for left, right in spans:
        mask = np.zeros((4, 10), bool)
        mask[:, left:right] = True
        masks.append(mask)
    return masks


def test_ciou_sums_first_and_giou_divides_first():
    scores = MaskIoU()
    a, b, c, d = boxes((0, 4), (2, 6), (0, 1), (0, 1))
    assert scores.add(a, b) == pytest.approx(8 / 24)
    assert scores.add(c, d) == 1.0
    assert scores.ciou == pytest.approx((8 + 4) / (24 + 4))
    assert scores.giou == pytest.approx((8 / 24 + 1) / 2)


def test_an_empty_truth_wants_an_empty_prediction():
    empty, some = boxes((0, 0), (0, 1))
    scores = MaskIoU()
    assert scores.add(empty, empty) == 1.0
    assert scores.ciou == 1.0
    assert scores.add(some, empty) == 0.0
    assert scores.ciou == 0.0
    assert scores.giou == 0.5
    assert math.isnan(MaskIoU().giou)
    assert math.isnan(MaskIoU().ciou)


def test_sizes_must_agree():
    with pytest.raises(SettingError, match="bring the logits to the picture's size"):
        MaskIoU().add(np.zeros((2, 2), bool), np.zeros((3, 3), bool))


def test_a_grid_as_fine_as_the_picture_has_no_ceiling():
    rng = np.random.default_rng(0)
    mask = rng.random((16, 16)) > 0.5
    assert np.array_equal(ceiling_mask(mask, 16), mask)
    coarse = ceiling_mask(mask, 4)
    assert not np.array_equal(coarse, mask)
