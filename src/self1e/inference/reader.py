"""Reading rows with the language model, each row in as few token steps as its mask needs.

Three facts about dual perception (`self1e.model.attention`) decide what is computed; letters are those of
`self1e.inference.folded`:

* Tokens before the picture see neither it nor the words: their keys and values are computed once and kept (d).
* Image tokens see the prefix, each other and [SEG], but no word. With [SEG] put right behind them, what they see is
  one run of keys: no mask is needed, and kernels without masks are the fast ones. Order is free, because positions
  travel with the rotary embeddings::

        keys    prefix  image  [SEG]  words
        image      1      1      1      .      dense
        [SEG]      1      1      1      1      a few rows under a mask,
        words      1      1      .    causal   which hides padding too

* Only image tokens and one more position are read in the end: in the last layer nothing else asks (f). [SEG] and the
  words still answer there, so even a [SEG] that is not read itself stays in the sequence.

With ``attention="image"`` or ``"causal"`` image tokens see no [SEG]: then they are read once per picture, and a row
costs its words only, without [SEG] unless it is the one to be read.

Layers are taken apart, but every weight is used through the library's own module: one loop serves every family.

Shapes: B rows; P prefix, M image and n word tokens; KV key heads; D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import LlamaModel, rotate_half
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

KeysValues = tuple[Tensor, Tensor]
"""Keys (rotated) and values of one layer, ``(B, KV, tokens, head size)`` each."""
Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, ``(B, tokens, head size)`` each."""

_LANGUAGE_MODELS = (Qwen2Model, Qwen3Model, LlamaModel)  # InternLM2 is read as a Llama
_STATIC_ROPE = ("default", "linear", "llama3")  # a token's rotation depends on its position only
_PREFIXES_KEPT = 4  # one per system message in use


def unreadable(language_model: Any) -> str | None:
    """Say why a language model cannot be taken apart here, or None."""
    if type(language_model) not in _LANGUAGE_MODELS:
        return f"a language model of type {type(language_model).__name__}"
    config = language_model.config
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "a language model with sliding windows"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return None if rope in _STATIC_ROPE else f"rotary embeddings of type {rope!r}, which depend on the length"


@dataclass(frozen=True)
class _Ask:
    """Rows that ask, and the first ``keys`` of all keys, which answer: a block of the attention matrix."""

    rows: slice
    keys: int
    allowed: Tensor | None = None
    """Bool ``(B or 1, 1, rows, keys)``; None is everything."""
    is_causal: bool = False
    """Row i sees the first i + 1 keys."""


class Reader:
    """A language model that reads rows of prefix, picture and words.

    Args:
        language_model: Qwen2, Qwen3 or Llama, see `unreadable`.
        seg_token_id: Of [SEG].
        reads_seg: True if F_SEG is the state at [SEG], False if before it.
    """

    def __init__(self, language_model: Any, *, seg_token_id: int, reads_seg: bool) -> None:
        self._model = language_model
        self._layers = list(language_model.layers)[: language_model.config.num_hidden_layers]
        self._seg = seg_token_id
        self._reads_seg = reads_seg
        self._prefixes: dict[tuple[int, ...], Sequence[KeysValues | None]] = {}
        self._lock = Lock()

    def read_rows(
        self, prefix: tuple[int, ...], words: Sequence[Sequence[int]], coarse: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Read rows whose image tokens see [SEG].

        Args:
            prefix: Ids before the picture.
            words: Ids between picture and [SEG], per row.
            coarse: F_V1 per row, ``(B, M, D)``.

        Returns:
            F_IMG ``(B, M, D)`` and F_SEG ``(B, D)``.
        """
        batch, image, _ = coarse.shape
        before = len(prefix) + image
        ids, lengths = _padded(words, front=self._seg)
        tail = ids.shape[1]
        row = torch.arange(batch)
        positions = torch.arange(len(prefix), before + tail).repeat(batch, 1)
        positions[:, image + 1 :] -= 1  # words keep their places,
        positions[:, image] = before + lengths  # and [SEG] follows the last of them
        read = torch.zeros_like(lengths) if self._reads_seg else lengths  # among [SEG] and words
        seen = _tail_mask(lengths, tail, before)
        read_sees = seen[row, :, read][:, :, None].to(coarse.device)
        dense = _Ask(slice(image), before + 1)
        asks = [dense, _Ask(slice(image, None), before + tail, seen.to(coarse.device))]
        last = [dense, _Ask(slice(image, None), before + tail, read_sees)]
        x = torch.cat([coarse, self._embed(ids, coarse)], dim=1)
        rotation = self._rotation(x, positions)
        row, read = row.to(x.device), (image + read).to(x.device)

        def keep(rows: Tensor) -> Tensor:
            return torch.cat([rows[:, :image], rows[row, read][:, None]], dim=1)

        x, _ = self._run(x, rotation, asks, self._prefix(prefix, coarse), last=(last, keep))
        return x[:, :image], x[:, image]

    def read_picture(
        self, prefix: tuple[int, ...], coarse: Tensor, *, is_causal: bool
    ) -> tuple[list[KeysValues], Tensor]:
        """Read a picture whose image tokens see no word.

        Args:
            prefix: Ids before the picture.
            coarse: F_V1, ``(1, M, D)``.
            is_causal: Image tokens see earlier ones only.

        Returns:
            Keys and values of prefix and picture, per layer, and F_IMG ``(1, M, D)``.
        """
        image, before = coarse.shape[1], len(prefix)
        allowed = None
        if is_causal:
            allowed = torch.ones(image, before + image, dtype=torch.bool).tril(before)[None, None].to(coarse.device)
        rotation = self._rotation(coarse, torch.arange(before, before + image)[None])
        asks = [_Ask(slice(None), before + image, allowed)]
        x, memory = self._run(coarse, rotation, asks, self._prefix(prefix, coarse))
        return memory, x

    def read_words(self, words: Sequence[Sequence[int]], memory: list[KeysValues]) -> Tensor:
        """Read words behind a picture that was read before; F_SEG, ``(B, D)``.

        Args:
            words: Ids between picture and [SEG], per row.
            memory: Of `read_picture`.
        """
        before = memory[0][0].shape[2]
        ids, lengths = _padded([[*row, self._seg] for row in words] if self._reads_seg else words)
        length = ids.shape[1]
        x = self._embed(ids, memory[0][0])
        rotation = self._rotation(x, torch.arange(before, before + length)[None])
        # Padding is behind all that is read, so a causal mask hides it.
        seen = torch.ones(length, before + length, dtype=torch.bool).tril(before)[None, None]
        read_sees = seen[:, :, lengths - 1].transpose(0, 2).to(x.device)
        asks = [_Ask(slice(None), before + length, seen.to(x.device))]
        row, read = torch.arange(len(ids), device=x.device), (lengths - 1).to(x.device)

        def keep(rows: Tensor) -> Tensor:
            return rows.expand(len(row), -1, -1)[row, read][:, None]

        x, _ = self._run(x, rotation, asks, memory, last=([_Ask(slice(None), before + length, read_sees)], keep))
        return x[:, 0]

    # ------------------------------------------------------------------ parts

    def _prefix(self, ids: tuple[int, ...], like: Tensor) -> Sequence[KeysValues | None]:
        """Keys and values of what is before every picture: once per model (d)."""
        if not ids:
            return [None] * len(self._layers)
        with self._lock:
            found = self._prefixes.pop(ids, None)
            if found is None:
                x = self._embed(torch.tensor([ids]), like)
                asks = [_Ask(slice(None), len(ids), is_causal=True)]
                rotation = self._rotation(x, torch.arange(len(ids))[None])
                _, found = self._run(x, rotation, asks, [None] * len(self._layers))
            self._prefixes[ids] = found  # the most recently used is last
            while len(self._prefixes) > _PREFIXES_KEPT:
                self._prefixes.pop(next(iter(self._prefixes)))
        return found

    def _embed(self, ids: Tensor, like: Tensor) -> Tensor:
        return self._model.embed_tokens(ids.to(like.device)).to(like.dtype)

    def _rotation(self, x: Tensor, positions: Tensor) -> Rotation:
        return self._model.rotary_emb(x, positions.to(x.device))

    def _run(
        self,
        x: Tensor,
        rotation: Rotation,
        asks: Sequence[_Ask],
        past: Sequence[KeysValues | None],
        last: tuple[Sequence[_Ask], Callable[[Tensor], Tensor]] | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Run all layers and the final norm.

        Args:
            x: ``(B, rows, D)``.
            rotation: Of the rows.
            asks: Who asks whom, in the order of the rows; keys are those of ``past`` and then the rows' own.
            past: Keys and values per layer of what was read before, ``B`` 1 or as ``x``.
            last: If nothing is read behind these rows: who asks in the last layer, and which rows that keeps.

        Returns:
            The rows kept; and keys and values per layer, of ``past`` too, unless ``last`` is given.
        """
        memory: list[KeysValues] = []
        for index, (layer, known) in enumerate(zip(self._layers, past, strict=True)):
            if last is None:
                x, found = _layer(layer, x, rotation, asks, known)
                memory.append(found)
            elif index < len(self._layers) - 1:
                x, _ = _layer(layer, x, rotation, asks, known)
            else:
                x, _ = _layer(layer, x, rotation, last[0], known, last[1])
        return self._model.norm(x), memory


def _layer(
    layer: Any,
    x: Tensor,
    rotation: Rotation,
    asks: Sequence[_Ask],
    past: KeysValues | None,
    keep: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> tuple[Tensor, KeysValues]:
    """Run a decoder layer: all rows answer, kept rows ask."""
    attention = layer.self_attn
    normed = layer.input_layernorm(x)
    keys = _rotated(_heads(attention, "k", normed), rotation)
    values = _heads(attention, "v", normed)
    if past is not None:
        keys, values = (
            torch.cat([old.expand(len(new), -1, -1, -1), new], dim=2)
            for old, new in zip(past, (keys, values), strict=True)
        )
    queries = _rotated(_heads(attention, "q", keep(normed)), (keep(rotation[0]), keep(rotation[1])))
    heard = [
        # Always SDPA: it takes bool masks, and runs the kernels that dense blocks are made for.
        sdpa_attention_forward(
            attention,
            queries[:, :, ask.rows],
            keys[:, :, : ask.keys],
            values[:, :, : ask.keys],
            ask.allowed,
            scaling=attention.scaling,
            is_causal=ask.is_causal,
        )[0].flatten(2)
        for ask in asks
    ]
    x = keep(x) + attention.o_proj(torch.cat(heard, dim=1))
    return x + layer.mlp(layer.post_attention_layernorm(x)), (keys, values)


def _heads(attention: Any, which: str, x: Tensor) -> Tensor:
    """Project to heads, normed per head where the family does (Qwen3): ``(B, rows, D) -> (B, heads, rows, size)``."""
    heads = getattr(attention, f"{which}_proj")(x).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{which}_norm", None)
    return (heads if norm is None else norm(heads)).transpose(1, 2)


def _rotated(heads: Tensor, rotation: Rotation) -> Tensor:
    cos, sin = (part[:, None] for part in rotation)
    return heads * cos + rotate_half(heads) * sin


def _padded(rows: Sequence[Sequence[int]], front: int | None = None) -> tuple[Tensor, Tensor]:
    """Pad ids on the right, behind ``front`` if given: ids ``(B, n)`` and lengths ``(B,)`` without it, on the CPU."""
    assert all(rows), "a row has words: at least the end of its picture"
    lengths = torch.tensor([len(row) for row in rows])
    # Padding may be any token: nothing that is read sees it.
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = torch.tensor(row)
    if front is None:
        return ids, lengths
    return torch.cat([torch.full((len(rows), 1), front), ids], dim=1), lengths


def _tail_mask(lengths: Tensor, tail: int, before: int) -> Tensor:
    """Who sees whom among [SEG] and words, all of which see what is before: bool ``(B, 1, tail, before + tail)``."""
    seen = torch.ones(len(lengths), tail, tail, dtype=torch.bool).tril()  # [SEG] is the first row, words are causal
    seen[:, 1:, 0] = False  # no word sees [SEG]
    seen[:, 0, 1:] = torch.arange(tail - 1) < lengths[:, None]  # [SEG] sees all real words
    everything = torch.ones(len(lengths), tail, before, dtype=torch.bool)
    return torch.cat([everything, seen], dim=2)[:, None]
