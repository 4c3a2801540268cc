"""The configuration: defaults that load the released weights, switches that refuse what cannot work."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, Qwen2Config

from self1e import Self1EConfig
from self1e.errors import SettingError


def test_defaults_are_the_published_method():
    config = Self1EConfig()
    found = {name: getattr(config, name) for name in ("seg_readout", "fine", "residual", "unshuffle", "attention")}
    assert found == {
        "seg_readout": "before",
        "fine": "replicate",
        "residual": True,
        "unshuffle": "two",
        "attention": "image_seg",
    }
    assert (config.final_mlp, config.auxiliary_low_resolution, config.num_seg_tokens) == (True, "plain", 1)
    assert (config.compression, config.patches_per_side, config.tile_size) == (2, 32, 448)


@pytest.mark.parametrize("tied", [False, True])
def test_the_language_model_says_whether_embeddings_are_tied(tied):
    text = Qwen2Config(tie_word_embeddings=tied)
    assert Self1EConfig(text_config=text).tie_word_embeddings is tied
    assert Self1EConfig(text_config=text.to_dict(), tie_word_embeddings=not tied).tie_word_embeddings is tied


@pytest.mark.parametrize("name", ["seg_readout", "fine", "unshuffle", "attention", "auxiliary_low_resolution"])
def test_an_unknown_switch_is_refused_with_the_known_ones(name):
    with pytest.raises(SettingError, match=f"{name}='soft' is unknown; choose one of .*,"):
        Self1EConfig(**{name: "soft"})


@pytest.mark.parametrize("switch", ["residual_only", "three"])
@pytest.mark.parametrize("other", [{"fine": "none"}, {"residual": False}])
def test_a_switch_that_would_have_nothing_to_do_is_refused(switch, other):
    with pytest.raises(SettingError, match="needs fine features and a residual"):
        Self1EConfig(unshuffle=switch, **other)


@pytest.mark.parametrize("number", [0, 2, 8])
def test_seg_tokens_fill_a_square(number):
    with pytest.raises(SettingError, match=f"num_seg_tokens={number} must be a square"):
        Self1EConfig(num_seg_tokens=number)


def test_round_trip(tmp_path, tiny):
    config = tiny.tiny_config("qwen3", unshuffle="three", attention="image", num_seg_tokens=4, template="internvl2_5")
    config.save_pretrained(tmp_path)
    for found in (Self1EConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(found) is Self1EConfig
        assert found.to_diff_dict() == config.to_diff_dict()
        assert found.text_config.head_dim == 6


def test_a_setting_can_be_overridden_while_loading(tmp_path, tiny):
    tiny.tiny_config().save_pretrained(tmp_path)
    assert Self1EConfig.from_pretrained(tmp_path, attention="image").attention == "image"
