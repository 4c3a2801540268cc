"""Pickles of plain containers are read; whatever else they hold is not run."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from self1e.data.pickles import read_plain_pickle
from self1e.errors import DatasetError

RECORDS = [
    {"ref_id": 1, "ann_id": [11, -1], "split": "val", "sentences": [{"sent": "café ☕", "tokens": ("a",)}], "x": None}
]


class Deletes:
    """Unpickled, it would remove a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.unlink, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_records_of_every_protocol_are_read(tmp_path, protocol):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(RECORDS, protocol))
    assert read_plain_pickle(path, "records") == RECORDS


@pytest.mark.parametrize(("raw", "text"), [("café".encode(), "café"), (b"caf\xe9", "café"), (b"cafe", "cafe")])
def test_strings_of_python_2_are_utf8_or_latin1(tmp_path, raw, text):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(b"\x80\x02]U" + bytes([len(raw)]) + raw + b"a.")  # protocol 2: a list of one str
    assert read_plain_pickle(path, "records") == [text]


def test_a_pickle_that_would_run_something_runs_nothing(tmp_path):
    treasure = tmp_path / "treasure"
    treasure.write_text("here")
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([Deletes(treasure)]))
    with pytest.raises(
        DatasetError, match=r"refs\(unc\)\.p is no pickle of plain .*asks for pathlib.*Nothing in it was run"
    ):
        read_plain_pickle(path, "records")
    assert treasure.exists()


@pytest.mark.parametrize("thing", [OrderedDict(a=1), np.float64(1), Path("x"), print, range(3)], ids=repr)
def test_anything_but_plain_containers_is_refused(tmp_path, thing):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([thing]))
    with pytest.raises(DatasetError, match="asks for"):
        read_plain_pickle(path, "records")


@pytest.mark.parametrize("damaged", [b"", b"\x80\x02]q", b"<html>", pickle.dumps(RECORDS)[:-9]])
def test_a_damaged_file_is_named(tmp_path, damaged):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(damaged)
    with pytest.raises(DatasetError, match=r"refs\(unc\)\.p is no pickle"):
        read_plain_pickle(path, "records")


def test_a_missing_file_says_what_is_expected(tmp_path):
    with pytest.raises(DatasetError, match=r"No file .*refs\(unc\)\.p; expected the references of refcoco"):
        read_plain_pickle(tmp_path / "refs(unc).p", "the references of refcoco")
