"""Adapters off and originals back: the base model, bit for bit."""

from __future__ import annotations

import pytest
import torch
from transformers import InternVLForConditionalGeneration

import self1e
from self1e.errors import CheckpointError, SettingError
from self1e.inference.base_answers import (
    _load_unmerged,
    base_answers,
    base_beside,
    knows_base,
    load_with_base,
    remember_base,
)
from self1e.model import Self1EForConditionalGeneration
from self1e.model.checkpoints import reference_state_dict

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTION = "What is on the table?"


@pytest.fixture
def model(trained_folder, base_folder):
    return load_with_base(trained_folder, base_folder, device="cpu")


def inputs_of(model, picture):
    """One question about a picture of 2 x 2 tiles, as ids and pixels."""
    levels, (rows, columns) = model.processor.image_processor.cut(picture.resize((100, 100)), 4)
    assert (rows, columns) == (2, 2)
    ids = model.processor.tokenize_conversation([(QUESTION, None)], num_tiles=4).input_ids
    pixels = torch.from_numpy(model.processor.image_processor.normalise(levels))
    return {"input_ids": torch.tensor([ids]), "pixel_values": pixels}


@torch.no_grad()
def logits_of(model, inputs):
    network = model.model
    return network(**inputs, tile_grids=[(2, 2)], dual_perception=False).logits


def test_off_is_the_base_bit_for_bit_and_on_is_not(model, base_folder, pictures):
    inputs = inputs_of(model, pictures[0])
    stock = InternVLForConditionalGeneration.from_pretrained(base_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = stock(**inputs).logits
    before = logits_of(model, inputs)
    with base_answers(model):
        found = logits_of(model, inputs)
    assert found.shape[-1] == 262
    assert torch.equal(found, expected)
    assert not torch.allclose(before[..., :262], expected, atol=1e-2)
    assert torch.equal(logits_of(model, inputs), before)


def test_answers_are_the_bases(model, base_folder, pictures):
    base = self1e.load(base_folder, device="cpu")
    base.processor = model.processor
    as_trained = [model.chat(picture, QUESTION, max_new_tokens=8) for picture in pictures]
    with base_answers(model):
        found = [model.chat(picture, QUESTION, max_new_tokens=8) for picture in pictures]
    stock = InternVLForConditionalGeneration.from_pretrained(base_folder, dtype=torch.float32).eval()
    for picture, answer in zip(pictures, found, strict=True):
        ids = model.processor.tokenize_conversation([(QUESTION, None)], num_tiles=1).input_ids
        levels, _ = model.processor.image_processor.cut(picture)
        output = stock.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            pixel_values=torch.from_numpy(model.processor.image_processor.normalise(levels)),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=model.processor.turn_end_id,
            pad_token_id=model.processor.pad_token_id,
        )
        text = model.processor.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
        assert answer == text.strip()
    assert found != as_trained
    assert [model.chat(picture, QUESTION, max_new_tokens=8) for picture in pictures] == as_trained


def test_on_is_what_loading_merges(model, trained_folder, pictures):
    """Adapters beside the weights give the masks of adapters in them, up to rounding."""
    merged = self1e.load(trained_folder, device="cpu")
    assert not knows_base(merged)
    expected = merged.segment(pictures[0], "cup", return_logits=True, exact="plain").mask_logits
    found = model.segment(pictures[0], "cup", return_logits=True).mask_logits
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-3, atol=1e-3)


def test_masks_and_foreign_features_are_refused_inside(model, pictures):
    outside = model.encode(pictures[0])
    with base_answers(model):
        with pytest.raises(SettingError, match="the base model knows no"):
            model.segment(pictures[0], "cup")
        with pytest.raises(SettingError, match="encoded by another model"):
            model.chat(outside, QUESTION)
        inside = model.encode(pictures[0])
    with pytest.raises(SettingError, match="encoded by another model"):
        model.segment(inside, "cup")
    assert len(model.segment(outside, "cup")) == 1


def test_an_error_inside_leaves_the_model_as_it_was(model, pictures):
    inputs = inputs_of(model, pictures[1])
    before = logits_of(model, inputs)
    learns = {name for name, parameter in model.model.named_parameters() if parameter.requires_grad}
    names = [name for name, _ in model.model.named_parameters()]
    with pytest.raises(ZeroDivisionError), base_answers(model):
        raise ZeroDivisionError
    assert torch.equal(logits_of(model, inputs), before)
    assert {name for name, parameter in model.model.named_parameters() if parameter.requires_grad} == learns
    assert [name for name, _ in model.model.named_parameters()] == names


def test_the_base_follows_a_model_that_moved(trained_folder, base_folder, pictures):
    """To another type, which needs no other device."""
    model = load_with_base(trained_folder, base_folder, device="cpu")
    model.model.double()
    inputs = inputs_of(model, pictures[0])
    stock = InternVLForConditionalGeneration.from_pretrained(base_folder, dtype=torch.float64).eval()
    with torch.no_grad():
        expected = stock(**inputs | {"pixel_values": inputs["pixel_values"].double()}).logits
    with base_answers(model):
        torch.testing.assert_close(logits_of(model, inputs), expected)
        found = model.chat(pictures[0], QUESTION, max_new_tokens=8)
    assert base_beside(model).chat(pictures[0], QUESTION, max_new_tokens=8) == found


def test_a_model_in_training_goes_on_learning(base_folder, trained_folder):
    from self1e.training.adapters import attach_adapters
    from self1e.training.recipes.settings import AdapterSettings

    model = Self1EForConditionalGeneration.from_pretrained(base_folder)
    attach_adapters(model, AdapterSettings(rank=3, input_embeddings="seg", output_embeddings="seg"))
    remember_base(model, base_folder)
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("lora_A" in name for name in learns)
    with base_answers(model):
        assert model.get_output_embeddings().weight.shape[0] == 262
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == learns


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_the_published_layout_with_fused_lora(layouts, load_script, tmp_path, family):
    """LoRA on fused ``qkv`` and ``wqkv``; base in InternVLChat's own layout."""
    tiny = load_script("record_goldens")
    model = tiny.tiny_model(family)
    plain = reference_state_dict(model)
    tensors, _ = layouts.attach_lora(plain)
    trained = layouts.published(tmp_path / "trained", model, tensors)
    projector = "mlp1.1.weight"
    changed = {**layouts.without_mask_head(plain), projector: plain[projector] + 1}
    llm = "InternLM2ForCausalLM" if family == "llama" else None
    config = layouts.chat_config(model.config, architecture="InternVLChatModel")
    assert llm is None or config["llm_config"]["architectures"] == [llm]
    base = layouts.save(tmp_path / "base", config, changed)
    network = _load_unmerged(trained, "trained", torch.float32)
    remember_base(network, base)
    expected = Self1EForConditionalGeneration.from_pretrained(base, dtype=torch.float32).eval()
    for one in (network, expected):  # the layout says it only by the size of a real vocabulary
        one.config.image_token_id = model.config.image_token_id
    batch = tiny.tiny_batch(model.config)
    inputs = {
        name: batch[name] for name in ("input_ids", "pixel_values", "attention_mask", "tile_grids") if name in batch
    }
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == network.config.seg_token_id, 7)
    with torch.no_grad(), base_answers(network):
        found = network(**inputs, dual_perception=False).logits
    with torch.no_grad():
        assert torch.equal(found, expected(**inputs, dual_perception=False).logits)
        assert not torch.equal(network(**inputs, dual_perception=False).logits, found)


# --------------------------------------------------------------------------- refusals


def test_a_merged_checkpoint_is_refused(tiny_model, tiny_model_folder, base_folder):
    with pytest.raises(CheckpointError, match="its adapters are merged into the weights") as error:
        load_with_base(tiny_model_folder, base_folder, device="cpu")
    assert "--model CHECKPOINT --base BASE" in str(error.value)
    with pytest.raises(CheckpointError, match="are merged"), base_answers(tiny_model):
        pass


def test_another_base_is_refused(trained_folder, tiny_model_folder):
    with pytest.raises(CheckpointError, match=r"tensors differ from the base .* was trained from another base"):
        load_with_base(trained_folder, tiny_model_folder, device="cpu")


def test_adapters_merged_in_memory_are_refused(model):
    from peft.tuners.lora import LoraLayer

    next(module for module in model.model.modules() if isinstance(module, LoraLayer)).merge()
    with pytest.raises(CheckpointError, match="merged in memory"), base_answers(model):
        pass


def test_a_name_on_the_hub_is_refused(trained_folder):
    with pytest.raises(CheckpointError, match="read from folders here"):
        load_with_base(trained_folder, "owner/base", device="cpu")
