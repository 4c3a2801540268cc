"""``self1e train`` and ``self1e merge`` with recipes of nested settings, on a tiny model and drawn scenes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support import another_run_in

import self1e
from self1e.cli.main import main
from self1e.cli.train import list_recipes
from self1e.data.scenes import Scenes
from self1e.errors import CheckpointError, DatasetError, OutputError, SettingError
from self1e.files import restore_folder
from self1e.model import Self1EForConditionalGeneration
from self1e.training import preflight
from self1e.training.adapters import attach_adapters
from self1e.training.card import card
from self1e.training.merging import merge_checkpoint
from self1e.training.recipes import RECIPES, change, find_recipe
from self1e.training.run import check_report_to, check_same, prepare, run
from self1e.training.stopping import Interrupted
from self1e.training.watching import Watching, evaluating, measure

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = [
    "data.source=scenes",
    "data.pictures=8",
    "data.workers=0",
    "optim.global_batch=2",
    "optim.micro_batch=1",
    "optim.bf16=false",
    "optim.warmup_steps=1",
    "optim.learning_rate=1e-3",
    "model.frozen_dtype=float32",
    "adapters.rank=2",
    "evaluation.on=scenes",
    "evaluation.pictures=2",
    "evaluation.every=2",
    "evaluation.drawn=2",
    "saving.every=2",
    "saving.log_every=1",
]


def small(folder, *more):
    return change(find_recipe("self1e-internvl3-2b"), [f"model.base={folder}", *SMALL, *more])


@pytest.fixture(scope="module")
def finished(tiny_model_folder, tmp_path_factory):
    """A whole run of four steps, through the command line."""
    out = tmp_path_factory.mktemp("run") / "whole"
    arguments = [word for setting in SMALL for word in ("--set", setting)]
    with pytest.raises(SystemExit) as left:
        main(["train", "self1e-internvl3-2b", "--model", str(tiny_model_folder), "--out", str(out), *arguments])
    assert left.value.code == 0
    return out


def test_a_run_leaves_models_log_pictures_and_what_it_was(finished):
    log = json.loads((finished / "log.json").read_text())
    losses = [line for line in log if "loss" in line]
    assert [line["step"] for line in losses] == [1, 2, 3, 4]
    assert {"loss_text", "loss_bce", "loss_dice", "memory_gb", "grad_norm"} <= set(losses[-1])
    assert losses[-1]["pictures_per_second"] > 0
    assert losses[-1]["tokens_per_second"] > losses[-1]["pictures_per_second"]
    evaluated = [line for line in log if "eval_giou" in line]
    assert [line["step"] for line in evaluated] == [2, 4]
    for step in (2, 4):
        with Image.open(finished / "samples" / f"step-000{step}.png") as picture:
            assert picture.width == 3 * 320
    best = json.loads((finished / "best" / "best.json").read_text())
    assert best["eval_giou"] == max(line["eval_giou"] for line in evaluated)
    for folder in (finished, finished / "checkpoint-2", finished / "checkpoint-4", finished / "model"):
        facts = json.loads((folder / "run.json").read_text())
        assert facts["recipe"]["adapters"]["rank"] == 2
        assert json.loads((folder / "recipe.json").read_text()) == facts["recipe"]
        assert facts["data"]["counts"] == {"scenes": 8}
        assert {"self1e", "torch", "transformers", "peft"} <= set(facts["versions"])
    for folder in ("best", "model", "checkpoint-4"):
        result = self1e.load(finished / folder, device="cpu").segment(Image.new("RGB", (30, 20)), "a thing")
        assert result.masks.shape == (1, 20, 30)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(finished, tiny_model_folder, tmp_path):
    shutil.copytree(finished / "checkpoint-2", tmp_path / "checkpoint-2")
    final = run(small(tiny_model_folder), out=tmp_path, device="cpu")
    one, other = (load_file(folder / "model.safetensors") for folder in (finished / "model", final))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [
        [(line["step"], line["loss"]) for line in json.loads((out / "log.json").read_text()) if "loss" in line]
        for out in (finished, tmp_path)
    ]
    assert losses[0] == losses[1]


def test_another_recipe_does_not_go_on_with_a_run(finished, tiny_model_folder):
    changed = small(tiny_model_folder, "optim.learning_rate=1", "seed=3")
    with pytest.raises(SettingError, match=r"optim\.learning_rate: 0\.001 -> 1\.0; seed: 42 -> 3"):
        run(changed, out=finished, device="cpu")
    with pytest.raises(SettingError, match="resume it, or choose another folder"):
        run(small(tiny_model_folder), out=finished, resume="never", device="cpu")
    with pytest.raises(SettingError, match="no such folder"):
        run(small(tiny_model_folder), out=finished, resume="nowhere", device="cpu")
    facts = json.loads((finished / "run.json").read_text())
    check_same(finished / "checkpoint-4", facts)
    facts["recipe"]["saving"]["keep"] = 9  # no step depends on it
    check_same(finished / "checkpoint-4", facts)
    facts["data"]["counts"]["scenes"] = 9
    with pytest.raises(SettingError, match=r"data counts\.scenes: 8 -> 9"):
        check_same(finished / "checkpoint-4", facts)


def test_a_damaged_newest_checkpoint_does_not_stop_a_run_from_going_on(finished, tiny_model_folder, tmp_path):
    for number in (2, 4):
        shutil.copytree(finished / f"checkpoint-{number}", tmp_path / f"checkpoint-{number}")
    (tmp_path / "checkpoint-4" / "run.json").write_text('{"recipe": {')
    final = run(small(tiny_model_folder), out=tmp_path, device="cpu")
    one, other = (load_file(folder / "model.safetensors") for folder in (finished / "model", final))
    assert all(torch.equal(one[name], other[name]) for name in one)
    (tmp_path / "checkpoint-4" / "run.json").unlink()
    (tmp_path / "checkpoint-2" / "run.json").write_text("[]")
    with pytest.raises(SettingError, match=r"checkpoint-4 holds no run.json that can be read"):
        run(small(tiny_model_folder), out=tmp_path, device="cpu")


def test_folders_that_are_no_run_or_no_folder_are_named(finished, tiny_model_folder, tmp_path):
    with pytest.raises(SettingError, match=r"this is no checkpoint.*checkpoint-4 is one"):
        run(small(tiny_model_folder), out=tmp_path, resume=str(finished), device="cpu")
    with pytest.raises(SettingError, match=r"this is no checkpoint.*--model"):
        run(small(tiny_model_folder), out=tmp_path, resume=str(finished / "model"), device="cpu")
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(SettingError, match=r"file.* cannot be a folder"):
            run(small(tiny_model_folder), out=out, device="cpu")


def test_a_second_run_is_kept_out_of_a_folder_until_the_first_is_dead(finished, tiny_model_folder, tmp_path):
    shutil.copytree(finished / "checkpoint-4", tmp_path / "checkpoint-4")
    with another_run_in(tmp_path), pytest.raises(OutputError, match="another run is training in this folder"):
        run(small(tiny_model_folder), out=tmp_path, device="cpu")
    assert run(small(tiny_model_folder), out=tmp_path, device="cpu") == tmp_path / "model"


def test_a_model_that_cannot_be_written_is_not_half_there_and_the_run_can_be_ended_later(
    finished, tiny_model_folder, tmp_path, monkeypatch
):
    shutil.copytree(finished / "checkpoint-4", tmp_path / "checkpoint-4")

    def fill(model, processor, folder, **others):
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("self1e.training.run.export_model", fill)
        with pytest.raises(OutputError, match=r"No space left.*checkpoint-4 is whole: make room"):
            run(small(tiny_model_folder), out=tmp_path, device="cpu")
    assert not list(tmp_path.glob("*model*"))
    final = run(small(tiny_model_folder), out=tmp_path, device="cpu")
    one, other = (load_file(folder / "model.safetensors") for folder in (finished / "model", final))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_merges_into_what_the_run_has_saved(finished, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["merge", str(finished), str(tmp_path / "merged")])
    assert left.value.code == 0
    assert "The model is in" in capsys.readouterr().out
    merged, saved = (load_file(folder / "model.safetensors") for folder in (tmp_path / "merged", finished / "model"))
    assert merged.keys() == saved.keys()
    assert all(torch.equal(merged[name], saved[name]) for name in merged)
    told = (tmp_path / "merged" / "README.md").read_text()
    assert "4 of 4 steps of 2 pictures" in told
    assert "data.source: 'published' -> 'scenes'" in told
    assert "Recipe: SELF1E-2B (Table 1)" not in told  # which this is not
    with pytest.raises(SettingError, match="not an empty folder"):
        merge_checkpoint(finished, tmp_path / "merged")
    with pytest.raises(CheckpointError, match="neither config"):
        merge_checkpoint(tmp_path, tmp_path / "other")
    with pytest.raises(CheckpointError, match="no such folder"):
        merge_checkpoint(tmp_path / "nowhere", tmp_path / "other")


def test_a_card_names_the_row_of_an_unchanged_recipe_only():
    recipe = json.loads(json.dumps(asdict(find_recipe("table5-row1"))))
    told = card({"recipe": recipe, "steps": 3}, {"fine": "none"}, [])
    assert "Recipe: Table 5, row 1." in told
    assert "starts from OpenGVLab/InternVL3-2B" in told
    assert "`fine=none`" in told
    recipe["seed"] = 1
    assert "Recipe, with changes: seed: 42 -> 1." in card({"recipe": recipe, "steps": 3}, {}, [])
    assert "starts from" not in card({}, {}, [])


def test_every_recipe_is_listed():
    lines = list_recipes().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(RECIPES)
    row = next(line for line in lines if line.startswith("table5-row2"))
    assert "Table 5, row 2" in row
    assert "OpenGVLab/InternVL3-2B" in row
    assert "copies 6,20,6,1" in next(line for line in lines if line.startswith("self1e-seg-internvl3-2b"))


def test_a_dry_run_shows_settings_and_stops(tiny_model_folder, tmp_path, capsys):
    arguments = [word for setting in SMALL for word in ("--set", setting)]
    with pytest.raises(SystemExit) as left:
        main(
            [
                "train",
                "table5-row2",
                "--model",
                str(tiny_model_folder),
                "--out",
                str(tmp_path / "out"),
                "--dry-run",
                *arguments,
            ]
        )
    assert left.value.code == 0
    told = capsys.readouterr().out
    assert "model.residual=False" in told
    assert "steps: 4 of 2 pictures (1 x 2 x 1" in told
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_told_before_anything_starts(tiny_model_folder, tmp_path, capsys):
    recipe = change(find_recipe("self1e-internvl3-2b"), [f"model.base={tiny_model_folder}"])
    with pytest.raises(SettingError, match="--data FOLDER"):
        prepare(recipe, device="cpu")
    with pytest.raises(DatasetError) as error:
        prepare(recipe, data=tmp_path, device="cpu")
    assert "14 data sets of the mixture are not there" in str(error.value)
    assert "evaluation.on=none" in str(error.value)
    with pytest.raises(CheckpointError, match="no such folder"):
        prepare(change(recipe, ["model.base=./nowhere"]), device="cpu")
    with pytest.raises(SettingError, match=r"set optim\.global_batch"):
        prepare(small(tiny_model_folder, "data.pictures=1"), device="cpu")
    with pytest.raises(SettingError, match="choose tensorboard, trackio or wandb"):
        check_report_to(["tensorbord"])
    with pytest.raises(SystemExit) as left:
        main(["train", "self1e-intervl3-2b"])
    assert left.value.code == 2
    assert "Did you mean 'self1e-internvl3-2b'?" in capsys.readouterr().err


# --------------------------------------------------------------------------- preflight


def test_bytes_of_weights_gradients_and_optimiser_are_exact(tiny_model_folder):
    recipe = small(tiny_model_folder, "model.frozen_dtype=bfloat16", "optim.bf16=true")
    plan = prepare(recipe, device="cpu")
    model = Self1EForConditionalGeneration.from_pretrained(tiny_model_folder, dtype=torch.float32)
    attach_adapters(model, recipe.adapters, frozen_dtype=torch.bfloat16)
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learns)
    for parameter in learns:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()

    def measured(tensors):
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    assert plan.estimate.weights == measured(model.parameters())
    assert plan.estimate.gradients == measured(parameter.grad for parameter in learns)
    assert plan.estimate.optimizer == measured(states)
    assert plan.estimate.trained == sum(parameter.numel() for parameter in learns)


def test_activations_shrink_with_the_micro_batch_and_with_recomputing(tiny_model_folder):
    plan = prepare(small(tiny_model_folder), device="cpu")

    def activations(*settings):
        return preflight.plan(change(plan.recipe, settings), plan.config).activations

    base = activations("optim.micro_batch=2")
    assert activations("optim.micro_batch=1") < base
    assert activations("optim.micro_batch=2", "optim.gradient_checkpointing=false") > base
    assert preflight.plan(plan.recipe, plan.config, shards=2).weights == plan.estimate.weights // 2


def test_a_run_that_does_not_fit_is_told_what_does(tiny_model_folder):
    recipe = small(tiny_model_folder, "optim.micro_batch=2", "optim.gradient_checkpointing=false")
    config = prepare(recipe, device="cpu").config
    fits = change(recipe, ["optim.micro_batch=1"])
    needed = preflight.plan(fits, config).total
    tight = prepare(recipe, device="cpu", free=int(needed / preflight.RESERVE) + 1)
    with pytest.raises(SettingError, match=r"This fits: --set optim\.micro_batch=1\."):
        tight.check_memory()
    with pytest.raises(SettingError, match="No micro-batch and no rank fits"):
        prepare(recipe, device="cpu", free=1000).check_memory()
    prepare(recipe, device="cpu", free=10**12).check_memory()


# --------------------------------------------------------------------------- watching


def test_evaluation_changes_nothing_that_training_depends_on(tiny_model):
    model = tiny_model.model
    model.train()
    torch.manual_seed(5)
    with evaluating(model, bf16=False):
        assert not model.training
        torch.rand(3)
    assert model.training
    first = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(first, torch.rand(3))
    model.eval()


def test_a_row_per_target_is_measured(tiny_model):
    scenes = Scenes("val", size_wh=(64, 48), length=2)
    rows = list(measure(tiny_model.model, tiny_model.processor, [scenes[0], scenes[1]], names=[7, 3]))
    assert len(rows) == len(scenes[0].targets) + len(scenes[1].targets)
    assert {row["id"].split("/")[0] for row in rows} == {"0000007", "0000003"}


def test_the_best_model_survives_a_kill_between_two_renames(tmp_path):
    (tmp_path / ".best-before").mkdir()
    (tmp_path / ".best-before" / "best.json").write_text("{}")
    (tmp_path / ".best-8").mkdir()
    restore_folder(tmp_path / "best")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]
    assert (tmp_path / "best" / "best.json").is_file()


def test_a_signal_cuts_an_evaluation_short_and_saves_what_was_trained(
    finished, tiny_model_folder, tmp_path, monkeypatch
):
    shown = []

    def interrupted(model, processor, samples, *, names):
        for sample in samples:
            shown.append(sample.source)
            os.kill(os.getpid(), signal.SIGTERM)
        return iter(())

    with monkeypatch.context() as patched:
        patched.setattr("self1e.training.watching.measure", interrupted)
        with pytest.raises(Interrupted):
            run(small(tiny_model_folder, "saving.every=100"), out=tmp_path, device="cpu")
    assert len(shown) == 1
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    final = run(small(tiny_model_folder, "saving.every=100"), out=tmp_path, device="cpu")
    one, other = (load_file(folder / "model.safetensors") for folder in (finished / "model", final))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_evaluation_cannot_write_does_not_end_a_run(finished, tiny_model_folder, tmp_path, monkeypatch, caplog):
    def full(*arguments, **others):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("self1e.training.watching.export_model", full)
        disk.setattr("self1e.training.watching.draw_samples", lambda *arguments: SimpleNamespace(save=full))
        run(small(tiny_model_folder), out=tmp_path, device="cpu")
    assert "The best model, of step 2, could not be saved" in caplog.text
    assert "The samples of step 4 could not be drawn" in caplog.text
    assert not list(tmp_path.glob("*best*"))
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (finished, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_evaluation_waits_for_its_step():
    watching = Watching(None, None, (), find_recipe("self1e-internvl3-2b").evaluation, None)  # type: ignore[arg-type]
    # Step 7 of 400: nothing is touched, or this would fail on what is None.
    assert watching.on_step_end(None, SimpleNamespace(global_step=7, max_steps=400), None) is None


def test_float32_products_with_frozen_bfloat16_are_refused(tiny_model_folder):
    recipe = small(tiny_model_folder, "model.frozen_dtype=bfloat16")
    with pytest.raises(SettingError, match=r"add --set model.frozen_dtype=float32"):
        prepare(recipe)
