"""The engine behind folded weights: what it must not do on a device, and that no shortcut changes a mask."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import draw_levels, in_float64
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import self1e
from self1e.errors import SettingError, ShortageError
from self1e.inference import compiling, memory, segmenter
from self1e.inference.compiling import Captured, check_backend
from self1e.inference.epilogue import score_in_strips, score_pixels
from self1e.inference.folded import FoldedModel
from self1e.inference.layout import Buckets, lay_out
from self1e.model.mask_head import upsample

EXACT = 1e-9
FAMILIES = ("qwen2", "qwen3", "llama")
PREFIX = [1, 2, 3]
QUERIES = ["the red block", "What could roll away?", "blue"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    """Every test here is about tiny models."""


@pytest.fixture(scope="module")
def tiny(load_script) -> ModuleType:
    """The module of tiny models, whose every tensor is random."""
    return load_script("record_goldens")


@pytest.fixture(scope="module")
def pretended_triton() -> ModuleType:
    """As much of Triton as the kernel uses, in plain torch."""
    path = Path(__file__).with_name("pretended_triton.py")
    spec = importlib.util.spec_from_file_location("pretended_triton", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _forgotten_graphs():
    """Graphs of one test are none of the next one's."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def make_row(tiny: ModuleType, tiles: int, words: int, seed: int = 0) -> list[int]:
    drawn = np.random.default_rng(seed).integers(1, tiny.IMAGE, words).tolist()
    return [*PREFIX, *[tiny.IMAGE] * (4 * tiles), *drawn, tiny.SEG]


def fold(engine: FoldedModel, levels: Tensor, grids: list[tuple[int, int]]) -> list[Any]:
    return engine.fold_pictures(engine.encode(levels, grids), PREFIX)


# ---------------------------------------------------------------------- what the device never sees


class Watch(TorchDispatchMode):
    """Fails on what waits for the device, and notes the shapes of everything that is made."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "item", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITS, f"{name} waits for the device"
        self.calls[name] = self.calls.get(name, 0) + 1
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else (found,):
            if isinstance(one, Tensor):
                self.shapes.add(tuple(one.shape))
        return found


@pytest.mark.parametrize("attention", ["image_seg", "image"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_waits_and_nothing_is_as_large_as_rows_by_rows(tiny, family, attention):
    engine = FoldedModel(tiny.tiny_model(family, implementation="sdpa", attention=attention))
    grids = [(2, 3)]
    rows = [make_row(tiny, 6, words) for words in (2, 5, 2)]
    engine.mask_logits(rows, fold(engine, draw_levels(6), grids) * 3)  # the prefix is read once per model
    with Watch() as watch:
        pictures = fold(engine, draw_levels(6), grids)
        engine.mask_logits(rows, pictures * 3)
    image, tail = 24, 6
    largest = max((x[-1] * x[-2] for x in watch.shapes if len(x) == 4 and x[-1] >= image and x[1] == 1), default=0)
    # What may be as long as a picture on one side is as long as the words on the other, times heads of a group.
    assert 0 < largest <= 2 * tail * (len(PREFIX) + image + tail)
    size = engine._reader._layers[0].self_attn.head_dim
    heads = [x for x in watch.shapes if len(x) == 4 and x[1] == 4 and x[-1] == size]
    assert heads
    assert max(x[2] for x in heads) < len(PREFIX) + image  # those that ask; keys stay as few as their heads


def test_more_rows_are_no_more_launches(tiny):
    """No loop over samples: 2 rows and 7 take the same operations, also with several pictures."""
    engine = FoldedModel(tiny.tiny_model(implementation="sdpa"))
    one, other = fold(engine, draw_levels(2), [(1, 1), (1, 1)])
    counts = []
    for pictures in ([one, other], [one, other, one, one, other, one, other]):
        rows = [make_row(tiny, 1, 3 + index) for index in range(len(pictures))]
        engine.mask_logits(rows, pictures)
        with Watch() as watch:
            engine.mask_logits(rows, pictures)
        counts.append(watch.calls)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("attention", ["image_seg", "image", "causal"])
@pytest.mark.parametrize("family", FAMILIES)
def test_stages_run_where_there_are_no_numbers(tiny, family, attention):
    """On the meta device: whatever looked at a number, or had a part of it on the host, would fail there."""
    model = tiny.tiny_model(family, implementation="sdpa", attention=attention).to("meta")
    engine = FoldedModel(model)
    engine.compile(backend=None)
    pictures = fold(engine, draw_levels(4), [(2, 2)])
    logits = engine.mask_logits([make_row(tiny, 4, words) for words in (3, 4)], pictures * 2)
    assert [one.shape for one in logits] == [(16, 16)] * 2
    assert all(one.device.type == "meta" for one in logits)


# ---------------------------------------------------------------------- equal lengths share a layer


@pytest.mark.parametrize("readout", ["before", "at"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_the_first_layer_changes_no_mask(tiny, family, layers, readout):
    """Rows of one length share it together, and each has its own alone."""
    model = in_float64(tiny.tiny_model(family, implementation="sdpa", seg_readout=readout))
    language = model.model.language_model
    language.config.num_hidden_layers = layers
    language.layers = language.layers[:layers]
    engine = FoldedModel(model)
    pictures = fold(engine, draw_levels(4), [(1, 2), (1, 2)])
    asked = [(0, 3), (1, 3), (0, 3), (0, 5), (1, 3), (0, 5)]
    rows = [make_row(tiny, 2, words, seed) for seed, (_, words) in enumerate(asked)]
    together = engine.mask_logits(rows, [pictures[number] for number, _ in asked])
    for row, (number, _), logits in zip(rows, asked, together, strict=True):
        (alone,) = engine.mask_logits([row], [pictures[number]])
        torch.testing.assert_close(alone, logits, atol=EXACT, rtol=EXACT)
    assert (together[0] - together[2]).abs().max() > 1e-4  # other words, other masks


def test_sharing_the_first_layer_saves_its_operations(tiny):
    """Of rows of one length all but one are spared the first layer's products on image tokens."""
    engine = FoldedModel(tiny.tiny_model(implementation="sdpa"))
    (picture,) = fold(engine, draw_levels(4), [(2, 2)])
    lengths = {"equal": [6] * 4, "unequal": [3, 4, 5, 6]}  # padded to one size
    found = {}
    for name, words in lengths.items():
        rows = [make_row(tiny, 4, count) for count in words]
        engine.mask_logits(rows, [picture] * 4)
        with FlopCounterMode(display=False) as counter:
            engine.mask_logits(rows, [picture] * 4)
        found[name] = counter.get_total_flops()
    text = engine.config.text_config
    width, inner, tokens = text.hidden_size, text.intermediate_size, 16
    head = width // text.num_attention_heads
    projections = 2 * width * width + 2 * width * text.num_key_value_heads * head + 3 * width * inner
    saved = 3 * 2 * tokens * projections  # three rows; attention comes on top
    assert 0.95 < (found["unequal"] - found["equal"]) / saved < 1.2


def test_rows_of_one_length_come_together(tiny_model, pictures, monkeypatch):
    """When they do not fit into one batch, they are sorted so that few batches hold several lengths."""
    batches: list[list[int]] = []
    ask = FoldedModel.mask_logits

    def spy(self: FoldedModel, rows: list[list[int]], pictures: Any) -> list[Tensor]:
        batches.append([len(row) for row in rows])
        return ask(self, rows, pictures)

    monkeypatch.setattr(FoldedModel, "mask_logits", spy)
    queries = ["the cat", "the red house", "the dog", "the big house", "the cow", "the old house"]
    expected = tiny_model.segment(pictures[0], queries, return_logits=True, exact="plain").mask_logits
    found = tiny_model.segment(pictures[0], queries, return_logits=True, batch_size=3).mask_logits
    assert [len(set(batch)) for batch in batches] == [1, 1]
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=0)  # and the masks are in the order of the queries


# ---------------------------------------------------------------------- rows on the device


@given(
    words=st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=40), min_size=1, max_size=20),
    pictures=st.integers(1, 3),
    is_bucketed=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_rows_are_laid_out(words, pictures, is_bucketed):
    numbers = [index % pictures for index in range(len(words))]
    rows = lay_out(words, numbers, CPU, Buckets() if is_bucketed else None)
    for index, row in enumerate(words):
        assert rows.ids[index, : len(row)].tolist() == row
        assert rows.lengths[index] == len(row)
        first = index if rows.first_of_row is None else int(rows.first_of_row[index])
        assert rows.first_lengths[first] == len(row)
        assert rows.first_pictures[first] == numbers[index] == rows.picture_of_row[index]
    if is_bucketed:
        assert rows.ids.shape[1] % 16 == 0
        assert len(rows.ids) in Buckets().rows
        assert len(rows.first_lengths) in Buckets().rows
    else:
        assert rows.ids.shape == (len(words), max(map(len, words)))
        assert len(rows.first_lengths) == len({(n, len(row)) for n, row in zip(numbers, words, strict=True)})


def test_buckets_round_up():
    assert [Buckets().round_rows(count) for count in (1, 5, 33, 256, 257, 600)] == [1, 6, 48, 256, 512, 768]
    assert [Buckets().round_words(count) for count in (1, 16, 17)] == [16, 16, 32]
    waste = [Buckets().round_rows(count) / count for count in range(1, 1000)]
    assert max(waste[3:]) < 2
    assert np.mean(waste) < 1.3


# ---------------------------------------------------------------------- the epilogue


def epilogue_inputs(
    batch: int, pictures: int, height: int, width: int, dim: int, scale: int = 2, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(batch + height)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    known, residual = draw(pictures, height * scale, width * scale, dim), draw(batch, height, width, dim)
    return [known, residual, draw(batch, dim), draw(batch), torch.arange(batch) % pictures]


def written_out(known: Tensor, residual: Tensor, query: Tensor, constant: Tensor, picture_of_row: Tensor) -> Tensor:
    enlarged = upsample(residual, (known.shape[1], known.shape[2]))
    hidden = F.gelu(known[picture_of_row] + enlarged)
    return torch.einsum("bhwd,bd->bhw", hidden, query) + constant[:, None, None]


@pytest.mark.parametrize("strip_bytes", [0, 1000, 3000, 2**30])
@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 4, 4, 5), (3, 1, 5, 2, 7), (4, 2, 3, 6, 8), (2, 2, 1, 3, 4), (2, 1, 4, 3, 5, 3), (1, 1, 3, 3, 4, 1)],
)
def test_strips_are_the_whole(sizes, strip_bytes):
    inputs = epilogue_inputs(*sizes)
    found = score_in_strips(*inputs, strip_bytes=strip_bytes)
    torch.testing.assert_close(found, written_out(*inputs), atol=EXACT, rtol=EXACT)


def test_strips_bound_the_memory():
    """No product of pixels and width is ever written: the largest tensor is a strip."""
    inputs = epilogue_inputs(2, 1, 32, 8, 16)
    with Watch() as watch:
        score_in_strips(*inputs, strip_bytes=2**16)
    assert max(int(np.prod(shape)) for shape in watch.shapes) * 8 <= 2 * 2**16  # and a line on either side
    assert 2 * inputs[0].numel() * 8 >= 4 * 2**16  # what it would be at once


def test_logits_are_at_least_float32():
    assert score_pixels(*epilogue_inputs(1, 1, 2, 2, 4, dtype=torch.bfloat16)).dtype == torch.float32
    assert score_pixels(*epilogue_inputs(1, 1, 2, 2, 4)).dtype == torch.float64


KERNEL_SIZES = [(1, 1, 4, 4, 5), (3, 1, 5, 3, 70), (4, 2, 3, 6, 8), (2, 1, 2, 3, 4, 3), (1, 1, 3, 3, 4, 1)]


@pytest.mark.parametrize("sizes", KERNEL_SIZES)
def test_the_kernel_read_line_by_line_is_the_plain_form(sizes, pretended_triton):
    """Its arithmetic, places and edges, on any machine."""
    with pretended_triton.pretended():
        from self1e.inference.epilogue_triton import score_fused

        inputs = epilogue_inputs(*sizes, dtype=torch.float32)
        torch.testing.assert_close(score_fused(*inputs), written_out(*inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sizes", KERNEL_SIZES)
def test_the_kernel_interpreted_is_the_plain_form(sizes):
    pytest.importorskip("triton", reason="Triton is not installed")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("set TRITON_INTERPRET=1")
    from self1e.inference.epilogue_triton import score_fused

    inputs = epilogue_inputs(*sizes, dtype=torch.float32)
    torch.testing.assert_close(score_fused(*inputs), written_out(*inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(1, 1, 32, 32, 896), (5, 2, 32, 64, 1536), (2, 1, 8, 4, 70, 3)])
def test_the_kernel_on_a_gpu_is_the_plain_form(sizes, dtype):
    pytest.importorskip("triton")
    from self1e.inference.epilogue_triton import score_fused

    inputs = [x.cuda() for x in epilogue_inputs(*sizes, dtype=dtype)]
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    torch.testing.assert_close(score_fused(*inputs).double(), written_out(*wide), atol=1e-3, rtol=1e-3)


# ---------------------------------------------------------------------- compiled


def graphs() -> tuple[int, int]:
    """How many graphs were compiled, and how often one broke."""
    counters = torch._dynamo.utils.counters
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


@pytest.mark.parametrize(
    ("family", "attention"),
    [("qwen2", "image_seg"), ("qwen3", "image_seg"), ("llama", "image_seg"), ("qwen2", "image")],
)
def test_compiled_is_the_same_without_a_break(tiny, family, attention):
    model = in_float64(tiny.tiny_model(family, implementation="sdpa", attention=attention))
    rows = [make_row(tiny, 2, words, words) for words in (3, 6, 3)]
    found = []
    for backend in (None, "eager"):
        engine = FoldedModel(model)
        if backend is not None:
            engine.compile(backend)
        found.append(torch.stack(list(engine.mask_logits(rows, fold(engine, draw_levels(2), [(2, 1)]) * 3))))
    torch.testing.assert_close(*found, atol=EXACT, rtol=EXACT)
    count, breaks = graphs()
    assert breaks == 0
    assert count == (4 if attention == "image_seg" else 3)  # encode, fine, and first and rows, or words


def test_shapes_are_few(tiny):
    """Whatever people ask, and however many at once: graphs are counted by buckets, not by lengths."""
    engine = FoldedModel(tiny.tiny_model(implementation="sdpa"))
    engine.compile("eager")
    (picture,) = fold(engine, draw_levels(1), [(1, 1)])
    begin, _ = graphs()
    for count in (1, 5, 6):
        for words in (1, 4, 9, 16, 17, 30):
            rows = [make_row(tiny, 1, 1 + (words + index) % 32, index) for index in range(count)]
            engine.mask_logits(rows, [picture] * count)
    count, breaks = graphs()
    assert breaks == 0
    rounded = 2  # to 1 and to 6
    assert count - begin <= rounded + 2 * rounded  # of pairs of picture and length; of rows, times two lengths
    seen = count
    for words in (2, 11, 20, 32):
        engine.mask_logits([make_row(tiny, 1, words)], [picture])
    assert graphs()[0] == seen


def test_a_model_can_be_loaded_compiled(tiny_model_folder, pictures, monkeypatch):
    backends: list[Any] = []
    compile_ = compiling.Compiled.__init__
    monkeypatch.setattr(
        compiling.Compiled, "__init__", lambda s, f, backend: backends.append(backend) or compile_(s, f, "eager")
    )
    monkeypatch.setattr(segmenter, "check_backend", lambda *args: None)
    monkeypatch.setattr("self1e.inference.folded.check_backend", lambda *args: None)
    plain = self1e.load(tiny_model_folder, device="cpu").segment(pictures[2], QUERIES, return_logits=True)
    assert not backends  # off, unless it is asked for
    model = self1e.load(tiny_model_folder, device="cpu", compile=True)
    for _ in range(2):
        found = model.segment(pictures[2], QUERIES, return_logits=True)
        np.testing.assert_allclose(found.mask_logits, plain.mask_logits, atol=1e-4, rtol=0)
    assert set(backends) == {"inductor"}
    assert len(backends) == 5  # stages, once
    with torch.no_grad():
        model.model.mask_head.final_mlp.linear_2.weight.mul_(2)
    one, other = (model.segment(pictures[2], "x", exact=e, return_logits=True) for e in ("auto", "plain"))
    np.testing.assert_allclose(one.mask_logits, other.mask_logits, atol=1e-4, rtol=0)
    copy.deepcopy(model)


def test_what_cannot_be_compiled_says_so(make_tiny_model, tmp_path, tiny_model, monkeypatch):
    model = self1e.load(make_tiny_model(tmp_path / "m", fine="none"), device="cpu")
    with pytest.raises(SettingError, match="they do not cover fine='none'"):
        model.compile("eager")
    with pytest.raises(SettingError, match=r"backend='inducter' is unknown\. Did you mean 'inductor'"):
        tiny_model.compile("inducter")
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(SettingError, match=r"needs a C\+\+ compiler on a CPU and found none"):
        check_backend("inductor", CPU)
    check_backend("eager", CPU)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, as its compiler is imported
def test_inductor_gives_the_same_masks(tiny_model_folder, pictures):
    plain = self1e.load(tiny_model_folder, device="cpu").segment(pictures[2], QUERIES, return_logits=True)
    found = self1e.load(tiny_model_folder, device="cpu", compile=True).segment(pictures[2], QUERIES, return_logits=True)
    np.testing.assert_allclose(found.mask_logits, plain.mask_logits, atol=1e-4, rtol=0)


# ---------------------------------------------------------------------- CUDA graphs


def test_a_cpu_has_no_graphs(tiny):
    engine = FoldedModel(tiny.tiny_model(implementation="sdpa"))
    engine.compile("eager", cuda_graphs=True)
    assert engine._captured is None
    with pytest.raises(AssertionError, match="only CUDA devices have graphs"):
        Captured()("x", lambda x: [x], [torch.zeros(1)])


class Recorded:
    """Stands in for `Captured` on a CPU: keeps the operations of each name and shape, as a graph would."""

    def __init__(self) -> None:
        self.found: dict[Any, list[dict[str, int]]] = {}

    def __call__(self, name: Any, function: Callable[..., Any], inputs: Any) -> list[Tensor]:
        key = (name, *((tuple(x.shape), x.dtype) for x in inputs))
        with Watch() as watch:
            results = function(*inputs)
        self.found.setdefault(key, []).append(watch.calls)
        return list(results)


def test_a_recording_would_hold(tiny):
    """What is captured launches the same operations for all inputs of one shape, and gives the same masks."""
    model = tiny.tiny_model(implementation="sdpa")
    eager, engine = FoldedModel(model), FoldedModel(model)
    engine.compile(None)
    engine._captured = recorded = Recorded()  # type: ignore[assignment]
    for count, words in ((1, (3,)), (1, (9,)), (1, (16,)), (2, (4, 4)), (2, (7, 7))):
        rows = [make_row(tiny, 2, n, n + i) for i, n in enumerate(words)]
        one, other = (e.mask_logits(rows, fold(e, draw_levels(2), [(1, 2)]) * count) for e in (engine, eager))
        torch.testing.assert_close(torch.stack(list(one)), torch.stack(list(other)), atol=1e-4, rtol=0)
    assert {key[0] if isinstance(key[0], str) else key[0][0] for key in recorded.found} == {"encode", "score"}
    assert sum(len(calls) for calls in recorded.found.values()) == 10
    assert len(recorded.found) == 3  # one encoding; one row, and two rows of one length
    for calls in recorded.found.values():
        assert all(other == calls[0] for other in calls)


def test_many_rows_and_several_pictures_are_not_captured(tiny):
    engine = FoldedModel(tiny.tiny_model(implementation="sdpa"))
    engine.compile(None)
    pictures = fold(engine, draw_levels(2), [(1, 1), (1, 1)])
    engine._captured = recorded = Recorded()  # type: ignore[assignment]
    engine.mask_logits([make_row(tiny, 1, 3)] * 2, pictures)
    engine.mask_logits([make_row(tiny, 1, 3)] * 9, pictures[:1] * 9)
    assert not recorded.found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", [None, "inductor"])
def test_graphs_on_a_gpu_give_the_same_masks(tiny_model_folder, pictures, backend):
    model = self1e.load(tiny_model_folder, device="cuda", dtype="float32")
    expected = [model.segment(picture, QUERIES[:1], return_logits=True).mask_logits for picture in pictures]
    model.compile(backend)
    for _ in range(2):
        for picture, logits in zip(pictures, expected, strict=True):
            found = model.segment(picture, QUERIES[:1], return_logits=True).mask_logits
            np.testing.assert_allclose(found, logits, atol=5e-3, rtol=0)
    assert model._engine("folded")._captured._graphs  # type: ignore[union-attr]


# ---------------------------------------------------------------------- memory


@pytest.mark.parametrize("exact", ["folded", "plain"])
@pytest.mark.parametrize("fits", [1, 2, 5])
def test_where_memory_is_short_fewer_queries_run_at_once(tiny_model, pictures, monkeypatch, exact, fits):
    queries = [f"thing {index}" for index in range(9)]
    expected = tiny_model.segment(pictures[0], queries, return_logits=True, exact=exact).mask_logits
    taken: list[int] = []
    owner = segmenter._Folded if exact == "folded" else segmenter._Plain
    ask = owner.mask_logits

    def short(self: Any, inputs: Any, picture_of_row: Any) -> Any:
        if len(picture_of_row) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        taken.append(len(picture_of_row))
        return ask(self, inputs, picture_of_row)

    monkeypatch.setattr(owner, "mask_logits", short)
    found = tiny_model.segment(pictures[0], queries, return_logits=True, exact=exact).mask_logits
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=0)
    assert sum(taken) == 9
    assert max(taken) <= fits
    assert len(taken) <= 9 / fits * 2 + 1  # it learns: no batch is larger than what failed before


def test_where_one_query_does_not_fit_the_error_says_how_much_it_takes(tiny_model, pictures, monkeypatch):
    def short(self: Any, *args: Any) -> Any:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(segmenter._Folded, "mask_logits", short)
    with pytest.raises(
        ShortageError, match=r"one query on 1 tile\(s\) takes about \d+ MB .* smaller max_tiles"
    ) as told:
        tiny_model.segment(pictures[0], QUERIES)
    assert isinstance(told.value, MemoryError)


def test_other_errors_are_not_taken_for_a_shortage(tiny_model, pictures, monkeypatch):
    def broken(self: Any, *args: Any) -> Any:
        raise RuntimeError("expected scalar type Float but found Half")

    monkeypatch.setattr(segmenter._Folded, "mask_logits", broken)
    with pytest.raises(RuntimeError, match="expected scalar type"):
        tiny_model.segment(pictures[0], QUERIES)
    assert memory.is_shortage(RuntimeError("MPS backend out of memory (MPS allocated: 5.8 GB)"))
