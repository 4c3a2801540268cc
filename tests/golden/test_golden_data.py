"""The published readers on the golden miniature tree: the same queries, the same masks, pixel for pixel."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from self1e.data.epoch import Epoch
from self1e.data.mixture import Part
from self1e.data.published import open_training_set
from self1e.data.reason import ReasonSeg
from self1e.data.referring import Referring
from self1e.data.sample import Sample, Target
from self1e.data.semantic import Ade20k
from self1e.processing import prompts


@pytest.fixture(scope="module")
def tree(function_file: Any) -> Path:
    return function_file("mini_dataset_expected.json").parent / "mini_dataset"


@pytest.fixture(scope="module")
def told(function_file: Any) -> dict[str, Any]:
    return json.loads(function_file("mini_dataset_expected.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def masks(function_file: Any) -> dict[str, np.ndarray]:
    return load_file(function_file("mini_dataset_expected.safetensors"))


def conversation(target: Target) -> str:
    question = prompts.VALIDATION_QUESTIONS[target.kind].format(text=target.text)
    return prompts.INTERNVL2_5.render([(question, prompts.VALIDATION_ANSWER)])


def as_published(target: Target) -> np.ndarray:
    """The published code's label map: 255 does not count."""
    labels = target.mask.astype(np.uint8)
    if target.ignore is not None:
        labels[target.ignore] = 255
    return labels


def open_split(tree: Path, name: str, *, bug_compat: bool) -> tuple[Sequence[Sample], str]:
    """A validation set by its published name, and what its masks are stored under."""
    which, *division = name.split("|")
    if which == "ReasonSeg":
        return ReasonSeg(tree, division[0]), which
    split_by, split = division
    samples = Referring(tree, which, split, split_by=split_by, bug_compat=bug_compat)
    return samples, ".".join([which, split_by, split])


@pytest.mark.parametrize("bug_compat", [True, False])
def test_validation_asks_and_masks_what_is_published(tree, told, masks, bug_compat):
    names = [name for name in told if "|" in name and not name.startswith("train")]
    assert names
    for name in names:
        samples, stored = open_split(tree, name, bug_compat=bug_compat)
        expected = told[name]
        assert len(samples) == len(expected)
        for sample, entry in zip(samples, sorted(expected, key=lambda entry: entry["image"]), strict=True):
            assert [conversation(target) for target in sample.targets] == entry["conversations"]
            wanted = masks[f"{stored}.{Path(entry['image']).name}"]
            found = np.stack([as_published(target) for target in sample.targets])
            # Two overlapping polygons of one object: the published sum is 2, the union 1.
            assert np.array_equal(found, wanted if bug_compat else np.where(wanted == 2, 1, wanted))


def stored_masks(masks: dict[str, np.ndarray], kind: str) -> list[np.ndarray]:
    return [masks[f"{kind}.{k}"] for k in range(sum(name.startswith(f"{kind}.") for name in masks))]


def test_semantic_training_items_are_the_published_ones(tree, told, masks):
    expected = told["train semantic"]
    sets = [Ade20k(tree, classes=expected["ade20k_class_names"])]
    sets += [open_training_set(tree, name) for name in ("cocostuff", "pascal_part", "paco_lvis")]
    samples = [sample for samples in sets for sample in samples]
    assert len(samples) == expected["length"]
    stored = stored_masks(masks, "train_sem")
    assert len(stored) == len(samples)
    for sample, wanted, item in zip(samples, stored, expected["items"], strict=True):
        assert {t for target in sample.targets for t in (target.text, *target.aliases)} == set(
            item["class_names_possible"]
        )
        found = sorted(target.mask.astype(np.uint8).tobytes() for target in sample.targets)
        assert found == sorted(mask.tobytes() for mask in wanted)


def test_referring_training_items_are_the_published_ones(tree, told, masks):
    expected = told["train refcoco||grefcoco, rate 2"]
    sets = {name: Part(samples=open_training_set(tree, name), weight=2, lower=True) for name in ("refcoco", "grefcoco")}
    epoch = Epoch(sets, validation_prompt=0.0)
    assert len(epoch) == expected["length"]
    stored = stored_masks(masks, "train_refer")
    samples = [sample for part in sets.values() for sample in part.samples]
    for sample, wanted, item in zip(samples, stored, expected["items"], strict=False):
        assert [target.text for target in sample.targets] == [phrase.lower() for phrase in item["phrases"]]
        assert np.array_equal(np.stack([target.mask for target in sample.targets]), wanted)
    asked = sorted(len(epoch[index].rows) for index in range(len(epoch)))
    assert asked == sorted(len(item["phrases"]) for item in expected["items"])


def test_reasonseg_training_takes_ignored_pixels_as_background(tree, masks):
    for sample in ReasonSeg(tree, "train"):
        for target in sample.targets:
            wanted = masks[f"ReasonSeg.{sample.source.split('/')[-1]}.jpg"][0]  # the splits show the same pictures
            assert np.array_equal(target.mask, wanted == 1)
