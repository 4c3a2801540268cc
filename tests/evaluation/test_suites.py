"""Tables of the paper: quoted as printed, filled from rows alone, each number with protocol, interval and count."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from self1e.errors import DatasetError, SettingError
from self1e.evaluation.benchmarks import BENCHMARKS, find_benchmark
from self1e.evaluation.calibration import check_split, fit_threshold, save_threshold
from self1e.evaluation.dump import RowWriter
from self1e.evaluation.metrics.masks import mask_row
from self1e.evaluation.protocols import Run
from self1e.evaluation.suites import SUITES, TABLES, find_suite
from self1e.evaluation.tables import (
    Number,
    filled_tables,
    for_terminal,
    mean_number,
    paper_lines,
    read_results,
    remarks,
    write_tables,
)


def run_of(dataset: str, **changes: Any) -> Run:
    benchmark = find_benchmark(dataset)
    values: dict[str, Any] = {"model": "m", "protocol": benchmark.protocols[0], "dataset": dataset}
    values |= {"annotations": "a", "prompt": benchmark.prompt, "answer": "teacher-forced"}
    return Run(**(values | changes))


def write_rows(folder: Path, run: Run, ious: list[tuple[int, int]], subsets: tuple[str, ...] = ()) -> None:
    """Rows whose truth has 10 pixels, of which so many are found, and so many more that are wrong."""
    with RowWriter(folder / "rows-00000.jsonl", run) as writer:
        for k, (hits, wrong) in enumerate(ious):
            truth, found = np.zeros((4, 10), bool), np.zeros((4, 10), bool)
            truth[0], found[0, :hits], found[1, :wrong] = True, True, True
            row = mask_row(k, found, truth, group=str(k), score=0.5, gt_nt=False)
            writer.write(row | {"subsets": list(subsets), "unit": k, "unit_rows": 1, "units": len(ious)})


def test_published_values_stand_in_the_paper(find_shared: Callable[[str, str], Path]) -> None:
    paper = "\n".join(path.read_text("utf-8") for path in sorted(find_shared("SELF1E_PAPER", "paper").glob("*.txt")))
    number = re.compile(r"(?<![\w.-])\d+\.\d+(?![\w.])")
    printed = {tuple(number.findall(line.split("|", 2)[2])) for line in paper.split("\n") if "|" in line[1:]}
    for table in TABLES[:-1]:  # MME's is printed over two rows
        for method, values in table.published.items():
            wanted = tuple(f"{value:.1f}" for value in values if value is not None)
            assert any(wanted == row[-len(wanted) :] for row in printed if row), (table.number, method)


def test_every_suite_names_benchmarks_that_exist() -> None:
    for names in SUITES.values():
        for name in names:
            assert name in BENCHMARKS
    with pytest.raises(SettingError, match=r"Unknown suite 'ress'. Did you mean 'res'"):
        find_suite("ress")
    for table in TABLES:
        assert all(len(values) <= len(table.columns) for values in table.published.values())


def test_a_table_of_the_paper_is_filled_from_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "val", run_of("refcoco/val"), [(10, 0), (5, 5)])
    write_rows(tmp_path / "testA", run_of("refcoco/testA"), [(10, 0)])
    write_tables(tmp_path)
    content = json.loads((tmp_path / "tables.json").read_text("utf-8"))
    tables = {table["table"]: table for table in content["tables"]}
    assert set(tables) == {1, 5, 10}  # the means of 6, 7 and 11 lack a split
    [(name, cells)] = tables[1]["measured"].items()
    assert name == "m, tf, res.sentence"
    assert cells[0]["number"]["value"] == 15 / 25
    assert cells[0]["number"]["low"] <= 15 / 25 <= cells[0]["number"]["high"]
    assert (cells[0]["samples"], cells[0]["is_partial"]) == (2, True)
    assert cells[2] is None
    text = (tmp_path / "tables.md").read_text("utf-8")
    assert "2 of 10834 samples" in text
    assert "| SELF1E-2B (published) | 80.2 |" in text
    label, published, way, measured, samples = paper_lines(filled_tables(read_results(tmp_path))[0])[0]
    assert (label, way, samples) == ("RefCOCO val", "tf\nres.sentence", "2")
    assert "SELF1E-2B 80.2" in published
    assert measured.startswith("60.00\n[")
    assert measured.endswith("]†")


def test_failed_samples_are_told_wherever_a_number_is(tmp_path: Path) -> None:
    run = run_of("refcoco/val")
    with RowWriter(tmp_path / "rows-00000.jsonl", run) as writer:
        for k in range(3):
            truth = np.ones((2, 5), bool)
            row = mask_row(k, None if k else truth, truth, group=str(k), gt_nt=False)
            error = {"error": "DatasetError: no picture"} if k else {}
            writer.write(row | error | {"subsets": [], "unit": k, "unit_rows": 1, "units": 3})
    results = write_tables(tmp_path)
    [first, *_] = tables = filled_tables(results)
    assert paper_lines(first)[0][-1] == "3, 2 failed"
    assert for_terminal(results)[0][3] == "3, 2 failed"
    text = (tmp_path / "tables.md").read_text("utf-8")
    assert "| samples | 3, 2 failed |" in text
    assert text.count("- refcoco/val, tf, `") == 2
    content = json.loads((tmp_path / "tables.json").read_text("utf-8"))
    assert next(iter(content["tables"][0]["measured"].values()))[0]["failed"] == 2
    ablations, partial, failed = remarks(results, tables)
    assert ablations.startswith("The same numbers beside the paper's ablations (Table 5, 10)")
    assert partial == "† is not the whole benchmark. refcoco/val, tf: 3 of 10834 samples."
    assert failed.startswith("2 samples failed and count as wrong")
    assert failed.endswith("e.g. 1: DatasetError: no picture")


def test_every_figure_of_the_specification_stands_in_the_tables(tmp_path: Path) -> None:
    write_rows(tmp_path / "res", run_of("refcoco/val"), [(10, 0), (5, 5)])
    write_rows(tmp_path / "gres", run_of("grefcoco/val"), [(10, 0), (5, 5)])
    with RowWriter(tmp_path / "ovs" / "rows-00000.jsonl", run_of("pas-20/val")) as writer:
        for k in range(2):
            row = {"id": str(k), "failed": False, "confusion": [[0, 0, 3], [0, k, 1]]}
            writer.write(row | {"unit": k, "unit_rows": 1, "units": 2})
    found = {one.run.dataset: set(one.lines[0].figures) for one in read_results(tmp_path)}
    assert {"ciou", "giou", *(f"pr@0.{k}" for k in (5, 6, 7, 8, 9))} <= found["refcoco/val"]
    assert {"ciou", "ciou_rela", "giou", "t_acc", "pr@0.7", "pr@0.8", "pr@0.9"} <= found["grefcoco/val"]
    assert found["pas-20/val"] == {"miou_cls", "miou_cls_mmseg", "fwiou", "macc", "pacc"}


def test_a_mean_of_splits_needs_all_of_them(tmp_path: Path) -> None:
    for name, rows in (("val", [(10, 0)]), ("testA", [(5, 0)]), ("testB", [(0, 0)])):
        write_rows(tmp_path / name, run_of(f"refcoco/{name}"), rows)
    table = next(one for one in filled_tables(read_results(tmp_path)) if one.table.number == 6)
    [cells] = table.ours.values()
    assert cells[0] is not None
    assert cells[0].number.value == pytest.approx(0.5)
    assert cells[1:] == [None, None]


def test_intervals_of_a_mean_add_in_squares() -> None:
    found = mean_number([Number(0.5, 0.4, 0.6), Number(0.7, 0.7, 0.7)])
    assert (found.value, found.low, found.high) == pytest.approx((0.6, 0.55, 0.65))
    assert mean_number([Number(0.5, 0.4, 0.6), Number(None)]).value is None


def test_table_9_takes_the_headline_protocol_of_each_set(tmp_path: Path) -> None:
    def write(name: str, rows: list[dict[str, Any]]) -> None:
        with RowWriter(tmp_path / name.replace("/", "-") / "rows-00000.jsonl", run_of(name, answer="generated")) as out:
            for k, row in enumerate(rows):
                out.write({"failed": False} | row | {"unit": k, "unit_rows": 1, "units": len(rows)})

    # People agree on "black/white", which EvalAI's normaliser blanks in both, the VQA API's in the prediction alone.
    answers = {"answers": ["black/white"] * 10, "answer_type": ""}
    write("vqav2/val", [{"id": "1", "prediction": "black/white", **answers}])
    one = {"options": {"A": "red", "B": "blue"}, "category": "x", "l2_category": "y", "answer": "A"}
    write("mmbench-en/dev", [{"id": "7", "prediction": "A", **one}, {"id": "1000007", "prediction": "B", **one}])
    said = {"random": "yes", "popular": "yes", "adversarial": "no"}
    write("pope", [{"id": f, "file": f, "prediction": text, "label": "yes"} for f, text in said.items()])
    results = {one.run.dataset: one for one in read_results(tmp_path)}
    assert results["pope"].partial == "3 of 9000 or 8910 samples"  # of two editions
    assert results["mmbench-en/dev"].partial == ""
    [nine] = [one for one in filled_tables(list(results.values())) if one.table.number == 9]
    [(name, cells)] = nine.ours.items()
    assert name == "m, gen, own protocol of each"
    found = {column.label: cell for column, cell in zip(nine.table.columns, cells, strict=True) if cell}
    assert found["VQAv2"].number.value == 1  # vqa.m4c; vqa.official gives 0
    assert found["MMB-en"].number.value == 0  # circular; vanilla is 1
    assert found["POPE"].number.value == pytest.approx(2 / 3)  # mean of the files' F1; pooled is 4 / 5
    assert set(found) == {"VQAv2", "MMB-en", "POPE"}


def test_half_a_picture_is_left_out_and_the_table_says_so(tmp_path: Path) -> None:
    """A run that was killed between the two questions of an MME picture still has tables."""
    with RowWriter(tmp_path / "rows-00000.jsonl", run_of("mme", answer="generated")) as out:
        for unit, questions in enumerate((2, 1)):
            for j in range(questions):
                row = {"id": f"color/{unit}/{j}", "failed": False, "task": "color", "image": str(unit)}
                out.write(row | {"prediction": "yes", "label": "yes", "unit": unit, "unit_rows": 2, "units": 2})
    [result] = read_results(tmp_path)
    assert [row["unit"] for row in result.rows] == [0, 0]
    assert "a picture lacks rows" in result.partial
    assert "without existence, count, position, posters" in result.partial
    [line] = result.lines
    assert line.figures["score/color"].value == 200


def test_names_of_files_may_be_no_text(tmp_path: Path) -> None:
    write_rows(tmp_path, run_of("refcoco/val"), [(10, 0)])
    path = tmp_path / "rows-00000.jsonl"
    header, line = path.read_bytes().splitlines()
    row = json.loads(line) | {"failed": True, "I": 0, "U": 10, "pred_area": 0, "error": "no picture \udcff.jpg\nat all"}
    path.write_bytes(header + b"\n" + json.dumps(row).encode() + b"\n")
    write_tables(tmp_path)
    assert r"no picture \udcff.jpg at all" in (tmp_path / "tables.md").read_text("utf-8")
    content = json.loads((tmp_path / "tables.json").read_text("utf-8"))
    assert content["runs"][0]["failed"][0]["error"] == row["error"]


def test_short_and_long_queries_are_told_apart(tmp_path: Path) -> None:
    run = run_of("reasonseg/val")
    write_rows(tmp_path / "val", run, [(10, 0), (5, 0)], subsets=("short",))
    [result] = read_results(tmp_path)
    assert {line.subset: line.samples for line in result.lines} == {"": 2, "short": 2}


def test_tables_do_not_depend_on_the_order_of_rows_or_files(tmp_path: Path) -> None:
    run = run_of("refcoco/val")
    write_rows(tmp_path / "a" / "x", run, [(10, 0), (5, 5), (3, 1)])
    header, *rows = (tmp_path / "a" / "x" / "rows-00000.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "b" / "x").mkdir(parents=True)
    (tmp_path / "b" / "x" / "rows-00000.jsonl").write_bytes(header + rows[2])
    (tmp_path / "b" / "x" / "rows-00001.jsonl").write_bytes(header + rows[1] + rows[0])
    for folder in "ab":
        write_tables(tmp_path / folder)
    assert (tmp_path / "a" / "tables.json").read_bytes() == (tmp_path / "b" / "tables.json").read_bytes()
    assert (tmp_path / "a" / "tables.md").read_bytes() == (tmp_path / "b" / "tables.md").read_bytes()


def test_files_of_two_models_in_one_folder_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path, run_of("refcoco/val"), [(10, 0)])
    with RowWriter(tmp_path / "rows-00001.jsonl", run_of("refcoco/val", model="other")):
        pass
    with pytest.raises(DatasetError, match="rows of another run"):
        write_tables(tmp_path)
    with pytest.raises(DatasetError, match="No rows under"):
        read_results(tmp_path / "nowhere")


# ---------------------------------------------------------------------- "not there"


def rows_of_scores(there: list[float], absent: list[float]) -> list[dict[str, Any]]:
    rows = [{"score": score, "gt_nt": False, "failed": False} for score in there]
    return rows + [{"score": score, "gt_nt": True, "failed": False} for score in absent]


def test_the_threshold_keeps_the_wished_share_and_rejects_the_most() -> None:
    there = [k / 100 for k in range(100)]
    found = fit_threshold(rows_of_scores(there, [0.02, 0.03, 0.5, 0.049]), t_acc=0.95)
    assert found.t_acc == 0.95
    assert found.n_acc == 0.75
    assert found.threshold == pytest.approx(0.05, abs=1e-6)
    higher = found.threshold + 0.001
    assert sum(score >= higher for score in there) < 95  # no higher one would do
    assert fit_threshold(rows_of_scores(there, [0.0]), t_acc=1.0).t_acc == 1


def test_a_threshold_needs_both_kinds_and_no_test_split() -> None:
    with pytest.raises(DatasetError, match="Found 1 queries about what is there and 0"):
        fit_threshold(rows_of_scores([0.5], []))
    with pytest.raises(SettingError, match="t_acc=0"):
        fit_threshold(rows_of_scores([0.5], [0.1]), t_acc=0)
    for name in ("grefcoco/testA", "scenes/test", "own:data#test"):
        with pytest.raises(SettingError, match="test split"):
            check_split(name)
    check_split("grefcoco/val")


def test_degenerate_validation_splits_have_a_threshold_or_a_reason() -> None:
    assert fit_threshold(rows_of_scores([0.4], [0.1]), t_acc=1e-12).t_acc == 1
    for t_acc in (0.5, 1.0):  # all alike: whatever keeps one keeps all
        found = fit_threshold(rows_of_scores([0.7] * 9, [0.7] * 3), t_acc=t_acc)
        assert (found.t_acc, found.n_acc) == (1, 0)
    nothing = fit_threshold(rows_of_scores([0.0] * 4, [0.0]), t_acc=0.95)
    assert (nothing.threshold, nothing.t_acc, nothing.n_acc) == (0, 1, 0)
    rows = [row | {"failed": True, "score": None, "error": "out of memory"} for row in rows_of_scores([0.7], [0.1])]
    with pytest.raises(DatasetError, match=r"failed on all 2 queries, e\.g\. out of memory"):
        fit_threshold(rows)
    one = [*rows_of_scores([0.9], [0.2]), rows[0]]  # a failed one is left out
    assert fit_threshold(one).there == 1


def test_the_threshold_travels_with_the_model(
    tiny_model_folder: Path, tiny_model: Any, tmp_path: Path, pictures: list[Any]
) -> None:
    import shutil

    import self1e

    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    words = ["a cup", "the sky", "dog"]
    before = tiny_model.segment(pictures[0], words)
    assert (before.areas > 0).sum() >= 2, "the tiny model marks something, or nothing can be rejected"
    limit = float(np.sort(before.scores)[-1]) - 1e-6  # between the best and the others
    save_threshold(folder, limit)
    calibrated = self1e.load(folder, device="cpu")
    assert calibrated.no_target_threshold == limit
    found = calibrated.segment(pictures[0], words)
    assert [bool(empty) for empty in found.is_empty] == [score < limit for score in before.scores]
    assert calibrated.segment(pictures[0], words, reject=False) == before
    calibrated.model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text("utf-8"))["no_target_threshold"] == limit
    save_threshold(folder, None)
    assert self1e.load(folder, device="cpu").segment(pictures[0], words) == before
