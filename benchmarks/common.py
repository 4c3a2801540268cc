"""What the benchmarks share: models of published sizes, time, memory, operations, and the facts beside a number."""

from __future__ import annotations

import ctypes
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from self1e.machine import find_commit, processor_name
from self1e.model import Self1EConfig, Self1EForConditionalGeneration

ROOT = Path(__file__).parents[1]
NANO = ROOT / "src/self1e/assets/nano"
BEFORE, AFTER, REST = 42, 28, 3
"""Tokens before the picture, after it up to [SEG], and behind [SEG] ('.', end of turn, newline): METHOD 3.6, Qwen2."""

SIZES: dict[str, tuple[str, int, int, int, int, int, int, int]] = {
    # language model, width, layers, heads, key heads, head size, MLP, vocabulary; public configurations
    "InternVL3-1B": ("qwen2", 896, 24, 14, 2, 64, 4864, 151676),
    "InternVL3-2B": ("qwen2", 1536, 28, 12, 2, 128, 8960, 151676),
    "InternVL3-8B": ("qwen2", 3584, 28, 28, 4, 128, 18944, 151676),
}


def published_config(name: str, depth: int | None = None) -> Self1EConfig:
    """Sizes of a published base model with InternViT-300M, and the ids of nano's tokenizer.

    Args:
        name: One of `SIZES`.
        depth: Layers of each tower, if not as published.
    """
    family, width, layers, heads, key_heads, head, mlp, vocabulary = SIZES[name]
    text = {
        "model_type": family,
        "hidden_size": width,
        "num_hidden_layers": depth or layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": head,
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "max_position_embeddings": 32768,
    }
    vision = {
        "hidden_size": 1024,
        "num_hidden_layers": depth or 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "image_size": [448, 448],
        "patch_size": [14, 14],
        "attention_bias": True,
    }
    nano = Self1EConfig.from_pretrained(NANO)
    ids = {"image_token_id": nano.image_token_id, "seg_token_id": nano.seg_token_id}
    return Self1EConfig(text_config=text, vision_config=vision, image_seq_length=256, **ids)


def random_model(config: Self1EConfig, device: str, dtype: torch.dtype) -> Self1EForConditionalGeneration:
    """Make a model with seeded random weights, never holding a copy in another type: it would not fit."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return Self1EForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(default)


def timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Run, and wait for the device."""
    start = time.perf_counter()
    found = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return found, time.perf_counter() - start


class Peak:
    """Peak memory within a block, above its start: of torch on CUDA, else of the process (Linux only, else 0)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.bytes = 0

    def __enter__(self) -> Peak:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif sys.platform == "linux":
            # Freed memory that the allocator keeps would hide what comes next; musl has no such call.
            getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        self._start = self._now("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        self.bytes = max(self._now("VmHWM") - self._start, 0)

    def _now(self, what: str) -> int:
        if self._device.type == "cuda":
            cuda = torch.cuda
            return (cuda.memory_allocated if what == "VmRSS" else cuda.max_memory_allocated)(self._device)
        if sys.platform != "linux":
            return 0
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith(what)))


def _attention(query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# torch counts the fused kernels of CUDA only.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def operations(work: Callable[[], Any]) -> int:
    """Count operations: 2 per multiply-add, of matrix products, convolutions and attention."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        work()
    return counter.get_total_flops()


def facts(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Everything that numbers depend on."""
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": find_commit() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def hardware(device: torch.device) -> str:
    """Name the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()
