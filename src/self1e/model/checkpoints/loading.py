"""Loading a model: what comes before and after transformers' own loader.

Before: pickles are refused, headers are checked against the model (one error lists everything that does not fit),
attached LoRA is merged. After: a base model says that its mask head is new, and gets its row for [SEG].
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig

from self1e.configuration import Self1EConfig
from self1e.errors import CheckpointError
from self1e.model.checkpoints.configs import is_base, origin_of
from self1e.model.checkpoints.files import find_weights
from self1e.model.checkpoints.names import EMBEDDINGS, OUTPUT
from self1e.model.checkpoints.strict import HEAD, check_loaded, refuse_pickles
from self1e.model.checkpoints.vocabulary import resize_vocabulary
from self1e.model.checkpoints.weights import Weights

logger = logging.getLogger(__name__)

HUB_SETTINGS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_NOT_OF_THE_CONFIGURATION = {"dtype"}  # transformers' loader wants it itself


def expected_shapes(config: Self1EConfig) -> dict[str, tuple[int, ...]]:
    """Return every tensor of a model with its shape, without memory for any; tied ones come once."""
    from self1e.model.modeling import Self1EForConditionalGeneration

    with torch.device("meta"):
        model = Self1EForConditionalGeneration(copy.deepcopy(config))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop(OUTPUT)
    return shapes


def load_checkpoint(cls: Any, load: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
    """Load a model of any origin; see `Self1EForConditionalGeneration.from_pretrained`.

    Args:
        cls: The model's class.
        load: transformers' ``from_pretrained``, bound to it.
        path: A folder, a name on the hub, or None with ``state_dict`` and ``config``.
        args: Handed on.
        kwargs: Handed on, but for ``new_mask_head`` and ``lora_alpha``.
    """
    new_mask_head: bool | None = kwargs.pop("new_mask_head", None)
    lora_alpha = kwargs.pop("lora_alpha", None)
    with_info = kwargs.pop("output_loading_info", False)
    tolerant = kwargs.pop("ignore_mismatched_sizes", False)
    if not kwargs.pop("use_safetensors", True):
        raise CheckpointError("use_safetensors=False would unpickle weights; leave it out and use *.safetensors.")
    is_base = False
    if path is not None:
        refuse_pickles(path, kwargs.get("subfolder") or "")
        path, is_base = _localise(path, kwargs)
        kwargs["config"] = _take_config(path, kwargs)
    if new_mask_head is None:
        new_mask_head = is_base
    folder = Path(str(path)) / (kwargs.get("subfolder") or "")
    weights, shapes = None, {}
    if path is not None and folder.is_dir() and _is_plain(folder, kwargs):
        weights = Weights(folder, kwargs["config"], lora_alpha=lora_alpha)
        shapes = expected_shapes(kwargs["config"])
        weights.check(shapes, new_mask_head=new_mask_head, check_shapes=not tolerant)
    is_merged = weights is not None and weights.attached.is_wrapped
    if weights is not None and is_merged:
        kwargs |= _merged(weights, shapes, kwargs)
        kwargs.pop("subfolder", None)
    model, info = load(
        None if is_merged else path,
        *args,
        **kwargs,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # so that they are reported together with everything else
        output_loading_info=True,
    )
    check_loaded({**info, "mismatched_keys": ()} if tolerant else info, path, new_mask_head=new_mask_head)
    if is_merged:
        model.config.name_or_path = model.name_or_path = str(path)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    if any(name.startswith(HEAD) for name in info["missing_keys"]):
        logger.warning("%s: a base model; its mask head is new, and its masks mean nothing before training.", path)
    if is_base and folder.is_dir():
        _make_room_for_seg(model, folder)
    return (model, info) if with_info else model


def _localise(path: Any, kwargs: dict[str, Any]) -> tuple[Any, bool]:
    """Say whether a checkpoint is a base; a foreign one on the hub is downloaded, for its headers and tokenizer count.

    Returns:
        Where to load from, and whether the mask head is expected to be new.
    """
    hub = {name: kwargs[name] for name in HUB_SETTINGS if kwargs.get(name) is not None}
    try:
        found, _ = PreTrainedConfig.get_config_dict(path, **hub)
    except OSError:
        if kwargs.get("config") is None:
            raise
        return path, False  # weights alone, with a configuration from elsewhere
    origin = origin_of(found)
    if origin != "self1e" and not Path(str(path)).exists():
        path = download(path, **hub)
    folder = Path(str(path)) / (kwargs.get("subfolder") or "")
    return path, is_base(folder) if folder.is_dir() else origin in ("chat", "hf")


def download(name: str, *, with_weights: bool = True, **hub: Any) -> str:
    """Download a repository of the hub, without pickles and code; returns the local folder.

    Args:
        name: ``owner/model``.
        with_weights: Off, only configuration and tokenizer.
        hub: Any of `HUB_SETTINGS`.
    """
    from huggingface_hub import snapshot_download

    hub.pop("subfolder", None)
    patterns = ["*.json", "*.model", "*.txt", "*.jinja", *(["*.safetensors"] if with_weights else [])]
    # An index without its shards would be an incomplete checkpoint.
    ignored = None if with_weights else ["*.safetensors.index.json"]
    return snapshot_download(name, allow_patterns=patterns, ignore_patterns=ignored, **hub)


def _take_config(path: Any, kwargs: dict[str, Any]) -> Any:
    """The configuration, with those of the caller's settings that are its fields; they leave ``kwargs``."""
    config = kwargs.pop("config", None)
    if isinstance(config, PreTrainedConfig):
        return config
    names = {field.name for field in fields(Self1EConfig)} - _NOT_OF_THE_CONFIGURATION  # type: ignore[arg-type]
    own = {name: kwargs.pop(name) for name in list(kwargs) if name in names}
    hub = {name: kwargs[name] for name in HUB_SETTINGS if kwargs.get(name) is not None}
    return Self1EConfig.from_pretrained(path if config is None else config, **hub, **own)


def _is_plain(folder: Path, kwargs: dict[str, Any]) -> bool:
    """Whether the weights are where they usually are, and not quantised."""
    if kwargs.get("variant") or kwargs.get("gguf_file"):
        return False
    return getattr(kwargs["config"], "quantization_config", None) is None and bool(find_weights(folder))


def _merged(weights: Weights, names: Iterable[str], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Settings of transformers' loader for weights that it cannot read itself."""
    config = kwargs["config"]
    if config.dtype is None:  # or the loader would take the type of whatever tensor comes first
        config.dtype = weights.dtype(EMBEDDINGS)
    for rank, scale in weights.scales.items():
        logger.info("%s: LoRA of rank %s merged with alpha %s.", weights.files.folder, rank, scale * rank)
    tensors = {name: weights.read(name, wide=True) for name in names if weights.holds(name)}
    return {"config": config, "state_dict": tensors}


def _make_room_for_seg(model: Any, folder: Path) -> None:
    """Give a base as many rows of vocabulary as its tokenizer has tokens, ``[SEG]`` among them."""
    from self1e.processing.tokenizers import add_what_weights_have, has_tokenizer, load_tokenizer

    if not has_tokenizer(folder):
        return
    tokenizer = load_tokenizer(folder)
    add_what_weights_have(tokenizer, model.config.text_config.vocab_size, is_base=True, source=folder)
    resize_vocabulary(model, len(tokenizer))
