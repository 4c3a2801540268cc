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

* In the first layer image tokens see of a row only its [SEG], whose key there is its embedding at its place: rows of
  one picture and one length share all of that layer on image tokens (h).

Heads that share a key head ask as further rows of it: kernels for plain attention serve, and no key is repeated.

With ``attention="image"`` or ``"causal"`` image tokens see no [SEG]: then they are read once per picture, and a row
costs its words only, without [SEG] unless it is the one to be read.

Layers are taken apart, but every weight is used through the library's own module: one loop serves every family. What
reads rows takes tensors of lengths (`self1e.inference.layout`) and never asks what is in them.

Shapes: B rows; U pairs of picture and length among them; P prefix, M image and n word tokens; KV key heads; D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
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


class _Ask(NamedTuple):
    """Rows that ask, and the first ``keys`` of all keys, which answer: a block of the attention matrix."""

    rows: slice
    keys: int
    allowed: Tensor | None = None
    """Bool ``(B or 1, 1, rows, keys)``; None is everything."""


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

    def read_first(self, coarse: Tensor, lengths: Tensor, past: KeysValues | None) -> tuple[Tensor, Tensor, Tensor]:
        """Run the first layer on image tokens that see [SEG]: no word has a say in it but by their number (h).

        Args:
            coarse: F_V1 per pair of picture and length, ``(U, M, D)``.
            lengths: Of the words between picture and [SEG], int64 ``(U,)``.
            past: Keys and values of the prefix in the first layer, see `prefix`.

        Returns:
            The image tokens' states ``(U, M, D)``, and their keys and values ``(U, KV, M, head size)``.
        """
        pairs, image, _ = coarse.shape
        before = 0 if past is None else past[0].shape[2]
        seg = lengths[:, None] + (before + image)
        positions = torch.cat([self._places(before, image, pairs, lengths), seg], dim=1)
        x = torch.cat([coarse, self._embed(torch.full_like(seg, self._seg), coarse)], dim=1)
        ask = _Ask(slice(None), before + image + 1)
        x, (keys, values) = _layer(
            self._layers[0], x, self._rotation(x, positions), [ask], past, lambda rows: rows[:, :image]
        )
        return x, keys[:, :, before:-1], values[:, :, before:-1]

    def read_rows(
        self,
        first: Tensor,
        keys: Tensor,
        values: Tensor,
        ids: Tensor,
        lengths: Tensor,
        past: Sequence[KeysValues | None],
    ) -> tuple[Tensor, Tensor]:
        """Read rows whose image tokens see [SEG], from behind the first layer of image tokens on.

        Args:
            first: States of `read_first` per row, ``(B, M, D)``.
            keys: Of `read_first`, per row.
            values: Of `read_first`, per row.
            ids: Words between picture and [SEG], padded on the right, int64 ``(B, n)``.
            lengths: How many are real, int64 ``(B,)``.
            past: Keys and values of the prefix per layer, see `prefix`.

        Returns:
            F_IMG ``(B, M, D)`` and F_SEG ``(B, D)``.
        """
        batch, image, _ = first.shape
        start = 0 if past[0] is None else past[0][0].shape[2]
        before, tail = start + image, ids.shape[1] + 1
        x = self._embed(torch.cat([torch.full_like(ids[:, :1], self._seg), ids], dim=1), first)
        # Words keep their places, and [SEG] follows the last of them.
        places = torch.cat([lengths[:, None] + before, self._places(before, tail - 1, batch, lengths)], dim=1)
        positions = torch.cat([self._places(start, image, batch, lengths), places], dim=1)
        cos, sin = self._rotation(first, positions)
        seen = _tail_mask(lengths, tail, before)
        row = torch.arange(batch, device=lengths.device)
        read = torch.zeros_like(lengths) if self._reads_seg else lengths  # among [SEG] and words
        read_sees = seen[row, :, read][:, :, None]

        def keep_read(rows: Tensor) -> Tensor:
            return rows[row, read][:, None]

        def keep(rows: Tensor) -> Tensor:
            return torch.cat([rows[:, :image], keep_read(rows[:, image:])], dim=1)

        known = _appended(past[0], keys, values)
        rotation = (cos[:, image:], sin[:, image:])
        if len(self._layers) == 1:
            x, _ = _layer(self._layers[0], x, rotation, [_Ask(slice(None), before + tail, read_sees)], known, keep_read)
            x = self._model.norm(torch.cat([first, x], dim=1))
        else:
            x, _ = _layer(self._layers[0], x, rotation, [_Ask(slice(None), before + tail, seen)], known)
            dense = _Ask(slice(image), before + 1)
            asks = [dense, _Ask(slice(image, None), before + tail, seen)]
            last = [dense, _Ask(slice(image, None), before + tail, read_sees)]
            x = torch.cat([first, x], dim=1)
            x, _ = self._run(x, (cos, sin), asks, past, last=(last, keep), begin=1)
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
            allowed = torch.ones(image, before + image, dtype=torch.bool, device=coarse.device).tril(before)[None, None]
        rotation = self._rotation(coarse, torch.arange(before, before + image, device=coarse.device)[None])
        asks = [_Ask(slice(None), before + image, allowed)]
        x, memory = self._run(coarse, rotation, asks, self.prefix(prefix, coarse))
        return memory, x

    def read_words(self, ids: Tensor, lengths: Tensor, memory: Sequence[KeysValues]) -> Tensor:
        """Read words behind a picture that was read before; F_SEG, ``(B, D)``.

        Args:
            ids: Words between picture and [SEG], see `spoken`, padded on the right, int64 ``(B, n)``.
            lengths: How many are real, int64 ``(B,)``.
            memory: Of `read_picture`.
        """
        batch, length = ids.shape
        before = memory[0][0].shape[2]
        x = self._embed(ids, memory[0][0])
        rotation = self._rotation(x, torch.arange(before, before + length, device=ids.device)[None])
        # Padding is behind all that is read, so a causal mask hides it.
        seen = torch.ones(length, before + length, dtype=torch.bool, device=ids.device).tril(before)[None, None]
        keys = torch.arange(before + length, device=ids.device)
        read_sees = (keys < (lengths + before)[:, None])[:, None, None]
        row = torch.arange(batch, device=ids.device)

        def keep(rows: Tensor) -> Tensor:
            return rows.expand(batch, -1, -1)[row, lengths - 1][:, None]

        asks = [_Ask(slice(None), before + length, seen)]
        x, _ = self._run(x, rotation, asks, memory, last=([_Ask(slice(None), before + length, read_sees)], keep))
        return x[:, 0]

    def spoken(self, words: Sequence[int]) -> Sequence[int]:
        """What `read_words` reads of a row: [SEG] too, if its own state is read."""
        return [*words, self._seg] if self._reads_seg else words

    # ------------------------------------------------------------------ parts

    def prefix(self, ids: tuple[int, ...], like: Tensor) -> Sequence[KeysValues | None]:
        """Keys and values per layer of what is before every picture, once per model (d); None without any."""
        if not ids:
            return [None] * len(self._layers)
        with self._lock:
            found = self._prefixes.pop(ids, None)
            if found is None:
                x = self._embed(torch.tensor([ids], device=like.device), like)
                places = torch.arange(len(ids), device=like.device)
                asks = [_Ask(slice(None), len(ids), (places[:, None] >= places)[None, None])]
                _, found = self._run(x, self._rotation(x, places[None]), asks, [None] * len(self._layers))
            self._prefixes[ids] = found  # the most recently used is last
            while len(self._prefixes) > _PREFIXES_KEPT:
                self._prefixes.pop(next(iter(self._prefixes)))
        return found

    def _embed(self, ids: Tensor, like: Tensor) -> Tensor:
        return self._model.embed_tokens(ids).to(like.dtype)

    def _rotation(self, x: Tensor, positions: Tensor) -> Rotation:
        return self._model.rotary_emb(x, positions)

    def _places(self, start: int, count: int, rows: int, like: Tensor) -> Tensor:
        return torch.arange(start, start + count, dtype=like.dtype, device=like.device).expand(rows, -1)

    def _run(
        self,
        x: Tensor,
        rotation: Rotation,
        asks: Sequence[_Ask],
        past: Sequence[KeysValues | None],
        last: tuple[Sequence[_Ask], Callable[[Tensor], Tensor]] | None = None,
        begin: int = 0,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Run all layers and the final norm.

        Args:
            x: ``(B, rows, D)``.
            rotation: Of the rows.
            asks: Who asks whom, in the order of the rows; keys are those of ``past`` and then the rows' own.
            past: Keys and values per layer of what was read before, ``B`` 1 or as ``x``.
            last: If nothing is read behind these rows: who asks in the last layer, and which rows that keeps.
            begin: The first layer that is run.

        Returns:
            The rows kept; and keys and values per layer, of ``past`` too, unless ``last`` is given.
        """
        memory: list[KeysValues] = []
        for index in range(begin, len(self._layers)):
            layer, known = self._layers[index], past[index]
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
    keys, values = _appended(past, keys, values)
    queries = _rotated(_heads(attention, "q", keep(normed)), (keep(rotation[0]), keep(rotation[1])))
    heard = [
        _attend(
            queries[:, :, ask.rows], keys[:, :, : ask.keys], values[:, :, : ask.keys], ask.allowed, attention.scaling
        )
        for ask in asks
    ]
    x = keep(x) + attention.o_proj(heard[0] if len(heard) == 1 else torch.cat(heard, dim=1))
    return x + layer.mlp(layer.post_attention_layernorm(x)), (keys, values)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
    """Attend, heads of one key head as further rows: ``(B, heads, rows, size) -> (B, rows, heads*size)``."""
    rows = queries.shape[2]
    stacked = queries.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)
    group = stacked.shape[2] // rows
    if allowed is not None:
        allowed = allowed.repeat(1, 1, group, 1)  # a few rows: dense blocks have no mask
    heard = F.scaled_dot_product_attention(stacked, keys, values, attn_mask=allowed, scale=scale)
    return heard.unflatten(2, (group, rows)).permute(0, 3, 1, 2, 4).flatten(2)


def _appended(past: KeysValues | None, keys: Tensor, values: Tensor) -> KeysValues:
    """Put keys and values behind those that are known, which may be shared by all rows."""
    if past is None:
        return keys, values
    batch = len(keys)
    return (
        torch.cat([past[0].expand(batch, -1, -1, -1), keys], dim=2),
        torch.cat([past[1].expand(batch, -1, -1, -1), values], dim=2),
    )


def _heads(attention: Any, which: str, x: Tensor) -> Tensor:
    """Project to heads, normed per head where the family does (Qwen3): ``(B, rows, D) -> (B, heads, rows, size)``."""
    heads = getattr(attention, f"{which}_proj")(x).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{which}_norm", None)
    return (heads if norm is None else norm(heads)).transpose(1, 2)


def _rotated(heads: Tensor, rotation: Rotation) -> Tensor:
    cos, sin = (part[:, None] for part in rotation)
    return heads * cos + rotate_half(heads) * sin


def _tail_mask(lengths: Tensor, tail: int, before: int) -> Tensor:
    """Who sees whom among [SEG] and words, all of which see what is before: bool ``(B, 1, tail, before + tail)``."""
    batch = len(lengths)
    places = torch.arange(tail, device=lengths.device)
    is_word = places > 0  # [SEG] is the first
    words = (places[:, None] >= places) & is_word  # causal, and none sees [SEG]
    seg = (places <= lengths[:, None]) | ~is_word  # sees itself and all real words
    seen = torch.where(is_word[:, None], words, seg[:, None])
    everything = torch.ones(batch, tail, before, dtype=torch.bool, device=lengths.device)
    return torch.cat([everything, seen], dim=2)[:, None]
