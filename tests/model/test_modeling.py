"""The whole model on tiny random weights: batches, pictures, gradients, text."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoModelForImageTextToText, InternVLConfig, InternVLForConditionalGeneration

from self1e.errors import PromptError, SettingError
from self1e.model import Self1EForConditionalGeneration

FAMILIES = ["qwen2", "qwen3", "llama"]
GRIDS = [((1, 1),), ((2, 2),), ((1, 2),), ((3, 2),)]
SWITCHES = [
    {"fine": "none"},
    {"fine": "none", "unshuffle": "none"},
    {"fine": "scan"},
    {"residual": False},
    {"residual": False, "unshuffle": "none"},
    {"unshuffle": "none"},
    {"unshuffle": "residual_only"},
    {"unshuffle": "one"},
    {"unshuffle": "three"},
    {"attention": "causal"},
    {"attention": "image"},
    {"attention": "image_text"},
    {"attention": "bidirectional"},
    {"final_mlp": False},
    {"auxiliary_low_resolution": "off"},
    {"auxiliary_low_resolution": "through_final_mlp"},
    {"num_seg_tokens": 4},
    {"num_seg_tokens": 16},
    {"seg_readout": "at"},
]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@torch.no_grad()
def run(model, batch, **changes):
    return model(**{**batch, **changes})


def without_supervision(batch):
    return {name: value for name, value in batch.items() if name not in ("labels", "mask_targets")}


# --------------------------------------------------------------------------- batches


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(tiny, family, grids, implementation):
    model = tiny.tiny_model(family, implementation=implementation)
    batch = tiny.tiny_batch(model.config, tile_grids=grids)
    padded = {
        **batch,
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 5), value=3),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 5)),
        "labels": torch.nn.functional.pad(batch["labels"], (0, 5), value=-100),
    }
    plain, found = run(model, batch), run(model, padded)
    close(found.mask_logits, plain.mask_logits)
    close(found.low_resolution_logits, plain.low_resolution_logits)
    close(found.loss, plain.loss)
    rows, columns = grids[0]
    assert plain.mask_logits[0].shape == (1, 8 * rows, 8 * columns)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_its_rows_one_by_one(tiny, family):
    model = tiny.tiny_model(family)
    grids, pictures = ((2, 2), (1, 3)), (1, 0, -1, 1, 0)
    batch = tiny.tiny_batch(model.config, tile_grids=grids, picture_of_row=pictures, rows_without_seg=(2, 4))
    together = run(model, without_supervision(batch))
    tiles = batch["pixel_values"].split([4, 3])
    for row, picture in enumerate(pictures):
        length = int(batch["attention_mask"][row].sum())
        alone = {"input_ids": batch["input_ids"][row : row + 1, :length]}
        if picture >= 0:
            alone |= {"pixel_values": tiles[picture], "tile_grids": [grids[picture]]}
        expected = run(model, alone)
        close(together.last_hidden_state[row, :length], expected.last_hidden_state[0])
        if row in (2, 4):
            assert together.mask_logits[row].shape[0] == 0
        else:
            close(together.mask_logits[row], expected.mask_logits[0])


@pytest.mark.parametrize("grids", GRIDS)
def test_rows_that_share_a_picture_equal_rows_with_a_copy_each(tiny, grids):
    model = tiny.tiny_model()
    shared = tiny.tiny_batch(model.config, tile_grids=grids, picture_of_row=(0, 0, 0))
    copies = {
        **shared,
        "pixel_values": shared["pixel_values"].repeat(3, 1, 1, 1),
        "tile_grids": list(grids) * 3,
        "picture_of_row": None,
    }
    found, expected = run(model, shared), run(model, copies)
    close(found.mask_logits, expected.mask_logits)
    close(found.loss, expected.loss)


def test_pictures_encoded_before_equal_pictures_encoded_now(tiny):
    model = tiny.tiny_model()
    batch = tiny.tiny_batch(model.config, tile_grids=((1, 2),), picture_of_row=(0, 0))
    with torch.no_grad():
        vision = model.encode_pictures(batch["pixel_values"], torch.tensor(batch["tile_grids"]))
    later = {**batch, "vision": vision, "picture_of_row": torch.tensor([0, 0])}
    del later["pixel_values"], later["tile_grids"]
    close(run(model, later).mask_logits, run(model, batch).mask_logits)


@pytest.mark.parametrize("readout", ["before", "at"])
def test_tokens_after_seg_change_nothing(tiny, readout):
    model = tiny.tiny_model(seg_readout=readout)
    batch = without_supervision(tiny.tiny_batch(model.config, tile_grids=((1, 2),)))
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, -2:] = torch.tensor([11, 12])
    cut = {**batch, "input_ids": batch["input_ids"][:, :-2], "attention_mask": batch["attention_mask"][:, :-2]}
    expected = run(model, batch).mask_logits
    close(run(model, other).mask_logits, expected)
    close(run(model, cut).mask_logits, expected)


def test_the_readout_before_seg_sees_seg_only_through_the_picture(tiny):
    """With the causal rule nothing before [SEG] knows of it, so its embedding cannot matter."""
    for rule, matters in (("causal", False), ("image", False), ("image_seg", True)):
        model = tiny.tiny_model(attention=rule)
        batch = without_supervision(tiny.tiny_batch(model.config))
        before = run(model, batch).mask_logits[0]
        model.get_input_embeddings().weight.data[model.config.seg_token_id] += 1
        assert torch.equal(before, run(model, batch).mask_logits[0]) is not matters


def test_a_seg_without_predecessor_yields_no_mask(tiny):
    model = tiny.tiny_model()
    batch = without_supervision(tiny.tiny_batch(model.config))
    ids = batch["input_ids"].clone()
    ids[0, 0] = model.config.seg_token_id
    assert run(model, batch, input_ids=ids).mask_logits[0].shape[0] == 1
    ids[0, 1:] = torch.where(ids[0, 1:] == model.config.seg_token_id, 5, ids[0, 1:])
    assert run(model, batch, input_ids=ids).mask_logits[0].shape[0] == 0


def test_every_seg_of_a_row_gets_its_mask(tiny):
    model = tiny.tiny_model()
    batch = without_supervision(tiny.tiny_batch(model.config))
    seg = model.config.seg_token_id
    ids = torch.cat([batch["input_ids"], torch.tensor([[9, seg, seg]])], dim=1)
    found = run(model, batch, input_ids=ids, attention_mask=torch.ones_like(ids))
    assert found.mask_logits[0].shape == (3, 8, 8)


def test_dual_perception_off_is_a_plain_internvl(tiny):
    model = tiny.tiny_model()
    batch = without_supervision(tiny.tiny_batch(model.config))
    found = run(model, batch, dual_perception=False)
    assert found.mask_logits is None
    expected = run(plain(model), {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")})
    close(found.logits, expected.logits)


# --------------------------------------------------------------------------- training


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_reaches_every_parameter(tiny, family, grids):
    assert dead_parameters(tiny, tiny.tiny_model(family), tile_grids=grids) == []


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_every_switch_runs_trains_and_matters(tiny, switches):
    model = tiny.tiny_model(**switches)
    assert dead_parameters(tiny, model, tile_grids=((1, 2),)) == []
    published = tiny.tiny_model()
    published.load_state_dict(model.state_dict(), strict=False)
    batch = tiny.tiny_batch(model.config, tile_grids=((1, 2),))
    found = run(model, batch)
    if "num_seg_tokens" not in switches:
        assert found.loss.item() != run(published, batch).loss.item()
    side = round(switches.get("num_seg_tokens", 1) ** 0.5)
    growth = mask_growth(model.config)
    assert found.mask_logits[0].shape == (1, 2 * growth * side, 4 * growth * side)


def mask_growth(config):
    """Mask values per coarse token and side."""
    growth = 1 if config.fine == "none" else 2
    return growth if config.unshuffle in ("none", "residual_only") else 2 * growth


def dead_parameters(tiny, model, **batch_settings):
    model.train()
    batch = tiny.tiny_batch(model.config, **batch_settings)
    model(**batch).loss.backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    model.zero_grad()
    model.eval()
    return dead


def test_losses_add_up(tiny):
    model = tiny.tiny_model()
    batch = tiny.tiny_batch(model.config, picture_of_row=(0, 0), rows_without_seg=(1,))
    found = run(model, batch)
    weights = model.loss_weights
    parts = found.losses
    total = weights.text * parts["text"] + weights.bce * parts["bce"] + weights.dice * parts["dice"]
    close(found.loss, total)
    text_only = run(model, {name: value for name, value in batch.items() if name != "mask_targets"})
    close(text_only.loss, weights.text * parts["text"])
    assert text_only.mask_logits is not None
    assert text_only.logits is None  # with a loss, only labelled positions are scored


def test_gradient_checkpointing_changes_no_gradient(tiny):
    model = tiny.tiny_model().train()
    batch = tiny.tiny_batch(model.config)
    model(**batch).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # 5.17: the latter
    enable({"use_reentrant": False})
    model(**batch).loss.backward()
    close({name: p.grad for name, p in model.named_parameters()}, expected)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_bfloat16_is_close_to_float32(tiny, implementation):
    exact, half = (
        tiny.tiny_model(implementation=implementation),
        tiny.tiny_model(implementation=implementation).bfloat16(),
    )
    batch = tiny.tiny_batch(exact.config)
    found = run(half, batch)
    assert found.loss.dtype == torch.float32
    torch.testing.assert_close(found.mask_logits[0].float(), run(exact, batch).mask_logits[0], rtol=0, atol=0.1)


# --------------------------------------------------------------------------- text


def plain(model):
    """The InternVL of transformers with the same weights."""
    config = InternVLConfig(
        text_config=model.config.text_config.to_dict(),
        vision_config=model.config.vision_config.to_dict(),
        image_token_id=model.config.image_token_id,
        tie_word_embeddings=False,
    )
    config._attn_implementation = "eager"
    other = InternVLForConditionalGeneration(config).eval()
    shared = {name: value for name, value in model.state_dict().items() if not name.startswith("mask_head.")}
    other.load_state_dict(shared)
    return other


@pytest.mark.parametrize("family", FAMILIES)
def test_generated_text_equals_the_plain_internvl(tiny, family):
    model = tiny.tiny_model(family)
    batch = tiny.tiny_batch(model.config, tile_grids=((2, 1),), rows_without_seg=(0,))
    prompt = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    settings = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": [model.config.image_token_id]}
    expected = plain(model).generate(**prompt, **settings)
    cached = model.generate(**prompt, tile_grids=batch["tile_grids"], **settings)
    assert cached.tolist() == expected.tolist()
    uncached = model.generate(**prompt, tile_grids=batch["tile_grids"], use_cache=False, **settings)
    assert uncached.tolist() == expected.tolist()


def test_generation_takes_pictures_encoded_before_and_shared(tiny):
    model = tiny.tiny_model()
    batch = tiny.tiny_batch(model.config, tile_grids=((1, 2),), rows_without_seg=(0,))
    ids = batch["input_ids"].repeat(2, 1)
    ids[1, 0] += 1
    with torch.no_grad():
        vision = model.encode_pictures(batch["pixel_values"], batch["tile_grids"])
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "do_sample": False}
    found = model.generate(input_ids=ids, vision=vision, picture_of_row=[0, 0], **settings)
    copies = model.generate(
        input_ids=ids, pixel_values=batch["pixel_values"].repeat(2, 1, 1, 1), tile_grids=[(1, 2)] * 2, **settings
    )
    assert found.tolist() == copies.tolist()


def test_beams_look_at_the_picture_of_their_row(tiny):
    model = tiny.tiny_model()
    batch = tiny.tiny_batch(model.config, tile_grids=((1, 2), (1, 2)), rows_without_seg=(0, 1))
    ids = batch["input_ids"][:, :12]
    settings = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3}
    together = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=batch["pixel_values"],
        tile_grids=torch.tensor(batch["tile_grids"]),
        **settings,
    )
    for row in range(2):
        alone = model.generate(
            input_ids=ids[row : row + 1],
            attention_mask=torch.ones_like(ids[:1]),
            pixel_values=batch["pixel_values"][2 * row : 2 * row + 2],
            tile_grids=[(1, 2)],
            **settings,
        )
        assert together[row].tolist() == alone[0].tolist()


def test_a_prompt_that_mentions_seg_is_continued_causally(tiny):
    model = tiny.tiny_model()
    batch = tiny.tiny_batch(model.config)
    prompt = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    settings = {"max_new_tokens": 4, "do_sample": False}
    assert model.generate(**prompt, **settings).tolist() == plain(model).generate(**prompt, **settings).tolist()


# --------------------------------------------------------------------------- transformers


def test_auto_classes_make_our_model(tiny):
    config = tiny.tiny_config()
    for auto in (AutoModel, AutoModelForImageTextToText):
        assert type(auto.from_config(config)) is Self1EForConditionalGeneration


def test_a_model_can_be_built_without_memory(tiny):
    with torch.device("meta"):
        model = Self1EForConditionalGeneration(tiny.tiny_config())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_flash_attention_is_refused(tiny):
    config = tiny.tiny_config()
    with pytest.raises((ValueError, ImportError), match=r"[Ff]lash"):
        Self1EForConditionalGeneration._from_config(config, attn_implementation="flash_attention_2")


# --------------------------------------------------------------------------- errors


def test_image_tokens_must_match_the_tiles(tiny):
    model = tiny.tiny_model()
    batch = without_supervision(tiny.tiny_batch(model.config))
    with pytest.raises(PromptError, match=r"Row 0 has 4 image tokens but its picture has 2 tile\(s\) of 4: expected 8"):
        run(model, batch, pixel_values=batch["pixel_values"].repeat(2, 1, 1, 1), tile_grids=[(1, 2)])


def test_tiles_must_match_their_grids(tiny):
    model = tiny.tiny_model()
    batch = without_supervision(tiny.tiny_batch(model.config))
    with pytest.raises(SettingError, match=r"holds 1 tiles but tile_grids=\[\(1, 2\)\] describe 2"):
        run(model, batch, tile_grids=[(1, 2)])


def test_rows_must_say_which_picture_they_look_at(tiny):
    model = tiny.tiny_model()
    batch = tiny.tiny_batch(model.config, picture_of_row=(0, 0))
    with pytest.raises(SettingError, match="2 rows and 1 pictures: pass picture_of_row"):
        run(model, without_supervision(batch), picture_of_row=None)


@pytest.mark.parametrize("targets", [[torch.zeros(2, 5, 5)], [torch.zeros(0, 1, 1)]])
def test_targets_must_match_the_seg_tokens(tiny, targets):
    model = tiny.tiny_model()
    with pytest.raises(PromptError, match=r"Row 0 yields 1 mask\(s\) but has \d target"):
        run(model, tiny.tiny_batch(model.config), mask_targets=targets)


def test_a_target_without_any_seg_is_refused(tiny):
    model = tiny.tiny_model()
    batch = tiny.tiny_batch(model.config, rows_without_seg=(0,))
    with pytest.raises(PromptError, match=r"Row 0 yields 0 mask\(s\) but has 1 target"):
        run(model, batch, mask_targets=[torch.zeros(1, 5, 5)])


def test_every_row_has_targets(tiny):
    model = tiny.tiny_model()
    with pytest.raises(PromptError, match="mask_targets holds 0 rows, the batch 1"):
        run(model, tiny.tiny_batch(model.config), mask_targets=[])


def test_padding_on_the_left_is_refused_for_masks(tiny):
    model = tiny.tiny_model()
    batch = without_supervision(tiny.tiny_batch(model.config))
    is_real = batch["attention_mask"].clone()
    is_real[0, 0] = 0
    with pytest.raises(PromptError, match="begins with padding"):
        run(model, batch, attention_mask=is_real)


def test_seg_tokens_come_in_full_queries(tiny):
    model = tiny.tiny_model(num_seg_tokens=4)
    batch = without_supervision(tiny.tiny_batch(tiny.tiny_config()))
    with pytest.raises(PromptError, match=r"Row 0 has 1 \[SEG\] to read, but num_seg_tokens=4"):
        run(model, batch)
