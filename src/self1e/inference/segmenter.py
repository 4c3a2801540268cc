"""From words to masks: load a model, encode a picture once, ask for things in it.

    model = load("nano")
    encoded = model.encode("street.jpg")
    result = model.segment(encoded, ["the person", "the footwear"])

One query is one row of text: the system message, the picture's tokens, the question, and [SEG] as the given
answer. Rows run together in batches, also those of different pictures; a row's mask does not depend on its
neighbours. Nothing is kept between calls, so threads may share a model.

Shapes: K queries of one picture; T tiles; h, w pixels at the mask head's resolution; H, W of the picture.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from self1e.errors import CheckpointError, PromptError, SettingError
from self1e.inference.loading import choose_device, choose_dtype, find_model, reading
from self1e.inference.masks import enlarge
from self1e.model import Self1EForConditionalGeneration, VisionFeatures
from self1e.processing.pictures import OpenedPicture, open_picture
from self1e.processing.processor import Self1EProcessor
from self1e.processing.prompts import SEG_TOKEN, Kind, segmentation_question
from self1e.structures import Segmentation, TileGrid

KindChoice = Kind | Literal["auto"]

_TILES_AT_ONCE = 16  # through the vision encoder; more gains nothing, and 12 are one picture's most
_HEAD_BUFFERS = 8  # maps of the mask head's full resolution that are alive together, counted in its code
_HEAD_MEMORY = {"cpu": 2**28, "mps": 2**30}  # bytes of those maps; on a CPU small batches stay in its caches


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
    """On the model's device, of one picture."""
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
    pixel_values: Tensor
    """``(T, 3, S, S)``, float32, on the CPU."""


@dataclass(frozen=True)
class _Row:
    """One query of one picture of a window."""

    picture: int
    query: str
    kind: KindChoice


def load(name: Any = "nano", *, device: Any = "auto", dtype: Any = "auto") -> Self1E:
    """Load a model, ready to segment.

    Args:
        name: ``"nano"`` (inside the package, no download), a folder, or a name on the Hugging Face hub.
            A folder of your own that is called nano is ``"./nano"``.
        device: ``"auto"`` takes CUDA, else Apple's MPS, else the CPU; or anything ``torch.device`` reads.
        dtype: ``"auto"`` is bfloat16 on a CUDA device that has it, else float32: CPU and MPS gain little from
            16 bits, and float32 is what the published numbers are compared with. Or ``"float32"``,
            ``"bfloat16"``, ``"float16"``, or a ``torch.dtype``.

    Raises:
        CheckpointError: There is no such folder or repository, or what is in it does not fit.
        SettingError: This machine has no such device, or there is no such dtype.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    shown, path = find_model(name)
    with reading(shown):
        processor = Self1EProcessor.from_pretrained(path)
        model: Any = Self1EForConditionalGeneration.from_pretrained(path, dtype=chosen_dtype)
    return Self1E(model.to(chosen_device), processor, name=shown)


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
        self._check_fit()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.model.dtype

    def __repr__(self) -> str:
        return f"<Self1E {self.name} on {self.device}, {str(self.dtype).removeprefix('torch.')}>"

    # ------------------------------------------------------------------ pictures

    def encode(self, picture: Any, *, max_tiles: int | None = None) -> EncodedPicture:
        """Run everything that does not depend on words: vision encoder, projector, fine branch.

        Worth keeping for several calls about one picture: each then saves the vision features, and only these,
        because the language model's image tokens depend on the query. Several queries in one ``segment`` call
        share one encoding anyway.

        Args:
            picture: A path, bytes, an open binary file, a PIL picture, a numpy array or a torch tensor;
                EXIF orientation is applied, and any mode converted. See ``self1e.processing.pictures``.
            max_tiles: Most tiles, 1 to 12; left out, what the checkpoint says (published: 1).
        """
        return self._encode_all([self._cut(picture, max_tiles)])[0]

    def _cut(self, picture: Any, max_tiles: int | None) -> _Tiles:
        opened = picture if isinstance(picture, OpenedPicture) else open_picture(picture)
        batch = self.processor.image_processor(opened.image, max_tiles=max_tiles)
        rows, columns = batch["tile_grids"][0].tolist()
        return _Tiles(opened, TileGrid(rows, columns), batch["pixel_values"])

    @torch.inference_mode()
    def _encode_all(self, pictures: Sequence[_Tiles]) -> list[EncodedPicture]:
        """Encode pictures together, a bounded number of tiles at once."""
        found: list[EncodedPicture] = []
        while len(found) < len(pictures):
            group, tiles = [], 0
            for picture in pictures[len(found) :]:
                if group and tiles + picture.grid.num_tiles > _TILES_AT_ONCE:
                    break
                group.append(picture)
                tiles += picture.grid.num_tiles
            pixel_values = torch.cat([picture.pixel_values for picture in group]).to(self.device, self.dtype)
            vision = self.model.encode_pictures(pixel_values, [picture.grid.shape_hw for picture in group])
            for picture, features in zip(group, _split(vision), strict=True):
                opened = picture.opened
                found.append(
                    EncodedPicture(opened.image, picture.grid, features, opened.source, opened.notes, self._id)
                )
        return found

    def _check_encoded(self, encoded: EncodedPicture, max_tiles: int | None) -> None:
        if encoded.encoder != self._id:
            raise SettingError(f"{encoded.source}: was encoded by another model; encode it again with this one.")
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
            batch_size: Most queries at once; left out, as many as fit well. Masks do not depend on it beyond
                rounding.

        Returns:
            One mask per query, in their order; an empty one says "not there".

        Raises:
            PromptError: A query is empty, or nothing was asked.
            PictureError: The picture cannot be read.
        """
        return self.segment_batch(
            [(picture, queries)],
            kind=kind,
            template=template,
            max_tiles=max_tiles,
            threshold=threshold,
            return_logits=return_logits,
            batch_size=batch_size,
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

        Returns:
            One result per request, in their order; equal to ``segment`` on each, up to rounding.
        """
        if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
            raise SettingError(f"batch_size={batch_size!r} must be at least 1, or None to choose.")
        if not np.isfinite(threshold):
            raise SettingError(f"threshold={threshold!r} must be a finite number; 0 is the published one.")
        # All words are checked before the first picture is opened: a typing error should not cost minutes.
        asked = [(picture, check_queries(queries, kind, template)) for picture, queries in _pairs(requests)]
        results: list[Segmentation] = []
        window: list[tuple[EncodedPicture | _Tiles, list[tuple[str, KindChoice]]]] = []
        room = self._room(batch_size)
        for picture, queries in asked:
            if isinstance(picture, EncodedPicture):
                self._check_encoded(picture, max_tiles)
                window.append((picture, queries))
            else:
                window.append((self._cut(picture, max_tiles), queries))
            # Pictures wait for each other only until they fill a batch: features of few are held at a time.
            if sum(self._cost(entry.grid, batch_size) * len(words) for entry, words in window) >= room:
                results += self._segment_window(window, template, threshold, return_logits, batch_size)
                window = []
        return results + self._segment_window(window, template, threshold, return_logits, batch_size)

    @staticmethod
    def _cost(grid: TileGrid, batch_size: int | None) -> int:
        return grid.num_tiles if batch_size is None else 1

    def _room(self, batch_size: int | None) -> int:
        """How much one forward pass may hold: rows if the caller says so, else tiles over all rows."""
        if batch_size is not None:
            return batch_size
        config: Any = self.model.config
        # The widest maps are the mask head's, two pixels per patch and side (unless a switch makes them smaller).
        one_tile = _HEAD_BUFFERS * (2 * config.patches_per_side) ** 2 * config.text_config.hidden_size
        if self.device.type == "cuda":
            memory = torch.cuda.mem_get_info(self.device)[0] // 4
        else:
            memory = _HEAD_MEMORY.get(self.device.type, 2**30)
        return max(memory // (one_tile * self.dtype.itemsize), 1)

    def _segment_window(
        self,
        window: Sequence[tuple[EncodedPicture | _Tiles, list[tuple[str, KindChoice]]]],
        template: str | None,
        threshold: float,
        return_logits: bool,
        batch_size: int | None,
    ) -> list[Segmentation]:
        """Segment a few pictures, their queries batched together."""
        fresh = iter(self._encode_all([entry for entry, _ in window if isinstance(entry, _Tiles)]))
        pictures = [entry if isinstance(entry, EncodedPicture) else next(fresh) for entry, _ in window]
        rows = [_Row(index, query, kind) for index, (_, words) in enumerate(window) for query, kind in words]
        logits = iter(self._mask_logits(pictures, rows, template, batch_size))
        return [
            _finish(picture, [query for query, _ in words], [next(logits) for _ in words], threshold, return_logits)
            for picture, (_, words) in zip(pictures, window, strict=True)
        ]

    @torch.inference_mode()
    def _mask_logits(
        self, pictures: Sequence[EncodedPicture], rows: Sequence[_Row], template: str | None, batch_size: int | None
    ) -> list[Tensor]:
        """Run the model on every row; return logits ``(h, w)``, float32, per row."""
        found: list[Tensor | None] = [None] * len(rows)
        answer = SEG_TOKEN * self.model.config.num_seg_tokens
        for batch in self._batches([pictures[row.picture].grid for row in rows], batch_size):
            members = [rows[index] for index in batch]
            used = sorted({row.picture for row in members})
            inputs = self.processor.segmentation_inputs(
                [row.query for row in members],
                num_tiles=[pictures[row.picture].grid.num_tiles for row in members],
                kind=[row.kind for row in members],
                template=template,
                answer=answer,
            )
            output = self.model(
                **{name: tensor.to(self.device) for name, tensor in inputs.items()},
                vision=_join([pictures[picture].vision for picture in used]),
                picture_of_row=[used.index(row.picture) for row in members],
                logits_to_keep=1,  # next-token scores of every position would be the largest tensor of all
            )
            for index, logits in zip(batch, output.mask_logits, strict=True):
                assert len(logits) == 1, "one mask per row"
                found[index] = logits[0].float()
        return [logits for logits in found if logits is not None]

    def _batches(self, grids: Sequence[TileGrid], batch_size: int | None) -> list[list[int]]:
        """Group rows; those of like length go together, because shorter ones are padded."""
        room = self._room(batch_size)
        batches: list[list[int]] = []
        cost = 0
        previous = 0
        for index in sorted(range(len(grids)), key=lambda index: grids[index].num_tiles):  # stable: in order
            tiles = grids[index].num_tiles
            cost += self._cost(grids[index], batch_size)
            # Beside rows twice as long, padding costs more than another pass.
            if not batches or cost > room or tiles > 2 * previous:
                batches.append([])
                cost, previous = self._cost(grids[index], batch_size), tiles
            batches[-1].append(index)
        return batches

    # ------------------------------------------------------------------ text

    @torch.inference_mode()
    def chat(self, picture: Any, question: str, *, max_new_tokens: int = 64, max_tiles: int | None = None) -> str:
        """Answer a question in words, greedily and without masks.

        Args:
            picture: What ``encode`` takes, or what it returned; None for a question about no picture.
            question: Not trusted: words that spell a control token stay words.
            max_new_tokens: Longest answer.
            max_tiles: Most tiles, 1 to 12.
        """
        if not isinstance(question, str) or not question.strip():
            raise PromptError(f"question={question!r}; expected words.")
        if max_new_tokens < 1:
            raise SettingError(f"max_new_tokens={max_new_tokens} must be at least 1.")
        extra: dict[str, Any] = {}
        tiles = 0
        if picture is not None:
            if isinstance(picture, EncodedPicture):
                self._check_encoded(picture, max_tiles)
                encoded = picture
            else:
                encoded = self.encode(picture, max_tiles=max_tiles)
            tiles = encoded.grid.num_tiles
            extra = {"vision": encoded.vision, "picture_of_row": [0]}
        ids = self.processor.tokenize_conversation([(question.strip(), None)], num_tiles=tiles).input_ids
        input_ids = torch.tensor([ids], device=self.device)
        model: Any = self.model  # its `generate` is typed by a protocol that transformers' models do not meet
        output: Any = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=self.processor.turn_end_id,
            pad_token_id=self.processor.pad_token_id,
            **extra,
        )
        text: Any = self.processor.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
        return text.strip()

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


def check_queries(
    queries: str | Sequence[str], kind: KindChoice | Sequence[KindChoice] = "auto", template: str | None = None
) -> list[tuple[str, KindChoice]]:
    """Pair every query with its kind, or say what is wrong with it.

    Args:
        queries: One, or several.
        kind: One for all, or one each.
        template: Is checked too, see ``segmentation_question``.
    """
    if isinstance(queries, str):
        queries = [queries]
    if not isinstance(queries, Iterable):
        raise PromptError(f"queries is {queries!r:.80}; expected a string, or several.")
    texts = list(queries)
    if not texts:
        raise PromptError("Found no query; ask for at least one thing, e.g. 'the red cup'.")
    kinds: list[KindChoice] = [kind] * len(texts) if isinstance(kind, str) else list(kind)  # type: ignore[list-item]
    if len(kinds) != len(texts):
        raise PromptError(f"Found {len(kinds)} kinds for {len(texts)} queries; pass one for all, or one each.")
    for index, (text, known) in enumerate(zip(texts, kinds, strict=True)):
        if not isinstance(text, str):
            raise PromptError(f"Query {index} is {text!r:.80} ({type(text).__name__}); expected a string.")
        segmentation_question(text, known, template)
    return list(zip(texts, kinds, strict=True))


def _pairs(requests: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
    for index, request in enumerate(requests):
        if not isinstance(request, tuple | list) or len(request) != 2:
            raise SettingError(f"Request {index} is {type(request).__name__}; expected a pair (picture, queries).")
        yield request[0], request[1]


def _finish(
    picture: EncodedPicture, queries: Sequence[str], logits: Sequence[Tensor], threshold: float, return_logits: bool
) -> Segmentation:
    """Bring logits to the picture's size, one query at a time: full-size masks exist only as run-length codes."""
    masks = [enlarge(one, picture.size_wh, threshold) for one in logits]
    return Segmentation(
        queries=tuple(queries),
        rles=tuple(rle for rle, _ in masks),
        scores=np.array([score for _, score in masks], dtype=np.float32),
        size_wh=picture.size_wh,
        image=picture.image,
        source=picture.source,
        mask_logits=torch.stack(list(logits)).cpu().numpy() if return_logits else None,
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
