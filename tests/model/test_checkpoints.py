"""Checkpoints of any origin: read strictly, written back bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageTextToText

from self1e.errors import CheckpointError
from self1e.model import Self1EConfig, Self1EForConditionalGeneration
from self1e.model.checkpoints import (
    FuseGroupedRows,
    SplitGroupedRows,
    normalise_config,
    reference_state_dict,
)

FAMILIES = ["qwen2", "qwen3", "llama"]


@pytest.fixture
def chat_config(layouts):
    """The published ``config.json`` of one of our configurations."""
    return layouts.chat_config


@pytest.fixture
def save(layouts):
    """Write a folder from a configuration and tensors."""
    return layouts.save


def load(folder, **settings):
    return Self1EForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, **settings)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.fixture(params=FAMILIES)
def model(request, tiny):
    return tiny.tiny_model(request.param)


# --------------------------------------------------------------------------- our own


def test_every_tensor_survives_saving(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert_same(load_file(tmp_path / "model.safetensors"), model.state_dict())
    assert_same(load(tmp_path).state_dict(), model.state_dict())


def test_a_loaded_model_saves_every_tensor_again(model, tmp_path, chat_config, save):
    published = save(tmp_path / "published", chat_config(model.config), reference_state_dict(model))
    load(published).save_pretrained(tmp_path / "ours")
    assert_same(load_file(tmp_path / "ours" / "model.safetensors"), model.state_dict())
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "self1e"


def test_shards_are_read(tiny, tmp_path):
    model = tiny.tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same(load(tmp_path).state_dict(), model.state_dict())


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageTextToText])
def test_auto_classes_load_it(tiny, tmp_path, auto):
    model = tiny.tiny_model(unshuffle="three")
    model.save_pretrained(tmp_path)
    found = auto.from_pretrained(tmp_path)
    assert type(found) is Self1EForConditionalGeneration
    assert_same(found.state_dict(), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(tiny, tmp_path, dtype):
    tiny.tiny_model().bfloat16().save_pretrained(tmp_path)
    assert Self1EForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype).dtype == dtype
    assert Self1EForConditionalGeneration.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


def test_tied_embeddings_stay_tied(tiny, tmp_path):
    config = tiny.tiny_config()
    config.text_config.tie_word_embeddings = config.tie_word_embeddings = True
    model = Self1EForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "published", save_original_format=True)
    for folder in ("ours", "published"):
        found = load(tmp_path / folder)
        assert found.lm_head.weight is found.get_input_embeddings().weight
        assert_same(found.state_dict(), model.state_dict())


# --------------------------------------------------------------------------- the published layout


def test_published_names_are_written_and_read(model, tmp_path):
    model.save_pretrained(tmp_path, save_original_format=True)
    tensors = load_file(tmp_path / "model.safetensors")
    assert_same(tensors, reference_state_dict(model))
    assert all(
        name.startswith(("vision_model.", "language_model.", "mlp1.", "combine_decode_proj")) for name in tensors
    )
    assert_same(load(tmp_path).state_dict(), model.state_dict())


def test_published_checkpoints_are_read(model, tmp_path, chat_config, save):
    architecture = "InternVL2SELF1E" if model.config.text_config.model_type == "llama" else "InternVL3SELF1E"
    config = chat_config(model.config, architecture=architecture)
    found = load(save(tmp_path, config, reference_state_dict(model)))
    assert_same(found.state_dict(), model.state_dict())
    assert (found.config.image_token_id, found.config.seg_token_id) == (34, 41)
    assert found.config.image_seq_length == 4
    assert found.config.template == "internvl2_5"
    expected = "through_final_mlp" if architecture == "InternVL2SELF1E" else "plain"
    assert found.config.auxiliary_low_resolution == expected
    assert_same(reference_state_dict(found), load_file(tmp_path / "model.safetensors"))


def test_a_llama_may_have_the_names_of_a_llama(tiny, tmp_path, chat_config, save):
    model = tiny.tiny_model("llama")
    config = chat_config(model.config, llm={"architectures": ["LlamaForCausalLM"]})
    tensors = reference_state_dict(model, layout="qwen")
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in tensors
    assert_same(load(save(tmp_path, config, tensors)).state_dict(), model.state_dict())


def test_internlm2_rows_are_grouped_by_key_and_value_head(tiny):
    """Two groups of two query heads: q0 q1 k0 v0 | q2 q3 k1 v1, four rows each (METHOD 1.1)."""
    config = tiny.tiny_config("llama")
    fused = torch.arange(8).repeat_interleave(4)[:, None].expand(32, 16)
    parts = SplitGroupedRows().convert({"wqkv": [fused]}, ["wqkv"], ["q", "k", "v"], config=config)
    heads = {name: part[::4, 0].tolist() for name, part in parts.items()}
    assert heads == {"q": [0, 1, 4, 5], "k": [2, 6], "v": [3, 7]}
    assert type(SplitGroupedRows().reverse_op) is FuseGroupedRows
    back = SplitGroupedRows().reverse_op.convert(parts, ["q", "k", "v"], ["wqkv"], config=config)
    assert torch.equal(back["wqkv"], fused)


# --------------------------------------------------------------------------- base models and -hf


def test_a_base_model_starts_a_new_mask_head(model, tmp_path, caplog, chat_config, save, layouts):
    tensors = layouts.without_mask_head(reference_state_dict(model))
    folder = save(tmp_path, chat_config(model.config, architecture="InternVLChatModel"), tensors)
    found, info = load(folder, output_loading_info=True)
    assert len(info["missing_keys"]) == 12
    assert all(name.startswith("mask_head.") for name in info["missing_keys"])
    assert "its masks mean nothing before training" in caplog.text
    assert found.config.seg_token_id is None
    assert all(parameter.isfinite().all() for parameter in found.mask_head.parameters())
    assert found.mask_head.expand_vision.linear_2.weight.std().item() == pytest.approx(0.02, rel=0.2)
    with pytest.raises(CheckpointError, match="pass new_mask_head=True"):
        load(folder, new_mask_head=False)


def test_a_published_checkpoint_starts_a_new_mask_head_only_when_asked(tiny, tmp_path, chat_config, save, layouts):
    model = tiny.tiny_model()
    folder = save(tmp_path, chat_config(model.config), layouts.without_mask_head(reference_state_dict(model)))
    with pytest.raises(CheckpointError, match="pass new_mask_head=True"):
        load(folder)
    assert load(folder, new_mask_head=True).config.seg_token_id == model.config.seg_token_id


def test_half_a_mask_head_is_no_base_model(tiny, tmp_path, chat_config, save):
    model = tiny.tiny_model()
    tensors = reference_state_dict(model)
    del tensors["combine_decode_proj.0.weight"]
    folder = save(tmp_path, chat_config(model.config, architecture="InternVLChatModel"), tensors)
    with pytest.raises(CheckpointError, match=r"missing: mask_head\.final_mlp\.linear_1\.weight"):
        load(folder, new_mask_head=True)


def test_both_hf_layouts_are_read(model, tmp_path, save, layouts):
    config = model.config.to_dict() | {"model_type": "internvl", "architectures": ["InternVLForConditionalGeneration"]}
    newer = model.state_dict()
    for name, tensors in (("newer", newer), ("older", layouts.older_hf(newer))):
        assert_same(load(save(tmp_path / name, config, tensors)).state_dict(), model.state_dict())


# --------------------------------------------------------------------------- strictness


def test_one_error_lists_everything_that_does_not_fit(tiny, tmp_path, chat_config, save):
    model = tiny.tiny_model()
    tensors = reference_state_dict(model)
    tensors["vision_model.encoder.layers.0.ls9"] = torch.zeros(3)
    del tensors["mlp1.1.bias"], tensors["combine_decode_proj.0.weight"]
    tensors["language_model.model.norm.weight"] = torch.zeros(5)
    folder = save(tmp_path, chat_config(model.config), tensors)
    with pytest.raises(CheckpointError) as error:
        load(folder)
    assert str(error.value).splitlines()[1:-1] == [
        "  missing: mask_head.final_mlp.linear_1.weight",
        "  missing: model.multi_modal_projector.linear_1.bias",
        "  unexpected: vision_model.encoder.layers.0.ls9",
        "  misshapen: model.language_model.norm.weight (5,) instead of (16,)",
    ]


def test_pickled_weights_are_refused_with_the_way_out(tiny, tmp_path):
    tiny.tiny_config().save_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled weights only \(pytorch_model.bin\).*safetensors"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="use_safetensors=False"):
        load(tmp_path, use_safetensors=False)


def test_loading_information_is_given_when_asked_for(tiny, tmp_path):
    tiny.tiny_model().save_pretrained(tmp_path)
    _, info = load(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]


# --------------------------------------------------------------------------- configurations


def test_our_own_configuration_is_left_alone(tiny):
    found = tiny.tiny_config(unshuffle="one").to_dict()
    assert normalise_config(found) == found


@pytest.mark.parametrize("family", FAMILIES)
def test_dynamic_rope_becomes_the_default(tiny, family, chat_config):
    config = chat_config(tiny.tiny_config(family), llm={"rope_theta": 5e5})
    found = Self1EConfig(**normalise_config(config))
    assert found.text_config.rope_parameters == {"rope_type": "default", "rope_theta": 5e5}


def test_dynamic_rope_of_an_hf_configuration_becomes_the_default(tiny):
    text = tiny.tiny_config().text_config.to_dict() | {
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5e5}
    }
    found = Self1EConfig(**normalise_config({"model_type": "internvl", "text_config": text}))
    assert found.text_config.rope_parameters == {"rope_type": "default", "rope_theta": 5e5}


def test_other_rope_is_kept(tiny, chat_config):
    config = chat_config(tiny.tiny_config(), llm={"rope_scaling": {"type": "linear", "factor": 4.0}})
    found = Self1EConfig(**normalise_config(config)).text_config.rope_parameters
    assert (found["rope_type"], found["factor"]) == ("linear", 4.0)


def test_internlm2_becomes_a_llama(tiny, chat_config):
    found = Self1EConfig(**normalise_config(chat_config(tiny.tiny_config("llama"), llm={"bias": False})))
    text = found.text_config
    assert (text.model_type, text.attention_bias, text.mlp_bias) == ("llama", False, False)


def test_settings_of_the_encoder_get_their_other_names(tiny, chat_config):
    config = chat_config(tiny.tiny_config())
    config["vision_config"] |= {"qkv_bias": False, "qk_normalization": True, "norm_type": "rms_norm"}
    vision = Self1EConfig(**normalise_config(config)).vision_config
    assert (vision.attention_bias, vision.use_qk_norm, vision.norm_type) == (False, True, "rms_norm")
    assert vision.image_size == (16, 16)


@pytest.mark.parametrize(
    ("vocabulary", "architecture", "llm", "image", "seg"),
    [
        (151676, "InternVL3SELF1E", "Qwen2ForCausalLM", 151667, 151674),
        (92555, "InternVL2SELF1E", "InternLM2ForCausalLM", 92546, 92553),
        (151680, "InternVL3SELF1E", "Qwen3ForCausalLM", 151671, 151678),
        (151674, "InternVLChatModel", "Qwen2ForCausalLM", 151667, None),
        (92553, "InternVLChatModel", "InternLM2ForCausalLM", 92546, None),
        (151936, "InternVLChatModel", "Qwen3ForCausalLM", 151671, None),
    ],
)
def test_ids_follow_from_the_size_of_the_vocabulary(tiny, vocabulary, architecture, llm, image, seg, chat_config):
    language = {"vocab_size": vocabulary, "architectures": [llm]}
    found = normalise_config(chat_config(tiny.tiny_config(), architecture=architecture, llm=language))
    assert (found["image_token_id"], found.get("seg_token_id")) == (image, seg)


def test_ids_can_be_given(tiny, tmp_path, chat_config, save):
    model = tiny.tiny_model()
    folder = save(tmp_path, chat_config(model.config), reference_state_dict(model))
    found = load(folder, image_token_id=3, seg_token_id=5)
    assert (found.config.image_token_id, found.config.seg_token_id) == (3, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select_layer": -4}, "select_layer=-4; expected -1"),
        ({"ps_version": "v1"}, "ps_version='v1'; expected 'v2'"),
        ({"force_image_size": 8}, "force_image_size=8 differs from vision_config.image_size=16"),
        ({"llm": {"architectures": ["Phi3ForCausalLM"]}}, "expected one of InternLM2ForCausalLM, Qwen2ForCausalLM"),
        ({"llm": {"use_sliding_window": True}}, "use_sliding_window is true; expected false"),
        ({"llm": {"bias": True, "architectures": ["InternLM2ForCausalLM"]}}, "llm_config.bias is true"),
        ({"llm": {"hidden_size": None}}, "llm_config has no hidden_size"),
    ],
)
def test_settings_that_would_change_results_are_refused(tiny, changes, message, chat_config):
    with pytest.raises(CheckpointError, match=message):
        normalise_config(chat_config(tiny.tiny_config(), **changes))


def test_an_unknown_encoder_norm_is_refused(tiny, chat_config):
    config = chat_config(tiny.tiny_config())
    config["vision_config"]["norm_type"] = "batch_norm"
    with pytest.raises(CheckpointError, match="norm_type='batch_norm'; expected layer_norm or rms_norm"):
        normalise_config(config)


def test_a_stranger_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(CheckpointError, match="model_type='llava' and no llm_config; expected a SELF1E or InternVL"):
        Self1EConfig.from_pretrained(tmp_path)
