"""Smaller weights: the language model's linears as int8 with one scale per row, everything else as it is.

A mask is a comparison of pixel features that went around the language model with ones that went through it, so what is
seen (vision encoder, projector, mask head) keeps its type; so do the vocabulary's two matrices. What remains is 62 % of
a 2B model's weights and 81 % of an 8B's. Weights only: products are computed in the type that the model was loaded in.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import nn

from self1e.errors import MissingDependencyError, SettingError

KEPT = ("model.vision_tower", "model.multi_modal_projector", "mask_head", "lm_head")
"""Parts that keep their type; names from the start of the full name, as quantisers match them."""
QUANTISED = ("int8", "int8-bitsandbytes")
"""What ``dtype`` of ``self1e.load`` may be beside a type of numbers."""


def is_quantised(dtype: Any) -> bool:
    """Tell whether a ``dtype`` of ``self1e.load`` asks for smaller weights."""
    return isinstance(dtype, str) and dtype in QUANTISED


def loading_settings(dtype: str, device: torch.device) -> dict[str, Any]:
    """Check that a quantiser is there, before gigabytes are read; what ``from_pretrained`` needs for it.

    Args:
        dtype: One of `QUANTISED`.
        device: Where the model goes.

    Raises:
        MissingDependencyError: Its package is not installed.
        SettingError: It does not run on that device.
    """
    if dtype == "int8":
        _torchao()
        return {}
    if device.type != "cuda":
        raise SettingError(f"dtype='int8-bitsandbytes' needs a CUDA device, found {device}. Use dtype='int8'.")
    try:
        import bitsandbytes  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "dtype='int8-bitsandbytes' needs bitsandbytes: pip install bitsandbytes"
        ) from error
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(KEPT))
    return {"quantization_config": config, "device_map": {"": device}}


def is_small(module: nn.Module, name: str) -> bool:
    """Say whether a module of a model becomes int8."""
    return isinstance(module, nn.Linear) and not name.startswith(KEPT)


def quantise(model: nn.Module) -> None:
    """Turn the language model's linears into int8, in place, by torchao: the origin of the weights does not matter.

    Raises:
        MissingDependencyError: torchao is not installed.
    """
    library = _torchao()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its own future
        # Settings of torch's compiler are the whole process's: they are not ours to change.
        library.quantize_(model, library.Int8WeightOnlyConfig(set_inductor_config=False), filter_fn=is_small)


def weight_bytes(model: nn.Module, dtype: str) -> int:
    """Count the bytes of a model's weights in a precision; the model may be on the meta device.

    Args:
        model: Not quantised.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``int8``, whose other weights are counted in bfloat16.
    """
    wide = {"float32": 4}.get(dtype, 2)
    total = sum(parameter.numel() for parameter in model.parameters()) * wide  # tied ones come once
    if dtype == "int8":
        for name, module in model.named_modules():
            if is_small(module, name):
                linear = cast(nn.Linear, module)
                rows, columns = linear.weight.shape
                total -= rows * columns * (wide - 1) - rows * wide
    return total


def _torchao() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchao.quantization as library
    except ImportError as error:
        raise MissingDependencyError("dtype='int8' needs torchao: pip install 'self1e[quant]'") from error
    return library
