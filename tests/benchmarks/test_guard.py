"""Guards on quantities that no machine changes: operations, passes, reads by the host, the largest tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from self1e.inference import epilogue
from self1e.inference.folded import FoldedModel
from self1e.model import Self1EForConditionalGeneration

QUERIES = 10
READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")
"""Operations whose result the host waits for: a value, or a shape that depends on values."""


class Watch(TorchDispatchMode):
    """Count operations by name, and keep the largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        for one in found if isinstance(found, tuple | list) else (found,):
            if isinstance(one, torch.Tensor) and not one.is_meta:
                is_view = func.is_view
                self.largest = max(self.largest, 0 if is_view else one.numel())
        return found


def _watch(work: Callable[[], Any]) -> Watch:
    with torch.no_grad(), Watch() as watch:
        work()
    return watch


def _rows(model: Any, count: int, tiles: int = 1) -> list[list[int]]:
    """Ids of rows of different length."""
    config = model.config
    image = [config.image_token_id] * (tiles * config.image_seq_length)
    return [[1, 2, 3, *image, *[4 + row] * (5 + row % 3), config.seg_token_id] for row in range(count)]


@pytest.fixture
def picture() -> Image.Image:
    return Image.new("RGB", (80, 60), (200, 30, 30))


@pytest.mark.parametrize("queries", [1, QUERIES])
def test_operations_of_a_call_stay_within_what_is_counted(
    benchmark_module: Any, tiny_model: Any, picture: Image.Image, one_thread: None, queries: int
):
    common, roofline = benchmark_module("common"), benchmark_module("roofline")
    asked = ["the cup"] * queries
    tiny_model.segment(picture, asked)  # folds, and reads the prefix
    counted = common.operations(lambda: tiny_model.segment(picture, asked))
    ids = tiny_model.processor.segmentation_inputs("the cup", num_tiles=1)["input_ids"][0].tolist()
    image = tiny_model.model.config.image_token_id
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "BEFORE", ids.index(image))
        patch.setattr(roofline, "AFTER", len(ids) - ids.index(image) - ids.count(image))
        allowed = roofline.operations(tiny_model.model.config, 1, queries)
        plain = roofline.operations(tiny_model.model.config, 1, queries, ("share", "scores", "tail"))
    text = tiny_model.model.config.text_config
    # In the shared first layer [SEG] answers image tokens before it is read: its keys and values are made twice.
    twice = 2 * text.hidden_size * 2 * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    assert counted <= allowed + twice * queries
    assert allowed < plain


def test_a_picture_is_encoded_once_for_all_of_its_queries(tiny_model: Any, picture: Image.Image):
    vision = tiny_model.model.model.vision_tower.encoder.layer[0].attention.q_proj
    calls = []
    handle = vision.register_forward_hook(lambda *_: calls.append(1))
    try:
        tiny_model.segment(picture, ["the cup"] * QUERIES)
    finally:
        handle.remove()
    assert len(calls) == 1


def test_queries_of_one_picture_share_passes_of_the_language_model(tiny_model: Any, picture: Image.Image):
    layer = tiny_model.model.model.language_model.layers[-1].mlp
    encoded = tiny_model.encode(picture)
    tiny_model.segment(encoded, "the cup")  # reads the prefix
    calls = []
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    try:
        tiny_model.segment(encoded, ["the cup"] * QUERIES)
    finally:
        handle.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("attention", ["image_seg", "image"])
def test_from_tiles_to_logits_the_host_reads_nothing(tiny_model: Any, attention: str):
    """On the meta device there is nothing to read: an ``item``, a ``tolist`` or a ``nonzero`` would raise."""
    config = type(tiny_model.model.config).from_dict(tiny_model.model.config.to_dict() | {"attention": attention})
    with torch.device("meta"):
        engine = FoldedModel(Self1EForConditionalGeneration(config).eval())
    levels = torch.empty(1, 3, config.tile_size, config.tile_size, dtype=torch.uint8, device="meta")

    def run() -> None:
        pictures = engine.fold_pictures(engine.encode(levels, [(1, 1)]), [1, 2, 3])
        found = engine.mask_logits(_rows(engine.model, QUERIES), pictures * QUERIES)
        assert [tuple(logits.shape) for logits in found] == [(8, 8)] * QUERIES

    watch = _watch(run)
    assert {name: watch.calls[name] for name in READS if watch.calls[name]} == {}


def test_the_hot_path_reads_no_value_on_a_real_device_either(tiny_model: Any):
    engine = FoldedModel(tiny_model.model)
    side = engine.config.tile_size
    levels = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    rows = _rows(tiny_model.model, QUERIES)

    def run() -> None:
        pictures = engine.fold_pictures(engine.encode(levels, [(1, 1)]), [1, 2, 3])
        engine.mask_logits(rows, pictures * QUERIES)

    run()  # reads the prefix
    watch = _watch(run)
    assert {name: watch.calls[name] for name in READS if watch.calls[name]} == {}


def test_no_tensor_grows_with_queries_times_pixels_times_width(tiny_model: Any, monkeypatch: pytest.MonkeyPatch):
    """Rows may widen as the language model does; the mask head's widest maps exist in strips only."""
    monkeypatch.setattr(epilogue, "_CPU_STRIP", 1)  # one line of coarse tokens at a time, and one on either side
    engine = FoldedModel(tiny_model.model)
    side, text = engine.config.tile_size, engine.config.text_config
    grid, tiles = (3, 4), 12
    levels = torch.zeros(tiles, 3, side, side, dtype=torch.uint8)
    pictures = engine.fold_pictures(engine.encode(levels, [grid]), [1, 2, 3])
    rows = _rows(tiny_model.model, QUERIES, tiles)
    engine.mask_logits(rows, pictures * QUERIES)  # reads the prefix
    watch = _watch(lambda: engine.mask_logits(rows, pictures * QUERIES))
    height, width = 8 * grid[0], 8 * grid[1]
    strip = QUERIES * 3 * 4 * width * text.hidden_size
    layer = QUERIES * max(len(row) for row in rows) * max(text.intermediate_size, 2 * text.hidden_size)
    assert watch.largest <= max(strip, layer)
    assert watch.largest < QUERIES * height * width * text.hidden_size
