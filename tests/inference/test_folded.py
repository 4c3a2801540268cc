"""Folded weights against the plain modules, which define what is right."""

from __future__ import annotations

import copy
import pickle
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support import draw_levels, in_float64
from torch import Tensor

import self1e
from self1e.errors import SettingError
from self1e.inference import memory, segmenter
from self1e.inference.folded import FoldedModel, obstacle
from self1e.processing.image import IMAGENET_MEAN, IMAGENET_STD

EXACT = 1e-9
RMS_ENCODER = {"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False}
GRIDS = ((1, 1), (1, 3), (2, 2), (2, 1))
PICTURE_OF_ROW = (0, 3, 1, 2, 0, 3)
BATCHES = ([0, 4], [1, 5], [2], [3])  # rows of equally many tiles
QUERIES = ["the red block", "What could roll away?", "blue"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    """Every test here is about tiny models."""


@pytest.fixture(scope="module")
def tiny(load_script) -> ModuleType:
    """The module of tiny models, whose every tensor is random."""
    return load_script("record_goldens")


def normalised(levels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (levels.double() / 255 - mean) / std


def plain_logits(tiny: ModuleType, model: Any, levels: Tensor) -> tuple[list[Tensor], list[list[int]]]:
    """Logits of rows that are padded, and that go on behind [SEG]; and their ids up to [SEG]."""
    batch = tiny.tiny_batch(model.config, tile_grids=GRIDS, picture_of_row=PICTURE_OF_ROW)
    names = ("input_ids", "attention_mask", "tile_grids", "picture_of_row")
    with torch.no_grad():
        output = model(**{name: batch[name] for name in names}, pixel_values=normalised(levels).to(model.dtype))
    rows = [ids[: ids.index(tiny.SEG) + 1] for ids in batch["input_ids"].tolist()]
    return [logits[0] for logits in output.mask_logits], rows


def folded_logits(model: Any, levels: Tensor, rows: list[list[int]]) -> list[Tensor]:
    engine = FoldedModel(model)
    vision = engine.encode(levels, GRIDS)
    image = model.config.image_token_id
    found: dict[int, Tensor] = {}
    for batch in BATCHES:
        pictures = [
            engine.fold_pictures(vision, rows[row][: rows[row].index(image)])[PICTURE_OF_ROW[row]] for row in batch
        ]
        logits = engine.mask_logits([rows[row] for row in batch], pictures)
        found.update(zip(batch, logits, strict=True))
    return [found[row] for row in range(len(rows))]


@pytest.mark.parametrize("encoder", [None, RMS_ENCODER], ids=["layer_norm", "rms_norm"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("attention", ["image_seg", "image", "causal"])
@pytest.mark.parametrize("seg_readout", ["before", "at"])
def test_folded_is_the_plain_model(tiny, family, encoder, attention, seg_readout):
    switches = {"attention": attention, "seg_readout": seg_readout}
    model = in_float64(tiny.tiny_model(family, implementation="sdpa", encoder=encoder, **switches))
    levels = draw_levels(10)
    expected, rows = plain_logits(tiny, model, levels)
    found = folded_logits(model, levels, rows)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float64
        torch.testing.assert_close(one, other, atol=EXACT, rtol=EXACT)
        assert other.std() > 0.01  # something to compare


def test_rows_share_nothing_but_the_pass(tiny):
    """A row's mask is the same alone, among longer rows and among other prefixes."""
    model = in_float64(tiny.tiny_model())
    engine = FoldedModel(model)
    vision = engine.encode(draw_levels(1), GRIDS[:1])
    picture = engine.fold_pictures(vision, ())[0]
    image, seg = tiny.IMAGE, tiny.SEG
    rows = [[*prefix, *[image] * 4, *words, seg] for prefix, words in (([1], [2]), ([], [3, 4, 5]), ([1], [6] * 9))]
    together = engine.mask_logits(rows, [picture] * 3)
    for row, logits in zip(rows, together, strict=True):
        torch.testing.assert_close(engine.mask_logits([row], [picture])[0], logits, atol=EXACT, rtol=EXACT)
    assert (together[0] - together[2]).abs().max() > 1e-3


def test_prefixes_are_read_once_and_not_hoarded(tiny, monkeypatch):
    model = tiny.tiny_model()
    engine = FoldedModel(model)
    picture = engine.fold_pictures(engine.encode(draw_levels(1), GRIDS[:1]), ())[0]
    lengths: list[int] = []
    embed = model.model.language_model.embed_tokens
    monkeypatch.setattr(embed, "forward", lambda ids, f=embed.forward: lengths.append(ids.shape[1]) or f(ids))

    def ask(*prefix: int) -> None:
        engine.mask_logits([[*prefix, *[tiny.IMAGE] * 4, 5, 6, tiny.SEG]], [picture])

    ask(1, 2, 3, 4)
    ask(1, 2, 3, 4)
    assert lengths == [4, 1, 3, 1, 3]  # the prefix; [SEG] before image tokens, words and [SEG]; the same again
    for other in range(7, 27):
        ask(1, 2, 3, other)
    assert len(engine._reader._prefixes) < 10
    ask(1, 2, 3, 4)
    assert lengths[-3:] == [4, 1, 3]  # forgotten meanwhile


def test_bfloat16_is_no_further_from_float64_than_the_plain_model(tiny):
    """Over 24 models: of a single one either may be nearer, by up to half."""
    levels = draw_levels(10)
    plain, folded = [], []
    for family in ("qwen2", "qwen3", "llama"):
        for seed in range(8):
            half = tiny.tiny_model(family, implementation="sdpa", seed=seed).to(torch.bfloat16)
            exact, rows = plain_logits(tiny, in_float64(copy.deepcopy(half)), levels)
            for errors, found in (
                (plain, plain_logits(tiny, half, levels)[0]),
                (folded, folded_logits(half, levels, rows)),
            ):
                off = torch.cat([(one.double() - other).flatten() for one, other in zip(found, exact, strict=True)])
                errors.append(float(off.std() / torch.cat([one.flatten() for one in exact]).std()))
    assert min(plain + folded) > 0
    assert sum(folded) <= 1.1 * sum(plain)  # measured: 0.95


@pytest.mark.parametrize("attention", ["image_seg", "image"])
@pytest.mark.parametrize("max_tiles", [1, 6])
def test_segment_folds_by_default(make_tiny_model, tmp_path, pictures, attention, max_tiles):
    model = self1e.load(make_tiny_model(tmp_path / "m", attention=attention), device="cpu")
    requests = [(picture, QUERIES[: 1 + index % 3]) for index, picture in enumerate(pictures)]
    settings: dict[str, Any] = {"max_tiles": max_tiles, "return_logits": True}
    results = {exact: model.segment_batch(requests, exact=exact, **settings) for exact in ("auto", "folded", "plain")}
    for auto, folded, plain in zip(*results.values(), strict=True):
        np.testing.assert_array_equal(auto.mask_logits, folded.mask_logits)
        np.testing.assert_allclose(folded.mask_logits, plain.mask_logits, atol=2e-4, rtol=0)
        assert np.abs(plain.mask_logits).max() > 0.01
    assert any((auto.mask_logits != plain.mask_logits).any() for auto, _, plain in zip(*results.values(), strict=True))


@pytest.mark.parametrize("encoded_by", ["folded", "plain"])
@pytest.mark.parametrize("asked", ["folded", "plain"])
@pytest.mark.parametrize("attention", ["image_seg", "image"])
def test_any_encoding_serves_any_path(make_tiny_model, tmp_path, pictures, encoded_by, asked, attention):
    model = self1e.load(make_tiny_model(tmp_path / "m", attention=attention), device="cpu")
    encoded = model.encode(pictures[2], max_tiles=3, exact=encoded_by)
    expected = model.segment(pictures[2], QUERIES, max_tiles=3, exact="plain", return_logits=True)
    found = model.segment(encoded, QUERIES, exact=asked, return_logits=True)
    np.testing.assert_allclose(found.mask_logits, expected.mask_logits, atol=2e-4, rtol=0)


def test_another_system_message_is_another_prefix(make_tiny_model, tmp_path, pictures):
    """With attention='image' an encoded picture holds keys behind a prefix: of the one that is asked with."""
    model = self1e.load(make_tiny_model(tmp_path / "m", attention="image"), device="cpu")
    encoded = model.encode(pictures[0])
    before = model.segment(encoded, QUERIES, return_logits=True)
    model.processor.system_message = "Look closely."
    after = model.segment(encoded, QUERIES, return_logits=True)
    expected = model.segment(pictures[0], QUERIES, exact="plain", return_logits=True)
    np.testing.assert_allclose(after.mask_logits, expected.mask_logits, atol=2e-4, rtol=0)
    assert np.abs(after.mask_logits - before.mask_logits).max() > 1e-3


def test_a_plain_forward_takes_what_folded_weights_encoded(tiny_model, pictures):
    inputs = tiny_model.processor.segmentation_inputs(QUERIES, num_tiles=1)
    found = [
        tiny_model.model(**inputs, vision=tiny_model.encode(pictures[0], exact=exact).vision, picture_of_row=[0] * 3)
        for exact in ("folded", "plain")
    ]
    for one, other in zip(*(output.mask_logits for output in found), strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=0)


# ---------------------------------------------------------------------- when weights change


@pytest.fixture
def own_model(tiny_model_folder) -> Any:
    """A loaded model that a test may change."""
    return self1e.load(tiny_model_folder, device="cpu")


def same(model: Any, picture: Any) -> bool:
    one, other = (model.segment(picture, QUERIES, exact=e, return_logits=True).mask_logits for e in ("folded", "plain"))
    return bool(np.abs(one - other).max() < 2e-4)


def test_changed_weights_are_folded_anew(own_model, pictures):
    before = own_model.segment(pictures[0], QUERIES, return_logits=True).mask_logits
    head, language = own_model.model.mask_head, own_model.model.model.language_model
    for parameter in (head.final_mlp.linear_1.weight, language.layers[0].self_attn.v_proj.weight):
        with torch.no_grad():
            parameter.mul_(1.5)
        assert same(own_model, pictures[0])
    after = own_model.segment(pictures[0], QUERIES, return_logits=True).mask_logits
    assert np.abs(after - before).max() > 1e-3
    own_model.model.load_state_dict({name: value * 0.9 for name, value in own_model.model.state_dict().items()})
    assert same(own_model, pictures[0])
    own_model.model.config.seg_readout = "at"
    assert same(own_model, pictures[0])


def test_replaced_weights_and_modules_are_noticed(tiny):
    model = tiny.tiny_model()
    head = model.mask_head.final_mlp.linear_1
    engine = FoldedModel(model)
    assert engine.is_current()
    before = head.weight
    head.weight = torch.nn.Parameter(before.detach().clone())
    assert not engine.is_current()
    head.weight = before
    assert engine.is_current()
    projection = model.model.language_model.layers[1].mlp.up_proj
    model.model.language_model.layers[1].mlp.up_proj = copy.deepcopy(projection)
    assert not engine.is_current()
    model.model.language_model.layers[1].mlp.up_proj = projection
    model.model.language_model.layers[0].more = torch.nn.Linear(1, 1)
    assert not engine.is_current()


def test_folds_are_kept_while_weights_stay(own_model, pictures, monkeypatch):
    made: list[FoldedModel] = []
    fold = FoldedModel._fold
    monkeypatch.setattr(FoldedModel, "_fold", lambda self, *args: made.append(self) or fold(self, *args))
    for _ in range(3):
        own_model.segment(pictures[0], QUERIES)
    assert len(made) == 1
    own_model.refold()
    own_model.segment(pictures[0], QUERIES)
    assert len(made) == 2


def test_changes_that_torch_cannot_see_need_refold(own_model, pictures):
    own_model.segment(pictures[0], "x")
    own_model.model.mask_head.final_mlp.linear_1.weight.data.mul_(1.5)
    own_model.refold()
    assert same(own_model, pictures[0])


def test_an_encoding_of_other_weights_is_refused(own_model, pictures):
    encoded = own_model.encode(pictures[0])
    with torch.no_grad():
        own_model.model.mask_head.final_mlp.linear_1.weight.mul_(1.5)
    with pytest.raises(SettingError, match="weights changed since it was encoded"):
        own_model.segment(encoded, "x")


def test_training_mode_is_plain(own_model, pictures):
    own_model.segment(pictures[0], "x")
    own_model.model.train()
    expected = own_model.segment(pictures[0], "x", exact="plain", return_logits=True)
    found = own_model.segment(pictures[0], "x", return_logits=True)
    np.testing.assert_array_equal(found.mask_logits, expected.mask_logits)
    with pytest.raises(SettingError, match="do not cover the model is in training mode"):
        own_model.segment(pictures[0], "x", exact="folded")


def test_copies_and_pickles_fold_for_themselves(own_model, pictures):
    own_model.segment(pictures[0], "x")
    for other in (copy.deepcopy(own_model), pickle.loads(pickle.dumps(own_model))):
        with torch.no_grad():
            other.model.mask_head.final_mlp.linear_2.weight.mul_(2)
        assert same(other, pictures[0])
    assert same(own_model, pictures[0])


# ---------------------------------------------------------------------- what is not covered


@pytest.mark.parametrize(
    ("switches", "told"),
    [
        ({"fine": "scan"}, "fine='scan'"),
        ({"fine": "none"}, "fine='none'"),
        ({"residual": False}, "residual=False"),
        ({"unshuffle": "one"}, "unshuffle='one'"),
        ({"unshuffle": "three"}, "unshuffle='three'"),
        ({"final_mlp": False}, "final_mlp=False"),
        ({"num_seg_tokens": 4}, "num_seg_tokens=4"),
        ({"attention": "image_text"}, "attention='image_text'"),
        ({"attention": "bidirectional"}, "attention='bidirectional'"),
    ],
)
def test_switches_that_are_not_folded_take_the_plain_path(make_tiny_model, tmp_path, pictures, switches, told):
    model = self1e.load(make_tiny_model(tmp_path / "m", **switches), device="cpu")
    assert told in str(obstacle(model.model))
    auto, plain = (model.segment(pictures[0], "x", exact=e, return_logits=True) for e in ("auto", "plain"))
    np.testing.assert_array_equal(auto.mask_logits, plain.mask_logits)
    with pytest.raises(SettingError, match="exact='folded', but folded weights do not cover"):
        model.segment(pictures[0], "x", exact="folded")


def test_other_language_models_take_the_plain_path(tiny):
    model = tiny.tiny_model()
    assert obstacle(model) is None
    language = model.model.language_model
    language.config.layer_types = ["full_attention", "sliding_attention"]
    assert obstacle(model) == "a language model with sliding windows"
    language.config.layer_types = ["full_attention"] * 2
    language.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert "dynamic" in str(obstacle(model))
    model.model.language_model = torch.nn.Identity()
    assert obstacle(model) == "a language model of type Identity"
    model = tiny.tiny_model()
    model.model.vision_tower = torch.nn.Identity()
    assert obstacle(model) == "a vision encoder of type Identity"


def test_adapters_and_replaced_layers_take_the_plain_path(tiny):
    from peft import LoraConfig, inject_adapter_in_model

    adapted = inject_adapter_in_model(LoraConfig(target_modules=["q_proj"], r=2), tiny.tiny_model())
    assert obstacle(adapted.eval()) == "adapters are attached; merge them to fold"
    model = tiny.tiny_model()
    model.mask_head.final_mlp.linear_1 = torch.nn.Bilinear(2, 2, 2)
    assert obstacle(model) == "a Bilinear where the plain Linear is folded"
    model = tiny.tiny_model()
    model.mask_head.odd = type("Quantised", (torch.nn.Parameter,), {})(torch.zeros(1))
    assert obstacle(model) == "weights of type Quantised"
    model = tiny.tiny_model()
    model.mask_head.to(torch.bfloat16)
    assert obstacle(model) == "weights on several devices or of several types"
    with pytest.raises(SettingError, match="cannot be folded: weights on several"):
        FoldedModel(model)


def test_an_unknown_path_is_an_error(tiny_model, pictures):
    with pytest.raises(SettingError, match="exact='fast' is unknown; choose one of auto, folded, plain"):
        tiny_model.segment(pictures[0], "x", exact="fast")


# ---------------------------------------------------------------------- batches and memory


def test_batches_follow_the_free_memory(tiny_model, pictures, monkeypatch):
    rows: list[int] = []
    logits = FoldedModel.mask_logits
    monkeypatch.setattr(FoldedModel, "mask_logits", lambda self, r, p: rows.append(len(r)) or logits(self, r, p))
    expected = tiny_model.segment(pictures[0], QUERIES * 4, return_logits=True).mask_logits
    assert rows == [12]
    one_row = FoldedModel(tiny_model.model).numbers_per_token * (4 + segmenter._WORDS) * 4
    for free, largest in ((5 * one_row, 1), (9 * one_row, 2), (21 * one_row, 5), (0, 1)):
        rows.clear()
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        found = tiny_model.segment(pictures[0], QUERIES * 4, return_logits=True).mask_logits
        assert max(rows) == largest
        np.testing.assert_allclose(found, expected, atol=2e-4, rtol=0)
    rows.clear()
    tiny_model.segment(pictures[0], QUERIES * 4, batch_size=7)
    assert rows == [7, 5]


def test_free_memory_of_the_cpu_is_less_than_the_machine_has(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    assert 2**24 < memory.free_memory(cpu) < 2**46
    assert memory.batch_memory(cpu) <= memory.CPU_BATCH
    (tmp_path / "max").write_text("5000000\n")
    (tmp_path / "current").write_text("2000000\n")
    monkeypatch.setattr(memory, "_CGROUPS", ((str(tmp_path / "max"), str(tmp_path / "current")),))
    assert memory.free_memory(cpu) == 3_000_000
    assert memory.batch_memory(cpu) == 750_000
    (tmp_path / "max").write_text("max\n")
    assert memory.free_memory(cpu) > 3_000_000
    monkeypatch.setattr(memory, "_available", lambda: 0)
    monkeypatch.setattr(memory, "_installed", lambda: 8000)
    assert memory.free_memory(cpu) == 2000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_folded_is_the_plain_model(tiny_model_folder, pictures):
    """And batches come from the device's own free memory."""
    model = self1e.load(tiny_model_folder, device="cuda", dtype="float32")
    assert memory.free_memory(model.device) > 2**20
    one, other = (
        model.segment(pictures[2], QUERIES, max_tiles=6, exact=e, return_logits=True) for e in ("folded", "plain")
    )
    np.testing.assert_allclose(one.mask_logits, other.mask_logits, atol=5e-3, rtol=0)
