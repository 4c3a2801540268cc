"""Base models: published configurations at full size, a new mask head, and a row for [SEG]."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
import torch

import self1e
from self1e.errors import CheckpointError
from self1e.model import Self1EConfig, Self1EForConditionalGeneration
from self1e.model.checkpoints import normalise_config, published_config, reference_state_dict
from self1e.model.checkpoints.loading import expected_shapes

# --------------------------------------------------------------------------- full size, without memory


class Base(NamedTuple):
    """A published base model: its language model's sizes, and the parameters that its model card counts."""

    llm: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    billions: float


BASES = {
    "InternVL3-1B": Base("Qwen2ForCausalLM", 896, 24, 14, 2, 64, 4864, 151674, 0.94),
    "InternVL3-2B": Base("Qwen2ForCausalLM", 1536, 28, 12, 2, 128, 8960, 151674, 2.09),
    "InternVL3-8B": Base("Qwen2ForCausalLM", 3584, 28, 28, 4, 128, 18944, 151674, 7.94),
    "InternVL3.5-2B": Base("Qwen3ForCausalLM", 2048, 28, 16, 8, 128, 6144, 151936, 2.35),
    "InternVL3.5-8B": Base("Qwen3ForCausalLM", 4096, 36, 32, 8, 128, 12288, 151936, 8.53),
    "InternVL2-2B": Base("InternLM2ForCausalLM", 2048, 24, 16, 8, 128, 8192, 92553, 2.21),
    "InternVL2_5-2B": Base("InternLM2ForCausalLM", 2048, 24, 16, 8, 128, 8192, 92553, 2.21),
    "InternVL2-8B": Base("InternLM2ForCausalLM", 4096, 32, 32, 8, 128, 14336, 92553, 8.08),
    "InternVL2_5-8B": Base("InternLM2ForCausalLM", 4096, 32, 32, 8, 128, 14336, 92553, 8.08),
}


def published_base(name: str) -> dict:
    """A ``config.json`` as such a repository has it, with the fields that no loader needs."""
    base = BASES[name]
    is_internlm2 = base.llm == "InternLM2ForCausalLM"
    llm = {
        "_name_or_path": "",
        "add_cross_attention": False,
        "architectures": [base.llm],
        "attention_dropout": 0.0,
        "bad_words_ids": None,
        "chunk_size_feed_forward": 0,
        "hidden_act": "silu",
        "hidden_size": base.width,
        "initializer_range": 0.02,
        "intermediate_size": base.mlp,
        "is_decoder": False,
        "max_length": 20,
        "max_position_embeddings": 32768,
        "model_type": base.llm.removesuffix("ForCausalLM").lower(),
        "num_attention_heads": base.heads,
        "num_hidden_layers": base.layers,
        "num_key_value_heads": base.kv_heads,
        "rms_norm_eps": 1e-5 if is_internlm2 else 1e-6,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.37.2",
        "use_bfloat16": True,
        "use_cache": False,
        "vocab_size": base.vocabulary,
    }
    if is_internlm2:
        llm |= {"attn_implementation": "flash_attention_2", "bias": False, "pad_token_id": 2, "auto_map": {"A": "b.C"}}
    else:
        llm |= {"_attn_implementation_autoset": True, "sliding_window": None, "use_sliding_window": False}
        llm |= {"max_window_layers": 70, "bos_token_id": 151643, "eos_token_id": 151645}
    if base.llm == "Qwen3ForCausalLM":
        llm |= {"head_dim": base.head_dim, "attention_bias": False, "layer_types": ["full_attention"] * base.layers}
    vision = {
        "architectures": ["InternVisionModel"],
        "attention_dropout": 0.0,
        "auto_map": {"AutoModel": "modeling_intern_vit.InternVisionModel"},
        "capacity_factor": 1.2,
        "drop_path_rate": 0.1,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "image_size": 448,
        "initializer_factor": 1.0,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-6,
        "model_type": "intern_vit_6b",
        "norm_type": "layer_norm",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 24,
        "num_routed_experts": 4,
        "patch_size": 14,
        "qk_normalization": False,
        "qkv_bias": True,
        "torch_dtype": "bfloat16",
        "use_flash_attn": True,
    }
    return {
        "_commit_hash": None,
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 448,
        "hidden_size": base.width,
        "image_fold": None,
        "llm_config": llm,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "system_message": None,
        "template": "internlm2-chat" if name == "InternVL2-2B" else "internvl2_5",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": vision,
    }


def promised(base: Base) -> int:
    """Parameters of language model, InternViT-300M and projector, by arithmetic (METHOD 1.1)."""
    d, q, kv = base.width, base.heads * base.head_dim, base.kv_heads * base.head_dim
    biases = q + 2 * kv if base.llm == "Qwen2ForCausalLM" else 0
    head_norms = 2 * base.head_dim if base.llm == "Qwen3ForCausalLM" else 0
    layer = (q + 2 * kv) * d + d * q + biases + head_norms + 3 * d * base.mlp + 2 * d
    language = 2 * base.vocabulary * d + base.layers * layer + d
    c, m = 1024, 4096
    block = (3 * c * c + 3 * c) + (c * c + c) + (m * c + m) + (c * m + c) + 4 * c + 2 * c
    vision = c + 1025 * c + (3 * 14 * 14 * c + c) + 24 * block
    projector = 2 * 4 * c + (4 * c * d + d) + (d * d + d)
    return language + vision + projector


def count(shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


@pytest.mark.parametrize("name", BASES)
def test_every_base_builds_with_the_parameters_that_its_name_promises(name):
    base = BASES[name]
    config = Self1EConfig(**normalise_config(published_base(name)))
    shapes = expected_shapes(config)
    head = {tensor for tensor in shapes if tensor.startswith("mask_head.")}
    found = count(shape for tensor, shape in shapes.items() if tensor not in head)
    assert found == promised(base)
    assert found / 1e9 == pytest.approx(base.billions, abs=0.005)
    assert found / 1e9 == pytest.approx(float(name.rpartition("-")[2].removesuffix("B")), abs=0.6)
    d = base.width
    assert len(head) == 12
    assert count(shapes[tensor] for tensor in head) == 4 * (d * d + d) + 2 * (4 * d * d + 4 * d)
    assert config.text_config.rope_parameters == {"rope_type": "default", "rope_theta": 1000000}


@pytest.mark.parametrize("name", BASES)
def test_a_published_configuration_survives_both_directions(name):
    config = Self1EConfig(**normalise_config(published_base(name)), seg_token_id=BASES[name].vocabulary - 1)
    again = Self1EConfig(**normalise_config(published_config(config)))
    before, after = config.to_dict(), again.to_dict()
    for part in ("text_config", "vision_config"):
        differ = {key for key in before[part] if before[part][key] != after[part].get(key)}
        assert differ <= {"max_window_layers", "use_cache", "dtype", "_name_or_path"}
    whole = {key for key in before if before[key] != after.get(key)}
    assert whole <= {"text_config", "vision_config", "dtype"}


# --------------------------------------------------------------------------- a base with its tokenizer


@pytest.fixture
def base(layouts, tiny_model_folder, base_tokenizer_folder, tmp_path):
    """Make an original InternVLChat folder: ``base(rows)`` has that many rows of vocabulary, and its tokenizer."""
    model = Self1EForConditionalGeneration.from_pretrained(tiny_model_folder, dtype=torch.float32)

    def make(rows=262, *, origin="chat", with_tokenizer=True):
        config = json.loads(json.dumps(model.config.to_dict(), default=str))
        generator = torch.Generator().manual_seed(0)
        state = dict(model.state_dict())
        for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
            state[name] = torch.randn(rows, 32, generator=generator)
        if origin == "chat":
            tensors = layouts.without_mask_head(reference_state_dict(model, state))
            chat = layouts.chat_config(model.config, architecture="InternVLChatModel", llm={"vocab_size": rows})
            folder = layouts.save(tmp_path / "base", chat, tensors)
        else:
            tensors = {name: tensor for name, tensor in state.items() if not name.startswith("mask_head.")}
            config |= {"model_type": "internvl", "seg_token_id": None}
            config["text_config"]["vocab_size"] = rows
            folder = layouts.save(tmp_path / "base", config, layouts.older_hf(tensors) if origin == "old" else tensors)
        if with_tokenizer:
            layouts.copy_tokenizer(base_tokenizer_folder, folder)
        return folder, state

    return make


@pytest.mark.parametrize("origin", ["chat", "old", "new"])
def test_a_base_gets_seg_and_nothing_else(base, origin):
    folder, state = base(origin=origin)
    model, info = Self1EForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert {name.partition(".")[0] for name in info["missing_keys"]} == {"mask_head"}
    assert len(info["missing_keys"]) == 12
    assert (model.config.seg_token_id, model.config.image_token_id) == (262, 261)
    assert model.config.text_config.vocab_size == 263
    for name, tensor in model.state_dict().items():
        if name.startswith("mask_head."):
            continue
        if len(state[name]) == 262:
            assert torch.equal(tensor[:262], state[name])
            torch.testing.assert_close(tensor[262], state[name].mean(0))
            assert tensor.shape == (263, 32)
        else:
            assert torch.equal(tensor, state[name])


def test_a_padded_vocabulary_is_cut_to_the_tokenizer(base):
    """Qwen3 pads to 151936 rows, of which the tokenizer uses fewer."""
    folder, state = base(rows=300)
    model = Self1EForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    assert model.get_input_embeddings().weight.shape == (263, 32)
    assert torch.equal(model.lm_head.weight, state["lm_head.weight"][:263])
    assert model.lm_head.out_features == model.get_input_embeddings().num_embeddings == 263


def test_a_base_loads_and_segments(base, pictures, caplog):
    model = self1e.load(base()[0], device="cpu")
    assert "mask head is new" in caplog.text
    result = model.segment(pictures[0], ["the red block", "blue"])
    assert result.masks.shape == (2, 60, 90)
    assert model.processor.tokenizer.convert_tokens_to_ids("[SEG]") == 262
    assert "[SEGT]" not in model.processor.tokenizer.get_vocab()


def test_a_base_without_tokenizer_stays_as_it_is(base):
    folder, _ = base(with_tokenizer=False)
    model = Self1EForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    assert model.config.seg_token_id is None
    assert model.config.text_config.vocab_size == 262


def test_a_tied_base_stays_tied(base):
    folder, state = base()
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"unexpected: language_model\.lm_head\.weight"):
        Self1EForConditionalGeneration.from_pretrained(folder)  # two matrices that differ are not one
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    for output in (None, tensors["language_model.model.embed_tokens.weight"].clone()):
        tensors.pop("language_model.lm_head.weight", None)
        if output is not None:
            tensors["language_model.lm_head.weight"] = output
        save_file(tensors, folder / "model.safetensors")
        model = Self1EForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        assert model.lm_head.weight is model.get_input_embeddings().weight
        torch.testing.assert_close(model.lm_head.weight[262], state["model.language_model.embed_tokens.weight"].mean(0))


# --------------------------------------------------------------------------- published weights with a tokenizer


@pytest.mark.parametrize(("rows", "tokens"), [(264, ["[SEG]", "[SEGT]"]), (263, ["[SEG]"])])
def test_published_weights_get_the_tokens_that_they_have(
    layouts, tiny_model_folder, base_tokenizer_folder, tmp_path, pictures, rows, tokens
):
    model = Self1EForConditionalGeneration.from_pretrained(tiny_model_folder, dtype=torch.float32)
    tensors = reference_state_dict(model)
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        tensors[name] = tensors[name][:rows]
    # config.json still says what the base had: the tensors count.
    config = layouts.chat_config(model.config, llm={"vocab_size": 262})
    folder = layouts.save(tmp_path, config, tensors)
    layouts.copy_tokenizer(base_tokenizer_folder, folder)
    found = self1e.load(folder, device="cpu")
    assert found.processor.tokenizer.convert_ids_to_tokens(list(range(262, rows))) == tokens
    assert (found.model.config.seg_token_id, found.model.config.image_token_id) == (262, 261)
    assert len(found.model.lm_head.weight) == rows
    expected = self1e.load(tiny_model_folder, device="cpu").segment(pictures[0], "it")
    assert (found.segment(pictures[0], "it").masks == expected.masks).all()


@pytest.mark.parametrize("rows", [261, 262, 270])
def test_a_tokenizer_of_another_model_is_refused(layouts, tiny_model_folder, base_tokenizer_folder, tmp_path, rows):
    model = Self1EForConditionalGeneration.from_pretrained(tiny_model_folder, dtype=torch.float32)
    tensors = reference_state_dict(model)
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        tensors[name] = tensors[name][:1].expand(rows, -1)
    folder = layouts.published(tmp_path, model, tensors)
    layouts.copy_tokenizer(base_tokenizer_folder, folder)
    with pytest.raises(
        CheckpointError, match=rf"have {rows} rows of vocabulary, the tokenizer 262 tokens; expected 264"
    ):
        self1e.load(folder)


def test_weights_with_a_mask_head_are_no_base_whatever_the_configuration_says(layouts, tiny, tmp_path):
    model = tiny.tiny_model()
    config = layouts.chat_config(model.config, architecture="InternVLChatModel")
    found = Self1EForConditionalGeneration.from_pretrained(
        layouts.save(tmp_path, config, reference_state_dict(model)), dtype=torch.float32
    )
    assert found.config.seg_token_id == model.config.seg_token_id
    assert torch.equal(found.mask_head.final_mlp.linear_1.weight, model.mask_head.final_mlp.linear_1.weight)


def test_a_foreign_model_of_the_hub_is_downloaded_without_pickles(base, monkeypatch):
    """No network: the download hands out a folder."""
    import huggingface_hub

    from self1e.model.checkpoints.loading import download

    folder, _ = base()
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **settings: asked.append((name, settings)) or str(folder)
    )
    assert download("owner/model", revision="abc", subfolder="x") == str(folder)
    assert download("owner/model", with_weights=False) == str(folder)
    (_, whole), (_, rest) = asked
    assert whole["revision"] == "abc"
    assert "*.safetensors" in whole["allow_patterns"]
    assert "*.safetensors" not in rest["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in whole["allow_patterns"])
