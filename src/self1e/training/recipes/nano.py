"""Recipes of `nano`, the model inside: two stages from scratch, at small size. Their settings are flat."""

from __future__ import annotations

from dataclasses import dataclass, replace

from self1e.errors import SettingError
from self1e.training.recipes.overriding import change


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """Everything that decides a run, besides where its data lies."""

    name: str
    pictures: int
    """Pictures of the run, after the first stage."""
    start: str | None = None
    """Model whose weights the run starts from, a name or a folder; None starts from nothing."""
    text_layers: int | None = None
    """Layers of the language model; those that the start lacks are put in between and change nothing at first (see
    `self1e.training.nano.deepen`). None keeps the start's."""
    encoder_pictures: int = 0
    """Pictures of the first stage, in which vision encoder, projector and word embeddings learn alone; 0 leaves it
    out."""
    encoder_batch_size: int = 32
    encoder_learning_rate: float = 1e-3
    encoder_matrix_learning_rate: float | None = None
    """Of Muon in the first stage; None uses AdamW alone."""
    encoder_photographs: float = 0.35
    """Share of photographs in the first stage, where there are any."""
    frozen_vision: bool = False
    """Keep the vision encoder as the first stage, or the start, left it: what it has learned is not forgotten, and a
    step costs less."""
    batch_size: int
    """Pictures per optimiser step; each brings its queries."""
    queries: int = 4
    """Mask queries per picture."""
    questions: int = 1
    """Questions with written answers per drawn scene, at most 2."""
    comparisons: float = 1.0
    """How many times as often as another kind of question a comparison of two things is asked."""
    hard: float = 0.0
    """Share of a drawn scene's expressions that are of kinds learned last (see `self1e.data.scenes.Scenes`)."""
    smallest_cut: float = 0.25
    """Least share of a photograph's area that a random cut keeps."""
    recolour: float = 0.0
    """Chance that a photograph's colour channels are mixed."""
    photographs: float = 0.25
    """Share of photographs after the first stage, where there are any."""
    absent: float = 0.6
    """Share of drawn scenes that may have phrases that fit nothing."""
    few_absent: int = 0
    """Pictures, at first, with half as many phrases that fit nothing (see `self1e.training.nano.build_mixture`)."""
    learning_rate: float = 1e-3
    matrix_learning_rate: float | None = None
    """Of Muon, which then trains the matrices of hidden layers; None uses AdamW alone."""
    warmup_steps: int = 100
    weight_decay: float = 0.05
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    decay_steps: int = 0
    """Steps in which the learning rate falls to 0 in the end (cosine); constant before. A run can be prolonged
    from any checkpoint of its constant part and still be the run that its recipe describes."""
    mean_decay: float | None = 0.99
    """Decay of the moving mean of the weights that is saved in the end; None saves the last weights."""
    bf16: bool = True
    """Matrix products in bfloat16, everything else in float32."""
    attention: str = "eager"
    """Attention implementation; with bfloat16 on a CPU eager is faster than SDPA at this size."""
    compiled: bool = False
    """Compile the language model's layers, where the machine has a C++ compiler: other rounding, less time per step
    (docs/log.md)."""
    target_side: int | None = 128
    """Side of the masks that the loss sees."""
    seed: int = 0
    polish: tuple[str, ...] | None = None
    """Runs of `nano_polish` that follow, each from the model of the one before: what each changes, as
    ``name=value name=value``. None ends here."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.encoder_batch_size < 1:
            raise SettingError(f"{self.name}: batch_size and encoder_batch_size must be at least 1.")
        if self.text_layers is not None and self.start is None:
            raise SettingError(f"{self.name}: text_layers={self.text_layers} deepens a model; expected start=MODEL.")
        if self.steps < self.warmup_steps + self.decay_steps or self.steps < 1:
            raise SettingError(
                f"pictures={self.pictures} are {self.steps} steps of {self.batch_size}; expected at least "
                f"warmup_steps + decay_steps = {self.warmup_steps + self.decay_steps}. "
                "Take more pictures, or set these smaller."
            )
        if self.encoder_pictures and self.encoder_steps < max(1, self.warmup_steps):
            raise SettingError(
                f"encoder_pictures={self.encoder_pictures} are {self.encoder_steps} steps; expected at least "
                f"warmup_steps={self.warmup_steps}, or 0 pictures to leave the first stage out."
            )
        for name in ("photographs", "encoder_photographs", "smallest_cut", "recolour", "absent", "hard"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"{name}={getattr(self, name)} is a share: expected 0 to 1.")
        self.parts()  # a wrong setting of a later run shows now

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.pictures // self.batch_size

    @property
    def encoder_steps(self) -> int:
        """Optimiser steps of the first stage."""
        return self.encoder_pictures // self.encoder_batch_size

    def parts(self) -> list[TrainRecipe]:
        """Every run in order: this one without what follows, then the others; where each starts is known later."""
        following = [change(nano_polish(), settings.split()) for settings in self.polish or ()]
        return [replace(self, polish=None) if self.polish else self, *following]


def nano() -> TrainRecipe:
    """Train `nano`, the model inside, from scratch: all that made the weights in this package, in one command.

        self1e train nano --data DATA --out runs/nano

    DATA holds ``ccp/`` (Clothing Co-Parsing) and ``coco_mini/``; without it, drawn scenes alone. On 2 CPU cores:
    ``torchrun --nproc-per-node 2 -m self1e train nano ...``, about two hours, and eight more of polishing
    (``--set polish=none`` leaves that out). What it reaches, its log and its curves: docs/results/nano.md. What was
    tried before: docs/log.md.
    """
    return TrainRecipe(
        name="nano",
        pictures=89_600,
        batch_size=16,
        encoder_pictures=86_400,
        encoder_matrix_learning_rate=4e-3,
        frozen_vision=True,
        few_absent=38_400,
        learning_rate=1.5e-3,
        matrix_learning_rate=3e-3,
        decay_steps=4000,
        polish=(
            "pictures=19200 absent=0.6 learning_rate=0.0008 matrix_learning_rate=0.0016 decay_steps=600",
            "pictures=9600 absent=0.6 learning_rate=0.0006 matrix_learning_rate=0.0012 warmup_steps=20 "
            "decay_steps=560 seed=2",
            "seed=4",
            "pictures=20000 learning_rate=0.0008 matrix_learning_rate=0.0016 warmup_steps=30 decay_steps=1200 seed=5",
            "pictures=66400 text_layers=6 warmup_steps=100 decay_steps=2500 seed=6",
            "pictures=19200 photographs=0.3 learning_rate=0.0008 matrix_learning_rate=0.0016 warmup_steps=30 "
            "decay_steps=1150 seed=7",
            "pictures=72000 questions=2 comparisons=3 compiled=true warmup_steps=60 decay_steps=3000 seed=8",
            "pictures=88000 questions=2 comparisons=2 hard=0.35 photographs=0.12 compiled=true warmup_steps=60 "
            "decay_steps=3800 seed=9",
        ),
    )


def nano_polish() -> TrainRecipe:
    """Train `nano` longer at a falling rate: more drawn scenes, photographs cut closer and in other colours.

        self1e train nano_polish --data DATA --out runs/polish --set start=runs/nano/model

    The vision encoder stays as it is here too: trained along, even at a lower rate, it got worse (docs/log.md). Every
    scene may be asked for what it does not hold: with fewer, "not there" was hardly learned. The shipped weights went
    through it eight times; what each changed stands in `nano`.
    """
    return TrainRecipe(
        name="nano_polish",
        start="nano",
        pictures=67_200,
        batch_size=16,
        queries=5,
        frozen_vision=True,
        learning_rate=1.2e-3,
        matrix_learning_rate=2.4e-3,
        warmup_steps=50,
        decay_steps=2200,
        photographs=0.15,
        smallest_cut=0.1,
        recolour=0.3,
        absent=1.0,
        seed=1,
    )


def nano_smoke() -> TrainRecipe:
    """Take a few steps on drawn scenes: seconds, to see that everything works."""
    return TrainRecipe(
        name="nano_smoke", pictures=16, batch_size=4, encoder_pictures=64, queries=2, warmup_steps=1, decay_steps=1
    )
