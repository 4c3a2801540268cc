"""Losses: by hand, in groups, at the published sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from self1e.model.losses import (
    LossWeights,
    bce_per_mask,
    dice_per_mask,
    loss_target,
    mask_losses,
    resize_logits,
    text_loss,
)


def test_bce_is_a_mean_over_pixels():
    logits, target = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[1.0, 0.25]]])
    softplus = math.log1p(math.exp(2.0))
    expected = (math.log(2) + softplus - 0.25 * 2.0) / 2
    assert bce_per_mask(logits, target).tolist() == pytest.approx([expected])


def test_dice_of_a_perfect_mask_is_nothing_and_of_a_wrong_one_is_one():
    target = torch.zeros(1, 20, 20)
    target[:, :7] = 1
    perfect = (2 * target - 1) * 50
    assert dice_per_mask(perfect, target).item() == pytest.approx(0, abs=1e-5)
    assert dice_per_mask(-perfect, target).item() == pytest.approx(1, abs=1e-4)


def test_dice_scales_its_sums_by_a_thousand():
    logits, target = torch.zeros(1, 1, 2), torch.tensor([[[1.0, 0.0]]])
    expected = 1 - (2 * 0.5 / 1000 + 1e-6) / ((1 + 1) / 1000 + 1e-6)
    assert dice_per_mask(logits, target).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((128, 300), (128, 300)), ((129, 160), (128, 158)), ((300, 200), (192, 128)), ((40, 500), (40, 500))],
)
def test_large_targets_shrink_to_128_on_their_shorter_side(shape, expected):
    assert loss_target(torch.zeros(2, *shape)).shape == (2, *expected)


def test_a_shrunk_target_is_soft():
    target = torch.zeros(1, 200, 200)
    target[:, :, 101:] = 1
    values = loss_target(target).unique()
    assert ((values > 0) & (values < 1)).any()


def test_logits_are_resized_in_float32():
    found = resize_logits(torch.randn(2, 4, 4, dtype=torch.bfloat16), (7, 9))
    assert found.dtype == torch.float32
    assert found.shape == (2, 7, 9)


def test_masks_of_many_sizes_give_the_sum_of_their_losses():
    torch.manual_seed(0)
    logits = [torch.randn(1, 8, 8), torch.randn(2, 8, 16), torch.randn(1, 8, 8), torch.randn(1, 8, 8)]
    targets = [torch.rand(1, 30, 20), torch.rand(2, 21, 33), torch.rand(1, 30, 20), torch.rand(1, 140, 150)]
    bce, dice = mask_losses(logits, targets)
    expected_bce = expected_dice = 0.0
    for x, y in zip(logits, targets, strict=True):
        small = loss_target(y)
        expected_bce += bce_per_mask(resize_logits(x, small.shape[1:]), small).sum().item()
        expected_dice += dice_per_mask(resize_logits(x, small.shape[1:]), small).sum().item()
    assert bce.item() == pytest.approx(expected_bce)
    assert dice.item() == pytest.approx(expected_dice)


def test_targets_of_integers_are_taken():
    logits = [torch.randn(1, 4, 4)]
    whole = mask_losses(logits, [torch.ones(1, 9, 9, dtype=torch.uint8)])
    assert whole == mask_losses(logits, [torch.ones(1, 9, 9)])


def test_text_loss_is_the_usual_next_token_loss():
    torch.manual_seed(0)
    hidden, lm_head = torch.randn(2, 5, 8), torch.nn.Linear(8, 11)
    labels = torch.tensor([[1, -100, 3, 4, -100], [-100, -100, -100, 2, 10]])
    logits = lm_head(hidden)[:, :-1].flatten(0, 1)
    expected = F.cross_entropy(logits, labels[:, 1:].flatten())
    torch.testing.assert_close(text_loss(hidden, lm_head, labels), expected)


def test_text_loss_without_labels_is_zero_and_still_has_a_gradient():
    hidden = torch.randn(1, 3, 8, requires_grad=True)
    loss = text_loss(hidden, torch.nn.Linear(8, 11), torch.full((1, 3), -100))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None


def test_weights_are_the_published_ones():
    assert LossWeights() == LossWeights(text=1.0, bce=2.0, dice=0.5)
