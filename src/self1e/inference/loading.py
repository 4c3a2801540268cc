"""Which model, on which device, in which precision: settings checked at the door."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from self1e.errors import CheckpointError, Self1EError, SettingError
from self1e.model.checkpoints.strict import refuse_pickles
from self1e.processing.tokenizers import TOKENIZER_FILES

NANO = Path(__file__).parent.parent / "assets" / "nano"
"""The model inside the package."""

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def find_model(name: Any, *, needs_tokenizer: bool = True) -> tuple[str, str]:
    """Find a model by its name.

    Args:
        name: ``"nano"``, a folder, or a name on the hub.
        needs_tokenizer: Off, a folder may be without one, as released weights are.

    Returns:
        What to call it, and what ``from_pretrained`` takes.
    """
    if not isinstance(name, str | os.PathLike) or not os.fspath(name):
        raise SettingError(f"model={name!r}; expected 'nano', a folder, or a name on the hub such as 'owner/model'.")
    given = os.fspath(name)
    assert isinstance(given, str)
    if given == "nano":
        if not (NANO / "config.json").is_file():
            raise CheckpointError(f"nano is missing from this installation (looked in {NANO}); install self1e again.")
        return "nano", str(NANO)
    folder = Path(given).expanduser()
    if folder.is_dir():
        _check_folder(folder, needs_tokenizer)
        return given, str(folder)
    if folder.exists():
        refuse_pickles(folder)
        raise CheckpointError(f"{given}: is a file; expected the folder that holds config.json and the weights.")
    looks_like_a_path = given.startswith((".", "~", "/")) or "\\" in given or given.endswith("/")
    if looks_like_a_path or not _HUB_NAME.fullmatch(given):
        raise CheckpointError(f"{given}: no such folder, and not a name on the hub; 'nano' is inside the package.")
    return given, given


def _check_folder(folder: Path, needs_tokenizer: bool) -> None:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}.") from error
    if "config.json" not in names:
        if "model.onnx" in names:
            raise CheckpointError(
                f"{folder}: holds an exported graph and no weights for torch; open it with "
                "self1e.inference.onnx_runtime.OnnxSegmenter, or load the model that it was exported from."
            )
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise CheckpointError(f"{folder}: holds no config.json (found: {shown or 'nothing'}); expected a saved model.")
    if needs_tokenizer and not set(names) & set(TOKENIZER_FILES):
        raise CheckpointError(
            f"{folder}: holds no tokenizer ({', '.join(TOKENIZER_FILES)}). Released SELF1E weights come without: "
            "Self1EProcessor.from_base(FOLDER OF THE BASE MODEL).save_pretrained(THIS FOLDER) adds it, and "
            "`self1e convert SRC DST --tokenizer FOLDER_OF_THE_BASE_MODEL` makes a complete copy."
        )


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what libraries raise for missing, damaged and foreign files into a CheckpointError."""
    try:
        yield
    except Self1EError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        told = " ".join(str(error).split())
        if not isinstance(error, OSError):
            told = f"a file is damaged, or of another kind of model ({type(error).__name__}: {told})"
        raise CheckpointError(f"{name}: cannot be loaded: {told}") from error


def choose_device(device: Any = "auto") -> torch.device:
    """Choose a device: the one that is asked for, or CUDA, else MPS, else the CPU."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise SettingError(f"device={device!r} is unknown; choose auto, cpu, cuda, cuda:1, mps ...") from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            raise SettingError(
                f"device={device!r}: this machine has {count or 'no'} CUDA device{'s' if count > 1 else ''} that this "
                "build of torch can use; `self1e doctor` says more. Use device='auto' or 'cpu'."
            )
    elif chosen.type == "mps" and not torch.backends.mps.is_available():
        raise SettingError(f"device={device!r}: no Apple GPU here, or a torch without it. Use device='auto' or 'cpu'.")
    return chosen


def choose_dtype(dtype: Any, device: torch.device) -> torch.dtype:
    """Choose a dtype: the one that is asked for, or bfloat16 on CUDA devices that have it, else float32."""
    if isinstance(dtype, torch.dtype) and dtype in _DTYPES.values():
        return dtype
    if dtype == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    found = _DTYPES.get(dtype) if isinstance(dtype, str) else None
    if found is None:
        raise SettingError(f"dtype={dtype!r} is unknown; choose auto, float32, bfloat16, float16 or int8.")
    return found
