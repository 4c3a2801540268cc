"""Many processes, one run: DDP, FSDP2, DeepSpeed ZeRO-2 and ZeRO-3.

What a step computes does not depend on how many processes share it: the items of a micro-batch stay together
(`order`), the loss of each is computed as if it were alone (METHOD 6.1), and the gradient is the mean over the
micro-batches of all processes. A checkpoint does not either: with FSDP2 its tensors are gathered first, so that 1, 2
or 4 processes, with DDP or FSDP2, go on from the same files.

FSDP2 divides decoder layers and vision layers, and what is left as one: mask head and projector run several times in a
pass, or on other data on each process, and as units of their own processes would wait for each other in vain.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from self1e.errors import CheckpointError, SettingError

Strategy = Literal["ddp", "fsdp2", "zero2", "zero3"]

_NO = ("", "0", "false", "no")


def launched_strategy() -> Strategy | None:
    """Return what ``accelerate launch`` was told; None if it was told nothing, or has not started this process.

    Raises:
        SettingError: It was told FSDP 1, or a stage of ZeRO that divides no optimiser.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() not in _NO:
        if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
            raise SettingError(f"accelerate was told FSDP version {version}, expected 2: set fsdp_version: 2.")
        return "fsdp2"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() not in _NO:
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") or _stage_of_file()
        if stage not in ("2", "3"):
            raise SettingError(f"accelerate was told ZeRO stage {stage}, expected 2 or 3.")
        return "zero2" if stage == "2" else "zero3"
    return None


def _stage_of_file() -> str | None:
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if not path:
        return None
    return str(json.loads(Path(path).read_text("utf-8")).get("zero_optimization", {}).get("stage"))


def choose_strategy(wanted: Strategy | None, *, processes: int) -> Strategy | None:
    """Decide how processes share a run.

    Args:
        wanted: ``distributed.strategy`` of the recipe; None leaves it to ``accelerate launch``, and takes DDP else.
        processes: That were started.

    Returns:
        None for a process alone.

    Raises:
        SettingError: It cannot be had: alone, without DeepSpeed, or against what ``accelerate launch`` was told.
    """
    _check_launcher()
    launched = launched_strategy()
    if wanted and launched and wanted != launched:
        raise SettingError(
            f"distributed.strategy={wanted!r}, but accelerate was told {launched!r}; leave one of the two out."
        )
    strategy = wanted or launched
    if strategy is None or strategy == "ddp":
        return "ddp" if processes > 1 else None
    if "WORLD_SIZE" not in os.environ:
        raise SettingError(
            f"distributed.strategy={strategy} needs several processes; start them: "
            f"torchrun --nproc-per-node N -m self1e train ... --set distributed.strategy={strategy}"
        )
    if strategy in ("zero2", "zero3") and find_spec("deepspeed") is None:
        raise SettingError(f"distributed.strategy={strategy}: DeepSpeed is not installed; pip install deepspeed.")
    return strategy


def _check_launcher() -> None:
    """Refuse ``accelerate launch --cpu --num_processes 2``: it starts one process, and leaves others to ``mpirun``."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() not in _NO
    if on_cpu and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise SettingError(
            "accelerate launch --cpu has started one process, not several: it leaves that to mpirun. Start them by "
            "torchrun --nproc-per-node N, or by accelerate launch --multi_gpu --num_processes N with --device cpu."
        )


def shards(strategy: Strategy | None, processes: int) -> int:
    """Return over how many processes weights are divided."""
    return processes if strategy in ("fsdp2", "zero3") else 1


def trainer_settings(strategy: Strategy | None, *, is_cuda: bool) -> dict[str, Any]:
    """Say it in the words of transformers' `TrainingArguments`."""
    settings: dict[str, Any] = {}
    if strategy is not None and not is_cuda:
        settings["ddp_backend"] = "gloo"
    if strategy == "ddp":
        # Each pass gives every weight a gradient (`Self1EForConditionalGeneration._idle`).
        settings["ddp_find_unused_parameters"] = False
    if strategy == "fsdp2":
        # `shard` does it, on any device and version: nobody is to do it once more.
        os.environ.pop("ACCELERATE_USE_FSDP", None)
    if strategy in ("zero2", "zero3") and launched_strategy() is None:
        settings["deepspeed"] = deepspeed_settings(strategy)
    return settings


def deepspeed_settings(strategy: Literal["zero2", "zero3"]) -> dict[str, Any]:
    """Read the configuration of DeepSpeed that is shipped (``training/configs``)."""
    return json.loads(find_config(f"{strategy}.json").read_text("utf-8"))


def is_zero3(engine: Any) -> bool:
    """Tell whether a model is an engine of DeepSpeed that divides its weights."""
    return hasattr(engine, "zero_optimization_partition_weights") and engine.zero_optimization_partition_weights()


def keep_whole(engine: Any, part: nn.Module) -> None:
    """Have ZeRO-3 gather a part of the model once before each pass, and not when its modules run.

    DeepSpeed expects all processes to run the same modules in the same order, and fails, or waits in vain, where they
    do not. The mask head runs once per shape of tile grid, which is another number on each process.

    Args:
        engine: Of DeepSpeed, with ZeRO-3.
        part: Of its model. Nobody else has hooks on it. Its gradients and optimiser states stay divided.
    """
    for module in part.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    parameters: list[Any] = list(part.parameters())

    def gather(*_: Any) -> None:
        # What is whole already stays as it is; a step of the optimiser divides everything again.
        parameters[0].all_gather(parameters)

    engine.module.register_forward_pre_hook(gather)


def forget_deepspeed() -> None:
    """Have transformers build models whole again: with ZeRO-3 in its mind it divides each new one, on all processes."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def find_config(name: str) -> Any:
    """Find a shipped configuration: ``fsdp2.yaml``, ``zero2.json``, ``zero3.json``."""
    return files("self1e.training") / "configs" / name


# --------------------------------------------------------------------------- FSDP2


def shard(model: nn.Module, device: torch.device, *, bf16: bool = False) -> None:
    """Divide a model's weights over all processes (FSDP2), in place: each layer of both towers, and the rest as one.

    Args:
        model: On the CPU, or on ``device``; the process group exists.
        device: Of this process.
        bf16: Weights travel and multiply in bfloat16; gradients are added up in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32 if bf16 else None,
        # Pixels and soft masks keep their type; autocast does what is needed.
        cast_forward_inputs=False,
    )
    for layer in layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    # Masks of several rows are views of one tensor; nobody changes them in place.
    warnings.filterwarnings("ignore", message=".*returned a view tensor")


def layers(model: Any) -> Iterator[nn.Module]:
    """Go through the units that FSDP2 divides: layers of the vision encoder and of the language model."""
    yield from model.model.vision_tower.encoder.layer
    yield from model.model.language_model.layers


def is_sharded(model: Any) -> bool:
    """Tell whether `shard` has divided a model."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def full(tensor: Any) -> Any:
    """Gather a tensor if it is divided; all processes have to ask for it."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_model(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Gather a model's state dict; all processes have to call it.

    Args:
        model: Divided.
        keep: False where the result is not wanted, and is then empty: one tensor at a time is in memory there.
    """
    gathered: dict[str, Tensor] = {}
    known: dict[int, Tensor] = {}  # tied weights stay one tensor
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in known:
            whole = full(tensor.detach())
            known[id(tensor)] = whole.cpu() if keep else whole.new_empty(0)
        if keep:
            gathered[name] = known[id(tensor)]
    return gathered


def gather_optimizer(optimizer: Any, *, keep: bool) -> dict[str, Any]:
    """Gather an optimiser's state dict, as one process would have it; arguments as for `gather_model`."""
    found = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for index in sorted(found["state"]):
        state[index] = {}
        for name, value in found["state"][index].items():
            whole = full(value)
            if keep:
                state[index][name] = whole.cpu() if isinstance(whole, Tensor) else whole
    return {"state": state, "param_groups": found["param_groups"]} if keep else {}


def load_model(model: nn.Module, tensors: Mapping[str, Tensor], origin: Path) -> None:
    """Give each process its share of whole tensors.

    Args:
        model: Divided.
        tensors: A state dict; tied weights may be there once.
        origin: For the message.

    Raises:
        CheckpointError: Some are missing.
    """
    missing, filled = [], set()
    own = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in own.items():
            if name in tensors:
                tensor.copy_(_share(tensors[name].to(tensor.dtype), tensor))
                filled.add(id(tensor))
    missing = [name for name, tensor in own.items() if id(tensor) not in filled]
    if missing:
        raise CheckpointError(f"{origin} lacks {len(missing)} tensors: {', '.join(missing[:3])} ...")


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Give each process its share of an optimiser's state that `gather_optimizer`, or one process, has saved."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameters[index].shape:
                values[name] = _share(value, parameters[index])
    optimizer.load_state_dict(state)


def _share(whole: Tensor, like: Any) -> Any:
    """Divide a tensor as another one is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    whole = whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements) if isinstance(like, DTensor) else whole
