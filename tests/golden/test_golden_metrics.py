"""Mask metrics equal the published evaluation's, whose sums and means are float32 with epsilons."""

from __future__ import annotations

import json

import pytest
from safetensors.numpy import load_file

from self1e.evaluation.metrics import MaskIoU, intersection_union, split_truth


def test_masks_with_ignored_and_overlapping_pixels(function_file):
    stored = load_file(function_file("metrics.safetensors"))
    expected = json.loads(function_file("metrics.json").read_text("utf-8"))
    metric = MaskIoU(eps="lisa")
    assert expected["per_mask"]
    for k, per_mask in enumerate(expected["per_mask"]):
        prediction, target = stored[f"{k}.pred"][0] == 1, stored[f"{k}.target"][0]
        truth, ignored = split_truth(target, overlaps="published")
        row = metric.update(k, prediction, truth, ignored=ignored)
        background = intersection_union(~prediction, target == 0, ignored=ignored)
        assert (background[0], row["I"]) == tuple(per_mask["intersection"])
        assert (background[1], row["U"]) == tuple(per_mask["union"])
        assert row["iou"] == pytest.approx(per_mask["iou"][1], abs=1e-6)
    found = metric.result()
    assert found["ciou"] == pytest.approx(expected["ciou"], abs=1e-6)
    assert found["giou"] == pytest.approx(expected["giou"], abs=1e-6)


def test_the_golden_targets_hold_what_the_rules_are_about(function_file):
    stored = load_file(function_file("metrics.safetensors"))
    values = {int(value) for name, target in stored.items() if name.endswith("target") for value in set(target.flat)}
    assert {0, 1, 2, 255} <= values
