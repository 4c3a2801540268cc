"""Conversion: a checkpoint of any origin becomes a complete folder, in our names or the published ones.

Everything is decided from headers; then the tensors pass one by one from the files of the source to those of the
target, so a model larger than memory can be converted. The target appears whole or not at all.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import GenerationConfig

from self1e.configuration import Self1EConfig
from self1e.errors import CheckpointError, SettingError, did_you_mean
from self1e.files import check_is_new, new_folder
from self1e.inference.loading import find_model, reading
from self1e.model.checkpoints import Weights, our_names, published_config, reference_state_dict
from self1e.model.checkpoints.configs import is_base
from self1e.model.checkpoints.files import Entry, write_weights
from self1e.model.checkpoints.loading import download, expected_shapes
from self1e.model.checkpoints.names import EMBEDDINGS, OUTPUT
from self1e.model.checkpoints.vocabulary import resized_rows
from self1e.processing.foreign import find_foreign
from self1e.processing.processor import Self1EProcessor
from self1e.processing.tokenizers import has_tokenizer

logger = logging.getLogger(__name__)

Layout = Literal["self1e", "published"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SMALLEST_SHARD = 10_000
_WRAPPED = ("language_model.", "vision_model.")


@dataclass(frozen=True)
class Converted:
    """What a conversion did."""

    folder: Path
    layout: Layout
    tensors: int
    nbytes: int
    """Of all tensors."""
    num_files: int
    """Weight files."""
    num_adapters: int
    """Modules with a LoRA in the source."""
    lora_alpha: dict[int, float]
    """alpha by rank, as it was merged or kept."""
    is_merged: bool
    is_base: bool
    """The mask head is new: masks mean nothing before training."""


@dataclass(frozen=True)
class _Tensor:
    """One of our tensors, as it will be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def convert(
    source: Any,
    target: str | Path,
    *,
    layout: Layout = "self1e",
    merge: bool = False,
    lora_alpha: float | None = None,
    tokenizer: str | Path | None = None,
    max_shard_size: int | str = "5GB",
) -> Converted:
    """Convert a checkpoint of any origin into a complete folder: weights, configuration, tokenizer, processor.

    No number changes, but where adapters are merged (in float32, then rounded to the stored type) or a base model
    gets its row for ``[SEG]`` and its mask head. Adapters that are not merged stay: where a fused module is split or
    joined, A is shared and the rows of B follow those of the weight, which is exact.

    Args:
        source: A folder, a name on the hub, or ``"nano"``.
        target: The folder to make; it must not exist, or be empty.
        layout: ``"self1e"`` (our names) or ``"published"`` (the authors').
        merge: Merge attached LoRA.
        lora_alpha: alpha of attached LoRA, if it is not 2 r and the folder does not say.
        tokenizer: Folder or hub name of the tokenizer, where the source has none: that of its base model.
        max_shard_size: Most bytes per weight file, or a text such as ``"5GB"`` (1000s, as on the hub).

    Raises:
        CheckpointError: The source cannot be read, does not fit together, or has no form in that layout.
        SettingError: A setting cannot work, or the target exists.
    """
    target = Path(target).expanduser()
    if layout not in get_args(Layout):
        known = get_args(Layout)
        raise SettingError(
            f"layout={layout!r} is unknown; choose one of {', '.join(known)}.{did_you_mean(str(layout), known)}"
        )
    shard_bytes = _bytes(max_shard_size)
    check_is_new(target)
    shown, path = find_model(source, needs_tokenizer=False)
    with reading(shown):
        origin = Path(path) if Path(path).is_dir() else Path(download(path))
        config: Any = Self1EConfig.from_pretrained(origin)
        weights = Weights(origin, config, lora_alpha=lora_alpha)
        starts_head = is_base(origin) and not weights.has_mask_head
        weights.check(expected_shapes(config), new_mask_head=starts_head)
        processor = _find_processor(origin, tokenizer)
    final = _final_config(config, weights, processor, grows=is_base(origin))
    keep = bool(weights.attached.pairs) and not merge
    ours = _our_tensors(weights, final, merged=not keep)
    entries = _published(weights, ours, final, keep=keep) if layout == "published" else _own(weights, ours, keep)
    with new_folder(target) as folder:
        files = write_weights(folder, entries, shard_bytes)
        _write_config(folder, final, layout, weights if keep else None)
        _write_rest(folder, origin, final, processor)
    return Converted(
        folder=target,
        layout=layout,
        tensors=len(entries),
        nbytes=sum(entry.nbytes for entry in entries),
        num_files=len(files),
        num_adapters=len(weights.attached.pairs),
        lora_alpha={rank: scale * rank for rank, scale in weights.scales.items()},
        is_merged=bool(weights.attached.pairs) and merge,
        is_base=starts_head,
    )


def _bytes(size: int | str) -> int:
    match = _SIZE.fullmatch(str(size).strip())
    found = int(float(match[1]) * 1000 ** _POWERS[match[2].upper()]) if match else 0
    if found < _SMALLEST_SHARD:
        raise SettingError(f"max_shard_size={size!r}; expected a size of at least 10KB, such as '5GB' or '500MB'.")
    return found


# --------------------------------------------------------------------------- what the model will be


def _find_processor(origin: Path, tokenizer: str | Path | None) -> Self1EProcessor:
    if tokenizer is not None:
        return Self1EProcessor.for_weights(origin, tokenizer)
    if not has_tokenizer(origin):
        raise CheckpointError(
            f"{origin}: holds no tokenizer; released SELF1E weights come without. Name the base model's: "
            "--tokenizer FOLDER_OR_HUB_NAME (for example OpenGVLab/InternVL3-2B)."
        )
    return Self1EProcessor.from_pretrained(origin)


def _final_config(config: Any, weights: Weights, processor: Self1EProcessor, *, grows: bool) -> Any:
    """The configuration of the target: with the tokenizer's ids, and a base with as many rows as tokens."""
    final = copy.deepcopy(config)
    found = (processor.image_token_id, processor.seg_token_id)
    if find_foreign(weights.files.folder) is None and (config.image_token_id, config.seg_token_id) != found:
        raise CheckpointError(
            f"{weights.files.folder}: config.json says <IMG_CONTEXT> {config.image_token_id} and [SEG] "
            f"{config.seg_token_id}, the tokenizer {found[0]} and {found[1]}; take the tokenizer of these weights."
        )
    final.image_token_id, final.seg_token_id = found
    final.dtype = weights.dtype(EMBEDDINGS)
    if grows:
        final.text_config.vocab_size = len(processor.tokenizer)
    if final.seg_token_id >= final.text_config.vocab_size:
        raise CheckpointError(
            f"{weights.files.folder}: [SEG] has id {final.seg_token_id}, but the weights have only "
            f"{final.text_config.vocab_size} rows of vocabulary; take the tokenizer of these weights."
        )
    return final


def _our_tensors(weights: Weights, final: Any, *, merged: bool) -> dict[str, _Tensor]:
    """Every tensor of the target in our names, from the source or new."""
    found: dict[str, _Tensor] = {}
    for name, shape in expected_shapes(final).items():
        if not weights.holds(name):
            dtype = weights.dtype(EMBEDDINGS)
            found[name] = _Tensor(shape, dtype, partial(_new_tensor, name, shape, dtype, _std(final)))
        elif name in (EMBEDDINGS, OUTPUT):
            found[name] = _Tensor(shape, weights.dtype(name), partial(_read_rows, weights, name, shape[0]))
        else:
            found[name] = _Tensor(shape, weights.dtype(name), partial(weights.read, name, merged=merged))
    return found


def _read_rows(weights: Weights, name: str, rows: int) -> Tensor:
    return resized_rows(weights.read(name), rows)


def _std(config: Any) -> float:
    """Spread of new weights, as transformers takes it."""
    return float(getattr(config, "initializer_range", None) or getattr(config.text_config, "initializer_range", 0.02))


def _new_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype, std: float) -> Tensor:
    """A tensor of a new mask head: normal weights, zero biases (METHOD 6.3); the same on every run."""
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=dtype)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.empty(shape, dtype=torch.float32).normal_(0, std, generator=generator).to(dtype)


# --------------------------------------------------------------------------- layouts


def _own(weights: Weights, ours: dict[str, _Tensor], keep: bool) -> list[Entry]:
    """Our names; adapters as PEFT attaches them to a model."""
    entries: list[Entry] = []
    for name, tensor in ours.items():
        module, _, leaf = name.rpartition(".")
        weight = f"{module}.weight"
        has_adapter = keep and weights.holds(weight) and weights.pair(weight) is not None
        entries.append(
            Entry(f"{module}.base_layer.{leaf}" if has_adapter else name, tensor.shape, tensor.dtype, tensor.read)
        )
        if has_adapter and name == weight:
            entries += _adapter_entries(weights, module, [name], tensor.shape, lambda parts: parts[0])
    return entries


def _published(weights: Weights, ours: dict[str, _Tensor], final: Any, *, keep: bool) -> list[Entry]:
    """The authors' names (METHOD 1.1), with adapters as in their training checkpoints (METHOD 1.4)."""
    published_config(final)  # refuses switches without a published form, before anything is written
    carrier: Any = SimpleNamespace(config=final)
    shapes = reference_state_dict(carrier, {name: torch.empty(t.shape, device="meta") for name, t in ours.items()})

    def fuse(names: tuple[str, ...], tensors: list[Tensor]) -> Tensor:
        (found,) = reference_state_dict(carrier, dict(zip(names, tensors, strict=True))).values()
        return found

    def read(names: tuple[str, ...]) -> Tensor:
        return fuse(names, [ours[name].read() for name in names])

    adapted = [name for name in ours if keep and name.endswith(".weight") and _pair(weights, name)]
    wrapped = {prefix for prefix in _WRAPPED if any(_prefix_of(name) == prefix for name in adapted)}
    entries: list[Entry] = []
    for name, shape in shapes.items():
        names = our_names(name)
        prefix = next((prefix for prefix in wrapped if name.startswith(prefix)), "")
        inner = f"{prefix}base_model.model.{name.removeprefix(prefix)}" if prefix else name
        module, _, leaf = inner.rpartition(".")
        pairs = [_pair(weights, f"{own.rpartition('.')[0]}.weight") if keep else None for own in names]
        if any(pairs) and not all(pairs):
            raise CheckpointError(
                f"{name}: only some of its parts have a LoRA, and the published layout has one for all; use --merge."
            )
        has_adapter = all(pairs)
        target = f"{module}.base_layer.{leaf}" if has_adapter else inner
        entries.append(Entry(target, tuple(shape.shape), ours[names[0]].dtype, partial(read, names)))
        if has_adapter and leaf == "weight":
            entries += _adapter_entries(weights, module, list(names), tuple(shape.shape), partial(fuse, names))
    return entries


def _prefix_of(name: str) -> str:
    return "vision_model." if name.startswith("model.vision_tower.") else "language_model."


def _pair(weights: Weights, name: str) -> Any:
    return weights.pair(name) if weights.holds(name) else None


def _adapter_entries(
    weights: Weights, module: str, names: list[str], shape: tuple[int, ...], fuse: Callable[[list[Tensor]], Tensor]
) -> list[Entry]:
    """A and B of a module; of a joined one A must be the same for all parts, and B is joined like the weight.

    Args:
        weights: The source.
        module: Its name in the target.
        names: Our weights that it holds.
        shape: ``(out, in)`` of the target's weight.
        fuse: Joins the parts' rows.
    """
    pairs = [weights.pair(name) for name in names]
    first = pairs[0]
    assert first is not None
    stored = weights.files.tensors
    a = [pair.a for pair in pairs if pair is not None]
    if len(set(a)) > 1 and not all(torch.equal(weights.files.read(a[0]), weights.files.read(other)) for other in a):
        raise CheckpointError(
            f"{module}: its parts have LoRAs of their own, and the published layout has one for all; use --merge."
        )

    def read_b() -> Tensor:
        found = [weights.adapter(name) for name in names]
        return fuse([both[1] for both in found if both is not None])

    rank = stored[first.a].shape[0]
    return [
        Entry(
            f"{module}.lora_A.default.weight",
            stored[first.a].shape,
            stored[first.a].dtype,
            partial(weights.files.read, first.a),
        ),
        Entry(f"{module}.lora_B.default.weight", (shape[0], rank), stored[first.b].dtype, read_b),
    ]


# --------------------------------------------------------------------------- everything but weights


def _write_config(folder: Path, final: Any, layout: Layout, adapted: Weights | None) -> None:
    """Write ``config.json``; with alpha, where adapters stay and one number says it."""
    final.architectures = ["Self1EForConditionalGeneration"]
    final.save_pretrained(folder)
    path = folder / "config.json"
    written = published_config(final) if layout == "published" else json.loads(path.read_text(encoding="utf-8"))
    alphas = {scale * rank for rank, scale in adapted.scales.items()} if adapted else set()
    if len(alphas) == 1:
        written["lora_alpha"] = alphas.pop()
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_rest(folder: Path, origin: Path, final: Any, processor: Self1EProcessor) -> None:
    generation = origin / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, folder / generation.name)
    else:
        GenerationConfig.from_model_config(final).save_pretrained(folder)
    processor.save_pretrained(folder)
