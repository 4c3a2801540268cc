"""The rivals, from transformers' own classes with random weights: what they compute does not depend on the values.

Each comes in two forms. *Published*: eager attention, ``generate`` where it generates, one query after the other, as
its repository runs it. *Fair*: the best that its architecture permits without changing a result: SDPA, what does not
depend on words once per picture (for the generating ones also the keys and values of prompt and picture, which a causal
model may share), queries in batches, a static cache, no host in the decoding loop, and on CUDA its step compiled.

======== ========================================================================== ==========================
LISA     LLaVA-7B (CLIP-L/14, 256 tokens), 6 tokens written, SAM ViT-H at 1024      a prompt from the 6th token
UFO      InternVL2.5-8B, 16 tokens written; 16 dot products with image tokens        4 x 4 sub-pixels of 16 x 16
HiMTok   InternVL2.5-8B, 32 tokens written; a decoder of mask tokens                 256 x 256
SAM 3    perception encoder at 1008, DETR, mask decoder; a noun phrase               semantic map, 288 x 288
CLIPSeg  CLIP-B/16 at 352, FiLM decoder                                              352 x 352
======== ========================================================================== ==========================

Assumptions, each in the rival's favour: prompts as short as ours (42 tokens before the picture, 28 after it); one tile;
pictures are opened once and only resized and shifted; HiMTok's decoder is small (8 layers, 512 wide); no text is
decoded; masks of the published forms are not run-length coded. ``tiny=True`` runs every line of this file on a CPU.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from common import AFTER, BEFORE, operations, published_config
from contenders import Contender, use_attention
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from self1e.inference.masks import enlarge
from self1e.model.mask_head import depth_to_space

TOGETHER = 16
"""Queries of a fair form in one pass."""
LISA_STEPS, UFO_STEPS, HIMTOK_STEPS = 6, 16, 32
FORMS = ("published", "fair")


class Rival(nn.Module):
    """A model that answers words with a mask; its two forms share the weights."""

    name = ""
    side = 0
    """Of the square that pictures are resized to."""

    @property
    def where(self) -> tuple[torch.device, torch.dtype]:
        """Device and type of the weights."""
        weight = next(self.parameters())
        return weight.device, weight.dtype

    def look(self, picture: Image.Image | None, side: int | None = None) -> Tensor:
        """Resize, centre, upload: ``(1, 3, side, side)``; without a picture an empty one, to count with."""
        side = side or self.side
        device, dtype = self.where
        if picture is None:
            return torch.empty(1, 3, side, side, device=device, dtype=dtype)
        levels = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        return ((torch.from_numpy(levels.copy()).to(device).to(dtype) - 128) / 64)[None]

    def published(self, picture: Image.Image | None, queries: int) -> Iterator[Tensor]:
        """Logits ``(h, w)``, one query after the other."""
        raise NotImplementedError

    def fair(self, picture: Image.Image | None, queries: int) -> Iterator[Tensor]:
        """Logits ``(h, w)`` of every query, shared and batched."""
        raise NotImplementedError

    def attend(self, kind: str) -> None:
        """Set the attention implementation of all parts that have one."""
        for part in self.children():
            if hasattr(part, "set_attn_implementation"):
                use_attention(part, kind)

    def words(self, count: int, length: int, vocabulary: int) -> Tensor:
        """Ids of ``count`` questions: any, but the same on every run."""
        ids = torch.arange(count * length).reshape(count, length) * 7919 % (vocabulary - 4) + 2
        return ids.to(self.where[0])


# --------------------------------------------------------------------------- rivals that write tokens


class Generating(Rival):
    """A vision-language model that writes ``steps`` tokens, whose states become the mask."""

    steps = 0
    vlm: Any
    _compiled: Callable[..., Any] | None = None
    compile_note = ""

    @property
    def language_model(self) -> Any:
        """The causal decoder."""
        return self.vlm.model.language_model

    def see(self, picture: Image.Image | None) -> tuple[Tensor, Any]:
        """Image tokens ``(1, M, D)``, and what the mask needs of the picture."""
        pooled = self.vlm.model.get_image_features(pixel_values=self.look(picture), return_dict=True).pooler_output
        tokens = pooled if isinstance(pooled, Tensor) else torch.stack(list(pooled))
        return tokens, None

    def masks(self, seen: Any, image: Tensor, written: Tensor) -> Tensor:
        """Logits ``(B, h, w)``.

        Args:
            seen: Of `see`.
            image: States of image tokens, ``(1 or B, M, D)``.
            written: States of what was written, ``(B, steps, D)``.
        """
        raise NotImplementedError

    def embed(self, count: int, length: int) -> Tensor:
        """Word embeddings."""
        table = self.vlm.get_input_embeddings()
        return table(self.words(count, length, table.num_embeddings))

    def published(self, picture: Image.Image | None, queries: int) -> Iterator[Tensor]:
        """``generate`` from the beginning, for every query."""
        for query in range(queries):
            tokens, seen = self.see(picture)
            parts = [self.embed(1, BEFORE), tokens, self.embed(query + 1, AFTER)[-1:]]
            embeddings = torch.cat(parts, dim=1)
            count = tokens.shape[1]
            if embeddings.is_meta:  # `generate` asks for numbers
                written, image = self._write_on_meta(embeddings, count)
            else:
                found = self.vlm.generate(
                    inputs_embeds=embeddings,
                    attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device),
                    max_new_tokens=self.steps + 1,  # the last one is written, but not read
                    min_new_tokens=self.steps + 1,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                    return_dict_in_generate=True,
                    output_hidden_states=True,
                )
                states = [step[-1] for step in found.hidden_states]
                image, written = states[0][:, BEFORE : BEFORE + count], torch.cat(states[1:], dim=1)
            yield self.masks(seen, image, written)[0]

    def _write_on_meta(self, embeddings: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The passes of ``generate``."""
        from transformers import DynamicCache

        cache = DynamicCache()
        state = self.read(embeddings, cache, 0)
        image = state[:, BEFORE : BEFORE + count]
        written = []
        for step in range(self.steps):
            state = self.read(self._next(state), cache, embeddings.shape[1] + step)
            written.append(state)
        return torch.cat(written, dim=1), image

    def read(self, embeddings: Tensor, cache: Any, start: Any) -> Tensor:
        """Pass tokens through the language model, behind what the cache holds."""
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None] + start
        return self.language_model(
            inputs_embeds=embeddings, past_key_values=cache, position_ids=positions, use_cache=True
        ).last_hidden_state

    def _next(self, state: Tensor) -> Tensor:
        """The next token's embedding, greedily, without telling the host."""
        return self.vlm.get_input_embeddings()(self.vlm.lm_head(state[:, -1:]).argmax(-1))

    def _step(self, state: Tensor, cache: Any, start: Tensor) -> Tensor:
        return self.read(self._next(state), cache, start)

    def fair(self, picture: Image.Image | None, queries: int) -> Iterator[Tensor]:
        """Prompt and picture once; questions in batches; a static cache."""
        from transformers import DynamicCache

        tokens, seen = self.see(picture)
        before = torch.cat([self.embed(1, BEFORE), tokens], dim=1)
        known = DynamicCache()
        image = self.read(before, known, 0)[:, BEFORE:]
        length = before.shape[1]
        for start in range(0, queries, TOGETHER):
            batch = min(TOGETHER, queries - start)
            cache = self._cache(known, batch, length + AFTER + self.steps)
            state = self.read(self.embed(batch, AFTER), cache, length)
            written = []
            for step in range(self.steps):
                place = torch.full((1,), length + AFTER + step, device=state.device)
                state = self._decode(state[:, -1:], cache, place).clone()  # the next step writes over a graph's output
                written.append(state)
            yield from self.masks(seen, image, torch.cat(written, dim=1))

    def _cache(self, known: Any, batch: int, length: int) -> Any:
        """A cache for a batch that begins with keys and values of one row."""
        from transformers import DynamicCache, StaticCache

        is_meta = self.where[0].type == "meta"  # a static cache asks for numbers
        cache = DynamicCache() if is_meta else StaticCache(config=self.language_model.config, max_cache_len=length)
        for index, layer in enumerate(known.layers):
            keys, values = (part.expand(batch, -1, -1, -1).contiguous() for part in (layer.keys, layer.values))
            cache.update(keys, values, index)
        return cache

    def _decode(self, state: Tensor, cache: Any, place: Tensor) -> Tensor:
        if state.device.type != "cuda" or self.compile_note:
            return self._step(state, cache, place)
        self._compiled = self._compiled or torch.compile(self._step, mode="reduce-overhead")
        try:
            torch.compiler.cudagraph_mark_step_begin()
            return self._compiled(state, cache, place)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            self.compile_note = f"step not compiled: {type(error).__name__}"
            return self._step(state, cache, place)


class Lisa(Generating):
    """LISA: the state of [SEG] prompts SAM."""

    name = "LISA-7B"
    steps = LISA_STEPS

    def __init__(self, *, tiny: bool = False) -> None:
        super().__init__()
        from transformers import (
            CLIPVisionConfig,
            LlamaConfig,
            LlavaConfig,
            LlavaForConditionalGeneration,
            SamConfig,
            SamMaskDecoderConfig,
            SamModel,
            SamPromptEncoderConfig,
            SamVisionConfig,
        )

        self.side, self.large = (28, 64) if tiny else (224, 1024)
        vision = CLIPVisionConfig(image_size=self.side, patch_size=14, **_shape(tiny, 1024, 4096, 24, 16))
        text = _llama(LlamaConfig, tiny, 4096, 11008, 32, 32, 32, 32003)
        self.vlm = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=text, image_token_id=1, vision_feature_layer=-2)
        )
        width = 16 if tiny else 256
        self.sam = SamModel(
            SamConfig(
                vision_config=SamVisionConfig(
                    image_size=self.large,
                    output_channels=width,
                    num_pos_feats=width // 2,
                    window_size=2 if tiny else 14,
                    global_attn_indexes=[1] if tiny else [7, 15, 23, 31],
                    hidden_size=32 if tiny else 1280,
                    num_hidden_layers=2 if tiny else 32,
                    num_attention_heads=2 if tiny else 16,
                ),
                prompt_encoder_config=SamPromptEncoderConfig(hidden_size=width, image_size=self.large),
                mask_decoder_config=SamMaskDecoderConfig(
                    hidden_size=width,
                    mlp_dim=8 * width,
                    num_attention_heads=2 if tiny else 8,
                    iou_head_hidden_dim=width,
                ),
            )
        )
        hidden = text.hidden_size
        self.prompt = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def see(self, picture: Image.Image | None) -> tuple[Tensor, Any]:
        """CLIP for the words, SAM for the mask."""
        return super().see(picture)[0], self.sam.get_image_embeddings(self.look(picture, self.large))

    def masks(self, seen: Any, image: Tensor, written: Tensor) -> Tensor:
        """SAM's mask decoder, prompted by the last token."""
        prompts = self.prompt(written[:, -1])[None, :, None]  # (1, B, 1, width): several prompts on one picture
        dense = self.sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(seen)
        masks, _ = self.sam.mask_decoder(
            image_embeddings=seen,
            image_positional_embeddings=self.sam.get_image_wide_positional_embeddings().to(seen.dtype),
            sparse_prompt_embeddings=prompts,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return masks[0, :, 0]


class _InternVL(Generating):
    """InternVL2.5-8B."""

    def __init__(self, *, tiny: bool = False, vlm: Any = None) -> None:
        super().__init__()
        self.side = 56 if tiny else 448
        self.vlm = internvl(tiny=tiny) if vlm is None else vlm


class Ufo(_InternVL):
    """UFO: 16 mask tokens, each the query of one of 4 x 4 sub-pixels, against the states of image tokens."""

    name = "UFO-8B"
    steps = UFO_STEPS

    def masks(self, seen: Any, image: Tensor, written: Tensor) -> Tensor:
        """Dot products, unfolded."""
        scores = image @ written.transpose(1, 2) / image.shape[-1] ** 0.5  # (B, M, 16)
        side = round(scores.shape[1] ** 0.5)
        return depth_to_space(scores.unflatten(1, (side, side)), round(self.steps**0.5))[..., 0]


class HiMTok(_InternVL):
    """HiMTok: 32 mask tokens and a grid of empty ones through a small transformer, patches unfolded to pixels."""

    name = "HiMTok-8B"
    steps = HIMTOK_STEPS

    def __init__(self, *, tiny: bool = False, vlm: Any = None) -> None:
        super().__init__(tiny=tiny, vlm=vlm)
        width, heads, layers = (16, 2, 1) if tiny else (512, 8, 8)
        self.grid, self.patch = (4, 4) if tiny else (16, 16)
        self.enter = nn.Linear(self.vlm.config.text_config.hidden_size, width)
        self.empty = nn.Parameter(torch.randn(1, self.grid**2, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.decoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.leave = nn.Linear(width, self.patch**2)

    def masks(self, seen: Any, image: Tensor, written: Tensor) -> Tensor:
        """De-tokenize."""
        tokens = torch.cat([self.empty.expand(len(written), -1, -1), self.enter(written)], dim=1)
        patches = self.leave(self.decoder(tokens)[:, : self.grid**2])
        return depth_to_space(patches.unflatten(1, (self.grid, self.grid)), self.patch)[..., 0]


def internvl(*, tiny: bool = False) -> Any:
    """InternVL2.5-8B: InternViT-300M and InternLM2-7B, which is read as a Llama."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration, LlamaConfig

    text = _llama(LlamaConfig, tiny, 4096, 14336, 32, 32, 8, 92553)
    if tiny:
        size = {"image_size": [56, 56], "patch_size": [14, 14]}
        vision: Any = size | _shape(tiny, 1024, 4096, 24, 16)
    else:
        vision = published_config("InternVL3-8B").vision_config.to_dict()
    return InternVLForConditionalGeneration(
        InternVLConfig(vision_config=vision, text_config=text, image_token_id=1, tie_word_embeddings=False)
    )


def _shape(tiny: bool, width: int, mlp: int, layers: int, heads: int) -> dict[str, int]:
    """Sizes of a vision encoder."""
    width, mlp, layers, heads = (32, 64, 2, 2) if tiny else (width, mlp, layers, heads)
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _llama(make: Any, tiny: bool, width: int, mlp: int, layers: int, heads: int, keys: int, vocabulary: int) -> Any:
    """Sizes of a Llama; no token ends a text."""
    sizes = _shape(tiny, width, mlp, layers, heads)
    return make(
        **sizes,
        num_key_value_heads=2 if tiny else keys,
        vocab_size=64 if tiny else vocabulary,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
    )


# --------------------------------------------------------------------------- rivals that take phrases


class Sam3(Rival):
    """SAM 3: published with the picture's features kept between phrases, one phrase after the other."""

    name = "SAM 3"
    together = 8

    def __init__(self, *, tiny: bool = False) -> None:
        super().__init__()
        from transformers import Sam3Config, Sam3Model

        self.side, self.length = (56, 6) if tiny else (1008, 32)
        self.model: Any = Sam3Model(_tiny_sam3() if tiny else Sam3Config())

    def published(self, picture: Image.Image | None, queries: int) -> Iterator[Tensor]:
        """The whole detector per phrase."""
        seen = self.model.get_vision_features(pixel_values=self.look(picture))
        for query in range(queries):
            yield self._detect(seen, self._phrases(query + 1)[-1:])[0]

    def fair(self, picture: Image.Image | None, queries: int) -> Iterator[Tensor]:
        """Phrases in batches."""
        seen = self.model.get_vision_features(pixel_values=self.look(picture))
        phrases = self._phrases(queries)
        for ids in phrases.split(self.together):
            yield from self._detect(seen, ids)

    def _phrases(self, count: int) -> Tensor:
        return self.words(count, self.length, self.model.vocab_size)

    def _detect(self, seen: Any, ids: Tensor) -> Tensor:
        from dataclasses import replace

        def repeated(maps: Any) -> Any:
            return tuple(one.expand(len(ids), *one.shape[1:]) for one in maps)

        if ids.is_meta:  # there the decoder would read its own map's size from a tensor
            side = seen.fpn_hidden_states[-2].shape[-1]
            self.model.detr_decoder._get_coords = lambda height, width, dtype, device: (
                (torch.empty(side, dtype=dtype, device=device),) * 2
            )
        seen = replace(
            seen,
            fpn_hidden_states=repeated(seen.fpn_hidden_states),
            fpn_position_encoding=repeated(seen.fpn_position_encoding),
        )
        return self.model(vision_embeds=seen, input_ids=ids).semantic_seg[:, 0]


def _tiny_sam3() -> Any:
    from transformers import CLIPTextConfig, Sam3Config

    part = {"hidden_size": 32, "num_attention_heads": 2}
    return Sam3Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 56,
                "pretrain_image_size": 56,
                "window_size": 2,
                "global_attn_indexes": [1],
            },
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config=CLIPTextConfig(
            vocab_size=64, max_position_embeddings=8, projection_dim=32, **_shape(True, 0, 0, 0, 0)
        ).to_dict(),
        geometry_encoder_config=part | {"num_layers": 1, "intermediate_size": 64},
        detr_encoder_config=part | {"num_layers": 1, "intermediate_size": 64},
        detr_decoder_config=part | {"num_layers": 1, "intermediate_size": 64, "num_queries": 5},
        mask_decoder_config=part | {"num_upsampling_stages": 3},
    )


class ClipSeg(Rival):
    """CLIPSeg rd64: published with the picture repeated for every phrase of a batch."""

    name = "CLIPSeg"

    def __init__(self, *, tiny: bool = False) -> None:
        super().__init__()
        from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegTextConfig, CLIPSegVisionConfig

        self.side, self.length = (64, 6) if tiny else (352, 16)
        vision = CLIPSegVisionConfig(patch_size=16, image_size=224, **_shape(tiny, 768, 3072, 12, 12))
        text: dict[str, Any] = {"vocab_size": 64, "max_position_embeddings": 8, "eos_token_id": 63} if tiny else {}
        words = CLIPSegTextConfig(**_shape(tiny, 512, 2048, 12, 8), **text)
        more: dict[str, Any] = {"extract_layers": [0, 1], "reduce_dim": 8, "decoder_intermediate_size": 16}
        self.model: Any = CLIPSegForImageSegmentation(
            CLIPSegConfig(text_config=words, vision_config=vision, **(more if tiny else {}))
        )

    def published(self, picture: Image.Image | None, queries: int) -> Iterator[Tensor]:
        """Vision encoder per phrase."""
        for ids in self._phrases(queries).split(TOGETHER):
            pixels = self.look(picture).expand(len(ids), -1, -1, -1)
            yield from self.model(pixel_values=pixels, input_ids=ids).logits

    def fair(self, picture: Image.Image | None, queries: int) -> Iterator[Tensor]:
        """Vision encoder once."""
        clip = self.model.clip
        states = clip.get_image_features(self.look(picture), output_hidden_states=True).hidden_states
        seen = [states[layer + 1] for layer in self.model.extract_layers]
        for ids in self._phrases(queries).split(TOGETHER):
            meant = clip.get_text_features(ids).pooler_output
            yield from self.model.decoder([one.expand(len(ids), -1, -1) for one in seen], meant).logits

    def _phrases(self, count: int) -> Tensor:
        config = self.model.config.text_config
        ids = self.words(count, self.length, config.vocab_size)
        ids[:, -1] = config.vocab_size - 1  # where CLIP reads a phrase
        return ids


# --------------------------------------------------------------------------- taking part

RIVALS: dict[str, type[Any]] = {rival.name: rival for rival in (Lisa, Ufo, HiMTok, Sam3, ClipSeg)}


def make(name: str, device: Any, dtype: torch.dtype, *, tiny: bool = False, vlm: Any = None) -> Rival:
    """Build a rival with random weights, straight in its device and type.

    Args:
        name: One of `RIVALS`.
        device: Also ``"meta"``, to count.
        dtype: Of the weights.
        tiny: A few thousand weights instead of billions.
        vlm: InternVL2.5-8B of another rival, to hold it once.
    """
    more = {"vlm": vlm} if vlm is not None and issubclass(RIVALS[name], _InternVL) else {}
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return RIVALS[name](tiny=tiny, **more).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)


class Entry(Contender):
    """A rival in one of its forms.

    Args:
        rival: The model.
        form: One of `FORMS`.
    """

    def __init__(self, rival: Rival, form: str) -> None:
        self.rival, self.name, self.form = rival, rival.name, form
        self.is_linear = form == "published" and not isinstance(rival, Sam3)

    def prepare(self) -> None:
        """Attention as published, or as fast as it gets."""
        self.rival.attend("eager" if self.form == "published" else "sdpa")

    def note(self) -> str:
        """Whether compiling failed."""
        return getattr(self.rival, "compile_note", "") if self.form == "fair" else ""

    @torch.inference_mode()
    def run(self, pictures: Sequence[bytes], queries: Sequence[str]) -> list[list[Any]]:
        """Masks of the picture's size: bool arrays as published, run-length codes in the fair form."""
        found = []
        for data in pictures:
            picture = Image.open(io.BytesIO(data)).convert("RGB")
            logits = getattr(self.rival, self.form)(picture, len(queries))
            found.append([_finish(one.float(), picture.size, self.form) for one in logits])
        return found


def _finish(logits: Tensor, size_wh: tuple[int, int], form: str) -> Any:
    if form == "fair":
        return enlarge(logits, size_wh)[0]
    whole = F.interpolate(logits[None, None], size_wh[::-1], mode="bilinear", align_corners=False)
    return (whole[0, 0] > 0).cpu().numpy()


def count(rival: Rival, form: str) -> tuple[int, int]:
    """Count the operations of a picture's first query, and of each further one; ``rival`` lies on the meta device.

    Of a language model one and two layers are run: all of its layers do the same.
    """
    if not isinstance(rival, Generating):
        return _count(rival, form)
    config = rival.language_model.config
    depth = config.num_hidden_layers
    found = []
    for config.num_hidden_layers in (1, 2):
        found.append(_count(rival, form))
    config.num_hidden_layers = depth
    first, further = (one + (depth - 1) * (two - one) for one, two in zip(*found, strict=True))
    return first, further


def _count(rival: Rival, form: str) -> tuple[int, int]:
    def work(queries: int) -> int:
        with torch.no_grad():
            return operations(lambda: list(getattr(rival, form)(None, queries)))

    first = work(1)
    return first, work(2) - first
