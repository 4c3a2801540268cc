"""Leaving torch: a model as a ``torch.export`` program, and as a folder that onnxruntime reads.

    export_onnx(self1e.load("nano", dtype="float32"), "nano-onnx")     # or: self1e convert nano nano-onnx --to onnx

The folder holds the graph (`self1e.inference.mask_graph`), its facts as ``model.json`` (the graph's metadata say the
same), the tokenizer and the picture settings. `self1e.inference.onnx_runtime` uses it without torch.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from self1e import __version__
from self1e.errors import MissingDependencyError
from self1e.files import check_is_new, new_folder
from self1e.inference.mask_graph import MaskGraph
from self1e.inference.onnx_runtime import FACTS, FORMAT, GRAPH, METADATA
from self1e.model.attention import attention_implementation
from self1e.processing import prompts

OPSET = 18
"""Of ONNX's operators; onnxruntime has read it since 1.14 (February 2023)."""

_INLINE_BYTES = 1_500_000_000  # a protobuf holds at most 2 GB: larger weights go into a file of their own


def export_program(segmenter: Any) -> torch.export.ExportedProgram:
    """Trace a model with ``torch.export``.

    ``.module()`` of what it returns is called with pixels, ids and layout, see `self1e.inference.mask_graph`.

    Args:
        segmenter: From ``self1e.load(..., device="cpu", dtype="float32")``.

    Raises:
        SettingError: The model cannot be exported; the message says why.
    """
    images = segmenter.processor.image_processor
    return trace(MaskGraph(segmenter.model, image_mean=images.image_mean, image_std=images.image_std))


def trace(graph: MaskGraph) -> torch.export.ExportedProgram:
    """Trace a graph; numbers of tiles and queries, lengths and layouts stay free, 1 included."""
    example = tuple(tensor.to(graph.mean.device) for tensor in _example(graph.config))
    with torch.no_grad(), attention_implementation(graph.inner, "sdpa"):
        return torch.export.export(graph, example, dynamic_shapes=_free_sizes(), strict=False)


def _free_sizes() -> dict[str, dict[int, Any]]:
    names = {"pixels": ("tiles",), "input_ids": ("queries", "length"), "layout": ("rows", "columns")}
    return {name: {axis: torch.export.Dim(size) for axis, size in enumerate(sizes)} for name, sizes in names.items()}


def _example(config: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs to trace with: every free size is at least 2, and none equals another by chance."""
    rows, columns, queries = 2, 3, 5
    tokens = rows * columns * (config.patches_per_side // config.compression) ** 2
    pixels = torch.zeros(rows * columns, 3, config.tile_size, config.tile_size, dtype=torch.uint8)
    words = [next(index for index in range(3) if index not in (config.image_token_id, config.seg_token_id))] * 7
    ids = [*words, *[config.image_token_id] * tokens, *words, *[config.seg_token_id] * config.num_seg_tokens]
    return pixels, torch.tensor([ids] * queries), torch.arange(rows * columns).view(rows, columns)


def export_onnx(segmenter: Any, target: str | Path) -> Path:
    """Write a model as ONNX, with all that `self1e.inference.onnx_runtime.OnnxSegmenter` needs to use it.

    Args:
        segmenter: From ``self1e.load(..., device="cpu", dtype="float32")``.
        target: Folder to make; it must not exist, or be empty.

    Returns:
        The folder. Weights of more than 1.5 GB lie beside ``model.onnx``, as ``model.onnx.data``.

    Raises:
        MissingDependencyError: onnx or onnxscript is not installed.
        SettingError: The model cannot be exported (the message says why), or the target exists.
    """
    need_packages()
    target = Path(target).expanduser()
    check_is_new(target)
    facts = json.dumps(describe(segmenter), indent=1, ensure_ascii=False) + "\n"
    program = to_onnx(export_program(segmenter))
    program.model.metadata_props[METADATA] = facts
    with new_folder(target) as folder:
        save(program, folder / GRAPH)
        segmenter.processor.save_pretrained(folder)
        (folder / FACTS).write_text(facts, encoding="utf-8")
    return target


def need_packages() -> None:
    """Check that ONNX can be written, before minutes are spent.

    Raises:
        MissingDependencyError: onnx or onnxscript is not installed.
    """
    for package in ("onnx", "onnxscript"):
        try:
            import_module(package)
        except ImportError as error:
            raise MissingDependencyError(f"Writing ONNX needs {package}: pip install 'self1e[onnx]'") from error


def to_onnx(program: torch.export.ExportedProgram) -> Any:
    """Translate a traced graph to ONNX.

    Returns:
        A ``torch.onnx.ONNXProgram``, without the places in source files that torch notes at every operator.
    """
    with _quiet(), torch.no_grad():
        found: Any = torch.onnx.export(
            program,
            input_names=list(_free_sizes()),
            output_names=["mask_logits"],
            dynamic_shapes=_free_sizes(),  # for their names
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert found is not None, "without a file torch returns the program"
    for node in found.model.graph.all_nodes():
        node.metadata_props.clear()
    graph = found.model.graph
    for noted in (*graph.inputs, *graph.outputs, *graph.initializers.values(), graph, found.model):
        noted.metadata_props.clear()
    return found


def save(program: Any, path: Path) -> None:
    """Write an ONNX program, its weights beside it if they are too large for one file."""
    nbytes = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    with _quiet():
        program.save(str(path), external_data=nbytes > _INLINE_BYTES)


def describe(segmenter: Any) -> dict[str, Any]:
    """Say what a program in any language must know to use the graph, JSON-able."""
    processor, config = segmenter.processor, segmenter.model.config
    template = processor.conversation_template
    ids = processor.tokenize_conversation([("x", None)], num_tiles=1).input_ids
    answer = prompts.SEG_TOKEN * config.num_seg_tokens
    return {
        "format": FORMAT,
        "model": Path(segmenter.name).name if Path(segmenter.name).is_dir() else segmenter.name,
        "self1e": __version__,
        "tile_size": processor.image_processor.tile_size,
        "max_tiles": processor.image_processor.max_tiles,
        "image_token_id": processor.image_token_id,
        "image_tokens_per_tile": processor.image_seq_length,
        "seg_token_id": processor.seg_token_id,
        "num_seg_tokens": config.num_seg_tokens,
        "threshold": 0.0,
        "no_target_threshold": segmenter.no_target_threshold,
        "prompt": {
            "before": ids[: ids.index(processor.image_token_id)],
            "after": f"{prompts.IMAGE_END}{{question}}{template.separator}{template.assistant_header}{answer}",
            "questions": {
                kind: question.removeprefix(prompts.IMAGE_PLACEHOLDER)
                for kind, question in prompts.VALIDATION_QUESTIONS.items()
            },
        },
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what torch and onnxscript say about their own future."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
