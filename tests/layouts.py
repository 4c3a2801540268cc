"""Checkpoints of every origin, made from one of our models: what their authors would have written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from self1e.model.checkpoints import reference_state_dict

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "InternLM2ForCausalLM"}
DYNAMIC = {"type": "dynamic", "factor": 2.0}
ADAPTED = re.compile(
    r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|attention\.(wqkv|wo)|feed_forward\.w[123]"
    r"|attn\.(qkv|proj)|mlp\.fc[12])\.weight$"
)
"""What the published code trains with LoRA (METHOD 6.3)."""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def chat_config(config: Any, *, architecture: str = "InternVL3SELF1E", llm: Any = None, **changes: Any) -> Any:
    """The published ``config.json`` of one of our configurations."""
    text, vision = config.text_config, config.vision_config
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    more = ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps")
    language = {name: getattr(text, name) for name in (*same, *more)}
    language |= {"architectures": [ARCHITECTURES[text.model_type]], "rope_theta": 10000.0, "rope_scaling": DYNAMIC}
    language |= {"tie_word_embeddings": text.tie_word_embeddings, "torch_dtype": "bfloat16", "output_attentions": False}
    language |= {"head_dim": text.head_dim} if text.model_type == "qwen3" else {}
    eyes = {name: getattr(vision, name) for name in same[1:]}
    eyes |= {"patch_size": vision.patch_size[0], "image_size": vision.image_size[0], "qkv_bias": True}
    eyes |= {"norm_type": vision.norm_type, "qk_normalization": False, "drop_path_rate": 0.1, "use_flash_attn": True}
    return {
        "model_type": "internvl_chat",
        "architectures": [architecture],
        "llm_config": language | (llm or {}),
        "vision_config": eyes,
        "force_image_size": vision.image_size[0],
        "downsample_ratio": 0.5,
        "select_layer": -1,
        "ps_version": "v2",
        "template": "internvl2_5",
        "use_thumbnail": True,
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
    } | changes


def save(folder: Path, config: Any, tensors: dict[str, Tensor], *, shards: int = 1) -> Path:
    """Write a folder, its weights in one file or in several with an index."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    places = {name: f"model-{1 + i % shards:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensor for name, tensor in tensors.items() if places[name] == file}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def published(folder: Path, model: Any, tensors: dict[str, Tensor] | None = None, **settings: Any) -> Path:
    """The authors' released layout of a model."""
    is_internlm2 = model.config.text_config.model_type == "llama"
    config = chat_config(model.config, architecture="InternVL2SELF1E" if is_internlm2 else "InternVL3SELF1E")
    return save(folder, config, reference_state_dict(model) if tensors is None else tensors, **settings)


def without_mask_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A base model's share of the published names."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("combine_decode_proj")}


def older_hf(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names in the older ``-hf`` layout."""
    return {
        name.replace("model.language_model.", "language_model.model.")
        .replace("lm_head.", "language_model.lm_head.")
        .replace("model.vision_tower.", "vision_tower.")
        .replace("model.multi_modal_projector.", "multi_modal_projector."): tensor
        for name, tensor in tensors.items()
    }


def wrapped(name: str) -> str:
    """A published name inside PEFT's two models."""
    for prefix in ("language_model.", "vision_model."):
        if name.startswith(prefix):
            return f"{prefix}base_model.model.{name.removeprefix(prefix)}"
    return name


def attach_lora(tensors: dict[str, Tensor], rank: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Put a random LoRA on every module that the published code adapts.

    Returns:
        The training checkpoint's tensors, and by plain weight name ``B A`` in float64.
    """
    generator = torch.Generator().manual_seed(0)
    adapted = {name.removesuffix(".weight") for name in tensors if ADAPTED.search(name)}
    attached: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        inner = wrapped(module)
        if module not in adapted:
            attached[wrapped(name)] = tensor
            continue
        attached[f"{inner}.base_layer.{leaf}"] = tensor
        if leaf == "weight":
            a = torch.randn(rank, tensor.shape[1], generator=generator).to(tensor.dtype)
            b = (torch.randn(tensor.shape[0], rank, generator=generator) / 8).to(tensor.dtype)
            attached |= {f"{inner}.lora_A.default.weight": a, f"{inner}.lora_B.default.weight": b}
            products[name] = b.double() @ a.double()
    return attached, products


def merged(tensors: dict[str, Tensor], products: dict[str, Tensor], scale: float = 2.0) -> dict[str, Tensor]:
    """Published tensors with their LoRA, in float64 where there is one."""
    return {
        name: tensor.double() + scale * products[name] if name in products else tensor
        for name, tensor in tensors.items()
    }


def copy_tokenizer(source: Path, target: Path) -> None:
    """Put the tokenizer of one folder into another."""
    for name in TOKENIZER:
        shutil.copy(source / name, target / name)
