"""LoRA still attached: found, scaled and merged as METHOD 1.4 says; or kept, exactly."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from self1e.errors import CheckpointError, SettingError
from self1e.model import Self1EForConditionalGeneration
from self1e.model.checkpoints import Weights, reference_state_dict
from self1e.model.checkpoints.adapters import find_attached

FAMILIES = ["qwen2", "qwen3", "llama"]


def load(folder, **settings):
    return Self1EForConditionalGeneration.from_pretrained(folder, **{"dtype": torch.float32, **settings})


@pytest.fixture(params=FAMILIES)
def model(request, tiny):
    return tiny.tiny_model(request.param)


@pytest.fixture
def attached(layouts, tiny, tmp_path):
    """A Qwen2 with LoRA attached: its folder, the tensors without, and ``B A`` by name."""
    model = tiny.tiny_model()
    plain = reference_state_dict(model)
    tensors, products = layouts.attach_lora(plain)
    return layouts.published(tmp_path / "attached", model, tensors), plain, products


def assert_merged(layouts, found, plain, products, scale=2.0):
    expected = layouts.merged(plain, products, scale)
    names = reference_state_dict(found)
    assert names.keys() == expected.keys()
    for name, tensor in names.items():
        if name in products:
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-6)
            assert not torch.equal(tensor, plain[name])
        else:
            assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("shards", [1, 3])
def test_attached_lora_is_merged(layouts, model, tmp_path, shards):
    plain = reference_state_dict(model)
    tensors, products = layouts.attach_lora(plain)
    fused = "attention.wqkv" if model.config.text_config.model_type == "llama" else "self_attn.q_proj"
    assert any(fused in name for name in products)
    assert any("attn.qkv" in name for name in products)
    folder = layouts.published(tmp_path, model, tensors, shards=shards)
    found, info = load(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert found.config.name_or_path == str(folder)
    assert_merged(layouts, found, plain, products)


def test_a_merged_model_computes_what_the_adapters_do(layouts, tiny, attached):
    """Not a comparison of weights: the fused module with its LoRA beside it, against ours."""
    folder, plain, _ = attached
    tensors = load_file(folder / "model.safetensors")
    found = load(folder).model.vision_tower.encoder.layer[0].attention
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    inner = "vision_model.base_model.model.encoder.layers.0.attn.qkv."
    expected = x @ plain["vision_model.encoder.layers.0.attn.qkv.weight"].T
    expected += 2 * (x @ tensors[inner + "lora_A.default.weight"].T) @ tensors[inner + "lora_B.default.weight"].T
    expected += plain["vision_model.encoder.layers.0.attn.qkv.bias"]
    ours = torch.cat([found.q_proj(x), found.k_proj(x), found.v_proj(x)], dim=1)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_products_are_taken_in_float32_and_rounded_once(layouts, tiny, tmp_path):
    model = tiny.tiny_model().bfloat16()
    plain = reference_state_dict(model)
    tensors, products = layouts.attach_lora(plain)
    folder = layouts.published(tmp_path, model, tensors)
    expected = layouts.merged(plain, products)
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    for dtype in (torch.float32, torch.bfloat16):
        found = reference_state_dict(load(folder, dtype=dtype))[name]
        assert found.dtype == dtype
        if dtype == torch.float32:  # not rounded to the stored type on the way
            torch.testing.assert_close(found.double(), expected[name], rtol=1e-6, atol=1e-7)
        else:
            assert (found == expected[name].float().bfloat16()).float().mean() > 0.99
    assert load(folder, dtype="auto").dtype == torch.bfloat16


def test_names_of_one_wrapped_model_are_read(layouts, tiny, tmp_path):
    """PEFT around our own model: ``base_model.model.`` once, in front."""
    model = tiny.tiny_model()
    module = "model.language_model.layers.0.self_attn.q_proj"
    state = model.state_dict()
    a, b = torch.full((2, 16), 0.5), torch.full((16, 2), 0.25)
    tensors = {f"base_model.model.{name}": tensor for name, tensor in state.items() if not name.startswith(module)}
    tensors |= {
        f"base_model.model.{module}.base_layer.{leaf}": state[f"{module}.{leaf}"] for leaf in ("weight", "bias")
    }
    tensors |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
    found = load(layouts.save(tmp_path, model.config.to_dict(), tensors)).state_dict()
    torch.testing.assert_close(found.pop(f"{module}.weight"), state[f"{module}.weight"] + 0.5)
    assert all(torch.equal(found[name], state[name]) for name in found)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it
def test_the_output_of_a_model_that_peft_wrapped_is_the_same(tiny, tmp_path, layouts):
    """The names and numbers of the real library, not of this test."""
    peft = pytest.importorskip("peft")
    model = tiny.tiny_model()
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=names, init_lora_weights=False)
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(model, settings).eval()
    folder = layouts.save(tmp_path, tiny.tiny_config().to_dict(), wrapped.state_dict())
    batch = tiny.tiny_batch(tiny.tiny_config())
    with torch.no_grad():
        expected = wrapped(**batch)
        found = load(folder, attn_implementation="eager").eval()(**batch)
    torch.testing.assert_close(found.mask_logits[0], expected.mask_logits[0], rtol=1e-4, atol=1e-5)
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)


# --------------------------------------------------------------------------- the scale


def test_alpha_is_twice_the_rank_unless_somebody_says(layouts, attached):
    folder, plain, products = attached
    assert_merged(layouts, load(folder), plain, products, scale=2.0)
    assert_merged(layouts, load(folder, lora_alpha=3), plain, products, scale=1.0)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 12}))
    assert_merged(layouts, load(folder), plain, products, scale=4.0)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "lora_alpha": 1.5}))
    found = load(folder)
    assert_merged(layouts, found, plain, products, scale=0.5)
    assert not hasattr(found.config, "lora_alpha")  # it is merged
    assert_merged(layouts, load(folder, lora_alpha=6.0), plain, products, scale=2.0)


def test_rank_stabilised_lora_is_scaled_by_the_root(layouts, attached):
    folder, plain, products = attached
    (folder / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 12, "use_rslora": True}))
    assert_merged(layouts, load(folder), plain, products, scale=12 / 3**0.5)


@pytest.mark.parametrize("alpha", [0, -1.0, True, "2"])
def test_an_alpha_that_is_none_is_refused(attached, alpha):
    with pytest.raises(SettingError, match="must be a positive number; published: 2 x rank = 6"):
        load(attached[0], lora_alpha=alpha)


@pytest.mark.parametrize("said", [{"r": 8}, {"use_dora": True}, {"rank_pattern": {"q_proj": 4}}, {"peft_type": "LOHA"}])
def test_other_adapters_than_a_plain_lora_are_refused(attached, said):
    folder = attached[0]
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, **said}))
    with pytest.raises(CheckpointError, match="expected a plain LORA of rank 3"):
        load(folder)


# --------------------------------------------------------------------------- fused modules


def test_a_fused_lora_is_split_into_three_with_one_a(layouts, tiny, tmp_path):
    """Row blocks of ``B`` follow those of ``W``: nothing is computed, so nothing is rounded."""
    model = tiny.tiny_model("llama")
    tensors, _ = layouts.attach_lora(reference_state_dict(model))
    weights = Weights(layouts.published(tmp_path, model, tensors), model.config)
    grouped = "language_model.base_model.model.model.layers.0.attention.wqkv."
    a, b = tensors[grouped + "lora_A.default.weight"], tensors[grouped + "lora_B.default.weight"]
    heads = b.unflatten(0, (2, 4, 4))  # two groups of [q q k v], four rows each (METHOD 1.1)
    expected = {"q": heads[:, :2], "k": heads[:, 2:3], "v": heads[:, 3:]}
    for part, rows in expected.items():
        found_a, found_b = weights.adapter(f"model.language_model.layers.0.self_attn.{part}_proj.weight")
        assert torch.equal(found_a, a)
        assert torch.equal(found_b, rows.flatten(0, 2))
    chunked = tensors["vision_model.base_model.model.encoder.layers.0.attn.qkv.lora_B.default.weight"]
    for part, rows in zip("qkv", chunked.chunk(3), strict=True):
        name = f"model.vision_tower.encoder.layer.0.attention.{part}_proj.weight"
        assert torch.equal(weights.adapter(name)[1], rows)
    assert weights.adapter("lm_head.weight") is None


# --------------------------------------------------------------------------- strictness


def test_one_error_lists_everything_that_is_wrong_with_adapters(layouts, tiny, tmp_path):
    model = tiny.tiny_model()
    tensors, _ = layouts.attach_lora(reference_state_dict(model))
    language, vision = "language_model.base_model.model.model.layers.", "vision_model.base_model.model.encoder.layers."
    del tensors[language + "0.mlp.up_proj.lora_B.default.weight"]
    del tensors[language + "1.mlp.up_proj.base_layer.weight"]
    tensors[language + "0.self_attn.o_proj.lora_A.default.weight"] = torch.zeros(3, 7)
    tensors[vision + "1.attn.qkv.lora_B.default.weight"] = torch.zeros(35, 3)
    tensors[language + "0.input_layernorm.lora_magnitude_vector.default.weight"] = torch.zeros(16)
    tensors["language_model.lm_head.weight"] = torch.zeros(43, 16)
    with pytest.raises(CheckpointError) as error:
        load(layouts.published(tmp_path, model, tensors))
    assert str(error.value).splitlines()[1:-1] == [
        f"  missing: {language}0.mlp.up_proj.lora_B.default.weight",
        "  missing: model.language_model.layers.1.mlp.up_proj.weight",
        f"  unexpected: {language}0.input_layernorm.lora_magnitude_vector.default.weight",
        f"  unexpected: {language}1.mlp.up_proj.lora_A.default.weight",
        f"  unexpected: {language}1.mlp.up_proj.lora_B.default.weight",
        "  unexpected: language_model.lm_head.weight",
        f"  misshapen: {language}0.self_attn.o_proj.lora_A.default.weight (3, 7) instead of (r, 16)",
        f"  misshapen: {vision}1.attn.qkv.lora_B.default.weight (35, 3) instead of (36, 3)",
    ]


def test_several_adapters_are_refused(attached):
    names = ["q_proj.base_layer.weight", "q_proj.lora_A.one.weight", "q_proj.lora_B.two.weight"]
    with pytest.raises(CheckpointError, match=r"hold 2 adapters \(one, two\); expected one"):
        find_attached(names)
