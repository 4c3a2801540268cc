"""The training benchmark: that it compares like with like, and counts what it says."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    """Tiny models."""


@pytest.fixture(scope="module")
def training() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import training

        return training


@pytest.fixture
def tiny(training, load_script, monkeypatch):
    """The tiny model of the goldens in the place of nano."""
    scripts = load_script("record_goldens")
    monkeypatch.setattr(training, "config_of", lambda name, depth=None: scripts.tiny_config())
    monkeypatch.setattr(training, "BEFORE", 3)
    monkeypatch.setattr(training, "AFTER", 4)
    return training


def step(training, path, dtype=torch.float64):
    config = training.config_of("nano")
    model = training.make_model(config, "cpu", dtype, 4)
    # LoRA starts as nothing; then half of its gradients would be zero whatever we do.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    batch = training.make_batch(config, 3, "cpu", dtype)
    training.prepare(model, path, "sdpa", path == "ours")
    loss = training.PATHS[path](model, batch)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_loss_and_every_gradient_equal_the_literal_step(tiny):
    literal, ours = step(tiny, "literal"), step(tiny, "ours")
    assert float(ours[0]) == pytest.approx(float(literal[0]), rel=1e-5)  # mask losses are in float32
    assert ours[1].keys() == literal[1].keys()
    for name, gradient in literal[1].items():
        assert gradient is not None, name
        scale = float(gradient.abs().max())
        torch.testing.assert_close(ours[1][name], gradient, rtol=0, atol=1e-5 * scale + 1e-9, msg=name)


def test_measuring_counting_and_the_table(tiny, tmp_path):
    settings = {"size": "nano", "layers": None, "rank": 4, "dtype": "float32", "device": "cpu", "queries": 3}
    settings |= {"attention": "sdpa", "checkpointing": "on,off", "count": True, "measure": True, "repeats": 1}
    report = tiny.run(argparse.Namespace(**settings))
    assert [(row["path"], row["checkpointing"]) for row in report["measured"]] == [
        ("literal", True),
        ("ours", True),
        ("literal", False),
        ("ours", False),
    ]
    for row in report["counted"]:
        assert row["ours"] < row["literal"]
    on, off = report["counted"]
    assert on["ours"] > off["ours"]  # recomputed
    table = tiny.as_markdown(report)
    assert table.count("\n| on |") == table.count("\n| off |") == 1


def test_what_is_counted_without_numbers_is_what_numbers_cost(tiny):
    config = tiny.config_of("nano")
    counted = tiny.count("nano", 4, None, 3, False)
    model = tiny.make_model(config, "cpu", torch.float32, 4)
    batch = tiny.make_batch(config, 3, "cpu", torch.float32)
    for path, loss_of in tiny.PATHS.items():
        tiny.prepare(model, path, "sdpa", False)
        assert tiny.operations(lambda loss_of=loss_of: loss_of(model, batch).backward()) == counted[path]


def test_steps_that_differ_are_not_compared(training):
    training.check_equal({"literal": 2.0, "ours": 2.0001}, torch.float32)
    with pytest.raises(AssertionError, match="losses differ"):
        training.check_equal({"literal": 2.0, "ours": 2.001}, torch.float32)
    with pytest.raises(AssertionError, match="losses differ"):
        training.check_equal({"literal": 2.0, "ours": float("nan")}, torch.float32)
