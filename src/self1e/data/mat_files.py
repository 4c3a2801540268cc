"""Arrays in MATLAB's files, as Pascal Context is published; read by SciPy (extra ``mat``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from self1e.errors import DatasetError, MissingDependencyError


def read_mat(path: Path, name: str) -> np.ndarray:
    """Read one numeric array by its name.

    Args:
        path: Of the file.
        name: Of the array.

    Returns:
        The array with its own dtype and shape.

    Raises:
        DatasetError: The file is missing, of another kind or damaged, or has no such array of numbers.
        MissingDependencyError: SciPy is not installed.
    """
    try:
        from scipy.io import loadmat, whosmat
    except ImportError as error:
        raise MissingDependencyError(f"{path}: MATLAB files need SciPy: pip install 'self1e[mat]'.") from error
    try:
        with path.open("rb") as file:
            array = loadmat(file, variable_names=[name]).get(name)
            file.seek(0)
            found = [known for known, _, _ in whosmat(file)] if array is None else []
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing; expected a MATLAB file with {name}.") from error
    # Whatever bytes it stumbles over, SciPy raises errors of many kinds, one of them its own.
    except Exception as error:
        raise DatasetError(
            f"{path} cannot be read as a MATLAB file below 7.3 ({type(error).__name__}: {error}); download it anew."
        ) from error
    if array is None:
        raise DatasetError(f"{path} holds {', '.join(found) or 'nothing'}, expected an array of numbers {name!r}.")
    if array.dtype.kind not in "uif":
        raise DatasetError(f"{path}: {name!r} holds {array.dtype}, expected numbers.")
    return array
