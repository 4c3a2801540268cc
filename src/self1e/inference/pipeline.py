"""The same segmenter behind transformers' own door: ``pipeline("text-guided-segmentation", model=...)``.

from transformers import pipeline
import self1e.model

segment = pipeline("text-guided-segmentation", model="path/or/hub-id")
segment("street.jpg", queries=["the person", "the footwear"])
# [{"label": "the person", "score": 0.93, "mask": <PIL.Image L>}, ...]
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import Pipeline, PreTrainedModel
from transformers.pipelines import PIPELINE_REGISTRY

from self1e.errors import PromptError, SettingError
from self1e.processing.pictures import open_picture
from self1e.processing.processor import Self1EProcessor
from self1e.structures import Segmentation, mask_image

TASK = "text-guided-segmentation"

_SETTINGS = ("kind", "template", "max_tiles", "threshold")


class TextGuidedSegmentationPipeline(Pipeline):
    """Masks for words, as transformers' other segmentation pipelines return them.

    Takes a picture (whatever ``self1e.load(...).encode`` takes) or a list of them.
    """

    # None, not True: a model object comes without a name to load the processor by, and we can say more about it.
    _load_processor = None
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False

    def __init__(self, model: Any, processor: Any = None, **kwargs: Any) -> None:
        # Here and below, not above: importing self1e.model registers this pipeline.
        from self1e.inference.segmenter import Self1E
        from self1e.model.modeling import Self1EForConditionalGeneration

        if not isinstance(model, Self1EForConditionalGeneration):
            raise SettingError(
                f"The task {TASK!r} needs a Self1EForConditionalGeneration, found {type(model).__name__}."
            )
        if processor is None:
            processor = _processor_of(model)
        super().__init__(model=model, processor=processor, **kwargs)
        self.segmenter = Self1E(self.model, processor)  # type: ignore[arg-type]

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        settings = {name: kwargs.pop(name) for name in (*_SETTINGS, "queries") if kwargs.get(name) is not None}
        rows = kwargs.pop("queries_at_once", None)  # transformers' own `batch_size` never reaches the model
        if rows is not None:
            settings["batch_size"] = rows
        unknown = [name for name, value in kwargs.items() if value is not None]
        if unknown:
            raise SettingError(f"Unexpected {', '.join(unknown)}; {TASK} takes queries, {', '.join(_SETTINGS)}.")
        return {}, settings, {}

    def __call__(self, inputs: Any, queries: Any = None, *, batch_size: int | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Segment.

        Args:
            inputs: A picture, or a list, generator or dataset of pictures.
            queries: One phrase or sentence, or several.
            batch_size: Most queries at once.
            kwargs: ``kind``, ``template``, ``max_tiles``, ``threshold``: see ``Self1E.segment``.

        Returns:
            Per picture a list with ``label`` (the query), ``score`` and ``mask`` (PIL, mode L, 0 and 255) per query.
        """
        if queries is None and "queries" not in self._forward_params:
            raise PromptError("Pass queries=[...]: what to find in the picture.")
        if queries is not None:
            from self1e.processing.prompts import check_queries

            check_queries(queries, kwargs.get("kind") or "auto", kwargs.get("template"))
        if batch_size is None:
            batch_size = self._batch_size
        return super().__call__(inputs, queries=queries, batch_size=batch_size, queries_at_once=batch_size, **kwargs)

    def get_iterator(  # type: ignore[override]
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Go through pictures one by one: batches are made of queries, and pictures need no collating."""
        for picture in inputs:
            yield self.run_single(picture, preprocess_params, forward_params, postprocess_params)

    def preprocess(self, input_: Any, **parameters: Any) -> dict[str, Any]:
        """Open the picture."""
        return {"picture": open_picture(input_)}

    def _forward(self, input_tensors: dict[str, Any], **parameters: Any) -> Segmentation:  # type: ignore[override]
        return self.segmenter.segment(input_tensors["picture"], parameters.pop("queries"), **parameters)

    def postprocess(self, model_outputs: Any, **parameters: Any) -> list[dict[str, Any]]:
        """Turn the result into transformers' form."""
        return [
            {"label": one.queries[0], "score": float(one.scores[0]), "mask": mask_image(one.mask())}
            for one in model_outputs
        ]

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Save model and processor; transformers' own would save a copy of this file as remote code."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.segmenter.processor.save_pretrained(save_directory)


def _processor_of(model: PreTrainedModel) -> Self1EProcessor:
    """Load the processor from where the model came from."""
    name = str(getattr(model, "name_or_path", "") or "")
    if not name or not Path(name).is_dir():
        raise SettingError("A model object needs its processor beside it: pipeline(..., model=model, processor=...).")
    return Self1EProcessor.from_pretrained(name)


def register(model_class: type[PreTrainedModel]) -> None:
    """Tell transformers about the task; once is enough."""
    if TASK in PIPELINE_REGISTRY.supported_tasks:
        return
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=TextGuidedSegmentationPipeline, pt_model=(model_class,), type="multimodal"
    )
