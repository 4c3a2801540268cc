"""supervision: results as ``Detections``, for its annotators, trackers and metrics."""

from __future__ import annotations

from typing import Any

import numpy as np

from self1e.errors import MissingDependencyError
from self1e.inference.exports.records import numbered
from self1e.structures import Segmentation


def to_detections(result: Segmentation) -> Any:
    """Do what ``Segmentation.to_supervision`` promises."""
    try:
        import supervision  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingDependencyError(
            "to_supervision needs the package supervision: pip install 'self1e[supervision]'."
        ) from error
    there = np.flatnonzero(~result.is_empty).tolist()
    if not there:
        return supervision.Detections.empty()
    numbers = numbered(result.queries)
    queries = [result.queries[k] for k in there]
    return supervision.Detections(
        xyxy=result.boxes_xyxy[there].astype(np.float32),
        mask=np.stack([result.mask(k) for k in there]),
        confidence=result.scores[there],
        class_id=np.array([numbers[query] for query in queries]),
        data={"class_name": np.array(queries)},
    )
