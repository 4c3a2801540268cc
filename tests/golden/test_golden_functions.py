"""Single functions equal the published ones: who sees whom, where features go, the losses."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Qwen2Config

from self1e.model.attention import language_attention_mask, published_attention_mask
from self1e.model.losses import bce_per_mask, dice_per_mask
from self1e.model.mask_head import Expand, depth_to_space, replicate, space_to_depth, stitch_tiles


@pytest.fixture
def rearrange(function_file):
    return load_file(function_file("rearrange.safetensors"))


@pytest.fixture
def attention(function_file):
    stored = load_file(function_file("attention_mask.safetensors"))
    codes = json.loads(function_file("attention_mask.json").read_text(encoding="utf-8"))
    return stored, codes


def sets_of(stored):
    return sorted({name.split(".")[0] for name in stored})


def test_published_attention_mask(attention):
    stored, codes = attention
    for name in sets_of(stored):
        found = published_attention_mask(
            stored[f"{name}.input_ids"], image_token_id=codes["image_token"], seg_token_id=codes["seg_token"]
        )
        assert torch.equal(found, stored[f"{name}.allowed"]), name


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_language_model_gets_the_published_mask_on_real_rows(attention, implementation):
    stored, codes = attention
    config = Qwen2Config(attn_implementation=implementation)
    for name in sets_of(stored):
        ids = stored[f"{name}.input_ids"]
        mask = language_attention_mask(
            config,
            is_image=ids == codes["image_token"],
            is_seg=ids == codes["seg_token"],
            is_real=ids != codes["padding_token"],
            rule="image_seg",
            dtype=torch.float32,
        )
        n = ids.shape[1]
        if mask is None:  # SDPA needs none for plain causal attention without padding
            allowed = torch.ones(n, n, dtype=torch.bool).tril().expand(len(ids), n, n)
        else:
            allowed = (mask if mask.dtype == torch.bool else mask == 0)[:, 0].expand(len(ids), n, n)
        is_real = ids != codes["padding_token"]
        assert torch.equal(allowed[is_real], stored[f"{name}.allowed"][is_real]), name


def test_rearrangements(rearrange):
    steps = {
        "shuffle.out": ("shuffle.in", lambda x: space_to_depth(x, 2)),
        "unshuffle_square.out": ("unshuffle_square.in", lambda x: depth_to_space(x, 2)),
        "unshuffle_wide.out_correct": ("unshuffle_wide.in", lambda x: depth_to_space(x, 2)),
        "unshuffle_tall.out_correct": ("unshuffle_tall.in", lambda x: depth_to_space(x, 2)),
        "replicate.out": ("replicate.in", lambda x: replicate(x, 4)),
    }
    found = {name: step(rearrange[given]) for name, (given, step) in steps.items() if name in rearrange}
    for name in rearrange:
        layout = re.fullmatch(r"stitch_c(\d+)r(\d+)\.(\w+)\.in", name)
        if layout:
            columns, rows = int(layout[1]), int(layout[2])
            flat = rearrange[name]
            side = round((len(flat) / (rows * columns)) ** 0.5)
            tiles = flat.reshape(rows * columns, side, side, -1)
            found[f"{name.removesuffix('.in')}.out"] = stitch_tiles(tiles, rows, columns)
    for name, value in found.items():
        assert torch.equal(value, rearrange[name]), name
    untested = {name for name in rearrange if not name.endswith(".in")} - found.keys()
    assert untested <= {"seg_mean.out", "unshuffle_wide.out_reference", "unshuffle_tall.out_reference"}


def test_mean_of_the_sub_pixels(rearrange):
    expand = Expand(12, 2)
    expand.linear_1, expand.linear_2 = nn.Identity(), nn.Identity()
    expand.forward = lambda x: x
    assert torch.equal(expand.mean(rearrange["seg_mean.in"]), rearrange["seg_mean.out"])


def test_losses(function_file):
    stored = load_file(function_file("losses.safetensors"))
    for name, expected in json.loads(function_file("losses.json").read_text(encoding="utf-8")).items():
        logits = stored[f"{name.split('.')[0]}.logits"]
        target = stored.get(name, torch.zeros_like(logits))
        assert bce_per_mask(logits, target).mean().item() == pytest.approx(expected["bce"], abs=1e-6)
        assert dice_per_mask(logits, target).mean().item() == pytest.approx(expected["dice"], abs=1e-6)
