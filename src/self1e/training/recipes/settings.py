"""What decides a run: nested settings, each field with its unit and where its value comes from.

Frozen: a variant is `dataclasses.replace`, or ``--set data.referring=code`` on the command line. Nothing here needs
torch: `self1e train --list` comes at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from self1e.errors import SettingError

PerTower = Literal["lora", "full", "frozen"]
Whole = Literal["full", "frozen"]
Matrix = Literal["full", "seg", "frozen"]
"""The whole matrix, the row of ``[SEG]`` alone, or nothing."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which base, and the switches of `Self1EConfig`; their defaults are SELF1E."""

    base: str
    """Folder, or name on the hub, of the model that the run starts from: a base model, or any checkpoint."""
    seg_readout: Literal["before", "at"] = "before"
    fine: Literal["none", "replicate", "scan"] = "replicate"
    residual: bool = True
    unshuffle: Literal["none", "residual_only", "one", "two", "three"] = "two"
    attention: Literal["causal", "image", "image_seg", "image_text", "bidirectional"] = "image_seg"
    final_mlp: bool = True
    auxiliary_low_resolution: Literal["off", "plain", "through_final_mlp"] | None = None
    """None: as the published class of the base's language model has it."""
    num_seg_tokens: int = 1
    kernel: Literal["sdpa", "eager"] = "sdpa"
    """Attention implementation of transformers."""
    keep_switches: bool = False
    """Leave every switch as the base has it, for going on with a finished model."""
    frozen_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of weights that do not change; those that do are float32 (METHOD 6.4: bf16 with float32 masters)."""

    def __post_init__(self) -> None:
        if self.num_seg_tokens < 1:
            raise SettingError(f"model.num_seg_tokens={self.num_seg_tokens} must be at least 1.")

    def switches(self) -> dict[str, Any]:
        """The switches of `Self1EConfig` that are set whatever the base says by itself."""
        if self.keep_switches:
            return {}
        apart = ("base", "kernel", "frozen_dtype", "keep_switches")
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in apart}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """What is trained, and how (METHOD 6.3). Norms, layer scales and position tables are always frozen with LoRA."""

    language: PerTower = "lora"
    """Language model: LoRA on q, k, v, o, gate, up and down of every layer; or all of it, or nothing."""
    vision: PerTower = "lora"
    """Vision encoder: LoRA on q, k, v, output projection, fc1 and fc2 of every layer; or all of it, or nothing."""
    rank: int = 128
    """r of both; published: 128 for 2B, 64 for 8B."""
    alpha: float | None = None
    """None: 2 r, which is what the published code takes whatever it is told."""
    dropout: float = 0.05
    """Before A, as published."""
    projector: Whole = "full"
    mask_head: Whole = "full"
    input_embeddings: Matrix = "full"
    """Published: the whole matrix, but frozen for InternLM2, whose name for it the published rule misses."""
    output_embeddings: Matrix = "full"

    def __post_init__(self) -> None:
        if self.rank < 1 or (self.alpha is not None and self.alpha <= 0):
            raise SettingError(f"adapters: rank={self.rank} and alpha={self.alpha} must be above 0.")
        if not 0 <= self.dropout < 1:
            raise SettingError(f"adapters.dropout={self.dropout} must be from 0 to below 1; published: 0.05.")

    @property
    def lora_alpha(self) -> float:
        """alpha; the factor of B A is alpha / r."""
        return 2 * self.rank if self.alpha is None else self.alpha


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is shown, in which proportion."""

    source: Literal["published", "scenes", "own"] = "published"
    """``published``: `self1e.data.published`. ``scenes``: drawn scenes, which need no data at all. ``own``: what
    `self1e.data.own` opens, by ``self1e finetune``."""
    sets: tuple[str, ...] | None = None
    """Of the published sets, these alone; None for all."""
    referring: Literal["paper", "code"] = "paper"
    """The code's list of referring sets also has refCLEF."""
    semantic: int = 1
    """Copies of each semantic set in an epoch; SELF1E 1, SELF1E-SEG 6."""
    referring_copies: int = 1
    """SELF1E 1, SELF1E-SEG 20."""
    reasoning: int = 1
    """SELF1E 1, SELF1E-SEG 6."""
    instructions: int = 1
    """LLaVA-Instruct: 1 in both."""
    pictures: int | None = None
    """Pictures of an epoch: None for all of them; scenes need a number."""
    epochs: int = 1
    """Each in another order."""
    held_out: float = 0.1
    """Own data: share of its pictures that is not trained on but measured, where it has no val split of its own; 0
    measures on the training pictures, which says that a model learns, not what it has learned."""
    queries: int = 3
    """Own data: most queries of a picture in one step."""
    absent: float = 0.1
    """Own data: chance that a query is replaced by one that the annotators looked for and did not find (classes that
    are not in the picture). Queries that are noted as not there are always asked; both teach an empty mask."""
    answers: Literal["published", "bare"] = "published"
    """Own data: what is taught to be written, sentences around [SEG] as published, or [SEG] alone. A small model that
    knows one of the two would first have to unlearn it."""
    colour: float = 0.1
    """Own data: most relative change of brightness and of each channel. Nothing is cut: words like "the largest" would
    no longer be true."""
    mirror: bool = False
    """Own data: mirror every other picture. Only for words that know no left and right."""
    max_tiles: int = 1
    """Most tiles per picture; published: 1."""
    max_length: int | None = 512
    """Rows are cut after so many tokens, image tokens and [SEG] never; published: 512."""
    target_side: int | None = None
    """Masks are brought to this square size before the loss; None keeps theirs, as published."""
    bucketed: bool = True
    """Rows of like length in one micro-batch, within small windows of the order: less padding."""
    most_unreadable: int = 10
    """Pictures that may turn out unreadable and are passed over, each with its name in the log."""
    workers: int = 2
    """Processes that read, per process that trains."""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1 or not 0 <= self.absent <= 1 or not 0 <= self.colour < 1 or self.queries < 1:
            raise SettingError(
                f"data: held_out={self.held_out} and colour={self.colour} are shares from 0 to below 1, "
                f"absent={self.absent} is a chance from 0 to 1, queries={self.queries} at least 1."
            )
        copies = (self.semantic, self.referring_copies, self.reasoning, self.instructions)
        if min(copies) < 1 or self.epochs < 1:
            raise SettingError("data: copies and epochs must be whole numbers from 1; leave sets out by data.sets.")
        for name, least in (
            ("max_tiles", 1),
            ("max_length", 1),
            ("target_side", 1),
            ("workers", 0),
            ("most_unreadable", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingError(f"data.{name}={value} must be at least {least}.")
        if self.pictures is not None and self.pictures < 1:
            raise SettingError(f"data.pictures={self.pictures} must be at least 1, or none for all.")
        if self.source == "scenes" and self.pictures is None:
            raise SettingError("data.source=scenes never ends; say how many pictures: --set data.pictures=1000.")


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """AdamW as published (METHOD 6.4)."""

    learning_rate: float = 1e-4
    """Highest; published: 1e-4 for 2B, 6e-5 for 8B. One for all parameters, as the published scheduler has it."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """After the warm-up, to 0 at the last step. The published code is linear, the paper says cosine."""
    warmup_steps: int = 100
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """Clips the global norm of the gradient; see ``summed_micro_batches``."""
    global_batch: int = 160
    """Pictures per optimiser step over all processes; published: 5 x 8 x 4."""
    micro_batch: int = 5
    """Pictures per process and forward; accumulation follows from it and the number of processes."""
    summed_micro_batches: int = 8
    """The published code adds up the gradients of 8 micro-batches where others take their mean, and Adam does not
    notice a constant factor, but clipping does: it then acts at 1/8 of the norm of the mean. The mean is taken here,
    with ``max_grad_norm`` and ``eps`` divided by this number: the same steps as published, on any number of
    processes. 1 clips the mean itself."""
    steps: int | None = None
    """Optimiser steps; None for ``data.epochs`` epochs."""
    most_skipped: int = 0
    """Steps whose loss or gradient is not a number that are passed over; published: 0."""
    bf16: bool = True
    """Products in bfloat16; mask losses are float32 all the same."""
    gradient_checkpointing: bool = True
    """Keep one tensor per layer and compute the rest twice: a quarter more time, a fraction of the memory."""

    def __post_init__(self) -> None:
        whole = ("global_batch", "micro_batch", "summed_micro_batches")
        wrong = [name for name in whole if getattr(self, name) < 1]
        if wrong:
            raise SettingError(f"optim.{wrong[0]}={getattr(self, wrong[0])} must be at least 1.")
        if self.steps is not None and self.steps < 1:
            raise SettingError(f"optim.steps={self.steps} must be at least 1, or none for data.epochs epochs.")
        if self.learning_rate <= 0 or self.eps <= 0:
            raise SettingError(f"optim.learning_rate={self.learning_rate} and optim.eps={self.eps} must be above 0.")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise SettingError(f"optim.beta1={self.beta1} and optim.beta2={self.beta2} must be from 0 to below 1.")
        least = ("warmup_steps", "weight_decay", "max_grad_norm", "most_skipped")
        wrong = [name for name in least if getattr(self, name) < 0]
        if wrong:
            raise SettingError(f"optim.{wrong[0]}={getattr(self, wrong[0])} must be at least 0.")

    def accumulation(self, workers: int) -> int:
        """Micro-batches per process and step.

        Args:
            workers: Processes that train.

        Raises:
            SettingError: They do not divide the global batch evenly.
        """
        per_round = self.micro_batch * workers
        if self.global_batch % per_round:
            near = [n for n in range(self.micro_batch, 0, -1) if self.global_batch % (n * workers) == 0]
            advice = (
                f"try optim.micro_batch={near[0]}" if near else f"set optim.global_batch to a multiple of {workers}"
            )
            raise SettingError(
                f"optim.global_batch={self.global_batch} cannot be shared out: optim.micro_batch={self.micro_batch} on "
                f"{workers} process{'es' if workers > 1 else ''} makes rounds of {per_round}; {advice}."
            )
        return self.global_batch // per_round


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Weights of the parts of the loss, as published."""

    text: float = 1.0
    bce: float = 2.0
    dice: float = 0.5

    def __post_init__(self) -> None:
        if min(self.text, self.bce, self.dice) < 0 or max(self.text, self.bce, self.dice) == 0:
            raise SettingError(
                f"loss: text={self.text}, bce={self.bce} and dice={self.dice} must be at least 0, and one above it."
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured while the model learns."""

    on: str | None = "reasonseg/val"
    """A benchmark of `self1e.data.published`, ``scenes``, or None for nothing. Published: ReasonSeg val."""
    every: int = 200
    """Optimiser steps; published: 200."""
    pictures: int = 200
    """At most; always the same."""
    metric: Literal["ciou", "giou"] = "giou"
    """By which the best weights are chosen, for ``OUT/best``."""
    drawn: int = 4
    """Of the pictures, so many are drawn each time: picture, truth, prediction."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.pictures < 1 or self.drawn < 0:
            raise SettingError("evaluation: every and pictures must be at least 1, drawn at least 0.")


@dataclass(frozen=True, kw_only=True)
class SavingSettings:
    """Checkpoints and the log."""

    every: int = 200
    """Optimiser steps between checkpoints; published: 200."""
    keep: int = 2
    """Checkpoints kept; published: 1."""
    log_every: int = 10
    """Optimiser steps between lines of the log."""

    def __post_init__(self) -> None:
        if min(self.every, self.keep, self.log_every) < 1:
            raise SettingError("saving: every, keep and log_every must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class DistributedSettings:
    """Many processes (`self1e.training.distributed`). How many, ``torchrun`` or ``accelerate launch`` decides."""

    strategy: Literal["ddp", "fsdp2", "zero2", "zero3"] | None = None
    """None: as ``accelerate launch`` was told, DDP otherwise. Published: ZeRO-2."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run, besides where its data lies."""

    name: str
    paper: str = ""
    """Which row of the paper it is, if any."""
    model: ModelSettings
    adapters: AdapterSettings = field(default_factory=AdapterSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    saving: SavingSettings = field(default_factory=SavingSettings)
    distributed: DistributedSettings = field(default_factory=DistributedSettings)
    seed: int = 42
    """Published: 42."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise SettingError(f"seed={self.seed} must be from 0 to {2**32 - 1}.")
