"""Every rival in both forms, tiny: the code runs from end to end and does what its description says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from self1e.structures import decode_rle

NAMES = ("LISA-7B", "UFO-8B", "HiMTok-8B", "SAM 3", "CLIPSeg")
STEPS = {"LISA-7B": 6, "UFO-8B": 16, "HiMTok-8B": 32}
QUERIES = 2


@pytest.fixture(scope="module")
def tiny_rivals(benchmark_module: Any) -> dict[str, Any]:
    rivals = benchmark_module("rivals")
    return {name: rivals.make(name, "cpu", torch.float32, tiny=True) for name in NAMES}


@pytest.mark.parametrize("form", ["published", "fair"])
@pytest.mark.parametrize("name", NAMES)
def test_a_rival_answers_every_query_with_a_mask(
    benchmark_module: Any, tiny_rivals: Any, one_thread: None, name: str, form: str
):
    rivals, speed = benchmark_module("rivals"), benchmark_module("speed")
    entry = rivals.Entry(tiny_rivals[name], form)
    entry.prepare()
    found = entry.run([speed.picture_bytes(1)], speed.asked(QUERIES))
    assert [len(masks) for masks in found] == [QUERIES]
    for mask in found[0]:
        dense = decode_rle(mask) if form == "fair" else mask
        assert dense.shape == (480, 640)


@pytest.mark.parametrize("form", ["published", "fair"])
@pytest.mark.parametrize("name", STEPS)
def test_a_generating_rival_writes_as_many_tokens_as_published(
    benchmark_module: Any, tiny_rivals: Any, one_thread: None, name: str, form: str
):
    rivals, speed = benchmark_module("rivals"), benchmark_module("speed")
    rival = tiny_rivals[name]
    lengths: list[int] = []
    handle = rival.language_model.layers[0].mlp.register_forward_hook(
        lambda module, inputs, output: lengths.append(inputs[0].shape[1])
    )
    try:
        entry = rivals.Entry(rival, form)
        entry.prepare()
        entry.run([speed.picture_bytes(1)], speed.asked(1))
    finally:
        handle.remove()
    prefills = [length for length in lengths if length > 1]
    image = 4  # 2 x 2 tokens of the tiny pictures
    assert sum(prefills) == rivals.BEFORE + image + rivals.AFTER
    assert len(lengths) - len(prefills) == STEPS[name]


@pytest.mark.parametrize("name", ["UFO-8B", "HiMTok-8B", "LISA-7B", "CLIPSeg", "SAM 3"])
def test_both_forms_compute_the_same_masks(benchmark_module: Any, one_thread: None, name: str):
    """What is fair about the fair form: it changes the order of the work, not its result."""
    rivals = benchmark_module("rivals")
    rival = rivals.make(name, "cpu", torch.float64, tiny=True)
    generator = np.random.default_rng(0)
    from PIL import Image

    picture = Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    with torch.no_grad():
        rival.attend("eager")
        published = torch.stack(list(rival.published(picture, 3)))
        rival.attend("sdpa")
        fair = torch.stack(list(rival.fair(picture, 3)))
    # Eager attention rounds its softmax to float32; another token would be off by more than this.
    torch.testing.assert_close(fair, published, rtol=0, atol=1e-5 * float(published.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_operations_are_counted_where_nothing_can_be_run(benchmark_module: Any, name: str):
    rivals = benchmark_module("rivals")
    rival = rivals.make(name, "meta", torch.float32, tiny=True)
    first, further = rivals.count(rival, "published")
    fair_first, fair_further = rivals.count(rival, "fair")
    assert 0 < fair_first <= first
    assert 0 < fair_further <= further
    assert fair_further < further or name == "SAM 3"  # which keeps its picture as published
    if name in STEPS:
        assert further == first


def test_ours_goes_through_every_table(
    benchmark_module: Any, tiny_model_folder: Any, one_thread: None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
):
    speed = benchmark_module("speed")
    out = tmp_path / "speed"
    monkeypatch.setattr(speed.roofline, "config_of", lambda name: speed.self1e.load(tiny_model_folder).model.config)
    command = f"speed.py --models {tiny_model_folder} --rivals CLIPSeg --tiny --queries 1,2 --repeats 2 --device cpu"
    command += f" --cold-start 0 --peak-flops 1e10 --peak-bytes 1e10 --forms literal,ours,shared --out {out}"
    monkeypatch.setattr("sys.argv", command.split())
    speed.main()
    report = json.loads(out.with_suffix(".json").read_text())
    forms = {row["form"] for row in report["measured"]}
    assert forms == {"literal", "ours", "attention=image", "published", "fair", "ours beside rivals"}
    ours = [row for row in report["measured"] if row["form"] == "ours"]
    assert [row["queries"] for row in ours] == [1, 2]
    for row in ours:
        assert row["seconds"] > row["floor"] > 0
        assert row["fewer_operations"] > 1
        assert len(row["rounds"]) == 2
    assert {row["form"] for row in report["first_queries"]} == forms
    stages = report["stages"][0]["seconds"]
    assert set(stages) == {"decode", "preprocess", "vision", "prefill", "head", "post", "rest", "total"}
    assert all(seconds > 0 for seconds in stages.values())
    text = out.with_suffix(".md").read_text()
    assert "| CLIPSeg | published | 1 |" in text
    assert "Against the rivals" in text
    speed.draw(report, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 1000


def test_a_resumed_run_measures_again_what_stood_only_beside_rivals(benchmark_module: Any, tmp_path: Any):
    speed = benchmark_module("speed")
    given = {"hardware": "x", "dtype": "float32", "threads": 1, "command": "c", "commit": "d", "date": "e"}
    row = {"model": "nano", "tiles": 1, "queries": 1, "pictures": 1}
    beside = {"measured": [row | {"form": "ours beside rivals"}], "runs": []}
    (tmp_path / "speed.json").write_text(json.dumps(given | beside))
    report = speed.Report(tmp_path / "speed", given, resume=True)
    assert not report.has(row)
    report.found["measured"].append(row | {"form": "ours"})
    assert report.has(row)


def test_a_contender_without_memory_leaves_a_row_and_the_others_go_on(benchmark_module: Any):
    speed, contenders = benchmark_module("speed"), benchmark_module("contenders")

    class Large(contenders.Contender):
        name, form = "large", "ours"

        def run(self, pictures: Any, queries: Any) -> Any:
            raise torch.OutOfMemoryError("tried to allocate 99 GiB")

    class Small(contenders.Contender):
        name, form, is_linear = "small", "published", True

        def run(self, pictures: Any, queries: Any) -> Any:
            return [[b""] * len(queries) for _ in pictures]

    scenario = {"tiles": 1, "queries": 150, "pictures": 1}
    rows = speed.measure([Large(), Small()], scenario, torch.device("cpu"), repeats=3, budget=60.0, once=60.0)
    assert rows[0]["error"] == "out of memory: tried to allocate 99 GiB"
    assert "99 GiB" in speed.line(rows[0])
    assert rows[1]["measured_queries"] == speed.AT_MOST
    assert len(rows[1]["rounds"]) == 3
    assert "*" in speed.line(rows[1])


def test_every_form_runs_under_its_own_attention(benchmark_module: Any, tiny_model: Any):
    speed = benchmark_module("speed")
    model = tiny_model.model
    found = {}
    for entry in speed.ways(tiny_model, 1):
        entry.prepare()
        parts = (model.model.vision_tower.encoder.layer[0].attention, model.model.language_model.layers[0].self_attn)
        found[entry.form] = {part.config._attn_implementation for part in parts}
    assert found == {"literal": {"eager"}, "plain": {"sdpa"}, "ours": {"sdpa"}, "attention=image": {"sdpa"}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "billions"),
    [("LISA-7B", 7.72), ("UFO-8B", 8.08), ("HiMTok-8B", 8.10), ("SAM 3", 0.840), ("CLIPSeg", 0.1507)],
)
def test_rivals_have_their_published_sizes(benchmark_module: Any, name: str, billions: float):
    rival = benchmark_module("rivals").make(name, "meta", torch.float32)
    assert sum(p.numel() for p in rival.parameters()) / 1e9 == pytest.approx(billions, rel=2e-3)
