"""The counter against the published table, against what running code does, and against itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

TABLE = [
    # model, tiles: literal and exact TFLOP of 1 query, floor in ms; of 150 queries, floor per query in ms
    ("InternVL3-2B", 1, 1.85, 1.52, 1.9, 278, 115, 0.97),
    ("InternVL3-2B", 6, 10.3, 9.1, 11.6, 1550, 688, 5.8),
    ("InternVL3-2B", 12, 21.3, 19.0, 24.1, 3188, 1487, 12.6),
    ("InternVL3-8B", 1, 5.90, 4.67, 5.9, 885, 565, 4.8),
    ("InternVL3-8B", 6, 31.0, 27.0, 34.3, 4650, 3244, 27.4),
    ("InternVL3-8B", 12, 62.9, 55.6, 70.5, 9428, 6718, 56.7),
]
"""Of the project's design: counted there before a line of this code was written."""


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]}")
def test_counts_and_floors_are_those_of_the_design(benchmark_module: Any, row: Any):
    roofline = benchmark_module("roofline")
    name, tiles, literal_1, exact_1, floor_1, literal_150, exact_150, floor_150 = row
    config = roofline.config_of(name)

    def tera(queries: int, rewrites: Any) -> float:
        return roofline.operations(config, tiles, queries, rewrites) / 1e12

    assert tera(1, roofline.LITERAL) == pytest.approx(literal_1, rel=4e-3)
    assert tera(1, roofline.EXACT) == pytest.approx(exact_1, rel=4e-3)
    assert tera(150, roofline.LITERAL) == pytest.approx(literal_150, rel=2e-3)
    assert tera(150, roofline.EXACT) == pytest.approx(exact_150, rel=2e-3)
    least = roofline.floor(roofline.count(config, tiles, 1), roofline.H200)
    assert 1e3 * least == pytest.approx(floor_1, rel=0.02)
    least = roofline.floor(roofline.count(config, tiles, 150), roofline.H200) / 150
    assert 1e3 * least == pytest.approx(floor_150, rel=0.01)


def test_the_ratios_that_a_cpu_must_reach(benchmark_module: Any):
    roofline = benchmark_module("roofline")
    config = roofline.config_of("InternVL3-1B")
    found = [
        roofline.operations(config, 1, queries, roofline.LITERAL) / roofline.operations(config, 1, queries)
        for queries in (1, 10, 150)
    ]
    assert found == pytest.approx([1.15, 3.83, 5.05], abs=0.01)


def test_every_rewrite_saves_and_the_last_step_is_ours(benchmark_module: Any):
    roofline = benchmark_module("roofline")
    config = roofline.config_of("nano")
    steps = roofline.steps(config, 1, 10)
    assert [name for name, _ in steps] == ["literal", *roofline.REWRITES]
    values = [flop for _, flop in steps]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)
    assert values[-1] == roofline.operations(config, 1, 10)
    assert roofline.operations(config, 1, 150, roofline.IMAGE) < values[-1] * 150 / 10


def test_bytes_make_the_floor_where_operations_do_not(benchmark_module: Any):
    roofline = benchmark_module("roofline")
    cost = roofline.Cost(flop=10.0, bytes=30.0)
    assert cost.seconds((10.0, 10.0)) == 3.0
    assert cost.seconds((2.0, 10.0)) == 5.0
    costs = roofline.count(roofline.config_of("nano"), 1, 1)
    assert costs["post"].flop == 0
    assert costs["post"].bytes > 640 * 480
    slow_memory = roofline.floor(costs, (1e30, 1.0))
    assert slow_memory == pytest.approx(sum(cost.bytes for cost in costs.values()))


@pytest.mark.parametrize("way", ["literal", "exact", "image"])
def test_running_code_does_what_is_counted(benchmark_module: Any, tiny_model: Any, one_thread: None, way: str):
    """`FlopCounterMode` sees matrix products only; a dot product with one query is a product with a vector."""
    common, roofline, literal = (benchmark_module(name) for name in ("common", "roofline", "literal"))
    speed = benchmark_module("speed")
    segmenter = tiny_model if way != "image" else speed.with_shared_picture(tiny_model)
    picture = Image.new("RGB", (64, 64), (200, 30, 30))
    queries = ["the cup"] * 3
    ids = tiny_model.processor.segmentation_inputs(queries[0], num_tiles=1)["input_ids"][0].tolist()
    image = tiny_model.model.config.image_token_id
    before, after = ids.index(image), len(ids) - ids.index(image) - ids.count(image)
    if way == "literal":
        counted = common.operations(lambda: literal.LiteralSegmenter(segmenter).segment(picture, queries))
    else:
        segmenter.segment(picture, queries)  # folds, and reads the prefix
        counted = common.operations(lambda: segmenter.segment(picture, queries))
    vectors = 3 * (2 * 64 * 32 + 2 * 32)  # 8 x 8 pixels, and a constant, per query
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "BEFORE", before)
        patch.setattr(roofline, "AFTER", after)
        most, least = {
            "literal": (roofline.LITERAL, roofline.LITERAL),
            "exact": (roofline.EXACT, roofline.SAME_LENGTH),
            "image": (roofline.IMAGE, roofline.IMAGE),
        }[way]
        config = tiny_model.model.config
        assert counted <= roofline.operations(config, 1, 3, most)  # equal questions: some of them are shared
        assert counted >= roofline.operations(config, 1, 3, least) - (0 if way == "literal" else vectors)


def test_the_literal_way_gives_the_plain_modules_masks(benchmark_module: Any, tiny_model: Any, pictures: Any):
    literal = benchmark_module("literal")
    queries = ["the cup", "What could I drink from?"]
    for picture in pictures[:2]:
        expected = tiny_model.segment(picture, queries, exact="plain", max_tiles=2)
        found = literal.LiteralSegmenter(tiny_model).segment(picture, queries, max_tiles=2)
        for one, mask in zip(expected, found, strict=True):
            assert (one.mask() != mask).mean() < 1e-3  # a logit of 0 may fall to either side


def test_a_rewrite_must_be_known(benchmark_module: Any):
    roofline = benchmark_module("roofline")
    with pytest.raises(AssertionError, match="unknown rewrites"):
        roofline.count(roofline.config_of("nano"), 1, 1, {"shares"})


def test_counting_needs_no_weights(benchmark_module: Any):
    roofline = benchmark_module("roofline")
    before = torch.get_default_dtype()
    table = roofline.as_markdown(["InternVL3-8B"], [1], [1], roofline.H200)
    assert "| InternVL3-8B | 1 | 1 | 5.897 | 4.671 |" in table
    assert torch.get_default_dtype() == before
