"""A tiny random model, seeded and made on the fly: every path of a real one in a second, masks without meaning."""

from __future__ import annotations

import gc
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import support
import torch
from PIL import Image


def _find_shared(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable) or Path(__file__).parents[1].parent / "shared" / default).resolve()
    if not folder.is_dir():
        message = f"DATA MISSING: no folder {folder}; set {variable}."
        if os.environ.get("CI") or os.environ.get(variable):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def find_shared() -> Callable[[str, str], Path]:
    """Find a folder of data that is not in the repository: where a variable says, else in ``../shared``.

    Where it is missing the test skips, loudly; on a build machine (``CI`` set), and if the variable is set, it fails.
    """
    return _find_shared


@pytest.fixture(scope="session")
def conformance() -> Path:
    """Pieces of official files: class lists, ``mme``, ``pope``, ``mmbench``, ``coco_results``."""
    return _find_shared("SELF1E_CONFORMANCE", "data/1_conformance")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say it once per variable, in red, where it cannot be missed among the dots."""
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    missing = [found[1] for text in skipped if (found := re.search(r"DATA MISSING: .*set (\w+)", text))]
    for variable, count in sorted(Counter(missing).items()):
        terminalreporter.write_line(f"DATA MISSING: {count} tests skipped; set {variable}.", red=True, bold=True)


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """Import a file of ``scripts/`` by its name."""
    return support.load_script


@pytest.fixture(scope="session")
def layouts() -> ModuleType:
    """Checkpoints of every origin (``tests/layouts.py``)."""
    return support.load_script("layouts", "tests")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models lose more to waking threads than they win."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _tokenizer() -> Any:
    """Byte-level BPE without a single merge: any text, one token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=special,
    )


def _make_tiny_model(folder: Path, **switches: Any) -> Path:
    """Save a tiny random model with its processor to a folder."""
    import torch
    from transformers import InternVLVisionConfig, Qwen2Config

    from self1e.configuration import Self1EConfig
    from self1e.model import Self1EForConditionalGeneration
    from self1e.processing.image import Self1EImageProcessor
    from self1e.processing.processor import Self1EProcessor
    from self1e.processing.tokenizers import add_segmentation_tokens

    tokenizer = _tokenizer()
    seg, _ = add_segmentation_tokens(tokenizer)
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = InternVLVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=[56, 56],
        patch_size=[14, 14],
        norm_type="layer_norm",
        attention_bias=True,
        use_qk_norm=False,
    )
    config = Self1EConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        seg_token_id=seg,
        image_seq_length=4,
        **switches,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Self1EForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.25)  # at the usual 0.02 all masks would be alike
    model.save_pretrained(folder)
    images = Self1EImageProcessor(size={"height": 56, "width": 56})
    Self1EProcessor(images, tokenizer, image_seq_length=4).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., Path]:
    """Make one with other switches: ``make_tiny_model(folder, fine="none", ...)``."""
    return _make_tiny_model


@pytest.fixture(scope="session")
def base_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of the tiny model before SELF1E: without ``[SEG]`` and ``[SEGT]``, 262 tokens."""
    folder = tmp_path_factory.mktemp("base") / "tokenizer"
    _tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random model: one tile is 56 pixels, 4 tokens and an 8 x 8 mask."""
    return _make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="session")
def tiny_model(tiny_model_folder: Path) -> Any:
    """The same, loaded, on the CPU; nothing that is called changes it."""
    import self1e

    return self1e.load(tiny_model_folder, device="cpu")


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, base_tokenizer_folder: Path) -> Path:
    """A stock InternVL of transformers, with 262 words, and its tokenizer."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    config = tiny_model.model.config
    text = config.text_config.to_dict() | {"vocab_size": 262}
    settings = {"image_token_id": config.image_token_id, "image_seq_length": 4, "tie_word_embeddings": False}
    base_config = InternVLConfig(vision_config=config.vision_config.to_dict(), text_config=text, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        base = InternVLForConditionalGeneration(base_config)
        for parameter in base.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.25)
    folder = tmp_path_factory.mktemp("base") / "base"
    base.save_pretrained(folder)
    for path in base_tokenizer_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory, base_folder: Path, layouts: ModuleType) -> Path:
    """A training checkpoint of it: LoRA on both towers, and everything that is trained as a whole changed."""
    from self1e.model import Self1EForConditionalGeneration
    from self1e.processing.processor import Self1EProcessor
    from self1e.training.adapters import attach_adapters
    from self1e.training.recipes.settings import AdapterSettings

    model = Self1EForConditionalGeneration.from_pretrained(base_folder)
    attach_adapters(model, AdapterSettings(rank=3, dropout=0.0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("trained") / "checkpoint-1"
    layouts.save(folder, model.config.to_dict(), model.state_dict())
    processor = Self1EProcessor.from_base(base_folder, tile_size=56, image_seq_length=4)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Pictures of several sizes and shapes, seeded: noise over large blocks."""
    rng = np.random.default_rng(0)
    sizes_wh = [(90, 60), (61, 130), (200, 50), (64, 64)]
    return [
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for size in sizes_wh
    ]


def _serves(path: Path) -> bool:
    return path.parent.name in ("serving", "web")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the libraries of service and page leave sockets and loops to the garbage collector."""
    for item in items:
        if _serves(item.path):
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))


@pytest.fixture(scope="module", autouse=True)
def _rubbish_of_servers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect it here, so that no other test is told of it."""
    yield
    if _serves(request.path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
