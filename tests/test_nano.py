"""The model inside the package: its size, its speed, and that it reaches what its card says."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from support import load_script

import self1e
from self1e.evaluation.nano import (
    as_markdown,
    ceiling_labels,
    ceiling_rows,
    evaluate,
    measure,
    query_seconds,
    scene_groups,
    table,
)
from self1e.inference.info import mask_side
from self1e.inference.loading import NANO

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "docs" / "results" / "nano.json"


@pytest.fixture(scope="module")
def nano():
    return self1e.load("nano", device="cpu")


def test_nano_is_as_small_as_promised(nano):
    with safe_open(NANO / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (not a dict)
    assert sum(torch.Size(shape).numel() for shape in shapes) <= 7_000_000
    assert sum(file.stat().st_size for file in NANO.iterdir()) <= 15_000_000
    assert mask_side(nano.model.config) >= 32


def test_one_query_on_one_core_takes_half_a_second_at_most(nano):
    assert query_seconds(nano) <= 0.5


def test_nano_finds_the_person_in_the_portrait(nano):
    """Coarse on purpose: where a person certainly is, and where certainly none is."""
    mask = nano.segment(ROOT / "src/self1e/assets/astronaut.jpg", "the person").mask()
    assert mask[320:480, 120:300].mean() > 0.7  # the suit
    assert mask[:150, 330:].mean() < 0.3  # the shuttle and the wall


def test_the_card_says_what_was_measured(nano):
    report = json.loads(REPORT.read_text("utf-8"))
    card = (NANO / "README.md").read_text("utf-8")
    assert report["parameters"] == sum(parameter.numel() for parameter in nano.model.parameters())
    for row in (report["scenes"]["single target"], report["photographs"]["the person"]):
        assert f"| {row['ciou']:.3f} | {row['giou']:.3f} |" in card
    assert report["query_seconds"] <= 0.5
    assert report["no_target_threshold"] == nano.no_target_threshold


def test_one_command_repeats_the_runs_that_made_the_weights():
    logs = json.loads((ROOT / "docs" / "results" / "nano_log.json").read_text("utf-8"))
    recipes = [log["recipe"] for log in logs]
    package = load_script("package_nano")
    package.check_recipe(recipes)
    for other in (recipes[:-1], [*recipes[:-1], {**recipes[-1], "seed": 77}]):
        with pytest.raises(SystemExit, match="must be what made the weights"):
            package.check_recipe(other)
    # The learning rate of a run falls to nothing only if all of it was run.
    for log in logs:
        assert log["model"][-1]["step"] == log["recipe"]["pictures"] // log["recipe"]["batch_size"]


def test_drawn_scenes_reach_the_card_on_a_sample(nano, tmp_path):
    """60 of the 500 scenes: far enough from chance, and from another model's figures."""
    report = json.loads(REPORT.read_text("utf-8"))["scenes"]
    found = table(*measure(nano, ["scenes/test"], [], tmp_path, limit=60)["scenes/test"], scene_groups)["all"]
    assert found["queries"] > 200
    assert found["ciou"] == pytest.approx(report["all"]["ciou"], abs=0.1)
    assert found["giou"] == pytest.approx(report["all"]["giou"], abs=0.1)


@pytest.mark.slow
def test_drawn_scenes_reach_the_card_exactly(nano, tmp_path):
    report = json.loads(REPORT.read_text("utf-8"))["scenes"]
    found = table(*measure(nano, ["scenes/test"], [], tmp_path)["scenes/test"], scene_groups)
    for group in ("all", "single target", "attribute"):
        assert found[group]["ciou"] == pytest.approx(report[group]["ciou"], abs=2e-3), group


def test_the_full_report_has_every_table_and_what_the_card_reads(tiny_model, tmp_path):
    report = evaluate(tiny_model, None, tmp_path, limit=5)
    assert {"grid", "scenes", "scenes_absent", "scenes_held_out", "scenes_classes", "questions", "seconds"} <= set(
        report
    )
    row = report["scenes"]["all"]
    assert {"queries", "ciou", "giou", "ceiling_ciou", "ceiling_giou"} <= set(row)
    assert row["ciou_95"][0] <= row["ciou"] <= row["ciou_95"][1]
    assert report["questions"]["all"]["questions"] == 10
    text = as_markdown(report | {"machine": "a machine", "query_seconds": 0.1}, "a command")
    for words in ("Referring", "not there", "Open-vocabulary", "Questions", "ceiling", "`ovs.d2/scenes`", "a machine"):
        assert words in text
    assert evaluate(tiny_model, None, tmp_path, limit=5)["scenes"] == report["scenes"]  # read from the rows


def test_the_report_counts_what_a_calibrated_model_answers(tiny_model, tmp_path, monkeypatch):
    before = evaluate(tiny_model, None, tmp_path / "before", limit=3)
    assert before["scenes"]["single target"]["ciou"] > 0
    monkeypatch.setattr(tiny_model.model.config, "no_target_threshold", 1.0)  # nothing scores as much
    after = evaluate(tiny_model, None, tmp_path / "after", limit=3)
    assert after["scenes"]["single target"]["ciou"] == 0
    assert after["scenes"]["absent"]["empty_when_absent"] == after["scenes"]["absent"]["giou"] == 1
    assert (after["scenes_absent"]["n_acc"], after["scenes_absent"]["t_acc"]) == (1, 0)
    text = as_markdown(after | {"machine": "a machine", "query_seconds": 0.1}, "a command")
    assert "scores less than 1 counts as empty" in text


def test_perfect_logits_on_a_fine_grid_have_no_ceiling():
    labels = np.repeat(np.repeat(np.array([[0, 1], [2, 255]]), 8, 0), 8, 1)
    assert (ceiling_labels(labels, 16, 3)[labels < 3] == labels[labels < 3]).all()
    from self1e.evaluation.benchmarks import find_benchmark

    units = find_benchmark("scenes-classes/test").open(None).units
    (row,) = ceiling_rows(units, [0], 160).values()
    assert all(truth == predicted for truth, predicted, _ in row["confusion"])
    corner = np.zeros((32, 32), np.int64)
    corner[:2, :2] = 1
    assert (ceiling_labels(corner, 16, 2) == corner).all()
    assert not ceiling_labels(corner, 4, 2).any()  # lost between coarse cells


@pytest.mark.slow
def test_the_wheel_holds_nano_and_the_portrait(tmp_path):
    from hatchling.builders.wheel import WheelBuilder

    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(built).namelist())
    for file in NANO.iterdir():
        assert f"self1e/assets/nano/{file.name}" in names
    assert "self1e/assets/astronaut.jpg" in names
    assert not any("shared" in name or name.startswith("tests") for name in names)
