"""The model: train, chat and mask forward on one screen.

An InternVL of `transformers` plus a mask head. `generate` is inherited and stays causal; a forward
over a complete sequence with [SEG] uses dual perception and yields mask logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import InternVLForConditionalGeneration
from transformers.utils.generic import ModelOutput

from self1e.configuration import Self1EConfig
from self1e.errors import PromptError, SettingError
from self1e.model.attention import language_attention_mask, seg_of_query
from self1e.model.checkpoints import reference_state_dict
from self1e.model.losses import LossWeights, mask_losses, text_loss
from self1e.model.mask_head import MaskHead, MaskHeadOutput, replicate, scan, stitch_tiles


@dataclass
class VisionFeatures:
    """What the model knows about pictures before it reads any words: computed once per picture."""

    coarse: Tensor
    """F_V1, what the LLM receives: ``(T, tokens, D)``, tiles of all pictures in order."""
    fine: Tensor | None
    """F_V1^HQ, uncompressed patches through the same projector: ``(T, patches, D)``; None without fine features, or if
    they are made of ``patches`` when a mask needs them (folded weights never do)."""
    patches: Tensor
    """F_V0, the encoder's last block without class token: ``(T, patches, C)``."""
    tile_grids: list[tuple[int, int]]
    """Rows and columns of tiles, per picture."""


@dataclass
class _Rows:
    """Rows of text matched with their pictures."""

    pictures: list[int]
    coarse: Tensor
    """Image tokens in the order of the rows, ``(tiles of all rows, tokens, D)``."""
    starts: list[int]
    """First tile of each picture, and the end."""


@dataclass
class Self1EOutput(ModelOutput):
    """Output of `Self1EForConditionalGeneration.forward`.

    Attributes:
        loss: Weighted total, if labels or mask targets were given.
        logits: Next-token logits; None when a loss was asked for (it only needs labelled positions).
        mask_logits: Per row ``(K_b, 4*rows*h, 4*columns*w)``; None without any [SEG].
        low_resolution_logits: Per row, the auxiliary mask of the loss; None unless training on masks.
        losses: The unweighted parts: ``text``, ``bce``, ``dice``.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    mask_logits: tuple[Tensor, ...] | None = None
    low_resolution_logits: tuple[Tensor, ...] | None = None
    losses: dict[str, Tensor] | None = None
    past_key_values: Any = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Self1EForConditionalGeneration(InternVLForConditionalGeneration):
    """InternVL that answers with masks (SELF1E, CVPR 2026)."""

    config_class = Self1EConfig
    config: Self1EConfig
    # Flash kernels know no or-mask: they would silently run plain causal attention.
    _supports_flash_attn = False
    # The loss is already a mean per micro-batch; the Trainer must divide by the accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: Self1EConfig) -> None:
        super().__init__(config)
        self.mask_head = MaskHead(config)
        self.loss_weights = LossWeights()
        self.post_init()

    # ----------------------------------------------------------------- vision

    def encode_pictures(self, pixel_values: Tensor, tile_grids: Sequence[Sequence[int]] | Tensor) -> VisionFeatures:
        """Run everything that does not depend on words.

        Args:
            pixel_values: Normalised tiles of all pictures, ``(T, 3, S, S)``.
            tile_grids: ``(rows, columns)`` per picture.
        """
        grids = _as_grids(tile_grids)
        if sum(rows * columns for rows, columns in grids) != len(pixel_values):
            raise SettingError(
                f"pixel_values holds {len(pixel_values)} tiles but tile_grids={grids} describe "
                f"{sum(r * c for r, c in grids)}; pass one (rows, columns) per picture."
            )
        vision: Any = self.model.get_image_features(pixel_values=pixel_values, return_dict=True)  # pyright: ignore
        patches = vision.last_hidden_state[:, 1:]
        return VisionFeatures(vision.pooler_output, self.fine_features(patches), patches, grids)

    def fine_features(self, patches: Tensor) -> Tensor | None:
        """F_V1^HQ: every patch through the projector without compression: ``(T, g*g, C) -> (T, g*g, D)`` (RFR)."""
        scale = self.config.compression
        if self.config.fine == "none":
            return None
        if self.config.fine == "replicate":
            return self.model.multi_modal_projector(replicate(patches, scale * scale))
        side = self.config.patches_per_side
        windows = scan(patches.unflatten(1, (side, side)), scale)
        return self.model.multi_modal_projector(windows.flatten(1, 2))

    # ----------------------------------------------------------------- forward

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        tile_grids: Sequence[Sequence[int]] | Tensor | None = None,
        picture_of_row: Sequence[int] | Tensor | None = None,
        mask_targets: Sequence[Tensor] | None = None,
        vision: VisionFeatures | None = None,
        dual_perception: bool = True,
        only_query: int | None = None,
        **kwargs: Any,
    ) -> Self1EOutput:
        """Run rows of text over pictures; rows with [SEG] get masks.

        Args:
            input_ids: ``(B, N)``, right-padded when masks are wanted.
            pixel_values: Normalised tiles of all pictures, ``(T, 3, S, S)``; each picture once, however many rows ask.
            attention_mask: 2D, true at real tokens.
            labels: ``(B, N)``, -100 = not supervised.
            tile_grids: ``(rows, columns)`` per picture; default one tile each.
            picture_of_row: Which picture each row looks at, -1 = none; default row b looks at picture b.
            mask_targets: Per row ``(K_b, H, W)`` in 0..1, one target per query; rows without [SEG] hold ``(0, 1, 1)``.
            vision: Pictures encoded before (`encode_pictures`), instead of ``pixel_values``.
            dual_perception: False keeps every row causal and makes no masks (text generation).
            only_query: Make the mask of this query of each row only, -1 for the last (conversations): image tokens
                then see its [SEG] and no other (`seg_of_query`).

        Raises:
            PromptError: Image tokens do not match the tiles, targets do not match the [SEG], or padding is on the left.
        """
        masks_wanted = dual_perception and past_key_values is None and input_ids is not None
        is_seg = self._is_seg(input_ids) if masks_wanted and input_ids is not None else None
        if is_seg is not None and only_query is not None:
            is_seg = seg_of_query(is_seg, only_query, self.config.num_seg_tokens)
        masks_wanted = is_seg is not None and bool(is_seg.any())
        if vision is None and pixel_values is not None:
            vision = self.encode_pictures(pixel_values, _default_grids(tile_grids, len(pixel_values)))
        learns = self.training and torch.is_grad_enabled() and (labels is not None or mask_targets is not None)
        blank = self._encode_blank(input_ids) if learns and vision is None and input_ids is not None else None
        rows: _Rows | None = None
        if vision is not None and input_ids is not None:
            rows = self._match_rows(input_ids, vision, picture_of_row)
            inputs_embeds = self._embed(input_ids, rows.coarse)
        elif blank is not None and input_ids is not None and inputs_embeds is None:
            # As with a picture: `_idle` says why.
            inputs_embeds = self.get_input_embeddings()(input_ids) + 0.0 * blank.coarse.sum()
        if masks_wanted and input_ids is not None and is_seg is not None:
            _check_padding(attention_mask)
            attention_mask = language_attention_mask(
                self.config.text_config,
                is_image=input_ids == self.config.image_token_id,
                is_seg=is_seg,
                is_real=attention_mask,
                rule=self.config.attention,
                # Outside their module's forward, ZeRO-3 would gather the weights to show their type.
                dtype=self.lm_head.weight.dtype if inputs_embeds is None else inputs_embeds.dtype,
            )
            kwargs.setdefault("use_cache", False)
        kwargs.pop("return_dict", None)  # `generate` passes it
        outputs = self.model(
            input_ids=input_ids if inputs_embeds is None else None,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        result = Self1EOutput(
            past_key_values=outputs.past_key_values,
            last_hidden_state=hidden,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        if masks_wanted and rows is not None and vision is not None and input_ids is not None and is_seg is not None:
            result.mask_logits, result.low_resolution_logits = self._masks(
                hidden, input_ids, is_seg, vision, rows, with_auxiliary=mask_targets is not None
            )
        if labels is not None or mask_targets is not None:
            is_masked = mask_targets is not None and any(len(row) for row in result.mask_logits or ())
            # Before lm_head, where masks are made too.
            spare = None if is_masked else vision if blank is None else blank
            idle = self._idle(hidden, spare, with_head=not is_masked) if learns else None
            result.loss, result.losses = self._loss(hidden, labels, mask_targets, result)
            if idle is not None:
                result.loss = result.loss + 0.0 * idle
        else:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            result.logits = self.lm_head(hidden[:, keep])
        return result

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Keep generation causal: masks come from one more pass over the complete text."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # pyright: ignore
        inputs["dual_perception"] = False
        if kwargs.get("past_key_values") is not None and not kwargs.get("is_first_iteration", False):
            # The pictures are in the cache already.
            inputs.pop("pixel_values", None)
            inputs.pop("vision", None)
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat rows for beams and samples, but never pictures: more rows look at the same ones."""
        shared = {name: kwargs.pop(name) for name in ("pixel_values", "tile_grids", "vision") if name in kwargs}
        if expand_size > 1 and input_ids is not None and kwargs.get("picture_of_row") is None:
            kwargs["picture_of_row"] = range(len(input_ids))
        if kwargs.get("picture_of_row") is not None:
            kwargs["picture_of_row"] = torch.as_tensor(list(kwargs["picture_of_row"]))
        input_ids, kwargs = super()._expand_inputs_for_generation(  # pyright: ignore
            expand_size, is_encoder_decoder, input_ids, **kwargs
        )
        return input_ids, {**kwargs, **shared}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint of any origin (`self1e.model.checkpoints`), strictly.

        A base model (InternVLChat, ``-hf``) gets a new mask head, and where its folder holds a tokenizer, a row of the
        vocabulary for ``[SEG]``. LoRA that is still attached is merged in float32; `self1e convert --merge` does the
        same with less memory.

        Args:
            pretrained_model_name_or_path: A folder, or a name on the hub.
            args: As for every model of transformers.
            kwargs: As for every model of transformers, fields of `Self1EConfig`, and:
                ``new_mask_head``: whether the mask head may be missing, as a whole, and is then newly initialised;
                left out, this holds for base models only. ``lora_alpha``: alpha of attached LoRA, if it is not 2 r
                and the folder does not say.

        Raises:
            CheckpointError: Tensors are missing, unexpected or misshapen (all are listed), or pickled.
        """
        from self1e.model.checkpoints.loading import load_checkpoint

        return load_checkpoint(cls, super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, *, save_original_format: bool = False, **kwargs: Any
    ) -> None:
        """Save in our own names; ``save_original_format=True`` writes the published ones instead."""
        if save_original_format:
            kwargs["state_dict"] = reference_state_dict(self, kwargs.get("state_dict"))
        super().save_pretrained(save_directory, save_original_format=False, **kwargs)

    # ----------------------------------------------------------------- parts

    def _is_seg(self, input_ids: Tensor) -> Tensor | None:
        if self.config.seg_token_id is None:
            return None
        return input_ids == self.config.seg_token_id

    def _embed(self, input_ids: Tensor, coarse: Tensor) -> Tensor:
        """Word embeddings with image tokens put in, in order: ``(B, N, D)``."""
        embeddings = self.get_input_embeddings()(input_ids)
        is_image = (input_ids == self.config.image_token_id)[..., None]
        return embeddings.masked_scatter(is_image, coarse.to(embeddings.device, embeddings.dtype))

    def _match_rows(
        self, input_ids: Tensor, vision: VisionFeatures, picture_of_row: Sequence[int] | Tensor | None
    ) -> _Rows:
        """Give each row the tiles of its picture, and check that its image tokens are as many."""
        pictures = _as_list(picture_of_row) if picture_of_row is not None else None
        if pictures is None:
            if len(input_ids) != len(vision.tile_grids):
                raise SettingError(
                    f"{len(input_ids)} rows and {len(vision.tile_grids)} pictures: pass picture_of_row to say "
                    "which picture each row looks at (-1 for none)."
                )
            pictures = list(range(len(input_ids)))
        starts = [0]
        for tile_rows, columns in vision.tile_grids:
            starts.append(starts[-1] + tile_rows * columns)
        found = (input_ids == self.config.image_token_id).sum(1).tolist()
        tokens = vision.coarse.shape[1]
        tiles: list[int] = []
        for row, picture in enumerate(pictures):
            own = list(range(starts[picture], starts[picture + 1])) if picture >= 0 else []
            if found[row] != len(own) * tokens:
                raise PromptError(
                    f"Row {row} has {found[row]} image tokens but its picture has {len(own)} tile(s) of {tokens}: "
                    f"expected {len(own) * tokens}. Expand <image> for the same tile grid, and truncate text only."
                )
            tiles += own
        index = torch.tensor(tiles, dtype=torch.long, device=vision.coarse.device)
        return _Rows(pictures, vision.coarse[index], starts)

    def _masks(
        self,
        hidden: Tensor,
        input_ids: Tensor,
        is_seg: Tensor,
        vision: VisionFeatures,
        rows: _Rows,
        *,
        with_auxiliary: bool,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]:
        """Run the mask head once per tile grid; return logits per row."""
        if vision.fine is None:
            vision = replace(vision, fine=self.fine_features(vision.patches))
        is_read = torch.zeros_like(is_seg)
        if self.config.seg_readout == "before":
            is_read[:, :-1] = is_seg[:, 1:]  # a [SEG] at position 0 has no predecessor and yields no mask
        else:
            is_read = is_seg
        is_image = input_ids == self.config.image_token_id
        seg_counts = is_read.sum(1).tolist()
        self._check_seg_counts(seg_counts)
        masks: list[Tensor] = [hidden.new_zeros(0, 1, 1)] * len(input_ids)
        low: list[Tensor] = list(masks)
        groups: dict[tuple[int, int], list[int]] = {}
        for row, picture in enumerate(rows.pictures):
            if picture >= 0 and seg_counts[row]:
                groups.setdefault(vision.tile_grids[picture], []).append(row)
        for grid, members in groups.items():
            index = torch.tensor(members, device=hidden.device)
            pictures = [rows.pictures[row] for row in members]
            counts = [seg_counts[row] for row in members]
            one_each = all(count == 1 for count in counts)
            output = self._run_head(
                hidden[index],
                is_image[index],
                is_read[index],
                vision,
                pictures,
                rows.starts,
                grid,
                with_auxiliary,
                one_each,
            )
            per_row = [count // self.config.num_seg_tokens for count in counts]
            for row, logits in zip(members, output.mask_logits.split(per_row), strict=True):
                masks[row] = logits
            if output.low_resolution_logits is not None:
                for row, logits in zip(members, output.low_resolution_logits.split(per_row), strict=True):
                    low[row] = logits
        return tuple(masks), tuple(low) if with_auxiliary and self.config.auxiliary_low_resolution != "off" else None

    def _run_head(
        self,
        hidden: Tensor,
        is_image: Tensor,
        is_read: Tensor,
        vision: VisionFeatures,
        pictures: list[int],
        starts: list[int],
        grid: tuple[int, int],
        with_auxiliary: bool,
        one_each: bool,
    ) -> MaskHeadOutput:
        """Stitch the maps of rows that share one tile grid, and score them."""
        tile_rows, columns = grid
        tiles = tile_rows * columns
        fine_side = self.config.patches_per_side
        side = fine_side // self.config.compression
        unique = sorted(set(pictures))
        index = torch.tensor([starts[p] + i for p in unique for i in range(tiles)], device=hidden.device)

        def stitched(tokens: Tensor, height: int) -> Tensor:
            return stitch_tiles(tokens.reshape(-1, tiles, height, height, tokens.shape[-1]), tile_rows, columns)

        return self.mask_head(
            fine=None if vision.fine is None else stitched(vision.fine[index], fine_side),
            coarse_in=stitched(vision.coarse[index].to(hidden.dtype), side),
            coarse_out=stitched(hidden[is_image], side),
            seg=hidden[is_read],
            picture_of_row=torch.tensor([unique.index(p) for p in pictures], device=hidden.device),
            row_of_seg=None if one_each else is_read.nonzero()[:, 0],
            with_auxiliary=with_auxiliary,
        )

    def _loss(
        self, hidden: Tensor, labels: Tensor | None, mask_targets: Sequence[Tensor] | None, result: Self1EOutput
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weight the parts as published: mask losses are sums over masks divided by the number of rows."""
        zero = hidden.new_zeros((), dtype=torch.float32)
        losses = {"text": zero, "bce": zero, "dice": zero}
        if labels is not None:
            losses["text"] = text_loss(hidden, self.lm_head, labels)
        if mask_targets is not None:
            found = [0] * len(hidden) if result.mask_logits is None else [len(row) for row in result.mask_logits]
            _check_targets(mask_targets, found)
            for logits in (result.mask_logits, result.low_resolution_logits):
                if logits is None:
                    continue
                kept = [(row, target) for row, target in zip(logits, mask_targets, strict=True) if len(row)]
                if kept:
                    bce, dice = mask_losses([row for row, _ in kept], [target for _, target in kept])
                    losses["bce"] = losses["bce"] + bce / len(hidden)
                    losses["dice"] = losses["dice"] + dice / len(hidden)
        weights = self.loss_weights
        total = weights.text * losses["text"] + weights.bce * losses["bce"] + weights.dice * losses["dice"]
        return total, {name: value.detach() for name, value in losses.items()}

    def _encode_blank(self, input_ids: Tensor) -> VisionFeatures:
        """Encode a blank tile, for `_idle`; before the language model runs, as pictures are."""
        side = self.config.tile_size
        return self.encode_pictures(torch.zeros(1, 3, side, side, device=input_ids.device), [(1, 1)])

    def _idle(self, hidden: Tensor, spare: VisionFeatures | None, *, with_head: bool) -> Tensor:
        """Run the parts that this micro-batch has no use for, on blanks: times 0 they give every weight a gradient.

        Processes that train together wait for each other's gradients, and for each other's shares of the weights where
        those are divided: each has to run every part in each pass, in the same order, whether its own items have
        pictures and masks or not. ZeRO adds up gradients in the order in which they are ready, so backward has to
        follow the same order, too. A process alone does it as well: a step does not depend on how many there are.

        Args:
            hidden: Last hidden states, for their type, device and width.
            spare: What no mask is made of: a blank tile instead of pictures, or pictures that words alone ask about.
            with_head: Run the mask head, too.
        """
        features = [] if spare is None else [spare.coarse, *([] if spare.fine is None else [spare.fine])]
        if with_head:
            scale, width, count = self.config.compression, hidden.shape[-1], self.config.num_seg_tokens
            output = self.mask_head(
                fine=None if self.config.fine == "none" else hidden.new_zeros(1, scale, scale, width),
                coarse_in=hidden.new_zeros(1, 1, 1, width),
                coarse_out=hidden.new_zeros(1, 1, 1, width),
                seg=hidden.new_zeros(count, width),
                picture_of_row=torch.zeros(1, dtype=torch.long, device=hidden.device),
                row_of_seg=torch.zeros(count, dtype=torch.long, device=hidden.device),
                with_auxiliary=True,
            )
            features.append(output.mask_logits)
            if output.low_resolution_logits is not None:
                features.append(output.low_resolution_logits)
        return torch.stack([feature.float().sum() for feature in features]).sum() if features else hidden.new_zeros(())

    def _check_seg_counts(self, seg_counts: list[int]) -> None:
        needed = self.config.num_seg_tokens
        for row, count in enumerate(seg_counts):
            if count % needed:
                raise PromptError(
                    f"Row {row} has {count} [SEG] to read, but num_seg_tokens={needed}: expected {needed} per query."
                )


def _check_targets(mask_targets: Sequence[Tensor], found: list[int]) -> None:
    if len(mask_targets) != len(found):
        raise PromptError(
            f"mask_targets holds {len(mask_targets)} rows, the batch {len(found)}; give each row its targets, "
            "``(0, 1, 1)`` where it has no [SEG]."
        )
    for row, (target, masks) in enumerate(zip(mask_targets, found, strict=True)):
        if len(target) != masks:
            raise PromptError(
                f"Row {row} yields {masks} mask(s) but has {len(target)} target(s); give one target per query "
                "of a row that has a picture."
            )


def _check_padding(attention_mask: Any) -> None:
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2 and not bool(attention_mask[:, 0].all()):
        raise PromptError(
            "A row begins with padding; masks need padding on the right (tokenizer.padding_side='right')."
        )


def _as_list(values: Sequence[int] | Tensor) -> list[int]:
    return [int(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]


def _as_grids(tile_grids: Sequence[Sequence[int]] | Tensor) -> list[tuple[int, int]]:
    pairs = tile_grids.tolist() if isinstance(tile_grids, Tensor) else tile_grids
    return [(int(rows), int(columns)) for rows, columns in pairs]


def _default_grids(tile_grids: Sequence[Sequence[int]] | Tensor | None, tiles: int) -> list[tuple[int, int]]:
    return [(1, 1)] * tiles if tile_grids is None else _as_grids(tile_grids)
