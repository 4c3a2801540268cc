"""Weights in 8 bits: which ones, and how far masks drift."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import self1e
from self1e.data.scenes import Scenes
from self1e.errors import MissingDependencyError, SettingError
from self1e.inference.quantising import KEPT, is_small, loading_settings, weight_bytes


def test_only_the_language_models_linears_become_small(tiny_model):
    names = [name for name, module in tiny_model.model.named_modules() if is_small(module, name)]
    assert len(names) == 2 * 7  # q, k, v, o, gate, up, down per layer
    assert all(name.startswith("model.language_model.layers.") for name in names)
    others = {name.split(".layers")[0].split(".linear")[0] for name, _ in tiny_model.model.named_modules()}
    assert all(any(other.startswith(kept) for other in others) for kept in KEPT)


def test_bytes_are_counted(tiny_model):
    parameters = sum(parameter.numel() for parameter in tiny_model.model.parameters())
    small = [module.weight for name, module in tiny_model.model.named_modules() if is_small(module, name)]
    assert weight_bytes(tiny_model.model, "float32") == 4 * parameters
    assert weight_bytes(tiny_model.model, "bfloat16") == weight_bytes(tiny_model.model, "float16") == 2 * parameters
    saved = sum(weight.numel() - 2 * len(weight) for weight in small)
    assert weight_bytes(tiny_model.model, "int8") == 2 * parameters - saved


def test_nano_in_8_bits_gives_the_masks_of_bfloat16():
    pytest.importorskip("torchao")
    wide, small = (self1e.load("nano", device="cpu", dtype=dtype) for dtype in ("bfloat16", "int8"))
    types = {type(parameter).__name__ for parameter in small.model.model.language_model.parameters()}
    assert types == {"Parameter", "Int8Tensor"}
    assert {type(parameter) for parameter in small.model.mask_head.parameters()} == {torch.nn.Parameter}
    scenes = Scenes("test", length=4)
    common = either = 0
    for sample in scenes:
        queries = [target.text for target in sample.targets]
        a, b = (model.segment(sample.image, queries).masks for model in (wide, small))
        common, either = common + np.sum(a & b), either + np.sum(a | b)
    assert common / either >= 0.97


def test_quantised_weights_take_the_plain_modules():
    pytest.importorskip("torchao")
    small = self1e.load("nano", device="cpu", dtype="int8")
    with pytest.raises(SettingError, match="weights of type Int8Tensor"):
        small.segment(np.zeros((40, 40, 3), np.uint8), "the circle", exact="folded")


def test_a_quantiser_that_is_missing_or_does_not_fit_is_refused_before_anything_is_read(monkeypatch):
    with pytest.raises(SettingError, match="needs a CUDA device"):
        self1e.load("nano", device="cpu", dtype="int8-bitsandbytes")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependencyError, match="pip install bitsandbytes"):
        loading_settings("int8-bitsandbytes", torch.device("cuda"))
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(MissingDependencyError, match=r"self1e\[quant\]"):
        self1e.load("nano", device="cpu", dtype="int8")
    with pytest.raises(SettingError, match="or int8"):
        self1e.load("nano", device="cpu", dtype="int7")
