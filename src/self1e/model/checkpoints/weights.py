"""The tensors of a checkpoint of any origin, under our names, checked before the first is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from self1e.model.checkpoints.adapters import Pair, find_attached, merge, read_scale
from self1e.model.checkpoints.files import WeightFiles
from self1e.model.checkpoints.names import EMBEDDINGS, OUTPUT, our_names, split
from self1e.model.checkpoints.strict import HEAD, raise_misfits

Shape = tuple[int, ...]


class _Place(NamedTuple):
    """Where one of our tensors comes from."""

    source: str
    """Name in the checkpoint's layout, without PEFT's additions."""
    part: int
    parts: int
    """Which of how many blocks of rows."""


class Weights:
    """A folder's tensors under our names, whatever their layout, with LoRA attached or not.

    Args:
        folder: Holds the weights.
        config: A `Self1EConfig` of the same folder.
        lora_alpha: alpha of attached LoRA, if the folder does not say and it is not 2 r.

    Raises:
        CheckpointError: The files cannot be read.
    """

    def __init__(self, folder: Path, config: Any, *, lora_alpha: float | None = None) -> None:
        self.config = config
        self.files = WeightFiles(folder)
        self.attached = find_attached(self.files.tensors)
        self._places: dict[str, _Place] = {}
        self._sources: dict[str, tuple[str, ...]] = {}
        """The tensors of the checkpoint's layout that count, and what each becomes."""
        self._twice: list[str] = []
        for plain, stored in self.attached.plain.items():
            names = our_names(plain)
            if any(name in self._places for name in names):
                self._twice.append(stored)
                continue
            self._sources[plain] = names
            self._places |= {name: _Place(plain, part, len(names)) for part, name in enumerate(names)}
        ranks = {self.files.tensors[pair.a].shape[0] for pair in self.attached.pairs.values()}
        self.scales = {rank: read_scale(folder, rank, lora_alpha) for rank in sorted(ranks - {0})}

    # ----------------------------------------------------------------- what is there

    @property
    def has_mask_head(self) -> bool:
        """Whether any tensor belongs to a mask head: a base model has none."""
        return any(name.startswith(HEAD) for name in self._places)

    def holds(self, name: str) -> bool:
        """Whether the checkpoint has this one of our tensors."""
        return name in self._places

    def dtype(self, name: str) -> torch.dtype:
        """Stored type of one of our tensors."""
        return self._stored(self._places[name].source).dtype

    def check(self, expected: Mapping[str, Shape], *, new_mask_head: bool = False, check_shapes: bool = True) -> None:
        """Raise one error that lists everything which does not fit; from headers alone.

        Args:
            expected: The model's tensors (tied ones once) and their shapes.
            new_mask_head: The mask head may be missing, as a whole.
            check_shapes: Off, shapes are left to the caller.

        Raises:
            CheckpointError: Tensors are missing, unexpected or misshapen.
        """
        missing = {name for name in expected if name not in self._places}
        if new_mask_head and not self.has_mask_head:
            missing = {name for name in missing if not name.startswith(HEAD)}
        unexpected = [*self.attached.unexpected, *self._twice]
        for source, names in self._sources.items():
            if not all(name in expected for name in names) and not self._is_tied_copy(names, expected):
                unexpected.append(self.attached.plain[source])
        modules = {source.removesuffix(".weight") for source in self._sources if source.endswith(".weight")}
        for module, pair in self.attached.pairs.items():
            if module not in modules:
                unexpected += pair
        misshapen = self._misshapen(expected) if check_shapes else []
        raise_misfits(
            self.files.folder,
            missing=missing | set(self.attached.missing),
            unexpected=unexpected,
            misshapen=misshapen,
        )

    def _misshapen(self, expected: Mapping[str, Shape]) -> list[str]:
        found: list[str] = []
        for source, names in self._sources.items():
            if not all(name in expected for name in names):
                continue
            first, *others = names
            wanted = expected[first]
            if others:  # fused: their rows together
                wanted = (sum(expected[name][0] for name in names), *wanted[1:])
            shown = source if others else first
            if self._stored(source).shape != wanted:
                found.append(f"{shown} {self._stored(source).shape} instead of {wanted}")
                continue
            pair = self._pair(source)
            if pair is not None:
                a, b = (self.files.tensors[name].shape for name in pair)
                rank = next(iter(a), 0)
                if len(wanted) != 2 or rank == 0 or a != (rank, wanted[1]):
                    found.append(f"{pair.a} {a} instead of (r, {wanted[-1]})")
                elif b != (wanted[0], rank):
                    found.append(f"{pair.b} {b} instead of {(wanted[0], rank)}")
        return found

    def _is_tied_copy(self, names: tuple[str, ...], expected: Mapping[str, Shape]) -> bool:
        """Whether it is the output matrix of a tied model, written once more, and the same."""
        if names != (OUTPUT,) or not self.config.tie_word_embeddings or EMBEDDINGS not in self._places:
            return False
        return OUTPUT not in expected and torch.equal(self.read(OUTPUT), self.read(EMBEDDINGS))

    # ----------------------------------------------------------------- reading

    def read(self, name: str, *, merged: bool = True, wide: bool = False) -> Tensor:
        """Read one of our tensors; nothing else comes into memory.

        Args:
            name: Ours.
            merged: Add the module's LoRA, if it has one.
            wide: Leave a merged tensor in float32; otherwise it is rounded to its stored type.

        Returns:
            On the CPU; a view of the file where that is possible.
        """
        place = self._places[name]
        tensor = self._part(place, self.files.read(self.attached.plain[place.source]))
        adapter = self.adapter(name) if merged else None
        if adapter is None:
            return tensor
        a, b = adapter
        found = merge(tensor, a, b, self.scales[len(a)])
        return found if wide else found.to(tensor.dtype)

    def adapter(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Read the LoRA of one of our weights: A ``(r, in)`` and B ``(out, r)``; None if it has none.

        A module that is fused in the checkpoint has one A for q, k and v, and their rows of B: exact, because
        ``(B A)`` is split by rows as ``W`` is.
        """
        pair = self.pair(name)
        if pair is None:
            return None
        return self.files.read(pair.a), self._part(self._places[name], self.files.read(pair.b))

    def pair(self, name: str) -> Pair | None:
        """Stored names of the LoRA of one of our weights, or None."""
        return self._pair(self._places[name].source)

    def _part(self, place: _Place, tensor: Tensor) -> Tensor:
        return split(place.source, tensor, self.config)[place.part] if place.parts > 1 else tensor

    def _pair(self, source: str) -> Pair | None:
        return self.attached.pairs.get(source.removesuffix(".weight")) if source.endswith(".weight") else None

    def _stored(self, source: str) -> Any:
        return self.files.tensors[self.attached.plain[source]]
