"""Training `nano`, a few steps at a time."""

import copy
import json
import re
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support import another_run_in

from self1e.data.mixture import Item, PhotoAugment, Row
from self1e.data.sample import Sample, Target
from self1e.data.scenes import Scenes, all_words
from self1e.errors import CheckpointError, DatasetError, OutputError, SettingError
from self1e.model import Self1EForConditionalGeneration
from self1e.processing import prompts
from self1e.training import nano
from self1e.training.caching import CachedSamples
from self1e.training.collate import Collator
from self1e.training.encoder import RANKS, SpotClassifier, rank_things
from self1e.training.optimizers import MuonWithAdamW, split_parameters
from self1e.training.recipes import RECIPES, change, run


@pytest.fixture(scope="module")
def processor():
    return nano.build_processor()


def test_every_word_of_the_scenes_is_one_token(processor):
    tokenizer = processor.tokenizer
    split = [word for word in all_words() if len(tokenizer.tokenize(f" {word}")) != 1]
    assert split == []
    # Anything else still has ids, and comes back as it was.
    text = "Ein Überraschungsei, bitte: 鸡蛋!"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_tokenizer_is_made_the_same_every_time(processor):
    assert nano.build_tokenizer().get_vocab() == processor.tokenizer.get_vocab()


def test_nano_is_small_and_its_mask_grid_is_fine(processor):
    model = nano.build_model(processor)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 7_000_000
    assert 2 * model.config.patches_per_side >= 32
    assert model.config.image_seq_length == nano.IMAGE_TOKENS


def test_the_collator_keeps_earlier_turns_and_cuts_long_rows(processor):
    sample = Scenes("train", size_wh=(64, 64), length=1)[0]
    earlier = (("<image>\nHow many circles are there?", "two"),)
    row = Row(question="What colour is the star?", answer="red", mask=None, before=earlier)
    items = [Item(image=sample.image, rows=(row,), source="a")]
    batch = Collator(processor)(items)
    supervised = processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
    assert supervised.replace(prompts.TURN_END, " ").split() == ["two", "red"]
    assert "How many circles are there?" in processor.tokenizer.decode(batch["input_ids"][0])
    short = Collator(processor, max_length=nano.IMAGE_TOKENS + 40)(items)
    assert short["input_ids"].shape[1] == nano.IMAGE_TOKENS + 40 < batch["input_ids"].shape[1]


def test_the_collator_encodes_a_picture_once_for_all_its_rows(processor):
    sample = Scenes("train", size_wh=(64, 64), length=1)[0]
    rows = [Row(question=f"<image>\n{t.text}", answer="It is [SEG].", mask=t.mask) for t in sample.targets[:2]]
    rows.append(Row(question="<image>\nHow many?", answer="two", mask=None))
    items = [
        Item(image=sample.image, rows=tuple(rows), source="a"),
        Item(image=sample.image, rows=(rows[0],), source="b"),
    ]
    batch = Collator(processor, target_side=32)(items)
    assert batch["pixel_values"].shape == (2, 3, nano.TILE, nano.TILE)
    assert batch["picture_of_row"] == [0, 0, 0, 1]
    assert [tuple(target.shape) for target in batch["mask_targets"]] == [(1, 32, 32)] * 2 + [(0, 1, 1), (1, 32, 32)]
    assert batch["mask_targets"][0].mean().item() == pytest.approx(rows[0].mask.mean(), abs=1e-2)
    assert ((batch["input_ids"] == processor.seg_token_id).sum(1)).tolist() == [1, 1, 0, 1]


def test_cached_samples_are_the_samples():
    cached = CachedSamples(Scenes("train", size_wh=(64, 64), length=2), side=64)
    for index in (1, 1, 0):
        one, other = cached[index], cached.samples[index]
        assert one.image.tobytes() == other.image.tobytes()
        assert [t.text for t in one.targets] == [t.text for t in other.targets]
        assert all(np.array_equal(a.mask, b.mask) for a, b in zip(one.targets, other.targets, strict=True))
    big = Sample(
        image=cached.samples[0].image.resize((640, 320)), targets=(Target(text="x", mask=np.ones((320, 640), bool)),)
    )
    shrunk = CachedSamples([big], side=100)[0]
    assert shrunk.image.size == (100, 50)
    assert shrunk.targets[0].mask.shape == (50, 100)


@pytest.mark.slow  # the whole of nano's recipe; the same is proved at smaller size in test_checkpoints.py
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(tmp_path):
    recipe = replace(RECIPES["nano_smoke"](), bf16=False, attention="sdpa")
    whole = run(recipe, data=None, out=tmp_path / "whole", save_steps=2)
    # What a run leaves behind that was killed after its second step.
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "parts" / "checkpoint-2")
    parts = run(recipe, data=None, out=tmp_path / "parts", resume=True, save_steps=2)
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    log = json.loads((tmp_path / "parts" / "log.json").read_text())
    assert any("train_loss" in line for line in log)
    assert (tmp_path / "parts" / "recipe.json").is_file()


def test_the_trained_model_loads_and_segments(tmp_path):
    import self1e

    folder = run(replace(RECIPES["nano_smoke"](), pictures=8), data=None, out=tmp_path)
    sample = Scenes("test", size_wh=(96, 64), length=1)[0]
    result = self1e.load(folder).segment(sample.image, ["the red circle", "What could roll?"])
    assert result.masks.shape == (2, 64, 96)


def test_two_runs_do_not_share_a_folder(tmp_path):
    recipe = replace(RECIPES["nano_smoke"](), pictures=8, encoder_pictures=0)
    run(recipe, data=None, out=tmp_path, save_steps=1)
    with pytest.raises(SettingError, match=r"another recipe \(learning_rate: 0\.001 -> 0\.1\)"):
        run(replace(recipe, learning_rate=0.1), data=None, out=tmp_path, resume=True)
    with pytest.raises(SettingError, match="holds the checkpoints of a run"):
        run(recipe, data=None, out=tmp_path, resume=False)


def test_runs_that_follow_start_from_the_model_before_and_are_not_done_twice(tmp_path):
    settings = "warmup_steps=0 decay_steps=0 batch_size=2 queries=1 photographs=0 mean_decay=none"
    smoke = replace(RECIPES["nano_smoke"](), pictures=4, encoder_pictures=0, warmup_steps=0, decay_steps=0)
    chain = replace(smoke, polish=(f"pictures=2 learning_rate=0.01 {settings}", f"pictures=4 text_layers=5 {settings}"))
    final = run(chain, data=None, out=tmp_path, resume=True)
    assert final == tmp_path / "polish-2" / "model"
    folders = [tmp_path / "model", tmp_path / "polish-1" / "model", final]
    told = [json.loads((folder / "recipe.json").read_text()) for folder in folders]
    assert [recipe["start"] for recipe in told] == [None, str(folders[0]), str(folders[1])]
    assert [len(load_model(folder).model.language_model.layers) for folder in folders] == [4, 4, 5]
    # What a kill leaves while the last of them runs: only that one is done again, to the same weights.
    weights = (final / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "polish-2")
    times = [(folder / "model.safetensors").stat().st_mtime_ns for folder in folders[:2]]
    assert run(chain, data=None, out=tmp_path, resume=True) == final
    assert (final / "model.safetensors").read_bytes() == weights
    assert [(folder / "model.safetensors").stat().st_mtime_ns for folder in folders[:2]] == times


def test_a_wrong_setting_of_a_run_that_follows_shows_before_anything_runs():
    with pytest.raises(SettingError, match=r"learning_rat'.*Did you mean 'learning_rate'"):
        replace(RECIPES["nano_smoke"](), polish=("learning_rat=1",))


def test_a_folder_in_which_a_run_is_training_is_left_alone(tmp_path):
    with another_run_in(tmp_path), pytest.raises(OutputError, match="another run is training in this folder"):
        run(RECIPES["nano_smoke"](), data=None, out=tmp_path)


def test_the_encoder_learns_to_see(processor):
    """A few steps on one batch: the classifier under which the encoder learns must fit it."""
    model = nano.build_model(processor)
    labels = nano.build_spot_labels(None, processor, length=4, seed=0, photographs=0.0)
    classifier = SpotClassifier(
        model,
        labels.words(),
        token_ids=lambda word: processor.tokenizer(f" {word}", add_special_tokens=False).input_ids,
    )
    batch = {name: torch.stack([labels[i][name] for i in range(4)]) for name in labels[0]}
    assert batch["kind"].shape == (4, 32, 32)
    assert (batch["part"] == -100).all()  # drawn scenes have no clothes
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=2e-3)
    losses = []
    for _ in range(6):
        loss = classifier(**batch)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_photographs_join_the_mixture(tmp_path):
    with pytest.raises(DatasetError, match="No folder ccp"):
        nano.build_mixture(tmp_path, length=1, photographs=0.4, queries=4)
    assert list(nano.build_mixture(None, length=1, photographs=0.0, queries=4).parts) == ["scenes", "scenes_there"]
    chosen: Any = nano.build_mixture(None, length=1, photographs=0.0, queries=4, comparisons=2.0, hard=0.5)
    for part in chosen.parts.values():
        assert (part.samples.comparisons, part.samples.hard) == (2.0, 0.5)


def test_settings_are_read_as_their_types():
    recipe = change(RECIPES["nano"](), ["pictures=96000", "learning_rate=2e-4", "bf16=false", "mean_decay=none"])
    assert (recipe.pictures, recipe.learning_rate, recipe.bf16, recipe.mean_decay) == (96000, 2e-4, False, None)
    assert recipe.steps == 96000 // recipe.batch_size
    with pytest.raises(SettingError, match=r"expected at least warmup_steps \+ decay_steps"):
        change(recipe, ["pictures=1000"])
    with pytest.raises(SettingError, match="whole number"):
        change(recipe, ["pictures=none"])
    with pytest.raises(SettingError, match="is a share"):
        change(recipe, ["photographs=2"])
    with pytest.raises(SettingError, match="Did you mean 'pictures'"):
        change(recipe, ["picture=3"])
    with pytest.raises(SettingError, match="whole number"):
        change(recipe, ["pictures=many"])
    with pytest.raises(SettingError, match="name=value"):
        change(recipe, ["pictures"])


def test_every_recipe_builds():
    for name in ("nano", "nano_polish", "nano_smoke"):
        recipe = RECIPES[name]
        assert recipe().name == name
        assert recipe().steps > recipe().warmup_steps or name == "nano_smoke"
        assert re.match(r"^[A-Z].*\.$", RECIPES[name].__doc__.splitlines()[0])  # type: ignore[union-attr]


def test_published_answers_are_what_nano_learns(processor):
    tokenized = processor.tokenize_conversation([("<image>\nx", prompts.TRAINING_ANSWERS[0])], num_tiles=1)
    supervised = [token for token in tokenized.labels if token != -100]
    assert processor.tokenizer.decode(supervised) == "It is [SEG].<|im_end|>"


def test_muon_takes_the_matrices_and_adamw_the_rest(processor):
    model = nano.build_model(processor)
    matrices, others, vectors = split_parameters(model)
    assert len(matrices) + len(others) + len(vectors) == len(list(model.parameters()))
    assert all(parameter.ndim == 2 for parameter in matrices)
    assert all(parameter.ndim == 1 for parameter in vectors)
    embeddings = model.get_input_embeddings().weight  # tied to the output: neither is a hidden matrix
    assert any(parameter is embeddings for parameter in others)
    assert not any(parameter is embeddings for parameter in matrices)


def test_muon_steps_schedules_and_resumes_as_if_never_stopped():
    def build():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.LayerNorm(6), torch.nn.Linear(6, 2))
        return net, MuonWithAdamW(net, learning_rate=1e-2, matrix_learning_rate=2e-2, weight_decay=0.1)

    def step(net, optimizer, number):
        for group in optimizer.param_groups:  # as a scheduler does
            group["lr"] *= 0.9
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    net, optimizer = build()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for number in range(2):
        step(net, optimizer, number)
    assert all(not torch.equal(value, before[name]) for name, value in net.state_dict().items())
    again, resumed = build()
    again.load_state_dict(net.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as from a file: buffers are not shared
    for number in range(2, 4):
        step(net, optimizer, number)
        step(again, resumed, number)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)
    assert {round(group["lr"], 6) for group in resumed.param_groups} == {
        round(1e-2 * 0.9**4, 6),
        round(2e-2 * 0.9**4, 6),
    }


def test_muon_needs_a_torch_that_has_it(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(SettingError, match=r"Muon needs torch >= 2\.9"):
        MuonWithAdamW(torch.nn.Linear(2, 2), learning_rate=1e-3, matrix_learning_rate=1e-3)


def test_things_are_ranked_among_their_like():
    sample = next(s for s in Scenes("train", size_wh=(160, 160), length=200) if len(s.extra["things"]) >= 4)
    things = sample.extra["things"]
    ranks = rank_things(things)
    assert ranks.keys() == set(RANKS)
    for i, thing in enumerate(things):
        peers = [other for other in things if other.kind == thing.kind]
        assert ranks["kind_count"][i] == min(len(peers), 4)
        if thing.area == max(other.area for other in peers):
            assert ranks["kind_large"][i] == 1
        if thing.centre_xy[0] == min(other.centre_xy[0] for other in peers):
            assert ranks["kind_left"][i] == 1


def test_a_run_starts_from_a_model(tmp_path):
    smoke = replace(RECIPES["nano_smoke"](), pictures=4, encoder_pictures=0, warmup_steps=0, decay_steps=0)
    first = run(smoke, data=None, out=tmp_path / "first")
    again = replace(smoke, start=str(first), learning_rate=1e-12, weight_decay=0.0, seed=1)
    second = run(again, data=None, out=tmp_path / "second")
    before, after = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-9, msg=name)  # the step of 1e-12 itself
    with pytest.raises(CheckpointError, match="nowhere"):
        run(replace(again, start=str(tmp_path / "nowhere")), data=None, out=tmp_path / "third")


def test_photographs_change_colours_but_grey_stays_grey():
    grey = np.full((40, 40, 3), 120, np.uint8)
    red = np.zeros((40, 40, 3), np.uint8)
    red[..., 0] = 200
    plain = PhotoAugment(colour=0.0, whole=1.0, recolour=1.0)
    hues = set()
    for seed in range(8):
        for pixels in (grey, red):
            sample = Sample(image=Image.fromarray(pixels), targets=(), source="test")
            found = np.asarray(plain(sample, np.random.default_rng(seed)).image).astype(int)
            if pixels is grey:
                assert abs(found - 120).max() <= 1
            else:
                hues.add(tuple(found[0, 0]))
    assert len(hues) == 8
    # Without it no dice are thrown: runs of older recipes see the same items.
    throws = [np.random.default_rng(3), np.random.default_rng(3)]
    PhotoAugment()(sample, throws[0])
    PhotoAugment(recolour=1.0)(sample, throws[1])
    assert throws[0].random() != throws[1].random()


def test_writing_the_answer_and_the_mask_are_taught_in_two_rows() -> None:
    """Beside [SEG] the answer leaks through the image tokens: a row that teaches to write it must stay causal."""
    processor = nano.build_processor()
    mixture = nano.build_mixture(None, length=40, photographs=0, queries=3)
    collate = Collator(processor)
    seg, end = processor.seg_token_id, processor.turn_end_id
    written = 0
    for index in range(12):
        item = mixture[index]
        batch = collate([item])
        for row, ids, labels in zip(item.rows, batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            supervised = [label for label in labels if label != -100]
            if row.learn == "mask":
                assert row.mask is not None
                assert seg in ids
                assert supervised == [end]
            elif row.learn == "text":
                assert row.mask is None
                assert seg not in ids
                assert supervised == [seg]
                written += 1
            else:
                assert seg not in [*ids, *supervised]
    assert written


def test_a_deepened_model_answers_as_before_and_its_new_layers_learn(tmp_path):
    smoke = replace(RECIPES["nano_smoke"](), pictures=4, encoder_pictures=0, warmup_steps=0, decay_steps=0)
    first = run(smoke, data=None, out=tmp_path / "first")
    deeper = replace(smoke, start=str(first), text_layers=6, learning_rate=1e-12, weight_decay=0.0)
    same = load_model(run(deeper, data=None, out=tmp_path / "same"))
    assert len(same.model.language_model.layers) == same.config.text_config.num_hidden_layers == 6
    ids = torch.tensor([[11, 12, 13, 14]])
    before, after = (model.model.language_model(input_ids=ids).last_hidden_state for model in (load_model(first), same))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)

    learned = load_model(run(replace(deeper, learning_rate=1e-2), data=None, out=tmp_path / "learned"))
    for number in (2, 5):  # behind the second layer and behind the last
        assert same.model.language_model.layers[number].mlp.down_proj.weight.abs().max() < 1e-9
        assert learned.model.language_model.layers[number].mlp.down_proj.weight.abs().max() > 1e-4


def load_model(folder):
    return Self1EForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(("layers", "places"), [(4, []), (5, [4]), (6, [2, 5]), (8, [1, 3, 5, 7])])
def test_further_layers_are_spread_evenly_and_read_what_theirs_before_them_read(processor, layers, places):
    model = nano.build_model(processor)
    language = model.model.language_model
    given = list(language.layers)
    nano.deepen(model, layers)
    assert [number for number, layer in enumerate(language.layers) if layer not in given] == places
    assert [layer.self_attn.layer_idx for layer in language.layers] == list(range(layers))
    for place in places:
        copied, copy_of = language.layers[place].self_attn, language.layers[place - 1].self_attn
        torch.testing.assert_close(copied.q_proj.weight, copy_of.q_proj.weight, rtol=0, atol=0)
    # A cache of keys and values has a place for each.
    output = language(input_ids=torch.tensor([[11, 12]]), use_cache=True)
    assert len(output.past_key_values) == layers


@pytest.mark.parametrize("layers", [0, 3, 9])
def test_layers_are_neither_taken_away_nor_more_than_doubled(processor, layers):
    with pytest.raises(SettingError, match=f"text_layers={layers}.*4 layers.*4 to 8"):
        nano.deepen(nano.build_model(processor), layers)


def test_nothing_can_be_deepened_without_a_start():
    with pytest.raises(SettingError, match="start=MODEL"):
        replace(RECIPES["nano_smoke"](), text_layers=6)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's tracing looks at it
def test_compiled_layers_learn_the_same(processor):
    """Traced, not translated: a compiler takes a minute. That no number of rows or tokens is burnt in shows here."""
    losses, gradients = [], []
    for compiled in (False, True):
        model = nano.build_model(processor)
        if compiled:
            nano.compile_layers(model, backend="eager")
        for items in (2, 3):
            mixture = nano.build_mixture(None, length=8, photographs=0.0, queries=items)
            loss = model(**Collator(processor, target_side=32)([mixture[i] for i in range(items)])).loss
            loss.backward()
            losses.append(loss.item())
        gradients.append(model.model.language_model.layers[1].mlp.up_proj.weight.grad)
    assert losses[:2] == pytest.approx(losses[2:], rel=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_without_a_compiler_the_layers_stay(processor, monkeypatch):
    monkeypatch.setattr(nano, "has_compiler", lambda: False)
    model = nano.build_model(processor)
    with pytest.warns(UserWarning, match="No C\\+\\+ compiler"):
        nano.compile_layers(model)
    assert "forward" not in vars(model.model.language_model.layers[0])
