"""``self1e finetune``: own pictures through the command line, and a model that learns them by heart."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import self1e
from self1e.cli.main import main
from self1e.data.own import open_data
from self1e.data.own.example import SEED, SIZES_WH, write_example
from self1e.data.own.splitting import Pictures
from self1e.data.sample import Sample, Target
from self1e.data.scenes import Scenes
from self1e.errors import SettingError
from self1e.evaluation.metrics.masks import MaskIoU
from self1e.inference.loading import NANO
from self1e.training.collate import Collator
from self1e.training.guards import Guarded
from self1e.training.own_data import OwnAugment, OwnEpochs, Readable, count_base, own_training_data
from self1e.training.recipes import change
from self1e.training.recipes.own import LARGE, SMALL, own

HAS_NANO = (NANO / "model.safetensors").is_file()
pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = ["saving.log_every=1", "evaluation.drawn=1", "optim.global_batch=2", "optim.micro_batch=2"]


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run the command in an empty folder; returns status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Five pictures."""
    folder = tmp_path_factory.mktemp("own") / "data"
    write_example(folder, pictures=5)
    return folder


def sets(*settings: str) -> list[str]:
    return [word for setting in (*QUICK, *settings) for word in ("--set", setting)]


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


# --------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def finished(made, tiny_model_folder, tmp_path_factory) -> tuple[Path, str, str]:
    """A run of four steps, and what it said."""
    out, told, noted = tmp_path_factory.mktemp("run") / "out", io.StringIO(), io.StringIO()
    arguments = ["finetune", "--data", made, "--model", tiny_model_folder, "--out", out, "--steps", "4", *sets()]
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(noted), pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    assert not end.value.code
    return out, told.getvalue(), noted.getvalue()


def test_a_run_checks_holds_out_measures_draws_and_says_what_to_type_next(finished, made, run):
    out, told, noted = finished
    assert "No problem found." in told
    assert "1 of 5 pictures are held out to measure on (seed 42)" in noted
    with Image.open(out / "data-check.png") as sheet:
        assert sheet.width > 200
    log = json.loads((out / "log.json").read_text())
    assert [line["step"] for line in log if "eval_ciou" in line] == [1, 2, 3, 4]
    assert (out / "samples" / "step-0004.png").is_file()
    facts = json.loads((out / "run.json").read_text())
    assert facts["data"]["counts"] == {"own": 4}
    assert facts["recipe"]["evaluation"]["on"] == "held-out pictures"
    card = (out / "model" / "README.md").read_text()
    assert "own pictures" in card or "trainer's own" in card
    assert "self1e data prepare" not in card
    command = told.splitlines()[-1].split("self1e ", 1)[1]
    status, _, _ = run(*shlex.split(command), "--out", "found")
    assert status == 0
    for folder in ("model", "best"):
        self1e.load(out / folder, device="cpu")


def test_a_run_that_was_stopped_goes_on_and_a_changed_one_does_not(finished, made, tiny_model_folder, run, tmp_path):
    out = finished[0]
    arguments = ["finetune", "--data", made, "--model", tiny_model_folder, "--steps", 4, *sets()]
    shutil.copytree(out / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    status, _, _ = run(*arguments, "--out", "again")
    assert status == 0
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (out, tmp_path / "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    status, _, err = run(*arguments, "--out", out, "--set", "optim.learning_rate=0.5")
    assert status == 2
    assert "optim.learning_rate: 0.001 -> 0.5" in err
    fewer = copy_of(made, tmp_path / "fewer")
    lines = (fewer / "train.jsonl").read_text().splitlines(keepends=True)
    (fewer / "train.jsonl").write_text("".join(lines[:-1]))
    arguments[2] = fewer
    status, _, err = run(*arguments, "--out", out)
    assert status == 2
    assert "data counts.own: 4 -> 3" in err
    status, _, err = run(*arguments, "--out", out, "--resume", "never")
    assert status == 2
    assert "resume it, or choose another folder" in err
    assert json.loads((out / "run.json").read_text())["data"]["counts"] == {"own": 4}  # not written over


def test_of_several_processes_only_the_first_tells(made, tiny_model_folder, run, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    told = run("finetune", "--data", made, "--model", tiny_model_folder, "--dry-run", "--out", "no", *sets())
    assert told == (0, "", "")


def test_a_dry_run_shows_everything_and_writes_nothing(made, tiny_model_folder, run, tmp_path):
    status, out, _ = run("finetune", "--data", made, "--model", tiny_model_folder, "--dry-run", "--out", "no", *sets())
    assert status == 0
    assert "adapters.language=full" in out
    assert "data.mirror=False" in out
    assert "data: own 4" in out
    assert not (tmp_path / "no").exists()


def test_other_masks_are_other_data_and_a_broken_picture_is_not(finished, made, tiny_model_folder, run, tmp_path):
    arguments = ["--model", tiny_model_folder, "--steps", 4, *sets(), "--no-check", "--out", tmp_path / "again"]
    shutil.copytree(finished[0] / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    changed = copy_of(made, tmp_path / "changed")
    for path in (changed / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path))[::-1]).save(path)
    status, _, err = run("finetune", "--data", changed, *arguments)
    assert status == 2
    assert "data annotations: " in err
    for number in range(5):
        broken = copy_of(made, tmp_path / f"broken-{number}")
        (broken / "images" / f"{number:02d}.png").write_bytes(b"")
        status, _, err = run("finetune", "--data", broken, *arguments, "--dry-run")
        assert status == 0, err
    status, _, err = run("finetune", "--data", tmp_path / "broken-0", *arguments)
    assert status == 0, err
    assert (tmp_path / "again" / "model" / "model.safetensors").is_file()


# --------------------------------------------------------------------------- bad input


def broken(kind: str, folder: Path) -> str:
    """Break sound data; returns what has to be said."""
    file = folder / "train.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    if kind == "a picture that was not downloaded":
        (folder / "images" / "01.png").unlink()
        told = "missing-file: 1"
    elif kind == "a picture that was half downloaded":
        raw = (folder / "images" / "01.png").read_bytes()
        (folder / "images" / "01.png").write_bytes(raw[: len(raw) // 2])
        told = "unreadable-picture: 1"
    elif kind == "a mask of another size":
        Image.fromarray(np.full((7, 9), 255, np.uint8)).save(folder / "m.png")
        records[1]["queries"][0]["mask"] = "m.png"
        told = "size-differs: 1"
    elif kind == "annotations that were half downloaded":
        file.write_text(file.read_text()[:-40])
        return "not JSON"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return told


@pytest.mark.parametrize(
    "kind",
    [
        "a picture that was not downloaded",
        "a picture that was half downloaded",
        "a mask of another size",
        "annotations that were half downloaded",
    ],
)
def test_data_with_errors_is_not_trained_on(kind, made, tiny_model_folder, run, tmp_path):
    folder = copy_of(made, tmp_path / "bad")
    told = broken(kind, folder)
    status, out, err = run("finetune", "--data", folder, "--model", tiny_model_folder, "--out", "no")
    assert status == 1
    assert told in out + err
    assert "self1e data check" in err
    assert not list(tmp_path.glob("no/checkpoint-*"))


def test_a_missing_data_set_and_a_wrong_class_list_are_named(tiny_model_folder, run, tmp_path):
    status, _, err = run("finetune", "--data", "nowhere", "--model", tiny_model_folder)
    assert status == 1
    assert "nowhere: no such file or folder" in err
    for name in ("images", "masks"):
        (tmp_path / "classes" / name).mkdir(parents=True)
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "classes" / "images" / f"{number}.png")
        Image.fromarray(np.full((20, 30), 7, np.uint8)).save(tmp_path / "classes" / "masks" / f"{number}.png")
    (tmp_path / "classes" / "classes.txt").write_text("0 background\n1 dog\n")
    status, out, err = run("finetune", "--data", "classes", "--model", tiny_model_folder, "--out", "no")
    assert status == 1
    assert "unknown-class" in out + err


def test_what_can_be_lived_with_is_a_warning(made, tiny_model_folder, run, tmp_path):
    folder = copy_of(made, tmp_path / "odd")
    file = folder / "train.jsonl"
    lines = file.read_text().splitlines()
    record = json.loads(lines[0])
    record["queries"].append({"query": record["queries"][0]["query"], "mask": None})
    file.write_text("\n".join([json.dumps(record), *lines[1:]]) + "\n")
    arguments = ["finetune", "--data", folder, "--model", tiny_model_folder, "--out", "out", "--steps", 1, *sets()]
    status, out, _ = run(*arguments, "--dry-run")
    assert status == 0
    assert "duplicate-query: 1" in out


def test_what_is_ignored_is_left_out_and_trained_without(made, tiny_model_folder, run, tmp_path):
    folder = copy_of(made, tmp_path / "odd")
    file = folder / "train.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:  # more than data.most_unreadable would let pass
        record["queries"] = record["queries"][:1] + [{"query": "a line", "mask": [[1, 1, 2, 2]]}] * 3
    file.write_text("".join(json.dumps(record) + "\n" for record in records) + "{}\n")
    arguments = ["finetune", "--data", folder, "--model", tiny_model_folder, "--out", "out", "--steps", 1, *sets()]
    arguments += ["--set", "data.most_unreadable=0"]
    status, _, err = run(*arguments)
    assert status == 1
    assert "line 6: image is None" in err
    status, out, err = run(*arguments, "--ignore", "bad-record")
    assert status == 1
    assert "bad-polygon: 15" in out
    assert "15 problems in the data" in err
    status, _, err = run(*arguments, "--ignore", "bad-record", "--ignore", "bad-polygon")
    assert status == 0, err


def test_an_empty_file_is_named(tiny_model_folder, run, tmp_path):
    (tmp_path / "train.jsonl").write_text("")
    status, _, err = run("finetune", "--data", tmp_path / "train.jsonl", "--model", tiny_model_folder)
    assert status == 1
    assert "train.jsonl holds no picture" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--epochs", 2, "--steps", 2], "twice"),
        (["--steps", 0], "at least 1"),
        (["--ignore", "leek"], "Did you mean 'leak'?"),
        (["--set", "optim.learningrate=1"], "Did you mean 'optim.learning_rate'?"),
        (["--split", "trian"], "Did you mean 'train'?"),
        (["--model", "./nowhere"], "no such folder"),
        (["--set", "data.held_out=1"], "shares from 0"),
    ],
)
def test_what_was_not_understood_is_said_before_anything_is_read(arguments, told, made, tiny_model_folder, run):
    start = [] if "--model" in arguments else ["--model", tiny_model_folder]
    status, _, err = run("finetune", "--data", made, *start, *arguments)
    assert status in (1, 2)
    assert told in err


def test_one_picture_cannot_be_divided(tiny_model_folder, run, tmp_path):
    write_example(tmp_path / "one", pictures=1)
    status, _, err = run("finetune", "--data", "one", "--model", tiny_model_folder)
    assert status == 2
    assert "data.held_out=0" in err
    status, _, err = run(
        "finetune", "--data", "one", "--model", tiny_model_folder, "--set", "data.held_out=0", "--dry-run"
    )
    assert status == 0
    assert "measured on the 1 training pictures themselves" in err


def test_pictures_of_the_validation_data_must_not_be_trained_on(made, tiny_model_folder, run, tmp_path):
    folder = copy_of(made, tmp_path / "both")
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "both" / "other").mkdir()
    record = json.loads(lines[0])
    record = {"image": "../" + record["image"], "query": "the thing", "mask": None}
    (folder / "other" / "val.jsonl").write_text(json.dumps(record) + "\n")
    arguments = ["finetune", "--data", folder, "--val", folder / "other" / "val.jsonl", "--model", tiny_model_folder]
    status, out, _ = run(*arguments, "--out", "no")
    assert status == 1
    assert "leak: 1" in out
    (folder / "train.jsonl").write_text("".join(lines[1:]))
    status, out, _ = run(*arguments, "--dry-run")
    assert status == 0
    assert "evaluation.on=the validation pictures" in out


def test_a_picture_that_breaks_in_a_later_epoch_is_passed_over_by_name(made, tmp_path, caplog):
    folder = copy_of(made, tmp_path / "later")
    pictures = Pictures(open_data(folder))
    recipe = own("x", parameters=1, pictures=5, epochs=3)
    data = own_training_data(change(recipe, ["optim.micro_batch=1"]), pictures, pictures)
    guarded = Guarded(data.make_epoch(2), most=1)
    assert len({guarded[index].source for index in range(5)}) == 5
    assert len(data.validation) == 5
    (folder / "images" / "03.png").write_bytes(b"")
    shown = {guarded[index].source for index in range(5)}
    assert len(shown) == 4
    assert "03.png" in caplog.text
    assert "passed over (1 of 1)" in caplog.text
    caplog.clear()
    counts = [len(sample.targets) for sample in data.validation for _ in range(2)]
    assert counts.count(0) == 2
    assert caplog.text.count("is not measured") == 1
    assert isinstance(Readable(pictures)[3], Sample)


# --------------------------------------------------------------------------- what is shown


def test_records_of_one_picture_are_one_sample(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for name in ("a", "b", "c"):
        Image.fromarray(np.roll(noise, ord(name), axis=1)).save(tmp_path / f"{name}.png")
    box = [[2, 2, 9, 2, 9, 9, 2, 9]]
    records = [
        {"image": "a.png", "query": "one", "mask": box},
        {"image": "b.png", "query": "two", "mask": None},
        {"image": "a.png", "query": "three", "mask": None},
        {"image": "c.png", "query": "four", "mask": box},
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pictures = Pictures(open_data(tmp_path))
    assert [[target.text for target in sample.targets] for sample in pictures] == [["one", "three"], ["two"], ["four"]]
    kept, held = pictures.hold_out(0.1, seed=3)
    assert (len(kept), len(held)) == (2, 1)
    texts = [{target.text for sample in part for target in sample.targets} for part in (kept, held)]
    assert not texts[0] & texts[1]
    assert texts[0] | texts[1] == {"one", "two", "three", "four"}
    again, _ = pictures.hold_out(0.1, seed=3)
    assert again.groups == kept.groups
    assert pictures.first() == (tmp_path / "a.png", "one")


def test_what_is_not_there_is_taught_as_an_empty_mask(made):
    pictures = Pictures(open_data(made))
    recipe = own("x", parameters=1, pictures=5)
    epoch = OwnEpochs(pictures, recipe)(0)
    absent = {target.text for sample in pictures for target in sample.targets if not target.mask.any()}
    rows = [row for index in range(len(epoch)) for row in epoch[index].rows if row.mask is not None]
    empty = [row for row in rows if row.mask is not None and not row.mask.any()]
    assert absent
    assert len(empty) == sum(not target.mask.any() for sample in pictures for target in sample.targets)
    assert all(any(text in row.question for text in absent) for row in empty)


def test_phrases_are_taught_in_small_letters_as_they_will_be_asked_for(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    record = {"image": "a.png", "queries": ["the Fire Hydrant", "Where is Anna?"], "mask": None}
    (tmp_path / "x.jsonl").write_text(json.dumps(record) + "\n")
    epoch = OwnEpochs(Pictures(open_data(tmp_path)), own("x", parameters=1, pictures=1))(0)
    questions = " ".join(row.question for row in epoch[0].rows)
    assert "the fire hydrant" in questions
    assert "Where is Anna?" in questions


@pytest.mark.skipif(not HAS_NANO, reason="the weights of nano are not here")
def test_nano_is_taught_the_answer_that_it_knows(made):
    """Its text loss is small from the start; sentences around [SEG], which it never wrote, cost more than 10."""
    nano = self1e.load("nano", device="cpu")
    recipe = own("nano", parameters=1, pictures=5)
    collator = Collator(nano.processor, target_side=32, max_length=512)
    found = {}
    for answers in ("bare", "published"):
        epoch = OwnEpochs(Pictures(open_data(made)), change(recipe, [f"data.answers={answers}"]))(0)
        with torch.no_grad():
            found[answers] = float(nano.model(**collator([epoch[0], epoch[1]])).losses["text"])
    assert recipe.data.answers == "bare"
    assert own("x", parameters=SMALL, pictures=5).data.answers == "published"
    assert found["bare"] < 0.3 * found["published"]


def test_the_command_to_type_next_is_about_a_picture_that_is_still_there(made, tmp_path):
    folder = copy_of(made, tmp_path / "gone")
    pictures = Pictures(open_data(folder))
    (folder / "images" / "00.png").unlink()
    assert pictures.first()[0].name == "01.png"


def test_nothing_is_mirrored_unless_asked():
    mask = np.zeros((8, 10), bool)
    mask[:, :3] = True
    pixels = np.where(mask[..., None], 200, 40).astype(np.uint8).repeat(3, axis=2)
    sample = Sample(image=Image.fromarray(pixels), targets=(Target(text="the left", mask=mask),))
    for seed in range(8):
        changed = OwnAugment(colour=0.1)(sample, np.random.default_rng(seed))
        assert changed.targets[0].mask is mask
        bright = np.asarray(changed.image)[..., 1]
        assert bright[:, :3].min() > bright[:, 3:].max()
    sides = {
        int(OwnAugment(mirror=True)(sample, np.random.default_rng(seed)).targets[0].mask[0, 0]) for seed in range(8)
    }
    assert sides == {0, 1}
    mirrored = next(
        found
        for seed in range(8)
        if not (found := OwnAugment(mirror=True)(sample, np.random.default_rng(seed))).targets[0].mask[0, 0]
    )
    bright = np.asarray(mirrored.image)[..., 1]
    assert bright[mirrored.targets[0].mask].min() > bright[~mirrored.targets[0].mask].max()


def test_defaults_follow_the_size_of_the_model(tiny_model_folder):
    small, middle, large = (own("x", parameters=n, pictures=100) for n in (1000, SMALL, LARGE))
    assert (small.adapters.language, middle.adapters.language) == ("full", "lora")
    assert (middle.adapters.rank, large.adapters.rank) == (128, 64)
    assert (middle.optim.learning_rate, large.optim.learning_rate) == (1e-4, 6e-5)
    assert middle.model.keep_switches
    assert count_base(str(tiny_model_folder)) < SMALL
    for pictures in (1, 2, 3, 7, 19, 5000):
        for parameters in (1000, SMALL):
            recipe = own("x", parameters=parameters, pictures=pictures)
            recipe.optim.accumulation(1)
            assert recipe.optim.global_batch <= pictures


def test_a_model_that_gets_adapters_is_fine_tuned_too(made, tiny_model_folder, run, monkeypatch):
    from self1e.training.recipes import own as defaults

    monkeypatch.setattr(defaults, "SMALL", 10)
    few = ["--set", "adapters.rank=2", "--set", "data.workers=0", "--set", "data.held_out=0.2"]
    status, out, _ = run("finetune", "--data", made, "--model", tiny_model_folder, "--out", "out", "--steps", 1, *few)
    assert status == 0
    assert "The model is in" in out
    names = load_file(Path("out/checkpoint-1/model.safetensors"))
    assert any("lora_A" in name for name in names)
    assert not any("lora" in name for name in load_file(Path("out/model/model.safetensors")))


def test_the_example_is_what_was_drawn(tmp_path):
    file = write_example(tmp_path / "example", pictures=6)
    masks = [query["mask"] for line in file.read_text().splitlines() for query in json.loads(line)["queries"]]
    assert {type(mask) for mask in masks} == {str, dict, list, type(None)}
    scenes = Scenes("test", size_wh=SIZES_WH, length=6, seed=SEED)
    for sample, scene in zip(open_data(tmp_path / "example"), scenes, strict=True):
        assert np.array_equal(np.asarray(sample.image), np.asarray(scene.image))
        drawn = {target.text: target.mask for target in scene.targets}
        for target in sample.targets:
            assert np.array_equal(target.mask, drawn[target.text])
    with pytest.raises(SettingError, match="not an empty folder"):
        write_example(tmp_path / "example")


# --------------------------------------------------------------------------- by heart

SMOKE = [
    "data.held_out=0",  # measured on what is learned
    "data.colour=0",
    "optim.global_batch=4",
    "optim.micro_batch=4",
    "evaluation.every=1000000",  # once, at the end
    "evaluation.drawn=0",
    "saving.every=1000000",
]


def by_heart(folder: Path, steps: int) -> float:
    """Fine-tune nano on all pictures of a folder; returns cIoU of the saved model on the same pictures."""
    arguments = ["finetune", "--data", folder, "--out", folder.parent / "run", "--steps", steps, "--device", "cpu"]
    settings = [word for setting in SMOKE for word in ("--set", setting)]
    with pytest.raises(SystemExit) as end:
        main(list(map(str, [*arguments, *settings])))
    assert not end.value.code
    model = self1e.load(folder.parent / "run" / "model", device="cpu")
    metric = MaskIoU()
    for number, sample in enumerate(open_data(folder)):
        found = model.segment(sample.image, [t.text for t in sample.targets], kind=[t.kind for t in sample.targets])
        for k, target in enumerate(sample.targets):
            metric.update(f"{number}/{k}", found.mask(k), target.mask)
    return metric.ciou


@pytest.mark.slow
@pytest.mark.skipif(not HAS_NANO, reason="NANO IS MISSING: no weights to start from.")
@pytest.mark.timeout(1800)
def test_nano_learns_twenty_own_pictures_by_heart(tmp_path):
    write_example(tmp_path / "data")
    assert by_heart(tmp_path / "data", steps=600) >= 0.95
