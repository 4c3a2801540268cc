"""What is trained, at full size without memory and at tiny size with it; and back to one plain model."""

from __future__ import annotations

import copy
import re
import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import self1e
from self1e.data.mixture import Item, Row
from self1e.errors import CheckpointError, SettingError
from self1e.model import Self1EConfig, Self1EForConditionalGeneration
from self1e.model.checkpoints import normalise_config
from self1e.model.checkpoints.adapters import find_attached
from self1e.processing.processor import Self1EProcessor
from self1e.training import preflight
from self1e.training.adapters import (
    attach_adapters,
    count_parameters,
    export_model,
    merge_adapters,
    merged_tensors,
)
from self1e.training.collate import Collator
from self1e.training.merging import merge_checkpoint
from self1e.training.recipes import RECIPES, AdapterSettings, Recipe, change
from self1e.training.training_data import seg_answers

pytestmark = pytest.mark.usefixtures("one_thread")

PUBLISHED = [name for name, make in RECIPES.items() if isinstance(make(), Recipe)]

# --------------------------------------------------------------------------- full size


@pytest.fixture(scope="module")
def plan_model(load_script):
    """Model of a recipe on the meta device; recipes with equal models share it."""
    bases = load_script("test_bases", "tests/model")

    @cache
    def config_of(hub):
        return normalise_config(bases.published_base(hub.removeprefix("OpenGVLab/").replace("3_5", "3.5")))

    @cache
    def build(model, adapters):
        recipe = replace(RECIPES["self1e-internvl3-2b"](), model=model, adapters=adapters)
        config = Self1EConfig(**copy.deepcopy(config_of(model.base)) | model.switches())
        return preflight.planned_model(recipe, config)

    return lambda recipe: build(recipe.model, recipe.adapters)


def expected_to_learn(model, rank, *, input_embeddings):
    """METHOD 6.3 in names and shapes, from the sizes alone."""
    text, vision = model.config.text_config, model.config.vision_config
    width, inner = text.hidden_size, text.intermediate_size
    head = getattr(text, "head_dim", None) or width // text.num_attention_heads
    queries, keys = text.num_attention_heads * head, text.num_key_value_heads * head
    eye, eye_inner = vision.hidden_size, vision.intermediate_size
    language = {
        **{f"self_attn.{name}_proj": (width, out) for name, out in (("q", queries), ("k", keys), ("v", keys))},
        "self_attn.o_proj": (queries, width),
        **{f"mlp.{name}_proj": (width, inner) for name in ("gate", "up")},
        "mlp.down_proj": (inner, width),
    }
    tower = {
        **{f"attention.{name}": (eye, eye) for name in ("q_proj", "k_proj", "v_proj", "projection_layer")},
        "mlp.fc1": (eye, eye_inner),
        "mlp.fc2": (eye_inner, eye),
    }
    found = {}
    for prefix, layers, modules in (
        ("model.language_model.layers", text.num_hidden_layers, language),
        ("model.vision_tower.encoder.layer", vision.num_hidden_layers, tower),
    ):
        for layer in range(layers):
            for module, (into, out) in modules.items():
                found[f"{prefix}.{layer}.{module}.lora_A.default.weight"] = (rank, into)
                found[f"{prefix}.{layer}.{module}.lora_B.default.weight"] = (out, rank)
    projector = "model.multi_modal_projector"
    found |= {f"{projector}.layer_norm.{leaf}": (4 * eye,) for leaf in ("weight", "bias")}
    found |= {f"{projector}.linear_1.weight": (width, 4 * eye), f"{projector}.linear_1.bias": (width,)}
    found |= {f"{projector}.linear_2.weight": (width, width), f"{projector}.linear_2.bias": (width,)}
    found["lm_head.weight"] = (text.vocab_size, width)
    if input_embeddings:
        found["model.language_model.embed_tokens.weight"] = (text.vocab_size, width)
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_at_full_size_every_recipe_trains_what_the_paper_trains(name, plan_model):
    recipe = RECIPES[name]()
    model = plan_model(recipe)
    assert all(parameter.is_meta for parameter in model.parameters())
    learns = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    is_internlm2 = model.config.text_config.model_type == "llama"
    expected = expected_to_learn(model, recipe.adapters.rank, input_embeddings=not is_internlm2)
    head = {f"mask_head.{name}": tuple(p.shape) for name, p in model.mask_head.named_parameters()}
    assert head
    assert learns == {**expected, **head}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    # Of the published method the head is three MLPs: two of D -> D -> 4D, one of D -> D -> D.
    if not recipe.model.switches().items() - RECIPES["self1e-internvl3-2b"]().model.switches().items():
        width = model.config.text_config.hidden_size
        assert sum(p.numel() for p in model.mask_head.parameters()) == 2 * (5 * width**2 + 5 * width) + 2 * (
            width**2 + width
        )


def test_the_count_of_what_self1e_2b_trains(plan_model):
    """InternVL3-2B by hand: LoRA 128 on 28 layers of width 1536, MLP 8960, 2 of 12 heads, and on 24 of width 1024."""
    model = plan_model(RECIPES["self1e-internvl3-2b"]())
    language = 28 * 128 * (2 * (1536 + 1536) + 2 * (1536 + 256) + 3 * (1536 + 8960))
    vision = 24 * 128 * (4 * 2048 + 2 * (1024 + 4096))
    projector = 2 * 4096 + (4096 * 1536 + 1536) + (1536 * 1536 + 1536)
    head = 12 * 1536**2 + 12 * 1536
    embeddings = 2 * 151674 * 1536
    assert count_parameters(model)["trained"] == language + vision + projector + head + embeddings


# --------------------------------------------------------------------------- tiny size


def tiny(recipe):
    """The same recipe for the tiny model."""
    recipe = change(recipe, ["adapters.rank=4", "model.frozen_dtype=float32", "optim.bf16=false"])
    return replace(recipe, optim=replace(recipe.optim, gradient_checkpointing=False))


def load(folder, recipe, dtype=torch.float32):
    return Self1EForConditionalGeneration.from_pretrained(folder, dtype=dtype)


@pytest.fixture(scope="module")
def folder_of(make_tiny_model, tmp_path_factory):
    @cache
    def make(model):
        return make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny", **model.switches())

    return lambda recipe: make(replace(recipe.model, base=""))


@pytest.fixture(scope="module")
def items():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    mask = np.zeros((20, 30), bool)
    mask[4:15, 8:20] = True

    def make(num_seg_tokens):
        answer = seg_answers(num_seg_tokens)[0]
        rows = tuple(Row(question=f"<image>\nCan you segment the {x}?", answer=answer, mask=mask) for x in "ab")
        text = Row(question="<image>\nHow many?", answer="two", mask=None)
        return [Item(image=image, rows=(*rows, text), source="a"), Item(image=image, rows=rows[:1], source="b")]

    return make


@pytest.mark.parametrize("name", [n for n in PUBLISHED if "8b" not in n and "-seg-" not in n and "refclef" not in n])
def test_at_tiny_size_every_recipe_takes_a_step(name, folder_of, items):
    recipe = tiny(RECIPES[name]())
    folder = folder_of(recipe)
    torch.manual_seed(0)
    model = attach_adapters(load(folder, recipe), recipe.adapters)
    model.train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    batch = Collator(Self1EProcessor.from_pretrained(folder))(items(recipe.model.num_seg_tokens))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0)
    for _ in range(2):  # B is zero at first: A learns from the second step on
        loss = model(**batch)["loss"]
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    # Key biases cancel in softmax, but keys have none that learn: everything that may learn does.
    assert changed == learns
    dead = [name for name, p in model.mask_head.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize(
    ("settings", "learns"),
    [
        ({"language": "frozen", "vision": "frozen"}, r"lm_head|embed_tokens|projector|mask_head"),
        (
            {"language": "full", "vision": "frozen", "projector": "frozen", "mask_head": "frozen"}
            | {"input_embeddings": "frozen", "output_embeddings": "frozen"},
            r"language_model\.(layers|norm)",
        ),
        ({"language": "frozen", "vision": "full", "projector": "frozen"}, r"vision_tower|lm_head|embed|mask_head"),
        (
            {"input_embeddings": "seg", "output_embeddings": "seg", "projector": "frozen"},
            r"lora_|trainable_tokens|mask_head",
        ),
    ],
)
def test_other_parts_can_be_chosen(settings, learns, tiny_model_folder):
    model = Self1EForConditionalGeneration.from_pretrained(tiny_model_folder)
    attach_adapters(model, AdapterSettings(rank=2, **settings))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == bool(re.search(learns, name)), name


def test_only_the_row_of_seg_changes(tiny_model_folder, items):
    model = Self1EForConditionalGeneration.from_pretrained(tiny_model_folder)
    before = model.get_input_embeddings().weight.detach().clone(), model.lm_head.weight.detach().clone()
    attach_adapters(model, AdapterSettings(rank=2, input_embeddings="seg", output_embeddings="seg"))
    batch = Collator(Self1EProcessor.from_pretrained(tiny_model_folder))(items(1))
    model.train()
    model(**batch)["loss"].backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    plain = merge_adapters(model)
    for old, new in zip(before, (plain.get_input_embeddings().weight, plain.lm_head.weight), strict=True):
        rows = (old != new).any(1).nonzero().flatten().tolist()
        assert rows == [model.config.seg_token_id]


def test_settings_that_do_not_fit_are_refused(tiny_model_folder):
    model = Self1EForConditionalGeneration.from_pretrained(tiny_model_folder)
    with pytest.raises(SettingError, match="beside LoRA only"):
        attach_adapters(model, AdapterSettings(language="frozen", vision="frozen", input_embeddings="seg"))
    nothing = dict.fromkeys(
        ("language", "vision", "projector", "mask_head", "input_embeddings", "output_embeddings"), "frozen"
    )
    with pytest.raises(SettingError, match="nothing is trained"):
        attach_adapters(model, AdapterSettings(**nothing))
    model.config.seg_token_id = None
    with pytest.raises(SettingError, match=r"no \[SEG\] yet"):
        attach_adapters(model, AdapterSettings(input_embeddings="seg"))
    tied = self1e.load("nano", device="cpu").model
    with pytest.raises(SettingError, match="one matrix for both"):
        attach_adapters(tied, AdapterSettings(input_embeddings="frozen"))


# --------------------------------------------------------------------------- back to one plain model


def with_random_adapters(folder, settings, dtype=torch.float64):
    model = Self1EForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    attach_adapters(model, settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "trainable_tokens" in name:
                parameter.normal_(std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def inputs(tiny_model_folder, items):
    batch = Collator(Self1EProcessor.from_pretrained(tiny_model_folder))(items(1))
    batch = {name: value for name, value in batch.items() if name not in ("labels", "mask_targets")}
    return batch | {"pixel_values": batch["pixel_values"].double()}


@torch.no_grad()
def outputs(model, inputs):
    found = model(**inputs)
    return [found.logits, *(mask for mask in found.mask_logits if len(mask))]  # a row without [SEG] has none


@pytest.mark.parametrize("embeddings", ["full", "seg"])
def test_merged_adapters_compute_the_same(embeddings, tiny_model_folder, inputs):
    settings = AdapterSettings(rank=3, input_embeddings=embeddings, output_embeddings=embeddings)
    model = with_random_adapters(tiny_model_folder, settings)
    before = outputs(model, inputs)
    plain = merge_adapters(model)
    assert type(plain) is Self1EForConditionalGeneration
    assert set(plain.state_dict()) == set(
        Self1EForConditionalGeneration.from_pretrained(tiny_model_folder).state_dict()
    )
    untouched = outputs(Self1EForConditionalGeneration.from_pretrained(tiny_model_folder).double().eval(), inputs)
    assert max(float((a - b).abs().max()) for a, b in zip(before, untouched, strict=True)) > 0.1
    for merged, own, again in zip(outputs(plain, inputs), before, outputs(model, inputs), strict=True):
        torch.testing.assert_close(merged, own, rtol=0, atol=1e-9)
        assert torch.equal(again, own)  # merging leaves the model in training as it is


def test_a_tied_model_stays_tied(inputs):
    model = self1e.load("nano", device="cpu").model
    attach_adapters(model, AdapterSettings(rank=2))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert sum("embed_tokens" in name or "lm_head" in name for name, p in model.named_parameters()) == 1
    plain = merge_adapters(model)
    assert plain.lm_head.weight is plain.get_input_embeddings().weight


def test_an_export_loads_and_a_checkpoint_with_adapters_too(tiny_model_folder, inputs, tmp_path):
    model = with_random_adapters(tiny_model_folder, AdapterSettings(rank=3, alpha=5.0), torch.float32)
    inputs = inputs | {"pixel_values": inputs["pixel_values"].float()}
    expected = outputs(model, inputs)
    export_model(model, Self1EProcessor.from_pretrained(tiny_model_folder), tmp_path / "export", dtype=None)
    assert "lora_alpha" not in (tmp_path / "export" / "config.json").read_text()
    model.save_pretrained(tmp_path / "attached")
    Self1EProcessor.from_pretrained(tiny_model_folder).save_pretrained(tmp_path / "attached")
    for name in ("export", "attached"):
        loaded = self1e.load(tmp_path / name, device="cpu", dtype="float32").model
        for found, wanted in zip(outputs(loaded, inputs), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_half_an_adapter_is_an_error():
    tensors = {"x.base_layer.weight": torch.zeros(2, 2), "x.lora_A.default.weight": torch.zeros(1, 2)}
    with pytest.raises(CheckpointError, match=r"incomplete: missing x\.lora_B"):
        merged_tensors(tensors, scale=1.0)


def test_whole_modules_that_peft_has_trained_count_and_what_they_were_does_not(tiny_model_folder, inputs, tmp_path):
    """Names as PEFT has them for ``modules_to_save=["mask_head"]`` and the like."""
    folder = shutil.copytree(tiny_model_folder, tmp_path / "saved")
    tensors = load_file(folder / "model.safetensors")
    changed = {}
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if name.startswith("mask_head."):
            changed[f"{module}.modules_to_save.default.{last}"] = tensor
            changed[f"{module}.original_module.{last}"] = torch.zeros_like(tensor)
        else:
            changed[name] = tensor
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    merge_checkpoint(folder, tmp_path / "merged", dtype=None)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(merged[name], tensors[name]) for name in merged)
    assert any(name.startswith("mask_head.") for name in merged)
    expected = outputs(self1e.load(tiny_model_folder, device="cpu", dtype="float32").model, inputs_of(inputs))
    found = outputs(self1e.load(folder, device="cpu", dtype="float32").model, inputs_of(inputs))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    with pytest.raises(CheckpointError, match=r"2 adapters \(default, other\)"):
        find_attached(["x.modules_to_save.default.weight", "y.modules_to_save.other.weight"])


def inputs_of(inputs):
    return inputs | {"pixel_values": inputs["pixel_values"].float()}
