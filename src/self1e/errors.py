"""Everything self1e raises on purpose, as one small tree.

Each message says what was found, what was expected and what to do. Errors that a caller may
reasonably catch as a standard type inherit from that type too.
"""

from __future__ import annotations

from collections.abc import Iterable


class Self1EError(Exception):
    """Base of every error that self1e raises on purpose."""


class SettingError(Self1EError, ValueError):
    """A setting or an argument that cannot work."""


class PictureError(Self1EError, ValueError):
    """A picture that cannot be read, or is larger than the stated limit."""


class PromptError(Self1EError, ValueError):
    """Words that cannot become a query, or a sequence that does not fit its picture."""


class CheckpointError(Self1EError, ValueError):
    """Weights or configuration that do not fit the model."""


class DatasetError(Self1EError, ValueError):
    """Training or evaluation data that is missing or malformed."""


class TrainingError(Self1EError, ArithmeticError):
    """Training that cannot go on: a loss or a gradient that is not a number."""


class ShortageError(Self1EError, MemoryError):
    """Not even the smallest piece of the work fits into the memory; the message says how much it takes."""


class OutputError(Self1EError, OSError):
    """Results that cannot be written: a full disk, a folder that is not writable or in use by another run."""


class MissingDependencyError(Self1EError, ImportError):
    """An optional package is not installed; the message holds its ``pip install``."""


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Suggest the closest known word for an error message: `` Did you mean 'x'?``, or nothing if none is close."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {close[0]!r}?" if close else ""
