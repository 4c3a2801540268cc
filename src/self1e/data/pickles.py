"""Reading pickles of plain containers, and nothing else: a pickle from the network may otherwise run any program."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

from self1e.errors import DatasetError


class _PlainUnpickler(pickle.Unpickler):
    """Lists, tuples, dicts, sets, strings, bytes, numbers, None: they need no name of any module."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def read_plain_pickle(path: Path, expected: str) -> Any:
    """Read a pickle that holds plain containers, numbers and text.

    Strings written by Python 2 are taken as UTF-8, else as Latin-1.

    Args:
        path: Of the file.
        expected: What it should hold, in words; an error says it.

    Raises:
        DatasetError: It is missing, damaged, or holds anything else, which is not run.
    """
    try:
        with path.open("rb") as file:
            return _load(file)
    except FileNotFoundError as error:
        raise DatasetError(f"No file {path}; expected {expected}.") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DatasetError(
            f"{path} is no pickle of plain lists, dicts, text and numbers ({error}); expected {expected}. "
            "Nothing in it was run. Download it anew from a source that you trust."
        ) from error


def _load(file: BinaryIO) -> Any:
    try:
        return _PlainUnpickler(file, encoding="utf-8").load()
    except UnicodeDecodeError:
        file.seek(0)
        return _PlainUnpickler(file, encoding="latin-1").load()
