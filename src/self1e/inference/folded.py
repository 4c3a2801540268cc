"""Inference with folded weights: the plain model's masks, exactly, with less work.

The plain modules are the definition. Here the same function is rearranged for inference, by identities only, so both
agree to rounding (in float64 to 1e-9, which the tests hold). W1, b1 and W2, b2 are the two linears of the final MLP.

a   The fine branch repeats each patch vector f four times before the projector's LayerNorm. Mean and variance of
    [f, f, f, f] are those of f, so ``linear_1(LayerNorm([f, f, f, f])) = A n + (bias + W beta)`` with
    ``n = (f - mean) / std`` and ``A = sum_k W_k diag(gamma_k)``: a quarter of the work.
a2  Then the projector's second linear and the first of f_PUS stand side by side: one D x D.
b   Bilinear enlarging mixes places, a linear mixes channels: they commute. So W1 moves through the enlarging and the
    sub-pixel sum into the last linear of f_PUS and f'_PUS, block by block, and the final MLP's first linear is gone.
    W2 moves to the other side of the dot product: ``(W2 h + b2) . s = h . (W2' s) + b2 . s``.
b2  What then stands inside the final MLP's GELU is ``K + enlarge(W1 f'_PUS(F_IMG))`` with
    ``K = W1 f_PUS(F_V1^HQ) - enlarge(W1 f_PUS(F_V1)) + b1``. K knows no words: once per picture (`FoldedPicture`).
b3  The mean over the sub-pixels of F_SEG is the mean of the blocks of the last linear: one D x D, joined with W1.
c   All queries of a picture share vision encoder, projector, fine branch and K.
d   Tokens before the picture see neither it nor the words: their keys and values are computed once per model.
e   Nothing after [SEG] is in the sequence. [SEG] itself must stay, also with ``seg_readout="before"``, because image
    tokens see it.
f   The last layer asks only for what is read: image tokens and the read-out position. Words still answer there, as keys
    and values. No next-token scores.
h   In the first layer image tokens know of a row only how long it is: rows of one picture and one length share all of
    that layer on image tokens. The caller puts rows of one length into one batch where it can.
i   Mean, standard deviation and 255 move into the patch convolution, so pictures travel as uint8. Layer scale joins the
    residual addition in one operation (copies of the scaled weights would cost 0.25 GB for the usual encoder).

With ``attention="image"`` or ``"causal"`` no image token sees a word or [SEG]: then all of the picture's side of the
dot product, and its keys and values in every layer, are computed once, and a query costs only its own tokens.

Host and device are kept apart: `self1e.inference.layout` brings a batch's words to the device, and the stages after it
are functions of tensors alone: no mask of rows by rows, no wait for the device, no loop over rows. They can be compiled
(`FoldedModel.compile`), and on a CUDA device captured as graphs.

Training never comes here: it needs the plain modules, and `obstacle` names whatever else does.

Shapes: B rows, one query each; T tiles; M image tokens of a row; P tokens before them; n words after them; D width of
the language model; C of the vision encoder; s compression; h, w pixels at the mask head's resolution.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from self1e.errors import SettingError
from self1e.inference.compiling import Captured, Compiled, check_backend
from self1e.inference.epilogue import score_pixels
from self1e.inference.layout import Buckets, lay_out
from self1e.inference.reader import KeysValues, Reader, unreadable
from self1e.model import Self1EForConditionalGeneration, VisionFeatures
from self1e.model.mask_head import FinalMLP, depth_to_space, space_to_depth, stitch_tiles, upsample
from self1e.processing.image import IMAGENET_MEAN, IMAGENET_STD

_SWITCHES = {
    "fine": ("replicate",),
    "residual": (True,),
    "unshuffle": ("two",),
    "final_mlp": (True,),
    "num_seg_tokens": (1,),
    "attention": ("image_seg", "image", "causal"),
    "vision_feature_layer": (-1,),
    "vision_feature_select_strategy": ("default",),
}
_CAPTURED_ROWS = 8  # more fill a device without help
_GREY = 128  # levels are centred, so that products stay small
_LEVELS = 64  # and scaled by a power of two, which is exact: 8-bit levels fit into bfloat16 and float16


def obstacle(model: Self1EForConditionalGeneration) -> str | None:
    """Say why a model must take the plain path: one reason, or None if the folds cover it."""
    config: Any = model.config
    if model.training:
        return "the model is in training mode"
    for name, covered in _SWITCHES.items():
        if getattr(config, name) not in covered:
            return f"{name}={getattr(config, name)!r} (folded: {', '.join(map(repr, covered))})"
    reason = unreadable(model.model.language_model)
    if reason is not None:
        return reason
    if type(model.model.vision_tower) is not InternVLVisionModel:
        return f"a vision encoder of type {type(model.model.vision_tower).__name__}"
    if any(hasattr(module, "base_layer") for module in model.modules()):
        return "adapters are attached; merge them to fold"
    foreign = next((type(p).__name__ for p in model.parameters() if type(p) is not nn.Parameter), None)
    if foreign is not None:  # quantised or sharded
        return f"weights of type {foreign}"
    expected = [(module, nn.Linear) for name, module in _folded_modules(model).items() if name != "layer_norm"]
    expected += [(model.model.multi_modal_projector.layer_norm, nn.LayerNorm), (_patch_convolution(model), nn.Conv2d)]
    for module, kind in expected:
        if type(module) not in (kind, FinalMLP.first, FinalMLP.second):  # these two are plain ones with more to offer
            return f"a {type(module).__name__} where the plain {kind.__name__} is folded"
    kinds = {(parameter.device, parameter.dtype) for parameter in model.parameters() if parameter.is_floating_point()}
    return None if len(kinds) == 1 else "weights on several devices or of several types"


@dataclass(frozen=True, eq=False)
class FoldedPicture:
    """What is kept of a picture: everything that does not depend on words."""

    coarse: Tensor
    """F_V1, ``(T, tokens, D)``."""
    grid: tuple[int, int]
    """Rows and columns of tiles."""
    pixels: Tensor
    """K of b2, ``(h, w, D)``; if no image token sees a word, the finished side of the dot product, after the GELU."""
    memory: list[KeysValues] | None
    """Keys and values of prefix and picture per layer, ``B`` 1, if no image token sees a word; else None."""
    prefix: tuple[int, ...]
    """Ids before the picture that ``memory`` holds; () without."""
    made_by: str
    """Name of the `FoldedModel` that made it: K of other weights means nothing."""


class FoldedModel:
    """A model's weights folded for inference; the model itself is read, never changed.

    The language model and the vision encoder run from the model's own modules. Folded copies exist of the mask head,
    the projector's fine branch and the patch convolution only: ``11 D*D + D*C`` numbers, 55 MB for 2B in bfloat16.

    The folds are of the weights as they are now. `is_current` compares the switches, and the version counters that
    torch keeps of every tensor: optimizers, ``load_state_dict``, ``copy_`` and moving the model are noticed. Writes
    that torch cannot see, through ``.data`` (peft merges adapters that way) or numpy, are not: fold again after them.

    Args:
        model: In evaluation mode; what else it must be, `obstacle` says.
        image_mean, image_std: Of the image processor, on the 0..1 scale.

    Raises:
        SettingError: The folds do not cover this model.
    """

    def __init__(
        self,
        model: Self1EForConditionalGeneration,
        *,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        reason = obstacle(model)
        if reason is not None:
            raise SettingError(f"This model cannot be folded: {reason}. Use exact='plain'.")
        self.model = model
        self.name = uuid.uuid4().hex
        self.config: Any = model.config
        self._vision: Any = model.model.vision_tower
        self._projector: Any = model.model.multi_modal_projector
        self._reader = Reader(
            model.model.language_model,
            seg_token_id=self.config.seg_token_id,
            reads_seg=self.config.seg_readout == "at",
        )
        self._weights = SeenWeights(model)
        self._fold(image_mean, image_std)
        self._buckets: Buckets | None = None
        self._captured: Captured | None = None
        self._stages: dict[str, Callable[..., Any]] = {
            "encode": self._encode,
            "fine": self._fine,
            "first": self._read_first,
            "rows": self._read_rows,
            "words": self._read_words,
        }

    def compile(self, backend: Any = "inductor", *, cuda_graphs: bool = True) -> None:
        """Compile all stages, each on first use and once per shape; sizes are rounded up, so that shapes are few.

        Args:
            backend: Of ``torch.compile``; None compiles nothing, for CUDA graphs alone.
            cuda_graphs: On a CUDA device, launch one picture with few queries as one graph.

        Raises:
            SettingError: There is no such backend, or the compiler that it needs is missing.
        """
        check_backend(backend, self.model.device)
        self._buckets = Buckets()
        if backend is not None:
            self._stages = {name: Compiled(stage, backend) for name, stage in self._stages.items()}
        if cuda_graphs and self.model.device.type == "cuda":
            self._captured = Captured()

    def is_current(self) -> bool:
        """Tell whether the model's weights are still those that were folded."""
        return not self.model.training and self._weights.are_the_same()

    @property
    def is_shared(self) -> bool:
        """Tell whether image tokens see no word, so that a query costs only its own tokens."""
        return self.config.attention != "image_seg"

    @property
    def numbers_per_token(self) -> int:
        """How many numbers are alive together per token of a row: in the middle of a decoder layer, and its K."""
        text = self.config.text_config
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        heads = text.num_attention_heads + 2 * text.num_key_value_heads
        # Heads twice, before and after rotating; gate, up and their product; K of the row's own picture.
        layer = 8 * text.hidden_size + 2 * heads * head + 3 * text.intermediate_size
        return layer + self.config.compression**4 * text.hidden_size

    # ------------------------------------------------------------------ folding

    @torch.no_grad()
    def _fold(self, image_mean: Sequence[float], image_std: Sequence[float]) -> None:
        """Multiply weights in float64, cast once."""
        found = {name: _wide(module) for name, module in _folded_modules(self.model).items()}
        device, dtype = self.model.device, self.model.dtype
        square = self.config.compression**2

        def cast(weight: Tensor, bias: Tensor) -> KeysValues:
            return weight.to(dtype).to(device), bias.to(dtype).to(device)

        # i: (level/255 - mean)/std = (level - 128)/64 * 64/(255 std) + (128/255 - mean)/std
        weight, bias = _wide(_patch_convolution(self.model))
        mean, std = (
            torch.tensor(values, dtype=weight.dtype, device=weight.device) for values in (image_mean, image_std)
        )
        mean, std = (values.expand(weight.shape[1])[:, None, None] for values in (mean, std))
        offset = (weight * ((_GREY / 255 - mean) / std)).sum((1, 2, 3))
        self._patch = cast(weight * (_LEVELS / 255 / std), bias + offset)

        # a, a2
        gamma, beta = found["layer_norm"]
        weight, bias = found["linear_1"]
        summed = (weight * gamma).unflatten(1, (square, -1)).sum(1)  # (D, C)
        self._fine_1 = cast(summed, bias + weight @ beta)
        self._fine_2 = cast(*_joined(found["vision_1"], found["linear_2"]))

        # b: every sub-pixel's block of f_PUS and f'_PUS, through W1
        w1 = found["final_1"][0]
        first = (w1, w1.new_zeros(len(w1)))
        vision, language = (_blocks(found[name], square) for name in ("vision_2", "language_2"))
        self._vision_2 = cast(*_stacked([_joined(first, block) for block in vision]))
        self._language_2 = cast(*_stacked([_joined(first, block) for block in language]))
        self._bias_1 = found["final_1"][1].to(dtype).to(device)

        # b3, and W1 of the query
        weight, bias = (torch.stack(part).mean(0) for part in zip(*language, strict=True))
        self._query_1 = cast(*_joined(found["final_1"], (weight, bias)))

        # b: logits = h . (W2's) + b2 . s with s = W2 g + b2, all of it divided by sqrt(D)
        w2, b2 = found["final_2"]
        root = len(b2) ** 0.5
        self._score = cast(w2.T @ w2 / root, w2.T @ b2 / root)
        self._score_constant = float(b2 @ b2 / root) if b2.device.type != "meta" else 0.0

    # ------------------------------------------------------------------ pictures

    @torch.inference_mode()
    def encode(self, levels: Tensor, tile_grids: Sequence[tuple[int, int]]) -> VisionFeatures:
        """Run vision encoder and projector.

        Args:
            levels: Tiles of all pictures, uint8 ``(T, 3, S, S)``, on any device.
            tile_grids: Rows and columns of tiles, per picture.

        Returns:
            Features without ``fine``, which is folded away.
        """
        levels = levels.to(self.model.device, non_blocking=True)
        tiles = len(levels)
        if self._buckets is not None:
            filling = levels.new_zeros(self._buckets.round_rows(tiles) - tiles, *levels.shape[1:])
            levels = torch.cat([levels, filling])
        coarse, patches = self._launch("encode", self._stages["encode"], [levels])
        return VisionFeatures(coarse[:tiles], None, patches[:tiles], list(tile_grids))

    def _encode(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """F_V1 ``(T, tokens, D)`` and F_V0 ``(T, patches, C)``."""
        patches = self._patches(levels)
        side = self.config.patches_per_side
        coarse = space_to_depth(patches.unflatten(1, (side, side)), self.config.compression).flatten(1, 2)
        return self._projector(coarse), patches

    def _launch(self, name: Any, function: Callable[..., Any], inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run a function of one picture, as a CUDA graph if that is wanted."""
        return function(*inputs) if self._captured is None else self._captured(name, function, inputs)

    def _patches(self, levels: Tensor) -> Tensor:
        """F_V0, ``(T, patches, C)`` (i)."""
        weight, bias = self._patch
        embeddings, encoder = self._vision.embeddings, self._vision.encoder
        centred = (levels.to(weight.dtype) - _GREY) / _LEVELS
        x = F.conv2d(centred, weight, bias, stride=weight.shape[-2:]).flatten(2).transpose(1, 2)
        x = torch.cat([embeddings.cls_token.expand(len(x), -1, -1), x], dim=1)
        if embeddings.position_embeddings is not None:
            x = x + embeddings.position_embeddings
        for layer in encoder.layer:
            x = torch.addcmul(x, layer.attention(layer.layernorm_before(x))[0], layer.lambda_1)
            x = torch.addcmul(x, layer.mlp(layer.layernorm_after(x)), layer.lambda_2)
        return self._vision.layernorm(x)[:, 1:]

    @torch.inference_mode()
    def fold_pictures(self, vision: VisionFeatures, prefix: Sequence[int]) -> list[FoldedPicture]:
        """Compute what no word changes, per picture: K of b2, and more if image tokens see no word.

        Args:
            vision: Of this model; ``fine`` is not read.
            prefix: Token ids before the picture; matter only if image tokens see no word.
        """
        counts = [rows * columns for rows, columns in vision.tile_grids]
        parts = zip(vision.tile_grids, vision.coarse.split(counts), vision.patches.split(counts), strict=True)
        return [self._fold_picture(grid, coarse, patches, tuple(prefix)) for grid, coarse, patches in parts]

    def _fold_picture(
        self, grid: tuple[int, int], coarse: Tensor, patches: Tensor, prefix: tuple[int, ...]
    ) -> FoldedPicture:
        fine, known = self._stages["fine"](patches, coarse)
        pixels = self._unfold(fine, grid)
        pixels = pixels - _enlarged(self._unfold(known, grid), pixels) + self._bias_1
        if not self.is_shared:
            return FoldedPicture(coarse, grid, pixels, None, (), self.name)
        memory, coarse_out = self._reader.read_picture(
            prefix, coarse.reshape(1, -1, coarse.shape[-1]), is_causal=self.config.attention == "causal"
        )
        pixels = self._fuse(pixels, coarse_out[0], grid)
        return FoldedPicture(coarse, grid, pixels, memory, prefix, self.name)

    def _fine(self, patches: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Both parts of K, before they are unfolded: ``(T, patches, s*s*D)`` and ``(T, tokens, s*s*D)`` (a, a2, b)."""
        normed = F.layer_norm(patches, patches.shape[-1:], eps=self._projector.layer_norm.eps)
        fine = self._projector.act(F.linear(normed, *self._fine_1))
        fine = F.linear(F.gelu(F.linear(fine, *self._fine_2)), *self._vision_2)
        head: Any = self.model.mask_head
        return fine, F.linear(F.gelu(head.expand_vision.linear_1(coarse)), *self._vision_2)

    def _unfold(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Stitch tiles and unfold channels: ``(tiles, side*side, s*s*D) -> (rows*side*s, columns*side*s, D)``."""
        rows, columns = grid
        side = round(x.shape[1] ** 0.5)
        tiles = x.reshape(rows * columns, side, side, x.shape[-1])
        return depth_to_space(stitch_tiles(tiles, rows, columns), self.config.compression)

    # ------------------------------------------------------------------ queries

    @torch.inference_mode()
    def mask_logits(self, rows: Sequence[Sequence[int]], pictures: Sequence[FoldedPicture]) -> list[Tensor]:
        """Score every pixel of each row's picture.

        Args:
            rows: Token ids of each row, ending with the [SEG] to be read; not padded. Earlier ones are words.
            pictures: The picture of each row; all of equally many tiles.

        Returns:
            Logits ``(h, w)`` per row, of the weights' type but at least float32.
        """
        split = [self._split(row, picture) for row, picture in zip(rows, pictures, strict=True)]
        assert len({len(picture.coarse) for picture in pictures}) == 1, "rows of one batch have equally many tiles"
        found: list[Tensor | None] = [None] * len(rows)
        # Rows share a pass where they share what is before their words, and the shape of what is behind it.
        groups: dict[Any, list[int]] = {}
        for index, (prefix, _) in enumerate(split):
            groups.setdefault((prefix, id(pictures[index]) if self.is_shared else pictures[index].grid), []).append(
                index
            )
        for (prefix, _), members in groups.items():
            words = [split[index][1] for index in members]
            seen = [pictures[index] for index in members]
            for index, logits in zip(members, self._group_logits(prefix, words, seen), strict=True):
                found[index] = logits
        return [logits for logits in found if logits is not None]

    def _split(self, ids: Sequence[int], picture: FoldedPicture) -> tuple[tuple[int, ...], list[int]]:
        """Ids before the picture, and those after it without [SEG]."""
        assert picture.made_by == self.name, "folded by other weights"
        start = ids.index(self.config.image_token_id)
        end = start + picture.coarse.shape[0] * picture.coarse.shape[1]
        assert all(token == self.config.image_token_id for token in ids[start:end]), "one run of image tokens"
        words = list(ids[end:-1])
        assert ids[-1] == self.config.seg_token_id, "the row ends with [SEG]"
        assert self.config.image_token_id not in words, "one picture"
        return tuple(ids[:start]), words

    def _group_logits(
        self, prefix: tuple[int, ...], words: list[list[int]], pictures: list[FoldedPicture]
    ) -> Sequence[Tensor]:
        """Score rows with one prefix: of pictures of one grid, or if image tokens see no word, of one picture."""
        device = self.model.device
        if self.is_shared:
            picture = pictures[0]
            assert picture.memory is not None, "made for image tokens that see no word"
            rows = lay_out([self._reader.spoken(row) for row in words], [0] * len(words), device, self._buckets)
            query, constant = self._stages["words"](rows.ids, rows.lengths, picture.memory)
            logits = _at_least_float32(picture.pixels @ query[: len(words)].T) + constant[: len(words)]  # (h, w, K)
            return logits.permute(2, 0, 1).contiguous().unbind()
        seen = {id(picture): picture for picture in pictures}
        number = {key: index for index, key in enumerate(seen)}
        rows = lay_out(words, [number[id(picture)] for picture in pictures], device, self._buckets)
        coarse = _stacked_pictures([picture.coarse.flatten(0, 1) for picture in seen.values()])
        known = _stacked_pictures([picture.pixels for picture in seen.values()])
        past = self._reader.prefix(prefix, coarse)
        grid = pictures[0].grid
        inputs = [rows.ids, rows.lengths, rows.picture_of_row, rows.first_lengths, rows.first_pictures, coarse, known]
        inputs += [] if rows.first_of_row is None else [rows.first_of_row]

        def score(*inputs: Tensor) -> Sequence[Tensor]:
            return [self._score_rows(past, grid, *inputs)]

        if len(seen) > 1 or len(words) > _CAPTURED_ROWS:
            (logits,) = score(*inputs)
        else:
            (logits,) = self._launch(("score", prefix, grid), score, inputs)
        return logits[: len(words)].unbind()

    def _score_rows(
        self,
        past: Sequence[KeysValues | None],
        grid: tuple[int, int],
        ids: Tensor,
        lengths: Tensor,
        picture_of_row: Tensor,
        first_lengths: Tensor,
        first_pictures: Tensor,
        coarse: Tensor,
        known: Tensor,
        first_of_row: Tensor | None = None,
    ) -> Tensor:
        """Logits ``(B, h, w)`` of rows as `self1e.inference.layout.Rows` holds them.

        Args:
            past: Keys and values of the prefix.
            grid: Of all pictures.
            ids: See ``Rows``.
            lengths: See ``Rows``.
            picture_of_row: See ``Rows``.
            first_lengths: See ``Rows``.
            first_pictures: See ``Rows``.
            coarse: F_V1 per picture, ``(P, M, D)``.
            known: K per picture, ``(P, h, w, D)``.
            first_of_row: See ``Rows``.
        """
        first = self._stages["first"](coarse.index_select(0, first_pictures), first_lengths, past[0])
        if first_of_row is not None:
            first = tuple(x.index_select(0, first_of_row) for x in first)
        residual, query, constant = self._stages["rows"](*first, ids, lengths, past, grid)
        return score_pixels(known, residual, query, constant, picture_of_row)

    def _read_first(self, coarse: Tensor, lengths: Tensor, past: KeysValues | None) -> tuple[Tensor, Tensor, Tensor]:
        return self._reader.read_first(coarse, lengths, past)

    def _read_rows(
        self,
        first: Tensor,
        keys: Tensor,
        values: Tensor,
        ids: Tensor,
        lengths: Tensor,
        past: Sequence[KeysValues | None],
        grid: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Residual ``(B, a, b, D)``, vector and constant of rows; see ``Reader.read_rows``."""
        coarse_out, seg = self._reader.read_rows(first, keys, values, ids, lengths, past)
        return self._residual(coarse_out, grid), *self._query(seg)

    def _read_words(self, ids: Tensor, lengths: Tensor, memory: Sequence[KeysValues]) -> tuple[Tensor, Tensor]:
        return self._query(self._reader.read_words(ids, lengths, memory))

    # ------------------------------------------------------------------ mask head

    def _residual(self, coarse_out: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the language model made of pictures, before it is enlarged: ``(B, M, D) -> (B, a, b, D)`` (b)."""
        rows, columns = grid
        head: Any = self.model.mask_head
        residual = F.linear(F.gelu(head.expand_language.linear_1(coarse_out)), *self._language_2)
        side = round((coarse_out.shape[1] // (rows * columns)) ** 0.5)
        tiles = residual.unflatten(1, (rows * columns, side, side))
        return depth_to_space(stitch_tiles(tiles, rows, columns), self.config.compression)

    def _fuse(self, known: Tensor, coarse_out: Tensor, grid: tuple[int, int]) -> Tensor:
        """Add what the language model made of the picture, ``(M, D)``, to K; GELU: ``(h, w, D)`` (b, b2)."""
        return F.gelu(_enlarged(self._residual(coarse_out[None], grid)[0], known).add_(known))

    def _query(self, seg: Tensor) -> tuple[Tensor, Tensor]:
        """Turn F_SEG ``(K, D)`` into the vectors that pixels are scored against, and what is added (b, b3)."""
        head: Any = self.model.mask_head
        seg = F.gelu(head.expand_language.linear_1(seg))
        seg = F.gelu(F.linear(seg, *self._query_1))
        score, shared = self._score
        return F.linear(seg, score, shared), _at_least_float32(seg) @ _at_least_float32(shared) + self._score_constant


def _folded_modules(model: Self1EForConditionalGeneration) -> dict[str, Any]:
    """The modules whose weights are folded, with a weight and a bias each, but for the patch convolution."""
    head: Any = model.mask_head
    projector: Any = model.model.multi_modal_projector
    return {
        "layer_norm": projector.layer_norm,
        "linear_1": projector.linear_1,
        "linear_2": projector.linear_2,
        "vision_1": head.expand_vision.linear_1,
        "vision_2": head.expand_vision.linear_2,
        "language_2": head.expand_language.linear_2,
        "final_1": head.final_mlp.linear_1,
        "final_2": head.final_mlp.linear_2,
    }


def _patch_convolution(model: Self1EForConditionalGeneration) -> Any:
    tower: Any = model.model.vision_tower
    return tower.embeddings.patch_embeddings.projection


class SeenWeights:
    """What the weights were when something was computed from them.

    Asked before every call, so in a tenth of what walking a large model takes.
    """

    def __init__(self, model: Self1EForConditionalGeneration) -> None:
        self._config: Any = model.config
        # Kept alive: what is gone could lend its identity to something new.
        self._modules = list(model.modules())
        self._parameters = list(model.parameters())
        self._owned = [owned for module in self._modules for owned in (module._parameters, module._modules)]
        self._seen = self._look()

    def are_the_same(self) -> bool:
        return self._look() == self._seen

    def _look(self) -> tuple[Any, ...]:
        """The switches; who owns what; where every weight is; how often torch saw it change (never, if it cannot)."""
        switches = (*_SWITCHES, "seg_readout", "seg_token_id", "image_token_id")
        return (
            [getattr(self._config, name) for name in switches],
            [tuple(map(id, owned.values())) for owned in self._owned],
            [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self._parameters],
        )


def _wide(module: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias in float64; on the CPU where the device has no such type."""
    device = "cpu" if module.weight.device.type == "mps" else module.weight.device
    # In two steps: on MPS a single one would convert first.
    weight, bias = (part.detach().to(device).to(torch.float64) for part in (module.weight, module.bias))
    return weight, bias


def _joined(outer: tuple[Tensor, Tensor], inner: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two linears with nothing in between, as one: ``outer(inner(x))``."""
    return outer[0] @ inner[0], outer[0] @ inner[1] + outer[1]


def _blocks(linear: tuple[Tensor, Tensor], count: int) -> list[tuple[Tensor, Tensor]]:
    """Take the linear apart that makes ``count`` sub-pixels at once."""
    return list(zip(linear[0].chunk(count), linear[1].chunk(count), strict=True))


def _stacked(blocks: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The opposite of `_blocks`."""
    weights, biases = zip(*blocks, strict=True)
    return torch.cat(weights), torch.cat(biases)


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear to the places of another map, ``(h, w, D)``."""
    return upsample(x[None], (like.shape[0], like.shape[1]))[0]


def _stacked_pictures(maps: Sequence[Tensor]) -> Tensor:
    """Maps of several pictures as one tensor; that of a single one without a copy."""
    return maps[0][None] if len(maps) == 1 else torch.stack(list(maps))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
