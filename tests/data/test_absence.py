"""Queries without an answer: only what is surely not there, and taught as an empty mask."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from self1e.data.absence import surely_absent
from self1e.data.class_names import ADE20K, COCO_STUFF
from self1e.data.published import published_mixture
from self1e.errors import SettingError
from self1e.model.losses import LossWeights, mask_losses


def test_what_may_go_by_another_name_is_not_called_absent():
    absent = set(surely_absent(ADE20K, {"sea", "house", "car"}))
    assert {"water", "lake", "building", "van", "sea", "house", "car"}.isdisjoint(absent)
    assert {"bed", "airplane", "toilet"} <= absent
    hidden = set(surely_absent(COCO_STUFF, {"floor-wood", "person"}))
    assert {"wood", "rug", "person"}.isdisjoint(hidden)
    assert {"giraffe", "pizza"} <= hidden


def test_pixels_without_a_class_may_be_anything():
    assert surely_absent(ADE20K, {"wall"}, unknown_share=0.04)
    assert surely_absent(ADE20K, {"wall"}, unknown_share=0.06) == ()


def test_the_table_of_like_things_spells_classes():
    from self1e.data.absence import _ALIKE, _UNSURE

    words = {word for name in (*ADE20K, *COCO_STUFF) for word in (name, *name.replace("-", " ").split())}
    assert {name for group in _ALIKE for name in group} - words == set()
    assert set(_UNSURE) - words == set()


@pytest.fixture
def folder(tmp_path):
    """One picture of ADE20K, a wall from edge to edge, and one of gRefCOCO with a phrase that means nothing."""
    image = Image.new("RGB", (8, 6))
    ade, refs = tmp_path / "dataset/ade20k", tmp_path / "dataset/refer_seg"
    for place in (ade / "images/training", ade / "annotations/training", refs / "grefcoco", refs / "images"):
        place.mkdir(parents=True)
    image.save(ade / "images/training/a.jpg")
    Image.fromarray(np.ones((6, 8), np.uint8)).save(ade / "annotations/training/a.png")
    pictures = refs / "images/mscoco/images/train2014"
    pictures.mkdir(parents=True)
    image.save(pictures / "COCO_train2014_000000000009.jpg")
    record = {"ann_id": [-1], "image_id": 9, "split": "train", "sentences": [{"sent": "the blue dragon"}]}
    (refs / "grefcoco/grefs(unc).json").write_text(json.dumps([record]))
    listed = {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 8, "height": 6}
    (refs / "grefcoco/instances.json").write_text(json.dumps({"images": [listed], "annotations": []}))
    return tmp_path


def test_a_share_of_the_queries_asks_for_what_is_not_there(folder):
    def masks(no_target):
        mixture = published_mixture(folder, only=["ade20k"], no_target=no_target)
        return [row.mask.any() for seed in range(40) for row in _again(mixture, seed)[0].rows]

    assert all(masks(0.0))
    assert not any(masks(1.0))
    assert 5 < sum(masks(0.5)) < 35
    with pytest.raises(SettingError, match="no_target=2 is a share"):
        masks(2)


def _again(mixture, seed):
    copy = pickle.loads(pickle.dumps(mixture))
    copy.seed = seed
    return copy


def test_phrases_of_grefcoco_that_mean_nothing_have_empty_masks(folder):
    mixture = published_mixture(folder, only=["grefcoco"], referring="gres")
    (row,) = mixture[0].rows
    assert "the blue dragon" in row.question
    assert "[SEG]" in row.answer
    assert row.mask.shape == (6, 8)
    assert not row.mask.any()


@pytest.mark.parametrize("level", [-40.0, 0.0, 40.0])
def test_the_loss_of_an_empty_mask_is_finite_and_pulls_every_pixel_down(level):
    logits = torch.full((1, 16, 16), level, requires_grad=True)
    bce, dice = mask_losses([logits], [torch.zeros(1, 20, 30)])
    (2.0 * bce + 0.5 * dice).backward()
    assert torch.isfinite(bce)
    assert torch.isfinite(dice)
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad >= 0).all()
    assert level < 0 or (logits.grad > 0).all()


def test_training_on_an_empty_mask_empties_it():
    weights = LossWeights()
    logits = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0)).mul(3).requires_grad_()
    assert (logits > 0).any()
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(40):
        bce, dice = mask_losses([logits], [torch.zeros(1, 8, 8)])
        optimizer.zero_grad()
        (weights.bce * bce + weights.dice * dice).backward()
        optimizer.step()
    assert not (logits > 0).any()
