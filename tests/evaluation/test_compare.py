"""Two runs are compared on the same samples, drawn together; what was measured otherwise is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from self1e.cli.main import main
from self1e.errors import DatasetError, SettingError
from self1e.evaluation.compare import as_markdown, compare
from self1e.evaluation.dump import RowWriter
from self1e.evaluation.intervals import difference_of, interval_of
from self1e.evaluation.metrics.masks import MaskIoU, mask_row
from self1e.evaluation.metrics.semantic import SemanticIoU
from self1e.evaluation.protocols import Run

RUN = Run(
    model="one",
    protocol="res.sentence",
    dataset="somewhere/val",
    annotations="abc",
    prompt="validation",
    answer="teacher-forced",
)


def write(folder: Path, ious: Any, run: Run = RUN) -> Path:
    """Rows of masks of 100 pixels, two per picture, with these IoU."""
    with RowWriter(folder / "somewhere" / "tf" / "rows-00000.jsonl", run) as writer:
        metric = MaskIoU()
        for k, iou in enumerate(ious):
            truth = np.zeros((10, 10), bool)
            truth[:] = True
            prediction = truth.copy()
            prediction.flat[round(100 * iou) :] = False
            row = metric.update(f"{k:03}", prediction, truth, group=str(k // 2))
            writer.write(
                row | {"query": f"thing {k}", "subsets": [], "unit": k // 2, "unit_rows": 2, "of": len(ious) // 2}
            )
    return folder


@pytest.fixture
def ious() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 0.8, 40).round(2)


def test_a_small_but_steady_gain_is_clear_though_the_intervals_overlap(tmp_path, ious):
    better = write(tmp_path / "a", ious + 0.05)
    worse = write(tmp_path / "b", ious, replace(RUN, model="other"))
    (one,) = compare(better, worse).comparisons
    figure = next(figure for figure in one.figures if figure.name == "giou")
    assert figure.difference.value == pytest.approx(0.05)
    assert figure.is_clear
    alone = [interval_of(MaskIoU().add_rows(rows_of(folder)), "giou") for folder in (better, worse)]
    assert alone[0].low < alone[1].high  # which is why a comparison is paired
    assert (one.wins, one.losses, one.ties) == (40, 0, 0)
    assert "**+5.00" in as_markdown(compare(better, worse))


def rows_of(folder: Path) -> list[Any]:
    from self1e.evaluation.tables import read_results

    return read_results(folder)[0].rows


def test_a_model_against_itself_ties(tmp_path, ious):
    same = [write(tmp_path / name, ious) for name in "ab"]
    (one,) = compare(*same).comparisons
    assert (one.wins, one.losses, one.ties) == (0, 0, 40)
    assert one.most_different == ()
    for figure in one.figures:
        assert figure.difference.value in (0, None)
        assert not figure.is_clear


def test_the_samples_that_differ_most_come_first_with_their_words(tmp_path, ious):
    changed = ious.copy()
    changed[7], changed[3] = abs(ious[7] - 0.9).round(2), ious[3] + 0.1
    (one,) = compare(write(tmp_path / "a", changed), write(tmp_path / "b", ious)).comparisons
    assert {case.id for case in one.most_different} == {"003", "007"}
    gaps = [abs(case.first - case.second) for case in one.most_different]
    assert gaps == sorted(gaps, reverse=True)
    assert {case.words for case in one.most_different} == {"thing 3", "thing 7"}


def test_swapping_the_folders_turns_the_sign(tmp_path, ious):
    a, b = write(tmp_path / "a", ious[::-1]), write(tmp_path / "b", ious)
    (one,), (other,) = compare(a, b).comparisons, compare(b, a).comparisons
    assert (one.wins, one.losses) == (other.losses, other.wins)
    for first, second in zip(one.figures, other.figures, strict=True):
        assert first.difference.value == pytest.approx(-(second.difference.value or 0))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"annotations": "xyz"}, "annotations 'abc' and 'xyz'"),
        ({"prompt": "mine"}, "prompt 'validation' and 'mine'"),
        ({"threshold": 0.5}, "threshold 0.0 and 0.5"),
        ({"protocol": "reason.first"}, "protocol 'res.sentence' and 'reason.first'"),
    ],
)
def test_another_protocol_or_other_data_are_refused(tmp_path, ious, change, told):
    a, b = write(tmp_path / "a", ious), write(tmp_path / "b", ious, replace(RUN, **change))
    with pytest.raises(SettingError, match=told):
        compare(a, b)


def test_a_calibrated_model_compares_with_one_that_is_not(tmp_path):
    """Their headlines differ (one rejects by score), and the rows of both can be read by what is common."""
    run = replace(RUN, dataset="grefcoco/val", protocol="gres.mask_empty")
    calibrated = replace(run, model="m", protocol="gres.official", rejection="score < 0.5")
    folders = []
    for name, one, said in (("a", calibrated, True), ("b", run, None)):
        with RowWriter(tmp_path / name / "rows-00000.jsonl", one) as writer:
            for k in range(6):
                truth = np.full((4, 4), k % 2 == 0)
                found = np.full((4, 4), k < 4)
                row = mask_row(str(k), found, truth, gt_nt=k % 2 == 1, pred_nt=said, score=0.4, group=str(k))
                writer.write(row | {"query": "", "subsets": [], "unit": k, "unit_rows": 1, "units": 6})
        folders.append(tmp_path / name)
    compared = compare(*folders)
    (one,) = compared.comparisons
    assert {figure.protocol for figure in one.figures} == {"gres.mask_empty", "gres.mask_empty_50"}
    assert (one.wins, one.losses, one.ties) == (0, 0, 6)  # the masks are the same
    assert '"Not there" is said by: score < 0.5 (A), none (B).' in as_markdown(compared)


def test_a_single_picture_is_compared_without_an_interval(tmp_path):
    a, b = write(tmp_path / "a", [0.5, 0.7]), write(tmp_path / "b", [0.4, 0.7])
    (one,) = compare(a, b).comparisons
    figure = next(figure for figure in one.figures if figure.name == "giou")
    assert (figure.difference.value, figure.difference.low) == (pytest.approx(0.05), None)
    assert not figure.is_clear
    assert "| giou | 60.00 | 55.00 | +5.00 |" in as_markdown(compare(a, b))


def test_part_of_a_benchmark_and_failures_are_told(tmp_path):
    run = replace(RUN, dataset="refcoco/val")
    a, b = write(tmp_path / "a", [0.5, 0.7], run), write(tmp_path / "b", [0.4, 0.7], run)
    [path] = b.rglob("rows-*.jsonl")
    path.write_text(path.read_text("utf-8").replace('"failed": false', '"failed": true', 1), "utf-8")
    told = as_markdown(compare(a, b))
    assert "**Not the whole benchmark: 2 of 10834 samples.**" in told
    assert "Failed, and counted as wrong: 0 (A), 1 (B)." in told
    (one,) = compare(a, b).comparisons
    giou = next(figure for figure in one.figures if figure.name == "giou")
    assert (giou.first, giou.second) == (pytest.approx(0.6), pytest.approx(0.35))
    assert "counted as wrong" not in as_markdown(compare(a, a))


def test_other_samples_are_refused(tmp_path, ious):
    a, b = write(tmp_path / "a", ious), write(tmp_path / "b", ious[:38])
    with pytest.raises(DatasetError, match=r"40 samples in the first folder, 38 in the second.*'038'"):
        compare(a, b)


def test_nothing_in_common_is_an_error_and_the_rest_is_told(tmp_path, ious):
    a, b = write(tmp_path / "a", ious), write(tmp_path / "b", ious, replace(RUN, dataset="elsewhere/val"))
    with pytest.raises(DatasetError, match="no benchmark in common"):
        compare(a, b)
    write(tmp_path / "b" / "more", ious)
    compared = compare(a, tmp_path / "b")
    assert compared.only_second == ("elsewhere/val, tf",)
    assert "Only in B: elsewhere/val, tf." in as_markdown(compared)


def test_differences_of_class_maps_are_paired_too():
    """mIoU is no sum over a sum: the same pictures must be drawn for both."""
    rng = np.random.default_rng(1)
    metrics = SemanticIoU(("a", "b"), ignore=255), SemanticIoU(("a", "b"), ignore=255)
    for k in range(30):
        truth = rng.integers(0, 2, (6, 6))
        wrong = rng.random((6, 6)) < rng.uniform(0, 0.6)
        for metric, share in zip(metrics, (1.0, 0.9), strict=True):
            kept = wrong & (rng.random((6, 6)) < share) if share < 1 else wrong
            metric.update(str(k), np.where(kept, 1 - truth, truth), truth)
    gap = difference_of(metrics[1], metrics[0], "miou_cls")
    alone = interval_of(metrics[0], "miou_cls")
    assert gap.value == pytest.approx(metrics[1].result()["miou_cls"] - metrics[0].result()["miou_cls"])
    assert gap.high - gap.low < 0.5 * (alone.high - alone.low)
    assert difference_of(metrics[0], metrics[0], "miou_cls").high == 0


def test_the_command_prints_the_comparison(tmp_path, ious, capsys):
    a, b = write(tmp_path / "a", ious + 0.05), write(tmp_path / "b", ious)
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "--compare", str(a), str(b)])
    assert stopped.value.code == 0
    assert "A wins 40, loses 0, ties 0" in capsys.readouterr().out


def test_the_command_names_a_folder_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "--compare", str(tmp_path), str(tmp_path / "b")])
    assert stopped.value.code == 2
    assert "no such folder" in capsys.readouterr().err
