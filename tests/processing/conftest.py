"""Tiny tokenizers of both families, trained here in a moment: no download, no stored files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from self1e.processing import prompts
from self1e.processing.image import Self1EImageProcessor
from self1e.processing.processor import Self1EProcessor
from self1e.processing.tokenizers import InternLM2Tokenizer, add_segmentation_tokens, load_tokenizer

CONTROL = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<box>", "</box>"]

CORPUS = [
    "system\nYou are an helpful assistant.",
    "user\n What is the red cup in this image? Please output segmentation mask.",
    "assistant\nSure, it is the blue box. It is left of two green plates.",
    "Which object holds water? Can you segment the small dog with a word?",
    "[SEG] <IMG_CONTEXT> <img> </img> <|im_end|> <|im_start|>",
]


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory) -> Path:
    """A byte-level BPE with NFC, as Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=CONTROL,
    )
    folder = tmp_path_factory.mktemp("qwen")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def internlm2_folder(tmp_path_factory) -> Path:
    """An original InternLM2 folder: two control tokens sit on unused pieces of the sentencepiece model."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS for line in text.split("\n")),
        model_writer=written,
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["\n", "[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"],
        hard_vocab_limit=False,
        minloglevel=3,
    )
    folder = tmp_path_factory.mktemp("internlm2")
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2}
    ids["<|im_end|>"] = pieces.piece_to_id("[UNUSED_TOKEN_145]")
    ids["<|im_start|>"] = pieces.piece_to_id("[UNUSED_TOKEN_146]")
    ids |= {token: pieces.vocab_size() + index for index, token in enumerate(CONTROL[2:])}
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    settings = {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "added_tokens_decoder": {index: {"content": token, "special": True, **flags} for token, index in ids.items()},
        "additional_special_tokens": CONTROL,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(params=["qwen", "internlm2"])
def folder(request, qwen_folder, internlm2_folder) -> Path:
    return {"qwen": qwen_folder, "internlm2": internlm2_folder}[request.param]


@pytest.fixture
def qwen(qwen_folder):
    tokenizer = load_tokenizer(qwen_folder)
    add_segmentation_tokens(tokenizer)
    return tokenizer


@pytest.fixture
def internlm2(internlm2_folder) -> InternLM2Tokenizer:
    tokenizer = load_tokenizer(internlm2_folder)
    assert isinstance(tokenizer, InternLM2Tokenizer)
    add_segmentation_tokens(tokenizer)
    return tokenizer


@pytest.fixture
def processor(folder) -> Self1EProcessor:
    """Tiles of 8 pixels and 3 image tokens."""
    return Self1EProcessor.from_base(folder, tile_size=8, image_seq_length=3)


@pytest.fixture
def images() -> Self1EImageProcessor:
    return Self1EImageProcessor(size={"height": 8, "width": 8})


@pytest.fixture
def expand():
    """The string a conversation stands for, its picture expanded."""

    def expanded(turns, tiles: int, image_tokens: int = 3) -> str:
        run = prompts.IMAGE_START + prompts.IMAGE_TOKEN * (image_tokens * tiles) + prompts.IMAGE_END
        return prompts.INTERNVL2_5.render(turns).replace("<image>", run, 1)

    return expanded
