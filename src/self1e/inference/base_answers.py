"""The base model's answers from a trained model, bit for bit: adapters off, originals of whole matrices back.

    model = load_with_base("runs/my/checkpoint-2000", "InternVL3-2B")
    model.chat(picture, "What is on the table?")                 # as trained
    with base_answers(model):
        model.chat(picture, "What is on the table?")             # as InternVL3-2B

A training checkpoint keeps LoRA beside the base's weights, which it does not change. What is trained as a whole
(word embeddings, output matrix, projector) is not in it as the base has it: these originals come from the base's own
folder, and every other tensor is compared with the base, so that "the base" is a fact and not a hope. The originals
have as many rows as the base has words; answers are compared and chosen on its vocabulary.

`base_answers` turns the model itself into its base for a while: for evaluation, where nothing else asks it meanwhile.
`base_beside` makes a second model of the same tensors: for conversations, where both answer in turn.

A merged checkpoint has lost the base: ``W + B A`` is rounded, and nothing brings ``W`` back. It is refused.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from self1e.configuration import Self1EConfig
from self1e.errors import CheckpointError, SettingError
from self1e.inference.folded import SeenWeights
from self1e.inference.loading import choose_device, choose_dtype, find_model, reading
from self1e.inference.segmenter import Self1E
from self1e.model import Self1EForConditionalGeneration
from self1e.model.checkpoints import Weights
from self1e.model.checkpoints.loading import expected_shapes
from self1e.model.checkpoints.names import EMBEDDINGS, OUTPUT
from self1e.model.checkpoints.strict import HEAD
from self1e.processing.processor import Self1EProcessor

PROJECTOR = "model.multi_modal_projector."
WHOLE = (EMBEDDINGS, OUTPUT, PROJECTOR)
"""What training may change as a whole; whatever else differs from the base is a merged adapter, or another base."""

_ATTRIBUTE = "_base_tensors"
_BESIDE: WeakKeyDictionary[Self1E, tuple[SeenWeights, Self1E]] = WeakKeyDictionary()
_MAKING = Lock()
_OF_PEFT = (".base_layer", ".token_adapter", ".original_module")


@dataclass(frozen=True, eq=False)
class BaseTensors:
    """What `base_answers` puts back."""

    base: str
    """Which base."""
    originals: Mapping[str, Tensor]
    """By the parameter's name in the model as it is, on its device and in its type."""


def load_with_base(checkpoint: Any, base: str | Path, *, device: Any = "auto", dtype: Any = "auto") -> Self1E:
    """Load a checkpoint whose adapters are not merged, and keep them apart.

    Args:
        checkpoint: Folder with LoRA still attached: a checkpoint of a training run.
        base: Folder of the base model that it was trained from, of any layout that ``self1e.load`` reads.
        device: See ``self1e.load``.
        dtype: See ``self1e.load``.

    Raises:
        CheckpointError: The checkpoint is merged, or was trained from another base.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    shown, path = find_model(checkpoint)
    folder = _local(path)
    base_folder = _local(find_model(base, needs_tokenizer=False)[1])
    with reading(shown):
        processor = Self1EProcessor.from_pretrained(path)
        model = _load_unmerged(folder, shown, chosen_dtype)
    with reading(str(base)):
        remember_base(model, base_folder)
    moved: Any = model.to(chosen_device)  # type: ignore[arg-type]
    _move_originals(moved, chosen_device)
    return Self1E(moved, processor, name=shown)


def _local(path: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(
            f"{path} is a name on the hub; adapters and base are read from folders here. Download it first: "
            f"hf download {path} --local-dir FOLDER."
        )
    return folder


def _load_unmerged(folder: Path, shown: str, dtype: torch.dtype) -> Self1EForConditionalGeneration:
    """Load weights without their LoRA, then put the LoRA beside them, in place, as PEFT does."""
    config: Any = Self1EConfig.from_pretrained(folder)
    weights = Weights(folder, config)
    shapes = expected_shapes(config)
    adapted = [name for name in shapes if weights.holds(name) and weights.pair(name) is not None]
    if not adapted:
        raise CheckpointError(_is_merged(shown))
    weights.check(shapes)
    tensors = {name: weights.read(name, merged=False) for name in shapes}
    if hasattr(config, "lora_alpha"):
        del config.lora_alpha
    network: Any = Self1EForConditionalGeneration.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype)
    network.config.name_or_path = network.name_or_path = str(folder)
    _attach(network, weights, adapted)
    return network.eval()


@torch.no_grad()
def _attach(network: nn.Module, weights: Weights, adapted: list[str]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    pairs = {name.removesuffix(".weight"): weights.adapter(name) for name in adapted}
    ranks = {module: len(pair[0]) for module, pair in pairs.items() if pair is not None}
    alphas = {module: weights.scales[rank] * rank for module, rank in ranks.items()}
    first = next(iter(ranks))
    is_uniform = len(set(ranks.values())) == 1
    settings = LoraConfig(
        r=ranks[first],
        lora_alpha=alphas[first],  # pyright: ignore[reportArgumentType] (alpha / r is a division)
        target_modules=list(ranks),
        rank_pattern={} if is_uniform else ranks,
        alpha_pattern={} if is_uniform else alphas,  # pyright: ignore[reportArgumentType]
        bias="none",
    )
    inject_adapter_in_model(settings, network)
    for module, pair in pairs.items():
        assert pair is not None
        layer: Any = network.get_submodule(module)
        for side, tensor in zip((layer.lora_A, layer.lora_B), pair, strict=True):
            side["default"].weight.copy_(tensor)
    network.requires_grad_(False)


def remember_base(model: Self1E | nn.Module, base: str | Path) -> None:
    """Compare a model that has adapters with its base, and keep the originals of what was trained as a whole.

    Args:
        model: With unmerged adapters, for example one in training.
        base: Folder of the base model.

    Raises:
        CheckpointError: The model has no adapters, or differs from the base where no training of whole matrices may.
    """
    network: Any = model.model if isinstance(model, Self1E) else model
    if not _switches(network):
        raise CheckpointError(_is_merged(str(getattr(network, "name_or_path", "") or "The model")))
    weights = Weights(Path(base), Self1EConfig.from_pretrained(base))
    originals: dict[str, Tensor] = {}
    foreign: list[str] = []
    for name, parameter in network.named_parameters(remove_duplicate=False):
        plain = _plain(name)
        if plain is None or plain.startswith(HEAD):
            continue
        source = EMBEDDINGS if plain == OUTPUT and not weights.holds(OUTPUT) else plain
        if not weights.holds(source):
            foreign.append(plain)
            continue
        original = weights.read(source).to(parameter.dtype)
        if original.shape == parameter.shape and torch.equal(original, parameter.detach().cpu()):
            continue
        if plain.startswith(WHOLE):
            originals[name] = original.to(parameter.device)
        else:
            foreign.append(plain)
    if foreign:
        raise CheckpointError(
            f"{len(foreign)} tensors differ from the base {base} where adapters leave it as it is, e.g. "
            f"{', '.join(foreign[:3])}: the model was trained from another base, or its adapters are merged. Take the "
            "base that it was trained from, and a checkpoint of the training run."
        )
    setattr(network, _ATTRIBUTE, BaseTensors(str(base), originals))


def _plain(name: str) -> str | None:
    """A parameter's name before PEFT; None if it is an adapter's own."""
    if ".lora_" in name or "trainable_tokens" in name or ".modules_to_save." in name:
        return None
    for addition in _OF_PEFT:
        name = name.replace(addition, "")
    return name.removeprefix("base_model.model.")


def _switches(network: nn.Module) -> list[Any]:
    """Modules of PEFT that can be turned off."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]


def _is_merged(shown: str) -> str:
    return (
        f"{shown}: its adapters are merged into the weights (or it was trained without), and the base cannot be told "
        "from them. The base's answers need a checkpoint with adapters attached and the base's folder: "
        "load_with_base(CHECKPOINT, BASE); on the command line, --model CHECKPOINT --base BASE."
    )


def knows_base(model: Self1E | nn.Module) -> bool:
    """Whether `base_answers` works on a model."""
    return getattr(model.model if isinstance(model, Self1E) else model, _ATTRIBUTE, None) is not None


def check_base(model: Self1E | nn.Module) -> BaseTensors:
    """Return what is needed of a model's base, or say why its base cannot be asked.

    Raises:
        CheckpointError: The base's tensors are not at hand, or the adapters were merged since.
    """
    network: Any = model.model if isinstance(model, Self1E) else model
    known: BaseTensors | None = getattr(network, _ATTRIBUTE, None)
    if known is None:
        raise CheckpointError(_is_merged(str(getattr(network, "name_or_path", "") or "The model")))
    if any(getattr(module, "merged", False) for module in _switches(network)):
        raise CheckpointError(
            f"{known.base}: the adapters were merged in memory, which rounds, and unmerging restores roughly. Load the "
            "checkpoint again with load_with_base."
        )
    return known


def base_beside(model: Self1E) -> Self1E:
    """Return the base of a trained model as a model of its own, for words.

    It has modules of its own, and shares every tensor: it takes little memory, switching costs nothing, and other
    threads may go on asking the trained model. There is one for all who ask, until the model moves or learns: it is the
    base of the weights as they are now.

    Args:
        model: From `load_with_base`, or after `remember_base`.

    Raises:
        CheckpointError: The base's tensors are not at hand, or the adapters were merged since.
    """
    known = check_base(model)
    with _MAKING:
        seen, base = _BESIDE.get(model, (None, None))
        if seen is None or base is None or not seen.are_the_same():
            base = _make_beside(model, known)
            _BESIDE[model] = SeenWeights(model.model), base
    return base


def _make_beside(model: Self1E, known: BaseTensors) -> Self1E:
    """Copy the modules, not the tensors, and turn the copy's adapters off."""
    trained: Any = model.model
    learns = [(parameter, parameter.requires_grad) for parameter in trained.parameters()]
    originals = _as_parameters(trained, known)
    shared = [*trained.parameters(), *trained.buffers(), *known.originals.values()]
    network = copy.deepcopy(trained, {id(tensor): tensor for tensor in shared})
    _exchange(network, originals)
    for module in _switches(network):
        module.enable_adapters(False)
    for parameter, wanted in learns:  # PEFT's switch turns learning off, of what is shared as well
        parameter.requires_grad_(wanted)
    network.register_forward_pre_hook(_refuse_masks, with_kwargs=True)
    return Self1E(network, model.processor, name=f"{Path(model.name).name}, adapter off")


@contextmanager
def base_answers(model: Self1E | nn.Module) -> Iterator[None]:
    """Answer as the base inside the block, and as trained again after it.

    For words only: a mask would need the trained model, so asking for one inside the block is an error, and pictures
    encoded on one side of its border are refused on the other. Not for several threads at once: the weights change.

    Args:
        model: From `load_with_base`, or after `remember_base`.

    Raises:
        CheckpointError: The base's tensors are not at hand, or the adapters were merged since.
    """
    network: Any = model.model if isinstance(model, Self1E) else model
    known = check_base(network)
    switches = _switches(network)
    before = [bool(getattr(module, "disable_adapters", False)) for module in switches]
    learns = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    # Features of one side mean nothing to the other.
    encoder = model._id if isinstance(model, Self1E) else None
    guard = network.register_forward_pre_hook(_refuse_masks, with_kwargs=True)
    kept = _exchange(network, _as_parameters(network, known))
    try:
        for module in switches:
            module.enable_adapters(False)
        if isinstance(model, Self1E):
            model._id = uuid.uuid4().hex
        yield
    finally:
        _exchange(network, kept)
        for module, was_off in zip(switches, before, strict=True):
            module.enable_adapters(not was_off)
        for parameter, wanted in learns:  # PEFT's switch turns learning on
            parameter.requires_grad_(wanted)
        guard.remove()
        if isinstance(model, Self1E) and encoder is not None:
            model._id = encoder


def _refuse_masks(network: Any, inputs: tuple[Any, ...], settings: dict[str, Any]) -> None:
    input_ids = settings.get("input_ids", inputs[0] if inputs else None)
    if input_ids is not None and bool((input_ids == network.config.seg_token_id).any()):
        raise SettingError("base_answers: the base model knows no [SEG] and makes no masks; ask outside the block.")


def _as_parameters(network: nn.Module, known: BaseTensors) -> dict[str, nn.Parameter]:
    """The originals where the model is by now, and in its type."""
    places = dict(network.named_parameters(remove_duplicate=False))
    return {
        name: nn.Parameter(original.to(places[name].device, places[name].dtype), False)
        for name, original in known.originals.items()
    }


def _exchange(network: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Put parameters in place of those of their names, also of another shape; return the others."""
    found: dict[str, nn.Parameter] = {}
    for name, parameter in parameters.items():
        path, _, leaf = name.rpartition(".")
        owner = network.get_submodule(path)
        found[name] = getattr(owner, leaf)
        setattr(owner, leaf, parameter)
    return found


def _move_originals(network: nn.Module, device: torch.device) -> None:
    known: BaseTensors = getattr(network, _ATTRIBUTE)
    moved = {name: tensor.to(device) for name, tensor in known.originals.items()}
    setattr(network, _ATTRIBUTE, BaseTensors(known.base, moved))
