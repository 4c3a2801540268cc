"""Recipes: every row of the paper, and settings changed by their names."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict

import pytest

from self1e.configuration import Self1EConfig
from self1e.data.published import RATES, REFERRING, TABLE_8
from self1e.errors import SettingError
from self1e.training.recipes import RECIPES, Recipe, TrainRecipe, change, differences, find_recipe, flatten
from self1e.training.recipes.bases import BASES
from self1e.training.recipes.published import ABLATIONS
from self1e.training.training_data import seg_answers

PUBLISHED = [name for name, make in RECIPES.items() if isinstance(make(), Recipe)]
SWITCHES = ("fine", "residual", "unshuffle", "attention")


def test_every_recipe_has_its_name_and_says_what_it_is():
    for name, make in RECIPES.items():
        assert make().name == name
        assert re.match(r"^[A-Z].*\.$", (make.__doc__ or "").splitlines()[0]), name
    papers = [RECIPES[name]().paper for name in PUBLISHED if RECIPES[name]().paper.startswith("Table")]
    assert max(Counter(papers).values()) == 1


def test_every_model_and_every_row_of_the_paper_has_a_recipe():
    bases = {base.slug for base in BASES}
    assert bases == {
        *(f"internvl{version}-{size}b" for version in ("2", "2.5", "3", "3.5") for size in (2, 8)),
        "internvl3-1b",
    }
    assert {f"{kind}-{base}" for kind in ("self1e", "self1e-seg") for base in bases} <= set(PUBLISHED)
    rows = {"table5": 5, "table6": 5, "table7": 5, "table11": 3}
    assert {f"{table}-row{row}" for table, count in rows.items() for row in range(1, count + 1)} == {
        name for name in PUBLISHED if name.startswith("table")
    }
    assert {"self1e-star-internvl3-2b", "sixteen-tokens-internvl3-2b"} <= set(PUBLISHED)


def test_an_ablation_changes_its_switches_and_nothing_else():
    plain = RECIPES["self1e-internvl3-2b"]()
    for table, rows in ABLATIONS.items():
        for row, switches in enumerate(rows, start=1):
            changed = {line.split(":")[0] for line in differences(plain, RECIPES[f"{table}-row{row}"]())}
            expected = {f"model.{n}" for n, value in switches.items() if getattr(plain.model, n) != value}
            assert changed - {"name", "paper"} == expected


def test_rows_that_are_the_same_experiment_have_the_same_switches():
    """The paper prints one number for each of these pairs (Table 5 as the mean of its three columns)."""

    def switches(name):
        return {switch: getattr(RECIPES[name]().model, switch) for switch in SWITCHES}

    assert switches("table5-row1") == switches("table11-row1")
    assert switches("table5-row3") == switches("table6-row1") == switches("table11-row3")
    assert switches("table5-row5") == switches("table6-row4") == switches("table7-row3")
    assert switches("table6-row4") == switches("self1e-internvl3-2b")


@pytest.mark.parametrize("name", PUBLISHED)
def test_switches_of_every_recipe_make_a_configuration(name):
    switches = RECIPES[name]().model.switches()
    config = Self1EConfig(**switches)
    assert {switch: getattr(config, switch) for switch in switches} == switches


@pytest.mark.parametrize("name", PUBLISHED)
def test_optimisation_is_the_published_one(name):
    recipe = RECIPES[name]()
    optim, adapters = recipe.optim, recipe.adapters
    is_large = name.endswith("8b")
    assert optim.learning_rate == (6e-5 if is_large else 1e-4)
    assert adapters.rank == (64 if is_large else 128)
    assert adapters.lora_alpha == 2 * adapters.rank
    assert adapters.dropout == 0.05
    assert (optim.beta1, optim.beta2, optim.eps, optim.weight_decay) == (0.9, 0.95, 1e-8, 0)
    assert (optim.schedule, optim.warmup_steps, optim.max_grad_norm) == ("linear", 100, 1.0)
    assert optim.global_batch == 160
    assert optim.accumulation(workers=4) == optim.summed_micro_batches == 8
    assert optim.accumulation(workers=1) == 32
    assert recipe.seed == 42
    assert (recipe.loss.text, recipe.loss.bce, recipe.loss.dice) == (1.0, 2.0, 0.5)
    is_internlm2 = "internvl2" in name
    assert adapters.input_embeddings == ("frozen" if is_internlm2 else "full")


def test_strategies_differ_in_their_data():
    plain, seg = (RECIPES[f"self1e-{kind}internvl3-2b"]().data for kind in ("", "seg-"))
    for data, rates in ((plain, RATES["plain"]), (seg, RATES["seg"])):
        assert (data.semantic, data.referring_copies, data.reasoning, data.instructions) == (
            rates.semantic,
            rates.referring,
            rates.reasoning,
            rates.instructions,
        )
    assert RECIPES["self1e-star-internvl3-2b"]().data.sets == REFERRING["paper"]
    assert RECIPES["self1e-refclef-internvl3-2b"]().data.referring == "code"
    assert set(REFERRING["paper"]) <= set(TABLE_8)


def test_sixteen_tokens_stand_in_every_answer():
    recipe = RECIPES["sixteen-tokens-internvl3-2b"]()
    assert recipe.model.num_seg_tokens == 16
    assert all(answer.count("[SEG]") == 16 for answer in seg_answers(16))
    assert seg_answers(1)[0] == "It is [SEG]."


def test_batches_are_shared_out_evenly_or_not_at_all():
    optim = RECIPES["self1e-internvl3-2b"]().optim
    with pytest.raises(SettingError, match=r"rounds of 15; set optim\.global_batch to a multiple of 3"):
        optim.accumulation(workers=3)
    eight = change(optim, ["micro_batch=6"])
    with pytest.raises(SettingError, match=r"6 on 8 processes makes rounds of 48; try optim\.micro_batch=5"):
        eight.accumulation(workers=8)


def test_settings_are_changed_by_their_dotted_names():
    recipe = change(
        find_recipe("self1e-internvl3-2b"),
        [
            "optim.learning_rate=2e-5",
            "data.sets=refcoco, refcoco+",
            "optim.bf16=false",
            "optim.steps=7",
            "evaluation.on=none",
            "adapters.input_embeddings=seg",
        ],
    )
    assert recipe.optim.learning_rate == 2e-5
    assert recipe.data.sets == ("refcoco", "refcoco+")
    assert (recipe.optim.bf16, recipe.optim.steps, recipe.evaluation.on) == (False, 7, None)
    assert recipe.adapters.input_embeddings == "seg"
    assert recipe.optim.beta2 == 0.95
    # Each alone would be refused: settings are checked together.
    scenes = change(recipe, ["data.source=scenes", "data.pictures=10"])
    assert scenes.data.pictures == 10


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learning_rate=1", r"Did you mean 'optim\.learning_rate'\?"),
        ("optim.lerning_rate=1", r"Did you mean 'optim\.learning_rate'\?"),
        ("optim.schedule=cosin", r"Did you mean 'cosine'\? Choose one of linear, cosine, constant"),
        ("optim.steps=many", "whole number"),
        ("optim.learning_rate=fast", "must be a number"),
        ("optim.bf16=yes", "must be true or false"),
        ("optim.learning_rate", "name=value"),
        ("optim.micro_batch=0", "at least 1"),
        ("adapters.rank=0", "above 0"),
        ("adapters.dropout=1", "below 1"),
        ("data.source=scenes", "say how many pictures"),
        ("data.semantic=0", "leave sets out"),
        ("saving.keep=0", "at least 1"),
        ("evaluation.every=0", "at least 1"),
        ("optim.learning_rate=nan", "must be a finite number"),
        ("loss.bce=inf", "must be a finite number"),
        ("loss.dice=-1", "at least 0"),
        ("optim.beta2=1", "from 0 to below 1"),
        ("optim.warmup_steps=-1", "at least 0"),
        ("optim.max_grad_norm=-1", "at least 0"),
        ("data.sets=", "names nothing"),
        ("data.workers=-1", r"data\.workers=-1 must be at least 0"),
        ("data.max_tiles=0", "at least 1"),
        ("data.target_side=0", "at least 1"),
        ("model.num_seg_tokens=0", "at least 1"),
        ("seed=-1", "from 0 to"),
        ("data=scenes", "Unknown setting 'data'"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting, message):
    with pytest.raises(SettingError, match=message):
        change(find_recipe("self1e-internvl3-2b"), [setting])


def test_a_recipe_survives_its_json():
    for name in PUBLISHED:
        recipe = RECIPES[name]()
        read = json.loads(json.dumps(asdict(recipe)))
        assert differences(read, recipe) == []
        assert flatten(read) == flatten(recipe)
    one, other = find_recipe("table7-row1"), find_recipe("table7-row2")
    assert differences(one, other) == [
        "name: 'table7-row1' -> 'table7-row2'",
        "paper: 'Table 7, row 1' -> 'Table 7, row 2'",
        "model.attention: 'causal' -> 'image'",
    ]
    assert differences({"a": 1}, {"b": 1}) == ["b: (not there) -> 1", "a: 1 -> (not there)"]


def test_an_unknown_recipe_gets_a_suggestion():
    with pytest.raises(SettingError, match=r"Did you mean 'self1e-internvl3-2b'\?"):
        find_recipe("self1e-intervl3-2b")


def test_nano_keeps_its_flat_settings():
    recipe = find_recipe("nano")
    assert isinstance(recipe, TrainRecipe)
    assert set(flatten(recipe)) == set(asdict(recipe))
    assert change(recipe, ["start=none", "seed=3"]).seed == 3
