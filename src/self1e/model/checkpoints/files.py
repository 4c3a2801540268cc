"""Weight files: safetensors in one file or in shards, read and written tensor by tensor.

    <folder>/model.safetensors
    <folder>/model-00001-of-00002.safetensors ... and model.safetensors.index.json

Reading opens a file for one tensor and closes it again, so that pages of a large file do not pile up in memory.
Writing streams: the header needs shapes only, so a shard never stands in memory as a whole. The byte layout is that
of the safetensors format (8 bytes of length, a JSON header, the tensors' bytes without gaps).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from self1e.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class Stored(NamedTuple):
    """Where a tensor lies, and what the file's header says of it."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


def find_weights(folder: Path) -> list[Path]:
    """Find a folder's weight files, in order; none if it holds no weights.

    Raises:
        CheckpointError: The index cannot be read, or names files that are missing or no safetensors.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: cannot be read as an index ({type(error).__name__}: {error}); expected JSON with a weight_map. "
            "Copy it again from where the weights come from."
        ) from error
    # An index is input like any other: it may not lead out of its folder, or to a pickle.
    foreign = [name for name in names if not str(name).endswith(".safetensors") or Path(name).name != name]
    if foreign:
        raise CheckpointError(
            f"{index}: names {', '.join(map(str, foreign))}; expected *.safetensors files beside it. Take safetensors."
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: shards are missing: {', '.join(missing)} (of {len(names)} that {INDEX} names). "
            "Copy or download them into the folder."
        )
    return [folder / name for name in names]


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read all of a folder's tensors at once, as they are stored.

    Raises:
        CheckpointError: There are no weights, or a file is damaged.
    """
    files = WeightFiles(folder)
    return {name: files.read(name) for name in files.tensors}


class WeightFiles:
    """The tensors of a folder: headers are read at once, data one tensor at a time.

    Args:
        folder: Holds ``model.safetensors``, or shards with their index.

    Raises:
        CheckpointError: There are no weights, a file is damaged, or two shards hold the same tensor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, Stored] = {}
        files = find_weights(folder)
        if not files:
            raise CheckpointError(f"{folder}: holds neither {SINGLE} nor {INDEX}; expected one of them.")
        twice: list[str] = []
        for file in files:
            for name, stored in _read_header(file).items():
                if name in self.tensors:
                    twice.append(f"{name} ({self.tensors[name].file.name}, {file.name})")
                self.tensors[name] = stored
        if twice:
            raise CheckpointError(f"{folder}: tensors lie in two shards: {', '.join(twice)}; remove the wrong shard.")

    def read(self, name: str) -> Tensor:
        """Read one tensor, on the CPU and as it is stored."""
        file = self.tensors[name].file
        try:
            with safe_open(file, framework="pt") as opened:
                return opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: {name} cannot be read ({error}); copy the file again.") from error


def _read_header(file: Path) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (no mapping)
                part = opened.get_slice(name)
                code = part.get_dtype()
                if code not in _DTYPES:
                    raise CheckpointError(f"{file}: {name} is {code}; expected one of {', '.join(_DTYPES)}.")
                found[name] = Stored(file, tuple(part.get_shape()), _DTYPES[code])
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: is damaged or not a safetensors file ({error}); copy it again.") from error
    return found


class Entry(NamedTuple):
    """A tensor to write: its place in a header, and how to get its data when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_weights(folder: Path, entries: Sequence[Entry], max_shard_bytes: int) -> list[Path]:
    """Write tensors into one file, or into shards with their index; one tensor is in memory at a time.

    Args:
        folder: Exists.
        entries: In the order in which they are read and laid into shards.
        max_shard_bytes: Most bytes of tensors per file; a larger tensor gets a file of its own.

    Returns:
        The weight files.
    """
    shards: list[list[Entry]] = []
    room = 0
    for entry in entries:
        if not shards or entry.nbytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(entry)
        room -= entry.nbytes
    if len(shards) == 1:
        _write_file(folder / SINGLE, shards[0])
        return [folder / SINGLE]
    files = [folder / f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        _write_file(file, shard)
    index = {
        "metadata": {"total_size": sum(entry.nbytes for entry in entries)},
        "weight_map": {e.name: file.name for file, shard in zip(files, shards, strict=True) for e in shard},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return files


def _write_file(path: Path, entries: Sequence[Entry]) -> None:
    """Write one safetensors file; wide types first, as the format's own writer does, so that all are aligned."""
    ordered = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in ordered:
        end = start + entry.nbytes
        header[entry.name] = {"dtype": _CODES[entry.dtype], "shape": entry.shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in ordered:
            tensor = entry.read()
            assert (tuple(tensor.shape), tensor.dtype) == (entry.shape, entry.dtype), entry.name
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            del tensor
        file.flush()
        os.fsync(file.fileno())
