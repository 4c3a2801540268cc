"""Rows on disk: a killed run goes on, another run's rows are refused, and the table follows from the file."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from self1e.errors import DatasetError, SettingError
from self1e.evaluation.dump import RowWriter, read_rows, table_of
from self1e.evaluation.metrics import MaskIoU
from self1e.evaluation.protocols import EXPECTED_SAMPLES, PROTOCOLS, Run, printed, protocol, table

RUN = Run(
    model="nano@1",
    protocol="res.sentence",
    dataset="refcoco/val",
    annotations="sha256:0",
    prompt="self1e.phrase",
    answer="generated",
)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    metric = MaskIoU()
    for k in range(8):
        metric.update(f"s{k}", rng.random((4, 4)) < 0.5, rng.random((4, 4)) < 0.5, text="das [SEG] \ud83d übrigens\n")
    return metric.rows


@pytest.fixture
def path(tmp_path, rows):
    with RowWriter(tmp_path / "deep" / "rows.jsonl", RUN) as writer:
        for row in rows[:5]:
            writer.write(row)
    return writer.path


def test_what_was_written_is_read(path, rows):
    assert read_rows(path, RUN) == (RUN, rows[:5])
    assert table_of([path]) == (RUN, MaskIoU().add_rows(rows[:5]).result())


def test_every_row_is_on_disk_before_the_next(tmp_path, rows):
    writer = RowWriter(tmp_path / "rows.jsonl", RUN)
    for k, row in enumerate(rows):
        writer.write(row)
        assert len(read_rows(writer.path)[1]) == k + 1
    writer.close()


def test_a_run_goes_on_after_any_torn_end(path, rows, caplog):
    whole = path.read_bytes()
    ends = [len(whole) - cut for cut in (1, 2, 40)]
    for end in ends:
        path.write_bytes(whole[:end])
        with caplog.at_level(logging.WARNING):
            assert read_rows(path)[1] == rows[:4]
        assert "half a row" in caplog.text
        with RowWriter(path, RUN) as writer:
            assert writer.done == {"s0", "s1", "s2", "s3"}
            writer.write(rows[4])
        assert path.read_bytes() == whole


def test_a_torn_first_line_begins_again(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"self1e_rows": 1, "mod')
    with pytest.raises(DatasetError, match="no complete line"):
        read_rows(path)
    with RowWriter(path, RUN) as writer:
        writer.write(rows[0])
    assert read_rows(path, RUN) == (RUN, rows[:1])


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", "nano@2"), ("protocol", "reason.first"), ("answer", "teacher-forced"), ("threshold", 0.5)],
)
def test_rows_of_another_run_are_refused(path, name, value):
    other = replace(RUN, **{name: value})
    before = path.read_bytes()
    with pytest.raises(
        DatasetError, match=f"another run .{name} {getattr(RUN, name)!r}, not {value!r}.*file of its own"
    ):
        RowWriter(path, other)
    with pytest.raises(DatasetError, match="another run"):
        read_rows(path, other)
    assert path.read_bytes() == before


def test_damage_before_the_end_is_an_error(path):
    lines = path.read_bytes().split(b"\n")
    for damaged, message in (
        ([*lines[:2], lines[2][:9], *lines[3:]], "line 3 is no JSON"),
        ([*lines[:3], lines[2], *lines[3:]], "line 4: id 's1' is missing or stands there twice"),
        ([*lines[:2], b"[1]", *lines[3:]], "expected an object"),
        (lines[1:], "does not begin with the description of a run"),
    ):
        path.write_bytes(b"\n".join(damaged))
        with pytest.raises(DatasetError, match=message):
            read_rows(path)
    with pytest.raises(DatasetError, match="No file"):
        read_rows(path.with_name("other"))


def test_a_writer_takes_no_row_twice_and_nothing_that_is_no_json(path, rows):
    with RowWriter(path, RUN) as writer:
        with pytest.raises(DatasetError, match="'s0' is in the file already"):
            writer.write(rows[0])
        with pytest.raises(DatasetError, match="'s5' cannot be written"):
            writer.write(rows[5] | {"score": float("nan")})
        writer.write(rows[5])
    assert read_rows(path)[1] == rows[:6]


def test_processes_write_a_file_each(path, rows):
    with RowWriter(path.with_name("rank1.jsonl"), RUN) as writer:
        for row in rows[5:]:
            writer.write(row)
    assert table_of([writer.path, path]) == (RUN, MaskIoU().add_rows(rows).result())
    with pytest.raises(DatasetError, match="counted before"):
        table_of([path, path])
    RowWriter(path.with_name("rank2.jsonl"), replace(RUN, model="x")).close()
    with pytest.raises(DatasetError, match="another run"):
        table_of([path, path.with_name("rank2.jsonl")])
    with pytest.raises(DatasetError, match="No file of rows"):
        table_of([])


def test_the_table_is_a_function_of_the_rows(rows):
    text = [json.loads(json.dumps(row)) for row in rows]
    assert table(RUN, reversed(text)) == MaskIoU().add_rows(rows).result()


def test_every_protocol_makes_an_empty_metric_with_its_headline():
    for name, entry in PROTOCOLS.items():
        metric = entry.metric()
        assert len(metric) == 0
        found = metric.result()
        assert set(entry.headline) <= set(found), name
    with pytest.raises(SettingError, match=r"Unknown protocol 'res.sentences'. Did you mean 'res.sentence'"):
        protocol("res.sentences")
    assert sum(EXPECTED_SAMPLES[f"refcoco/{split}"] for split in ("val", "testA", "testB")) == 21_586


def test_a_run_says_everything():
    with pytest.raises(SettingError, match="must say its annotations"):
        replace(RUN, annotations="")
    with pytest.raises(SettingError, match="known are 'generated'"):
        replace(RUN, answer="forced")  # type: ignore[arg-type]


def test_figures_are_printed_in_percent_but_for_points():
    assert printed("ciou", 0.41256) == "41.26"
    assert printed("perception", 1531.313) == "1531.31"
    assert printed("t_acc", None) == "-"
