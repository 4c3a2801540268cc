"""From words to masks: load a model, encode a picture once, ask for things in it.

    model = load("nano")
    encoded = model.encode("street.jpg")
    result = model.segment(encoded, ["the person", "the footwear"])

One query is one row of text: the system message, the picture's tokens, the question, and [SEG] as the given
answer. Rows run together in batches, also those of different pictures; a row's mask does not depend on its
neighbours. Masks come from folded weights (`self1e.inference.folded`) where these cover the model; they are made on
first use and whenever the weights have changed. Nothing else is kept between calls, so threads may share a model.

Shapes: K queries of one picture; T tiles; h, w pixels at the mask head's resolution; H, W of the picture.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from self1e.errors import CheckpointError, PromptError, SettingError, ShortageError
from self1e.inference.compiling import check_backend
from self1e.inference.folded import FoldedModel, FoldedPicture, obstacle
from self1e.inference.loading import choose_device, choose_dtype, find_model, reading
from self1e.inference.masks import enlarge
from self1e.inference.memory import batch_memory, free_memory, is_shortage, release
from self1e.inference.processors import computes_in_bfloat16, fit_threads
from self1e.inference.quantising import is_quantised, loading_settings, quantise
from self1e.model import Self1EConfig, Self1EForConditionalGeneration, VisionFeatures
from self1e.processing.pictures import OpenedPicture, open_picture
from self1e.processing.processor import Self1EProcessor
from self1e.processing.prompts import SEG_TOKEN, KindChoice, check_queries
from self1e.settings import check_batch
from self1e.structures import Segmentation, TileGrid, emptied

if TYPE_CHECKING:
    from self1e.inference.semantic import SemanticMap
    from self1e.inference.session import Session

Exact = Literal["auto", "folded", "plain"]
"""How masks are computed: with folded weights where they cover the model, with them or not at all, or by the plain
modules. The three are equal up to rounding."""

_TILES_AT_ONCE = 16  # through the vision encoder; more gains nothing, and 12 are one picture's most
_HEAD_BUFFERS = 8  # maps of the plain mask head's full resolution that are alive together, counted in its code
_WIDE = 512  # width of a language model from which on products of matrices are what a CPU spends its time with
_WORDS = 64  # tokens of a usual row that are not the picture's
_FOLDING = Lock()  # of all segmenters: one of their own could not be pickled


@dataclass(frozen=True, eq=False)
class EncodedPicture:
    """A picture that went through the vision encoder, the projector and the fine branch.

    It saves these, and only these, for every further query. The language model's image tokens depend on the
    query (they see its [SEG]), so they are computed anew for each.
    """

    image: Image.Image = field(repr=False)
    """RGB, upright."""
    grid: TileGrid
    vision: VisionFeatures = field(repr=False)
    """On the model's device, of one picture; without ``fine`` if folded weights made it."""
    folded: FoldedPicture | None = field(default=None, repr=False)
    """What folded weights need of it, if they made it."""
    source: str = ""
    notes: tuple[str, ...] = ()
    """What a person might want to know about the file, see ``open_picture``."""
    encoder: str = field(default="", repr=False)
    """Which loaded model made it: features of one mean nothing to another."""

    @property
    def size_wh(self) -> tuple[int, int]:
        """Size of the upright picture in pixels."""
        return self.image.size


@dataclass(frozen=True, eq=False)
class _Tiles:
    """A picture that is opened and cut, but not yet encoded."""

    opened: OpenedPicture
    grid: TileGrid
    levels: np.ndarray
    """``(T, 3, S, S)``, uint8."""


@dataclass(frozen=True)
class _Row:
    """One query of one picture of a window."""

    picture: int
    query: str
    kind: KindChoice


def load(name: Any = "nano", *, device: Any = "auto", dtype: Any = "auto", compile: bool = False) -> Self1E:
    """Load a model, ready to segment.

    Args:
        name: ``"nano"`` (inside the package, no download), a folder, or a name on the Hugging Face hub.
            A folder of your own that is called nano is ``"./nano"``.
        device: ``"auto"`` takes CUDA, else Apple's MPS, else the CPU; or anything ``torch.device`` reads.
        dtype: ``"auto"`` is bfloat16 on a CUDA device that has it, and for models of 1B and more on a CPU with units
            for it (AMX); else float32: others gain little from 16 bits. Or ``"float32"``,
            ``"bfloat16"``, ``"float16"``, or a ``torch.dtype``; or ``"int8"``: as ``"auto"``, but with the language
            model's weights in 8 bits (`self1e.inference.quantising`), by torchao, or ``"int8-bitsandbytes"``.
        compile: Compile the model on first use, see `Self1E.compile`: minutes once per process, for less time per
            query on a GPU.

    Raises:
        CheckpointError: There is no such folder or repository, or what is in it does not fit.
        SettingError: This machine has no such device, there is no such dtype, or the model cannot be compiled.
    """
    chosen_device = choose_device(device)
    small = is_quantised(dtype)
    chosen_dtype = choose_dtype("auto" if small else dtype, chosen_device)
    settings = loading_settings(dtype, chosen_device) if small else {}
    if chosen_device.type == "cpu":
        fit_threads()
    shown, path = find_model(name)
    with reading(shown):
        if dtype == "auto" and chosen_device.type == "cpu" and computes_in_bfloat16():
            config: Any = Self1EConfig.from_pretrained(path)
            chosen_dtype = torch.bfloat16 if config.text_config.hidden_size >= _WIDE else chosen_dtype
        processor = Self1EProcessor.from_pretrained(path)
        model: Any = Self1EForConditionalGeneration.from_pretrained(path, dtype=chosen_dtype, **settings)
    if small and not settings:
        quantise(model)  # before it moves: the device never holds the wide weights
    ready = Self1E(model if settings else model.to(chosen_device), processor, name=shown)
    return ready.compile() if compile else ready


class Self1E:
    """A model with its processor: pictures and words in, masks out.

    Args:
        model: Is put into evaluation mode.
        processor: Of the same checkpoint.
        name: What messages and ``info`` call it.
    """

    def __init__(self, model: Self1EForConditionalGeneration, processor: Self1EProcessor, *, name: str = "") -> None:
        self.model = model.eval()
        self.processor = processor
        self.name = name or str(getattr(model, "name_or_path", "") or "unnamed")
        self._id = uuid.uuid4().hex
        self._folded: tuple[Any, FoldedModel] | None = None
        self._compiling: dict[str, Any] | None = None
        self._check_fit()

    def __getstate__(self) -> dict[str, Any]:
        """Leave folded weights out of copies: they belong to the weights they were made of."""
        return self.__dict__ | {"_folded": None}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.model.dtype

    @property
    def no_target_threshold(self) -> float | None:
        """Least score of a mask that counts as found; None if the model was not calibrated."""
        return getattr(self.model.config, "no_target_threshold", None)

    def __repr__(self) -> str:
        return f"<Self1E {self.name} on {self.device}, {str(self.dtype).removeprefix('torch.')}>"

    # ------------------------------------------------------------------ folded weights

    def refold(self) -> None:
        """Forget the folded weights, so that the next call folds anew.

        Needed only after weights were written where torch cannot see it, through ``.data`` or numpy (peft merges
        adapters that way). Optimizers, ``load_state_dict`` and moving the model are noticed.
        """
        self._folded = None

    def compile(self, backend: Any = "inductor", *, cuda_graphs: bool = True) -> Self1E:
        """Compile what segments: from the next call on, once per shape that is met, and again after weights change.

        Masks stay the same up to rounding. Shapes are few: words are padded to multiples of 16, and rows to one of some
        sizes. ``exact="plain"`` and ``chat`` are not compiled.

        Args:
            backend: Of ``torch.compile``; None compiles nothing, for CUDA graphs alone.
            cuda_graphs: On a CUDA device, launch one picture with few queries as one graph.

        Returns:
            This model.

        Raises:
            SettingError: Folded weights do not cover the model, or the compiler is missing.
        """
        reason = obstacle(self.model)
        if reason is not None:
            raise SettingError(f"compile: only folded weights are compiled, and they do not cover {reason}.")
        check_backend(backend, self.device)
        self._compiling = {"backend": backend, "cuda_graphs": cuda_graphs}
        self._folded = None
        return self

    def _engine(self, exact: Exact) -> FoldedModel | None:
        """Folded weights that are up to date, or None for the plain modules."""
        if exact not in get_args(Exact):
            raise SettingError(f"exact={exact!r} is unknown; choose one of {', '.join(get_args(Exact))}.")
        if exact == "plain":
            return None
        images = self.processor.image_processor
        normalising = (tuple(np.ravel(images.image_mean)), tuple(np.ravel(images.image_std)))
        with _FOLDING:
            if self._folded is not None and self._folded[0] == normalising and self._folded[1].is_current():
                return self._folded[1]
            self._folded = None
            reason = obstacle(self.model)
            if reason is None:
                mean, std = normalising
                self._folded = normalising, FoldedModel(self.model, image_mean=mean, image_std=std)
                if self._compiling is not None:
                    self._folded[1].compile(**self._compiling)
                return self._folded[1]
        if exact == "folded":
            raise SettingError(
                f"exact='folded', but folded weights do not cover {reason}. Use exact='auto' or 'plain'."
            )
        return None

    # ------------------------------------------------------------------ pictures

    def encode(self, picture: Any, *, max_tiles: int | None = None, exact: Exact = "auto") -> EncodedPicture:
        """Run everything that does not depend on words: vision encoder, projector, fine branch.

        Worth keeping for several calls about one picture: each then saves the vision features, and only these,
        because the language model's image tokens depend on the query. Several queries in one ``segment`` call
        share one encoding anyway.

        Args:
            picture: A path, bytes, an open binary file, a PIL picture, a numpy array or a torch tensor;
                EXIF orientation is applied, and any mode converted. See ``self1e.processing.pictures``.
            max_tiles: Most tiles, 1 to 12; left out, what the checkpoint says (published: 1).
            exact: See ``segment``. With ``"plain"`` the features hold F_V1^HQ.
        """
        engine = self._engine(exact)
        return self._encode_all([self._cut(picture, max_tiles)], engine)[0]

    def _cut(self, picture: Any, max_tiles: int | None) -> _Tiles:
        opened = picture if isinstance(picture, OpenedPicture) else open_picture(picture)
        levels, (rows, columns) = self.processor.image_processor.cut(opened.image, max_tiles)
        return _Tiles(opened, TileGrid(rows, columns), levels)

    @torch.inference_mode()
    def _encode_all(self, pictures: Sequence[_Tiles], engine: FoldedModel | None) -> list[EncodedPicture]:
        """Encode pictures together, a bounded number of tiles at once."""
        found: list[EncodedPicture] = []
        while len(found) < len(pictures):
            group, tiles = [], 0
            for picture in pictures[len(found) :]:
                if group and tiles + picture.grid.num_tiles > _TILES_AT_ONCE:
                    break
                group.append(picture)
                tiles += picture.grid.num_tiles
            levels = np.concatenate([picture.levels for picture in group])
            grids = [picture.grid.shape_hw for picture in group]
            if engine is None:
                pixel_values = torch.from_numpy(self.processor.image_processor.normalise(levels))
                vision = self.model.encode_pictures(pixel_values.to(self.device, self.dtype), grids)
            else:
                vision = engine.encode(torch.from_numpy(levels).to(self.device), grids)
            for picture, features in zip(group, _split(vision), strict=True):
                opened = picture.opened
                folded = engine.fold_pictures(features, self._prefix())[0] if engine is not None else None
                found.append(
                    EncodedPicture(opened.image, picture.grid, features, folded, opened.source, opened.notes, self._id)
                )
        return found

    def _prefix(self) -> list[int]:
        """Token ids before every picture."""
        ids = self.processor.tokenize_conversation([("x", None)], num_tiles=1).input_ids
        return ids[: ids.index(self.processor.image_token_id)]

    def _check_encoded(self, encoded: EncodedPicture, max_tiles: int | None, engine: FoldedModel | None) -> None:
        if encoded.encoder != self._id:
            raise SettingError(f"{encoded.source}: was encoded by another model; encode it again with this one.")
        if engine is not None and encoded.folded is not None and encoded.folded.made_by != engine.name:
            raise SettingError(f"{encoded.source}: the model's weights changed since it was encoded; encode it again.")
        if max_tiles is not None:
            raise SettingError(
                f"max_tiles={max_tiles} comes too late: {encoded.source} is encoded as {encoded.grid.rows} x "
                f"{encoded.grid.columns} tiles. Pass max_tiles to encode()."
            )

    # ------------------------------------------------------------------ masks

    def segment(
        self,
        picture: Any,
        queries: str | Sequence[str],
        *,
        kind: KindChoice | Sequence[KindChoice] = "auto",
        template: str | None = None,
        max_tiles: int | None = None,
        threshold: float = 0.0,
        return_logits: bool = False,
        batch_size: int | None = None,
        exact: Exact = "auto",
        reject: bool = True,
    ) -> Segmentation:
        """Find what the words mean.

        Args:
            picture: What ``encode`` takes, or what it returned.
            queries: One phrase or sentence, or K of them. They are not trusted: words that spell a control
                token of the model stay words.
            kind: ``"phrase"`` ("the red cup"), ``"sentence"`` ("What could I drink from?"), or ``"auto"`` to
                guess; or one for each query. The two get different prompts, both as published.
            template: A question of your own with ``{text}``, in place of the published ones.
            max_tiles: Most tiles, 1 to 12; left out, what the checkpoint says (published: 1).
            threshold: Foreground is where the logit is strictly above it; published: 0.
            return_logits: Keep the logits ``(K, h, w)`` in the result.
            batch_size: Most queries at once; left out, as many as fit into a quarter of the free memory, on a CPU
                into 128 MB. Where memory is short nevertheless, fewer at once are tried. Masks do not depend on it
                beyond rounding.
            exact: ``"auto"`` computes with folded weights, which give the same masks with less work, or with the
                plain modules where a switch, the language model or adapters need them. ``"plain"`` forces the
                plain modules, ``"folded"`` the folded weights.
            reject: Empty the masks whose score is below the model's ``no_target_threshold``, if it was calibrated
                (`self1e.evaluation.calibration`). False keeps every mask as the logits have it.

        Returns:
            One mask per query, in their order; an empty one says "not there".

        Raises:
            PromptError: A query is empty, or nothing was asked.
            PictureError: The picture cannot be read.
            SettingError: A setting cannot work; with ``exact="folded"`` it says why the folds do not cover the model.
            ShortageError: Not even one query fits into the memory.
        """
        return self.segment_batch(
            [(picture, queries)],
            kind=kind,
            template=template,
            max_tiles=max_tiles,
            threshold=threshold,
            return_logits=return_logits,
            batch_size=batch_size,
            exact=exact,
            reject=reject,
        )[0]

    def segment_batch(
        self,
        requests: Iterable[tuple[Any, str | Sequence[str]]],
        *,
        kind: KindChoice | Sequence[KindChoice] = "auto",
        template: str | None = None,
        max_tiles: int | None = None,
        threshold: float = 0.0,
        return_logits: bool = False,
        batch_size: int | None = None,
        exact: Exact = "auto",
        reject: bool = True,
    ) -> list[Segmentation]:
        """Find things in several pictures, whose queries share batches.

        Args:
            requests: ``(picture, queries)`` each, see ``segment``.
            kind: One for all, or one per query (then every picture has that many queries).
            template: See ``segment``, like all that follow.
            max_tiles: Does not apply to encoded pictures.
            threshold: A finite number.
            return_logits: Keep the logits.
            batch_size: Most queries at once, over all pictures.
            exact: See ``segment``.
            reject: See ``segment``.

        Returns:
            One result per request, in their order; equal to ``segment`` on each, up to rounding.
        """
        check_batch(threshold=threshold, batch_size=batch_size)
        least_score = self.no_target_threshold if reject else None
        # All words are checked before the first picture is opened: a typing error should not cost minutes.
        asked = [(picture, check_queries(queries, kind, template)) for picture, queries in _pairs(requests)]
        results: list[Segmentation] = []
        window: list[tuple[EncodedPicture | _Tiles, list[tuple[str, KindChoice]]]] = []
        engine = self._engine(exact)
        room = self._room(batch_size, engine)
        for picture, queries in asked:
            if isinstance(picture, EncodedPicture):
                self._check_encoded(picture, max_tiles, engine)
                window.append((picture, queries))
            else:
                window.append((self._cut(picture, max_tiles), queries))
            # Pictures wait for each other only until they fill a batch: features of few are held at a time.
            if sum(self._cost(entry.grid, batch_size) * len(words) for entry, words in window) >= room:
                results += self._segment_window(
                    window, template, threshold, return_logits, batch_size, engine, least_score
                )
                window = []
        return results + self._segment_window(
            window, template, threshold, return_logits, batch_size, engine, least_score
        )

    def _cost(self, grid: TileGrid, batch_size: int | None) -> int:
        return grid.num_tiles * self.processor.image_seq_length + _WORDS if batch_size is None else 1

    def _room(self, batch_size: int | None, engine: FoldedModel | None) -> int:
        """How much one pass may hold: rows if the caller says so, else tokens over all rows."""
        if batch_size is not None:
            return batch_size
        return max(batch_memory(self.device) // (self._numbers(engine) * self.dtype.itemsize), 1)

    def _numbers(self, engine: FoldedModel | None) -> int:
        """How many numbers are alive together per token of a row."""
        if engine is not None:
            return engine.numbers_per_token
        config: Any = self.model.config
        # The widest maps are the mask head's, two pixels per patch and side (unless a switch makes them smaller).
        return _HEAD_BUFFERS * (2 * config.compression) ** 2 * config.text_config.hidden_size

    def _segment_window(
        self,
        window: Sequence[tuple[EncodedPicture | _Tiles, list[tuple[str, KindChoice]]]],
        template: str | None,
        threshold: float,
        return_logits: bool,
        batch_size: int | None,
        engine: FoldedModel | None,
        least_score: float | None,
    ) -> list[Segmentation]:
        """Segment a few pictures, their queries batched together."""
        fresh = iter(self._encode_all([entry for entry, _ in window if isinstance(entry, _Tiles)], engine))
        pictures = [entry if isinstance(entry, EncodedPicture) else next(fresh) for entry, _ in window]
        rows = [_Row(index, query, kind) for index, (_, words) in enumerate(window) for query, kind in words]
        logits = iter(self._mask_logits(pictures, rows, template, batch_size, engine))
        return [
            finish(
                picture,
                [query for query, _ in words],
                [next(logits) for _ in words],
                threshold=threshold,
                return_logits=return_logits,
                least_score=least_score,
            )
            for picture, (_, words) in zip(pictures, window, strict=True)
        ]

    @torch.inference_mode()
    def _mask_logits(
        self,
        pictures: Sequence[EncodedPicture],
        rows: Sequence[_Row],
        template: str | None,
        batch_size: int | None,
        engine: FoldedModel | None,
    ) -> list[Tensor]:
        """Run the model on every row; return logits ``(h, w)``, float32, per row."""
        found: list[Tensor | None] = [None] * len(rows)
        answer = SEG_TOKEN * self.model.config.num_seg_tokens
        ready = _Folded(engine, pictures, self._prefix()) if engine is not None else _Plain(self.model, pictures)
        waiting = self._batches(pictures, rows, batch_size, engine)[::-1]
        most = len(rows)
        while waiting:
            batch = waiting.pop()
            if len(batch) > most:
                waiting += [batch[most:], batch[:most]]
                continue
            members = [rows[index] for index in batch]
            inputs = self.processor.segmentation_inputs(
                [row.query for row in members],
                num_tiles=[pictures[row.picture].grid.num_tiles for row in members],
                kind=[row.kind for row in members],
                template=template,
                answer=answer,
            )
            self._check_length(inputs["input_ids"].shape[1])
            logits = _unless_short(lambda i=inputs, m=members: ready.mask_logits(i, [row.picture for row in m]))
            if logits is not None:
                for index, one in zip(batch, logits, strict=True):
                    found[index] = one.float()
                continue
            release(self.device)
            if len(batch) == 1:
                raise ShortageError(self._shortage(pictures[members[0].picture].grid, engine))
            most = len(batch) // 2
            waiting.append(batch)
        return [logits for logits in found if logits is not None]

    def _check_length(self, tokens: int) -> None:
        """Refuse what lies beyond the model's positions: it would be guessed at, in much memory."""
        reach = getattr(self.model.config.text_config, "max_position_embeddings", None)
        if reach is not None and tokens > reach:
            raise PromptError(
                f"A query makes {tokens} tokens with its picture, and this model's positions reach {reach}: say it "
                "shorter, or lower max_tiles."
            )

    def _shortage(self, grid: TileGrid, engine: FoldedModel | None) -> str:
        needed = self._cost(grid, None) * self._numbers(engine) * self.dtype.itemsize
        return (
            f"Out of memory: one query on {grid.num_tiles} tile(s) takes about {needed / 2**20:.0f} MB beside the "
            f"model, and {free_memory(self.device) / 2**20:.0f} MB are free on {self.device}. "
            "Pass a smaller max_tiles, load the model in 16 bits (dtype='bfloat16'), or free memory."
        )

    def _batches(
        self,
        pictures: Sequence[EncodedPicture],
        rows: Sequence[_Row],
        batch_size: int | None,
        engine: FoldedModel | None,
    ) -> list[list[int]]:
        """Group rows; those of like length go together, because shorter ones are padded."""
        room = self._room(batch_size, engine)
        # Beside rows twice as long, padding costs more than another pass. Folded rows of one pass are equally long.
        longest = 2 if engine is None else 1
        grids = [pictures[row.picture].grid for row in rows]
        order = [(grid.num_tiles, row.picture) for grid, row in zip(grids, rows, strict=True)]
        if engine is not None and sum(self._cost(grid, batch_size) for grid in grids) > room:
            # Rows of one picture with equally many words share the first layer: into one batch with them.
            tokenizer: Any = self.processor.tokenizer
            lengths = [len(ids) for ids in tokenizer([row.query for row in rows], add_special_tokens=False).input_ids]
            order = [(*key, row.kind, length) for key, row, length in zip(order, rows, lengths, strict=True)]
        batches: list[list[int]] = []
        cost = 0
        previous = 0
        for index in sorted(range(len(rows)), key=order.__getitem__):  # stable: in order
            tiles = grids[index].num_tiles
            cost += self._cost(grids[index], batch_size)
            if not batches or cost > room or tiles > longest * previous:
                batches.append([])
                cost, previous = self._cost(grids[index], batch_size), tiles
            batches[-1].append(index)
        return batches

    @torch.inference_mode()
    def mask_logits(
        self,
        picture: Any,
        queries: str | Sequence[str],
        *,
        kind: KindChoice | Sequence[KindChoice] = "auto",
        template: str | None = None,
        max_tiles: int | None = None,
        batch_size: int | None = None,
        exact: Exact = "auto",
    ) -> Tensor:
        """Return logits at the mask head's resolution, float32 ``(K, h, w)``, and make no masks of them.

        For comparing classes pixel by pixel; arguments as for ``segment``.
        """
        check_batch(threshold=0.0, batch_size=batch_size)
        asked = check_queries(queries, kind, template)
        engine = self._engine(exact)
        encoded = self._encoded(picture, max_tiles, exact, engine)
        rows = [_Row(0, query, known) for query, known in asked]
        return torch.stack(self._mask_logits([encoded], rows, template, batch_size, engine))

    def semantic(
        self,
        picture: Any,
        classes: Sequence[str],
        *,
        background: float | None = 0.0,
        kind: KindChoice = "phrase",
        template: str | None = None,
        max_tiles: int | None = None,
        batch_size: int | None = None,
        exact: Exact = "auto",
    ) -> SemanticMap:
        """Give every pixel the class whose logit is highest, or none.

        Args:
            picture: What ``encode`` takes, or what it returned.
            classes: Names, one query each; equal logits go to the earlier one.
            background: A pixel belongs to a class if its highest logit is strictly above this logit, as for
                ``threshold`` of ``segment``. None gives every pixel a class, as benchmarks of class maps do.
            kind: See ``segment``, like what follows; by default names are asked as phrases.
            template: A question of your own with ``{text}``.
            max_tiles: Most tiles, 1 to 12.
            batch_size: Most classes at once; left out, as many as free memory allows, 32 at most.
            exact: How masks are computed.
        """
        from self1e.inference.semantic import check_classes, find_classes

        classes = check_classes(classes)  # before the picture is opened
        check_batch(threshold=background or 0.0, batch_size=batch_size)
        return find_classes(
            self,
            self._encoded(picture, max_tiles, exact, self._engine(exact)),
            classes,
            background=background,
            kind=kind,
            template=template,
            batch_size=batch_size,
            exact=exact,
        )

    @torch.inference_mode()
    def read_rows(
        self, encoded: EncodedPicture, rows: Sequence[Sequence[int]], *, exact: Exact = "auto", only_last: bool = False
    ) -> list[Tensor]:
        """Read the masks of complete texts about one picture in one pass under the dual mask.

        Args:
            encoded: From ``encode``.
            rows: Token ids of each, with at least one [SEG].
            exact: See ``segment``; rows with several [SEG] are left to the plain modules, unless only the last is read.
            only_last: Read the last query of each row; pixels do not see the [SEG] of earlier ones.

        Returns:
            Logits per row, float32 ``(K, h, w)``, one map for each of its [SEG].
        """
        engine = self._engine(exact)
        self._check_encoded(encoded, None, engine)
        seg = self.processor.seg_token_id
        cut = [list(row[: len(row) - list(reversed(row)).index(seg)]) for row in rows]  # what follows has no influence
        if engine is not None and (only_last or all(row.count(seg) == 1 for row in cut)):
            ready = _Folded(engine, [encoded], self._prefix())
            return [logits.float()[None] for logits in ready.mask_logits(self.processor.pad(cut), [0] * len(cut))]
        ready = _Plain(self.model, [encoded])
        inputs = self.processor.pad(cut)
        found = ready.all_mask_logits(inputs, [0] * len(cut), only_query=-1 if only_last else None)
        return [logits.float() for logits in found]

    def _encoded(self, picture: Any, max_tiles: int | None, exact: Exact, engine: FoldedModel | None) -> EncodedPicture:
        """Encode, unless it is."""
        if not isinstance(picture, EncodedPicture):
            return self.encode(picture, max_tiles=max_tiles, exact=exact)
        self._check_encoded(picture, max_tiles, engine)
        return picture

    # ------------------------------------------------------------------ text

    def chat(self, picture: Any, question: str, *, max_new_tokens: int = 64, max_tiles: int | None = None) -> str:
        """Answer a question in words, greedily and without masks.

        Args:
            picture: What ``encode`` takes, or what it returned; None for a question about no picture.
            question: Not trusted: words that spell a control token stay words.
            max_new_tokens: Longest answer.
            max_tiles: Most tiles, 1 to 12.
        """
        from self1e.inference.answering import answer_questions

        requests = [(picture, [question])]
        return answer_questions(self, requests, max_new_tokens=max_new_tokens, max_tiles=max_tiles)[0][0]

    def session(self, picture: Any, **settings: Any) -> Session:
        """Begin a conversation about a picture, with masks: see `self1e.inference.session.Session`."""
        from self1e.inference.session import Session

        return Session(self, picture, **settings)

    # ------------------------------------------------------------------ facts

    def info(self) -> dict[str, Any]:
        """Say what this model is: sizes, switches, vocabulary, memory by dtype and tiles; all JSON-able."""
        from self1e.inference.info import describe

        facts = describe(self.model.config, self.processor, name=self.name)
        return facts | {"device": str(self.device), "dtype": str(self.dtype).removeprefix("torch.")}

    def _check_fit(self) -> None:
        """Compare model and processor: two checkpoints mixed up give masks, but wrong ones."""
        config, processor = self.model.config, self.processor
        if config.seg_token_id is None:
            raise CheckpointError(
                f"{self.name}: config.seg_token_id is not set, so this model was not trained to segment. "
                "Load a SELF1E checkpoint, or train this one first."
            )
        tokens = (config.patches_per_side // config.compression) ** 2
        expected = {
            "tile size": (config.tile_size, processor.image_processor.tile_size),
            "image tokens per tile": (tokens, processor.image_seq_length),
            "id of [SEG]": (config.seg_token_id, processor.seg_token_id),
            "id of <IMG_CONTEXT>": (config.image_token_id, processor.image_token_id),
        }
        wrong = [f"{what} {model} / {other}" for what, (model, other) in expected.items() if model != other]
        if wrong:
            raise CheckpointError(
                f"{self.name}: model and processor differ in {', '.join(wrong)}; load both from one checkpoint."
            )


class _Plain:
    """Pictures of a window, as the plain modules take them."""

    def __init__(self, model: Self1EForConditionalGeneration, pictures: Sequence[EncodedPicture]) -> None:
        self._model = model
        visions = [picture.vision for picture in pictures]
        # What folded weights encoded lacks the fine features: once per picture, not once per batch.
        self._visions = [
            replace(vision, fine=model.fine_features(vision.patches)) if vision.fine is None else vision
            for vision in visions
        ]

    def mask_logits(self, inputs: dict[str, Tensor], picture_of_row: Sequence[int]) -> list[Tensor]:
        found = self.all_mask_logits(inputs, picture_of_row)
        assert all(len(logits) == 1 for logits in found), "one mask per row"
        return [logits[0] for logits in found]

    def all_mask_logits(
        self, inputs: dict[str, Tensor], picture_of_row: Sequence[int], only_query: int | None = None
    ) -> list[Tensor]:
        """Per row one map for each of its queries, ``(K, h, w)``, or for one of them."""
        used = sorted(set(picture_of_row))
        output = self._model(
            **{name: tensor.to(self._model.device) for name, tensor in inputs.items()},
            vision=_join([self._visions[picture] for picture in used]),
            picture_of_row=[used.index(picture) for picture in picture_of_row],
            only_query=only_query,
            logits_to_keep=1,  # next-token scores of every position would be the largest tensor of all
        )
        return list(output.mask_logits)


class _Folded:
    """Pictures of a window, as folded weights take them."""

    def __init__(self, engine: FoldedModel, pictures: Sequence[EncodedPicture], prefix: Sequence[int]) -> None:
        self._engine = engine
        self._pictures: list[FoldedPicture] = []
        for picture in pictures:
            folded = picture.folded
            # Encoded by the plain modules, or before the processor got another system message.
            if folded is None or (folded.memory is not None and folded.prefix != tuple(prefix)):
                folded = engine.fold_pictures(picture.vision, prefix)[0]
            self._pictures.append(folded)

    def mask_logits(self, inputs: dict[str, Tensor], picture_of_row: Sequence[int]) -> list[Tensor]:
        lengths = inputs["attention_mask"].sum(1).tolist()
        rows = [ids[:length] for ids, length in zip(inputs["input_ids"].tolist(), lengths, strict=True)]
        return self._engine.mask_logits(rows, [self._pictures[picture] for picture in picture_of_row])


def _unless_short(work: Callable[[], list[Tensor]]) -> list[Tensor] | None:
    """Do it, or give None if memory is short; then what was begun is free again when this returns."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        return None


def _pairs(requests: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
    for index, request in enumerate(requests):
        if not isinstance(request, tuple | list) or len(request) != 2:
            raise SettingError(f"Request {index} is {type(request).__name__}; expected a pair (picture, queries).")
        yield request[0], request[1]


def finish(
    picture: EncodedPicture,
    queries: Sequence[str],
    logits: Sequence[Tensor | None],
    *,
    threshold: float = 0.0,
    return_logits: bool = False,
    least_score: float | None = None,
    text: Sequence[str] = (),
) -> Segmentation:
    """Bring logits to the picture's size, one query at a time: full-size masks exist only as run-length codes.

    Args:
        picture: Whose masks they are.
        queries: What was asked, K of them.
        logits: Float32 ``(h, w)`` per query; None where the model gave no mask, which is an empty one.
        threshold: Foreground is strictly above it.
        return_logits: Keep them; then none may be missing.
        least_score: Masks that score less become empty.
        text: What the model said per query.
    """
    found = [None if one is None else enlarge(one, picture.size_wh, threshold) for one in logits]
    masks = emptied(found, picture.size_wh, least_score)
    return Segmentation(
        queries=tuple(queries),
        rles=tuple(rle for rle, _ in masks),
        scores=np.array([score for _, score in masks], dtype=np.float32),
        size_wh=picture.size_wh,
        image=picture.image,
        text=tuple(text),
        source=picture.source,
        mask_logits=torch.stack([one for one in logits if one is not None]).cpu().numpy() if return_logits else None,
    )


def _split(vision: VisionFeatures) -> list[VisionFeatures]:
    """Take the features of several pictures apart."""
    counts = [rows * columns for rows, columns in vision.tile_grids]
    fine = [None] * len(counts) if vision.fine is None else vision.fine.split(counts)
    parts = zip(vision.coarse.split(counts), fine, vision.patches.split(counts), vision.tile_grids, strict=True)
    # Copies, where there are several: a view would keep the features of all the others alive.
    return [
        VisionFeatures(*(None if x is None else x if len(counts) == 1 else x.clone() for x in tensors), [grid])  # type: ignore[arg-type]
        for *tensors, grid in parts
    ]


def _join(parts: Sequence[VisionFeatures]) -> VisionFeatures:
    """Put the features of several pictures together."""
    if len(parts) == 1:
        return parts[0]
    fine = [part.fine for part in parts if part.fine is not None]
    return VisionFeatures(
        coarse=torch.cat([part.coarse for part in parts]),
        fine=torch.cat(fine) if fine else None,
        patches=torch.cat([part.patches for part in parts]),
        tile_grids=[grid for part in parts for grid in part.tile_grids],
    )
