"""Tokenizers: the right one for a folder, and the two tokens that SELF1E adds.

Original InternVL2 and InternVL2.5 repositories hold a sentencepiece ``tokenizer.model`` and remote
code. Reading that file with ``AutoTokenizer`` or ``LlamaTokenizer`` works, and is silently wrong: they
add spaces and miss the newline token. :class:`InternLM2Tokenizer` reads it as its authors do.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from self1e.errors import CheckpointError, MissingDependencyError
from self1e.processing.prompts import IMAGE_TOKEN, SEG_TOKEN, SEGT_TOKEN

_SPACE = "\u2581"  # sentencepiece's visible space


class InternLM2Tokenizer(PreTrainedTokenizer):
    """InternLM2's sentencepiece tokenizer: split off added tokens, then encode what is left as it stands.

    Args:
        vocab_file: The sentencepiece model.
        add_bos_token, add_eos_token: Whether ``add_special_tokens=True`` adds them. Training and mask
            inference of SELF1E have no BOS (METHOD section 3.6).
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012 (as the base class spells it)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str,
        unk_token: Any = "<unk>",
        bos_token: Any = "<s>",
        eos_token: Any = "</s>",
        pad_token: Any = "</s>",
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        **kwargs: Any,
    ) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise MissingDependencyError(
                "InternLM2 checkpoints need sentencepiece: pip install sentencepiece"
            ) from error
        if not Path(vocab_file or "").is_file():
            raise CheckpointError(f"Found no sentencepiece model at {vocab_file!r}; expected a file tokenizer.model.")
        self.vocab_file = vocab_file
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        self.sp_model: Any = SentencePieceProcessor(model_file=str(vocab_file))
        # Original vocabularies add no leading space; others may, and then decoding has to take it off again.
        self._adds_leading_space = next(iter(self.sp_model.encode("a", out_type=str)), "").startswith(_SPACE)
        super().__init__(
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            **kwargs,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "sp_model": self.sp_model.serialized_model_proto()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from sentencepiece import SentencePieceProcessor

        self.__dict__.update(state)
        self.sp_model = SentencePieceProcessor(model_proto=state["sp_model"])

    @property
    def vocab_size(self) -> int:
        """Pieces of the sentencepiece model, without added tokens."""
        return int(self.sp_model.vocab_size())

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id."""
        # An added token takes the place of the piece with its id: real InternLM2 vocabularies hold <|im_start|> where
        # the sentencepiece model says [UNUSED_TOKEN_146]. Counting both would shift the ids of [SEG] and [SEGT].
        added = self._added_tokens_decoder
        pieces = {self.sp_model.id_to_piece(index): index for index in range(self.vocab_size) if index not in added}
        return pieces | {token.content: index for index, token in sorted(added.items())}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self.sp_model.encode(text, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return int(self.sp_model.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < self.vocab_size:
            raise IndexError(f"Token id {index} is outside the vocabulary of {len(self)} tokens.")
        return self.sp_model.id_to_piece(int(index))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces, byte pieces included; spaces at either end survive."""
        text, run = "", bytearray()
        for token in tokens:
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                run.append(int(token[3:5], 16))
                continue
            text += run.decode("utf-8", errors="replace")
            run.clear()
            text += token if token in self._added_tokens_encoder else token.replace(_SPACE, " ")
        text += run.decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._adds_leading_space else text

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Add BOS and EOS as configured."""
        bos: Any = self.bos_token_id
        eos: Any = self.eos_token_id
        start = [bos] if self.add_bos_token and bos is not None else []
        end = [eos] if self.add_eos_token and eos is not None else []
        return [*start, *token_ids_0, *(token_ids_1 or []), *end]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy the sentencepiece model into a folder."""
        target = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}tokenizer.model"
        if Path(self.vocab_file).is_file():
            if Path(self.vocab_file).resolve() != target.resolve():
                shutil.copyfile(self.vocab_file, target)
        else:  # the folder it came from is gone
            target.write_bytes(self.sp_model.serialized_model_proto())
        return (str(target),)


def load_tokenizer(folder: str | Path, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint without running code from it.

    Args:
        folder: A local folder (then nothing is downloaded), or a name on the hub.
        kwargs: Handed to ``from_pretrained``; for example ``revision``.

    Returns:
        :class:`InternLM2Tokenizer` for a ``tokenizer.model`` of InternLM2, else what AutoTokenizer finds.
    """
    kwargs.pop("trust_remote_code", None)
    name = str(folder)
    if Path(name).is_dir():
        kwargs["local_files_only"] = True
    settings = get_tokenizer_config(name, **kwargs)
    declared = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
    try:
        # A folder that holds tokenizer.json only (the "-hf" repositories) was converted: read that as it is.
        if declared == "InternLM2Tokenizer" and _has_sentencepiece(Path(name)):
            return InternLM2Tokenizer.from_pretrained(name, **kwargs)
        if declared:
            # The class is known, so config.json is not asked: it may name code that we would not run.
            kwargs["config"] = PreTrainedConfig()
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **kwargs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"Found no usable tokenizer in {name!r} (declared: {declared or 'none'}): {error}. Expected "
            "tokenizer.json, vocab.json with merges.txt, or InternLM2's tokenizer.model; the released SELF1E weights "
            "come without one: use the base model's."
        ) from error


def _has_sentencepiece(folder: Path) -> bool:
    # On the hub the original repositories always hold it, and those with tokenizer.json declare another class.
    return not folder.is_dir() or (folder / "tokenizer.model").is_file()


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the tokens that a tokenizer splits off before anything else, special or not, with their ids."""
    getter: Any = tokenizer.get_added_vocab  # of both backends, but not of their common base
    return dict(getter())


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def has_tokenizer(folder: str | Path) -> bool:
    """Whether a local folder holds a tokenizer."""
    return any((Path(folder) / name).is_file() for name in TOKENIZER_FILES)


def token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return what a configuration must know of a tokenizer: ``image_token_id``, ``seg_token_id``.

    Raises:
        CheckpointError: One of the two tokens is not there.
    """
    known = added_tokens(tokenizer)
    missing = [name for name in (IMAGE_TOKEN, SEG_TOKEN) if name not in known]
    if missing:
        raise CheckpointError(
            f"The tokenizer has no token {', '.join(missing)}; expected an InternVL tokenizer with SELF1E's tokens. "
            "Take the tokenizer of the base model that the weights come from."
        )
    return {"image_token_id": known[IMAGE_TOKEN], "seg_token_id": known[SEG_TOKEN]}


def add_what_weights_have(
    tokenizer: PreTrainedTokenizerBase, rows: int | None, *, is_base: bool, source: object = "the checkpoint"
) -> None:
    """Append ``[SEG]``, and ``[SEGT]`` where the weights have a row for it (METHOD 1.3).

    Args:
        tokenizer: Of a base model; one that has ``[SEG]`` already stays as it is.
        rows: Rows of the weights' vocabulary.
        is_base: The weights have none of the two: they will get a row for ``[SEG]``.
        source: For the message.

    Raises:
        CheckpointError: The weights and the tokenizer are not of one model.
    """
    if SEG_TOKEN not in added_tokens(tokenizer):
        room = 1 if is_base or rows is None else rows - len(tokenizer)
        if room not in (1, 2):
            raise CheckpointError(
                f"{source}: the weights have {rows} rows of vocabulary, the tokenizer {len(tokenizer)} tokens; "
                f"expected {len(tokenizer) + 2} rows (with [SEG] and [SEGT]) or {len(tokenizer) + 1} (with [SEG]). "
                "Take the tokenizer of the base model that the weights come from."
            )
        add_segmentation_tokens(tokenizer, (SEG_TOKEN, SEGT_TOKEN)[:room])
    elif not is_base and rows is not None and len(tokenizer) > rows:
        raise CheckpointError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens, the weights only {rows} rows of vocabulary. "
            "Take the tokenizer that belongs to the weights."
        )


def add_segmentation_tokens(
    tokenizer: PreTrainedTokenizerBase, names: Sequence[str] = (SEG_TOKEN, SEGT_TOKEN)
) -> list[int]:
    """Append the tokens of SELF1E, plain (not special), in order; those that exist already stay (METHOD 1.3).

    Returns:
        Their ids, in order.
    """
    known = added_tokens(tokenizer)
    # normalized=False: matched in the text as typed, so no other spelling can turn into one.
    fresh = [AddedToken(name, normalized=False, special=False) for name in names if name not in known]
    if fresh:
        tokenizer.add_tokens(fresh)
    known = added_tokens(tokenizer)
    return [known[name] for name in names]
