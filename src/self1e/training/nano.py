"""`nano`, the model inside: the same classes at small size, its tokenizer and its data."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import AddedToken, PreTrainedTokenizerFast

from self1e.configuration import Self1EConfig
from self1e.data.clothing import PERSON, Clothing
from self1e.data.coco import REDISTRIBUTABLE, CocoCategories
from self1e.data.mixture import Mixture, Part, PhotoAugment, Turn
from self1e.data.scenes import TARGET_TAGS, Scenes, all_words
from self1e.errors import DatasetError, SettingError
from self1e.inference.compiling import has_compiler
from self1e.model import Self1EForConditionalGeneration
from self1e.processing import prompts
from self1e.processing.image import Self1EImageProcessor
from self1e.processing.processor import Self1EProcessor
from self1e.training.caching import CachedSamples
from self1e.training.encoder import SpotLabels

TILE, PATCH = 160, 10
IMAGE_TOKENS = (TILE // PATCH // 2) ** 2
SCENE_SIZES = ((160, 160), (128, 128), (192, 144), (144, 192), (224, 224))

# The names that clothing and COCO photographs bring, beside the words of the drawn scenes.
_PHOTO_NAMES = """
accessories bag belt blazer blouse bodysuit boots bra bracelet cape cardigan clogs coat dress earrings flats glasses
gloves hair hat heels hoodie intimate jacket jeans jumper leggings loafers necklace panties pants pumps purse ring
romper sandals scarf shirt shoes shorts skin skirt sneakers socks stockings suit sunglasses sweater sweatshirt swimwear
t-shirt tie tights top vest wallet watch wedges person clothes footwear headwear face man woman people background
bicycle car motorcycle airplane bus train truck boat traffic light fire hydrant stop sign parking meter bench bird cat
dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag suitcase frisbee skis snowboard sports ball
kite baseball bat glove skateboard surfboard tennis racket bottle wine glass cup fork knife spoon bowl banana apple
sandwich orange broccoli carrot hot dog pizza donut cake chair couch potted plant bed dining table toilet tv laptop
mouse remote keyboard cell phone microwave oven toaster sink refrigerator book clock vase scissors teddy bear hair drier
toothbrush
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make the byte-level BPE of nano: every word it was taught is one token, any other text still has ids.

    Deterministic: the corpus is the vocabulary of the drawn scenes, the names of the photographs and the prompts.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    control = ["<|endoftext|>", prompts.TURN_START, prompts.TURN_END, prompts.IMAGE_START, prompts.IMAGE_END]
    control.append(prompts.IMAGE_TOKEN)
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # more than the corpus has words: training ends when every word is one token
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=control,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token=prompts.TURN_END,
        additional_special_tokens=control[1:],
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    fast.add_tokens([AddedToken(prompts.SEG_TOKEN, special=False, normalized=False)])
    return fast


def _corpus() -> Iterator[str]:
    words = sorted({*all_words(), *_PHOTO_NAMES.split()})
    for word in words:
        yield f" {word}"
        if word[0].isupper() or len(word) < 3:
            yield word
    yield from ("system", "user", "assistant", "You", "\n", ".", "?", ",", "-")
    texts = [prompts.ENGLISH_SYSTEM, *prompts.TRAINING_ANSWERS]
    for questions in (*prompts.TRAINING_QUESTIONS.values(), *prompts.VALIDATION_QUESTIONS.values()):
        texts += [question.replace("{text}", "").replace("<image>", "") for question in questions]
    for text in texts:
        yield text.replace(prompts.SEG_TOKEN, "")
    # Answers stand at the start of a turn, without a space before them.
    yield from (word for word in words if word.islower())


def build_processor() -> Self1EProcessor:
    """Make the processor of nano: one 160-pixel tile, 64 image tokens."""
    images = Self1EImageProcessor(size={"height": TILE, "width": TILE}, max_tiles=1)
    return Self1EProcessor(images, build_tokenizer(), image_seq_length=IMAGE_TOKENS)


def build_config(processor: Self1EProcessor) -> Self1EConfig:
    """Configure nano: 16 x 16 patches, 64 image tokens, masks of 32 x 32 per tile."""
    return Self1EConfig(
        vision_config={
            "hidden_size": 160,
            "num_hidden_layers": 5,
            "num_attention_heads": 5,
            "intermediate_size": 640,
            "image_size": TILE,
            "patch_size": PATCH,
            "attention_bias": True,
            "norm_type": "layer_norm",
            "layer_scale_init_value": 1.0,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 160,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "intermediate_size": 432,
            "vocab_size": len(processor.tokenizer),
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "pad_token_id": processor.pad_token_id,
            "eos_token_id": processor.turn_end_id,
            "bos_token_id": None,
        },
        image_token_id=processor.image_token_id,
        seg_token_id=processor.seg_token_id,
        image_seq_length=IMAGE_TOKENS,
    )


def build_model(processor: Self1EProcessor, *, seed: int = 0) -> Self1EForConditionalGeneration:
    """Make an untrained nano."""
    torch.manual_seed(seed)
    model = Self1EForConditionalGeneration(build_config(processor))
    # transformers starts positions at zero, for fine-tuning; from scratch patches must differ from the first step.
    embeddings = model.model.vision_tower.embeddings
    nn.init.trunc_normal_(embeddings.position_embeddings, std=0.02)
    nn.init.trunc_normal_(embeddings.cls_token, std=0.02)
    return model


def deepen(model: Self1EForConditionalGeneration, layers: int) -> None:
    """Put further layers into the language model, spread evenly; at first they change nothing.

    A further layer is a copy of the one before it whose two writing projections are zero, so it adds nothing to what
    passes through it, and what it reads with has been trained (depth up-scaling; zero at first as in ControlNet).

    Args:
        model: Is changed in place, its configuration too.
        layers: How many there are then, at least as many as now and at most twice as many.

    Raises:
        SettingError: Fewer layers, or more than twice as many.
    """
    language: Any = model.model.language_model
    now = len(language.layers)
    if not now <= layers <= 2 * now:
        raise SettingError(f"text_layers={layers}: the start has {now} layers; expected {now} to {2 * now}.")
    further = layers - now
    # Behind which layers: the last of as many even parts.
    behind = {now * (part + 1) // further - 1 for part in range(further)} if further else set()
    deeper: list[Any] = []
    for number, layer in enumerate(language.layers):
        deeper.append(layer)
        if number in behind:
            copied = copy.deepcopy(layer)
            nn.init.zeros_(copied.self_attn.o_proj.weight)
            nn.init.zeros_(copied.mlp.down_proj.weight)
            deeper.append(copied)
    for number, layer in enumerate(deeper):
        layer.self_attn.layer_idx = number  # its place in a cache of keys and values
    language.layers = nn.ModuleList(deeper)
    for config in {id(one): one for one in (language.config, model.config.text_config)}.values():
        config.num_hidden_layers = layers
        config.layer_types = ["full_attention"] * layers


def compile_layers(model: Self1EForConditionalGeneration, backend: str = "inductor") -> None:
    """Let each layer of the language model run compiled, for any number of rows and tokens.

    At this size most of a training step is not products but the many small operations between them, each of which
    reads and writes everything; compiled they are done together. Weights and their names stay. Without a C++ compiler
    nothing changes but for a warning.

    Args:
        model: Its layers get another ``forward``.
        backend: What ``torch.compile`` takes; ``"eager"`` only traces, and needs no compiler.
    """
    if backend == "inductor" and not has_compiler():
        warnings.warn("No C++ compiler was found: the layers run as they are, only slower.", stacklevel=2)
        return
    layers: Any = model.model.language_model.layers
    for layer in layers:
        layer.forward = torch.compile(layer.forward, backend=backend, dynamic=True)


def training_scenes(*, absent: bool = True, comparisons: float = 1.0, hard: float = 0.0) -> Scenes:
    """Endless drawn scenes of several sizes, with or without words that fit nothing."""
    tags = None if absent else [tag for tag in TARGET_TAGS if tag != "absent"]
    return Scenes("train", size_wh=SCENE_SIZES, length=1_000_000_000, tags=tags, comparisons=comparisons, hard=hard)


def training_clothing(data: Path) -> Clothing:
    """Find the training photographs of clothing."""
    if not (data / "ccp").is_dir():
        raise DatasetError(
            f"No folder ccp in {data}; expected Clothing Co-Parsing there. "
            "Leave out --data to train on drawn scenes alone."
        )
    return Clothing(data / "ccp", "train")


def build_spot_labels(
    data: Path | None, processor: Self1EProcessor, *, length: int, seed: int, photographs: float
) -> SpotLabels:
    """Make the data of the first stage, from the same pictures as the second."""
    clothing = None if data is None else training_clothing(data)
    return SpotLabels(
        training_scenes(),
        None if clothing is None else CachedSamples(clothing),
        augment=PhotoAugment(),
        parts=[] if clothing is None else [f"the {name}" for number, name in clothing.classes.items() if number],
        images=processor.image_processor,
        share=photographs,
        length=length,
        spots=2 * (TILE // PATCH),
        seed=seed,
    )


def build_mixture(
    data: Path | None,
    *,
    length: int,
    seed: int = 0,
    photographs: float,
    queries: int,
    augment: PhotoAugment | None = None,
    absent: float = 0.6,
    few_absent: int = 0,
    questions: int = 1,
    comparisons: float = 1.0,
    hard: float = 0.0,
) -> Mixture | Turn:
    """Mix drawn scenes with photographs.

    Args:
        data: Folder that holds ``ccp/`` and, if at hand, ``coco_mini/``; None trains on drawn scenes alone.
        length: Pictures in all.
        seed: Of the mixture; the scenes have their own.
        photographs: Share of pictures that are photographs.
        queries: Mask queries per picture.
        augment: For photographs; by default `PhotoAugment` with its own settings.
        absent: Share of scenes that may have phrases that fit nothing; in the test split all may.
        few_absent: So many pictures at first have half as many phrases that fit nothing. Of the phrases made of a
            colour and a kind alone two in three fit nothing: answering all of them with an empty mask is where
            learning stopped (docs/log.md).
        questions: Most questions with written answers per scene, 1 or 2.
        comparisons: How many times as often as another kind of question a comparison is asked.
        hard: Share of hard expressions in scenes (see `Scenes`).
    """
    common: dict[str, Any] = {"data": data, "length": length, "seed": seed, "photographs": photographs}
    common |= {"queries": queries, "augment": augment or PhotoAugment()}
    common |= {"questions": questions, "comparisons": comparisons, "hard": hard}
    then = _mixture(**common, absent=absent)
    return Turn(_mixture(**common, absent=absent / 2), then, at=few_absent) if few_absent else then


def _mixture(
    data: Path | None,
    *,
    length: int,
    seed: int,
    photographs: float,
    queries: int,
    augment: PhotoAugment,
    absent: float,
    questions: int,
    comparisons: float,
    hard: float,
) -> Mixture:
    """See `build_mixture`."""
    parts = {}
    for name, share in (("scenes", absent), ("scenes_there", 1 - absent)):
        if share * (1 - photographs) > 0:
            samples = training_scenes(absent=name == "scenes", comparisons=comparisons, hard=hard)
            parts[name] = Part(samples=samples, weight=share * (1 - photographs))
    if data is not None and photographs > 0:
        parts["clothing"] = Part(
            samples=CachedSamples(training_clothing(data)),
            weight=photographs * 0.95,
            augment=augment,
            absent=0.08,
            favourites={PERSON: 0.5, "the clothes": 0.25, "the footwear": 0.25, "the hair": 0.35, "the skin": 0.35},
            bare=0.15,
        )
        if (data / "coco_mini").is_dir():
            coco = CocoCategories(data / "coco_mini", "train2017", licences=REDISTRIBUTABLE)
            parts["coco"] = Part(
                samples=CachedSamples(coco), weight=photographs * 0.05, augment=augment, absent=0.15, bare=0.15
            )
    return Mixture(
        parts,
        length=length,
        queries=queries,
        questions=questions,
        seed=seed,
        answers=(prompts.SEG_TOKEN,),
        written=0.2,
    )
