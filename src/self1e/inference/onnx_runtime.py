"""An exported model at work, without torch: numpy, Pillow, tokenizers and onnxruntime.

    model = OnnxSegmenter("nano-onnx")
    result = model.segment("street.jpg", ["the person", "the footwear"])

The picture is cut and the words are put into the prompt by the classes that serve torch, and logits are brought to the
picture's size by the same rule, so masks are those of ``self1e.load(...).segment`` up to rounding.

Shapes: K queries; T tiles; h, w pixels at the mask head's resolution; H, W of the picture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from self1e.errors import CheckpointError, MissingDependencyError, Self1EError, SettingError
from self1e.processing.pictures import open_picture
from self1e.processing.processor import Self1EProcessor
from self1e.processing.prompts import SEG_TOKEN, KindChoice, check_queries
from self1e.settings import check_batch
from self1e.structures import Segmentation, emptied, encode_edges

GRAPH = "model.onnx"
FACTS = "model.json"
METADATA = "self1e"
"""What the graph's metadata call its facts."""
FORMAT = 1
"""Of the folder; another number means other inputs or facts."""

_AT_ONCE = 8  # tiles times queries in one run: the widest maps of more would outgrow the weights
_STRIP = 2**20  # pixels of a mask that exist as numbers at once


class OnnxSegmenter:
    """Pictures and words in, masks out, by onnxruntime.

    Args:
        folder: From ``self1e convert MODEL FOLDER --to onnx``.
        providers: Of onnxruntime, such as ``["CUDAExecutionProvider", "CPUExecutionProvider"]``.
        session_options: An ``onnxruntime.SessionOptions``, for threads and the like.

    Raises:
        CheckpointError: The folder holds no exported model, or a damaged one.
        MissingDependencyError: onnxruntime is not installed.
        SettingError: This onnxruntime has no such provider.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        session_options: Any = None,
    ) -> None:
        folder = Path(folder).expanduser()
        if not (folder / GRAPH).is_file():
            raise CheckpointError(
                f"{folder}: holds no {GRAPH}; make it with `self1e convert MODEL {folder} --to onnx`."
            )
        self._session = _open(folder / GRAPH, list(providers), session_options)
        self.facts = _read_facts(self._session, folder)
        """What the graph says of itself, as in ``model.json``."""
        self.processor = _read_processor(folder)
        self._check_fit(folder)

    @property
    def name(self) -> str:
        """Name of the model that was exported."""
        return self.facts["model"]

    @property
    def no_target_threshold(self) -> float | None:
        """Least score of a mask that counts as found; None if the model was not calibrated."""
        return self.facts["no_target_threshold"]

    def __repr__(self) -> str:
        return f"<OnnxSegmenter {self.name} on {', '.join(self._session.get_providers())}>"

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
        reject: bool = True,
    ) -> Segmentation:
        """Find what the words mean; arguments and result are those of ``Self1E.segment``.

        Args:
            picture: A path, bytes, an open binary file, a PIL picture or a numpy array.
            queries: One phrase or sentence, or K of them.
            kind: ``"phrase"``, ``"sentence"`` or ``"auto"``; or one for each query.
            template: A question of your own with ``{text}``.
            max_tiles: Most tiles, 1 to 12; left out, what the checkpoint says.
            threshold: Foreground is where the logit is strictly above it.
            return_logits: Keep the logits ``(K, h, w)`` in the result.
            batch_size: Most queries in one run of the graph; each run encodes the picture again. Left out, 8 on a
                picture of one tile, fewer on several.
            reject: Empty the masks whose score is below the model's ``no_target_threshold``, if it has one.

        Raises:
            PromptError: A query is empty, or nothing was asked.
            PictureError: The picture cannot be read.
            SettingError: A setting cannot work.
        """
        check_batch(threshold=threshold, batch_size=batch_size)
        asked = check_queries(queries, kind, template)
        opened = open_picture(picture)
        size_wh = opened.image.size
        least_score = self.no_target_threshold if reject else None
        found: list[tuple[dict[str, Any], float]] = []
        kept: list[np.ndarray] = []
        for logits in self._logits(opened.image, asked, template, max_tiles, batch_size):
            found += emptied((enlarge(one, size_wh, threshold) for one in logits), size_wh, least_score)
            kept += [logits] if return_logits else []
        return Segmentation(
            queries=tuple(query for query, _ in asked),
            rles=tuple(rle for rle, _ in found),
            scores=np.array([score for _, score in found], dtype=np.float32),
            size_wh=size_wh,
            image=opened.image,
            source=opened.source,
            mask_logits=np.concatenate(kept) if return_logits else None,
        )

    def mask_logits(
        self,
        picture: Any,
        queries: str | Sequence[str],
        *,
        kind: KindChoice | Sequence[KindChoice] = "auto",
        template: str | None = None,
        max_tiles: int | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Return logits at the mask head's resolution, float32 ``(K, h, w)``; arguments as for ``segment``."""
        check_batch(threshold=0.0, batch_size=batch_size)
        asked = check_queries(queries, kind, template)
        return np.concatenate(list(self._logits(open_picture(picture).image, asked, template, max_tiles, batch_size)))

    def _logits(
        self,
        image: Any,
        asked: Sequence[tuple[str, KindChoice]],
        template: str | None,
        max_tiles: int | None,
        batch_size: int | None,
    ) -> Any:
        """Run the graph on some queries after the other; yield ``(k, h, w)`` each."""
        pixels, (rows, columns) = self.processor.image_processor.cut(image, max_tiles)
        layout = np.arange(rows * columns, dtype=np.int64).reshape(rows, columns)
        sequences = self.processor.segmentation_ids(
            [query for query, _ in asked],
            num_tiles=rows * columns,
            kind=[kind for _, kind in asked],
            template=template,
            answer=SEG_TOKEN * self.facts["num_seg_tokens"],
        )
        step = batch_size or max(_AT_ONCE // (rows * columns), 1)
        for start in range(0, len(sequences), step):
            inputs = {"pixels": pixels, "input_ids": _padded(sequences[start : start + step]), "layout": layout}
            logits: Any = self._session.run(["mask_logits"], inputs)[0]
            if not np.isfinite(logits).all():
                raise CheckpointError(f"{self.name}: the mask logits are not finite; the weights are damaged.")
            yield logits

    def _check_fit(self, folder: Path) -> None:
        """Compare graph and processor: files of two exports mixed up give masks, but wrong ones."""
        found = {
            "tile_size": self.processor.image_processor.tile_size,
            "image_tokens_per_tile": self.processor.image_seq_length,
            "image_token_id": self.processor.image_token_id,
            "seg_token_id": self.processor.seg_token_id,
        }
        wrong = [f"{name} {self.facts[name]} / {value}" for name, value in found.items() if self.facts[name] != value]
        if wrong:
            raise CheckpointError(
                f"{folder}: graph and processor differ in {', '.join(wrong)}; they are of two exports. Export again."
            )


def _open(path: Path, providers: list[str], options: Any) -> Any:
    """Open a graph with onnxruntime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("Running ONNX needs onnxruntime: pip install 'self1e[onnx]'") from error
    known = onnxruntime.get_available_providers()
    missing = [name for name in providers if name not in known]
    if missing or not providers:
        raise SettingError(
            f"providers={providers!r}: this onnxruntime has {', '.join(known)}. Choose of these, or install another "
            "build of it (onnxruntime-gpu has CUDAExecutionProvider)."
        )
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its own classes, which share no other base
        raise CheckpointError(f"{path}: onnxruntime cannot read it: {' '.join(str(error).split())}") from error


def _read_facts(session: Any, folder: Path) -> dict[str, Any]:
    """Read what the graph says of itself."""
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    facts = json.loads(text) if text else {}
    if facts.get("format") != FORMAT:
        found = f"its format is {facts['format']}" if "format" in facts else "it says nothing of self1e"
        raise CheckpointError(
            f"{folder / GRAPH}: {found}; expected format {FORMAT}. Export it again with this version of self1e."
        )
    return facts


def _read_processor(folder: Path) -> Self1EProcessor:
    try:
        return Self1EProcessor.from_pretrained(folder)
    except Self1EError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: tokenizer or picture settings cannot be read: {told}") from error


def _padded(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """Join rows of ids, int64 ``(K, N)``; what follows [SEG] has no influence."""
    padded = np.zeros((len(sequences), max(map(len, sequences))), dtype=np.int64)
    for row, ids in zip(padded, sequences, strict=True):
        row[: len(ids)] = ids
        row[len(ids) :] = ids[0]  # whatever it is, not [SEG]
    return padded


def enlarge(logits: np.ndarray, size_wh: tuple[int, int], threshold: float = 0.0) -> tuple[dict[str, Any], float]:
    """Scale logits to the picture and threshold them, as `self1e.inference.masks.enlarge` does with torch.

    Args:
        logits: Float32 ``(h, w)``.
        size_wh: Size of the picture.
        threshold: Foreground is strictly above it.

    Returns:
        Compressed COCO RLE, and the mean sigmoid over the foreground (0 without any).
    """
    width, height = size_wh
    columns = _stretched(logits, width).T  # (W, h)
    step = max(_STRIP // height, 1)
    edges = [np.zeros(0, dtype=np.int64)]
    total = 0.0
    before = False
    for left in range(0, width, step):
        strip = columns[left : left + step]
        if not before and strip.max() <= threshold:  # enlarging never exceeds what it starts from
            continue
        values = _stretched(strip, height).ravel()
        foreground = values > threshold
        edges.append(np.flatnonzero(np.diff(foreground, prepend=before)) + left * height)
        total += float(_sigmoid(values[foreground]).sum())
        before = bool(foreground[-1])
    rle, area = encode_edges(np.concatenate(edges), (height, width))
    return rle, total / area if area else 0.0


def _sigmoid(values: np.ndarray) -> np.ndarray:
    """In float64; of very negative numbers 0."""
    return 1 / (1 + np.exp(np.minimum(-values.astype(np.float64), 700)))


def _stretched(values: np.ndarray, size: int) -> np.ndarray:
    """Stretch the last axis, bilinear with ``align_corners=False``: ``(a, b) -> (a, size)``."""
    length = values.shape[-1]
    place = np.maximum((np.arange(size) + 0.5) * (length / size) - 0.5, 0)
    low = np.minimum(place.astype(np.int64), length - 1)
    high = np.minimum(low + 1, length - 1)
    share = (place - low).astype(np.float32)
    return values[:, low] * (1 - share) + values[:, high] * share
