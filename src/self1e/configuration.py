"""The configuration: an InternVL model plus the method's few switches.

Each switch is named for the question it answers, and its default loads the released weights
faithfully. Together they reproduce every row of the paper's ablations (Tables 5, 6, 7, 11).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from transformers import AutoConfig, InternVLConfig

from self1e.errors import SettingError

SegReadout = Literal["before", "at"]
Fine = Literal["none", "replicate", "scan"]
Unshuffle = Literal["none", "residual_only", "one", "two", "three"]
AttentionRule = Literal["causal", "image", "image_seg", "image_text", "bidirectional"]
Auxiliary = Literal["off", "plain", "through_final_mlp"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "seg_readout": get_args(SegReadout),
    "fine": get_args(Fine),
    "unshuffle": get_args(Unshuffle),
    "attention": get_args(AttentionRule),
    "auxiliary_low_resolution": get_args(Auxiliary),
}


class Self1EConfig(InternVLConfig):
    """An InternVL configuration with the switches of SELF1E.

    Attributes:
        seg_token_id: Id of ``[SEG]``.
        seg_readout: Which hidden state is F_SEG: the one ``before`` [SEG] (whose next token is
            [SEG]; the released weights) or the one ``at`` [SEG] (the paper's text).
        fine: Uncompressed features (F_V1^HQ) and how they reach the projector: ``replicate`` each
            patch (RFR; Table 11 row 3), ``scan`` 2x2 windows with stride 1 (Table 11 row 2), or
            ``none`` (Table 5 rows 1 and 4, Table 11 row 1). Table 11 was measured with ``unshuffle="none"``.
        residual: Refill what the LLM changed about the coarse tokens (RFR). Off with ``fine`` on
            leaves the fine features alone (Table 5 row 2).
        unshuffle: MLP-with-pixel-unshuffle: ``none`` (Table 5 rows 1-3, Table 6 row 1), on the
            residual alone (``residual_only``, Table 6 row 2), one shared MLP (row 3), ``two``
            (SELF1E: one for features without, one for features with LLM; row 4) or ``three`` (row 5).
        attention: What image tokens may see beyond the causal mask (Table 7, rows in order):
            ``causal``, ``image``, ``image_seg`` (SELF1E), ``image_text``, ``bidirectional``.
        final_mlp: One more MLP on the fused map and on the [SEG] vector (in the code and the
            released weights, not in the paper).
        auxiliary_low_resolution: The second, low-resolution mask of the training loss:
            ``plain`` (InternVL3 class), ``through_final_mlp`` (InternVL2 class) or ``off``.
        num_seg_tokens: [SEG] tokens per query: 1 (SELF1E), or 4, 9, 16 ... one per sub-pixel of a finer
            grid (the multi-token paradigm, for comparison only).
        template: Name of the conversation template the checkpoint was made with, if it says.
        no_target_threshold: Least score, 0..1, of a mask that counts as found; below it the answer is "not there".
            Fitted by ``self1e calibrate``; None keeps every mask.
    """

    model_type = "self1e"
    if TYPE_CHECKING:  # configurations once built; the base class also allows dicts
        text_config: Any = None
        vision_config: Any = None

    seg_token_id: int | None = None
    seg_readout: str = "before"
    fine: str = "replicate"
    residual: bool = True
    unshuffle: str = "two"
    attention: str = "image_seg"
    final_mlp: bool = True
    auxiliary_low_resolution: str = "plain"
    num_seg_tokens: int = 1
    template: str | None = None
    no_target_threshold: float | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # InternVLConfig says True by default, but InternVL2.5 and 3 are untied: the language model knows.
        if self.text_config is not None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise SettingError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(known)}.")
        if self.unshuffle in ("residual_only", "three") and (self.fine == "none" or not self.residual):
            raise SettingError(
                f"unshuffle={self.unshuffle!r} needs fine features and a residual, found fine={self.fine!r} and "
                f"residual={self.residual}. Use unshuffle='two' (the same without them), or 'none'."
            )
        least = self.no_target_threshold
        if least is not None and not 0 <= least <= 1:
            raise SettingError(f"no_target_threshold={least} is a score, 0 to 1; or None for none.")
        side = round(self.num_seg_tokens**0.5)
        if self.num_seg_tokens < 1 or side * side != self.num_seg_tokens:
            raise SettingError(
                f"num_seg_tokens={self.num_seg_tokens} must be a square (1, 4, 9, 16, ...): one token per sub-pixel."
            )

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a configuration of any origin (published, InternVLChat, ``-hf``, ours) as one of ours.

        Of a local folder the headers of the weights and the tokenizer are read as well: they say what a foreign
        ``config.json`` leaves open (`self1e.model.checkpoints.configs.read_config`).
        """
        from self1e.model.checkpoints import normalise_config, read_config

        folder = Path(str(pretrained_model_name_or_path)) / (kwargs.get("subfolder") or "")
        found, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return read_config(found, folder) if folder.is_dir() else normalise_config(found), unused

    @property
    def compression(self) -> int:
        """Patches per token and side (``s``; 2 for InternVL)."""
        return round(1 / self.downsample_ratio)

    @property
    def patches_per_side(self) -> int:
        """Patches per side of one tile (``g``; 32 for InternVL)."""
        return self.vision_config.image_size[0] // self.vision_config.patch_size[0]

    @property
    def tile_size(self) -> int:
        """Pixels per side of one tile (448 for InternVL)."""
        return int(self.vision_config.image_size[0])


AutoConfig.register("self1e", Self1EConfig)
