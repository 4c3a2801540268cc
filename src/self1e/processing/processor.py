"""Words and pictures to model inputs, and mask logits back to pictures.

Every sequence is built from chunks that begin with a control token::

    <|im_start|>system ...  <|im_end|> \\n  <|im_start|>user \\n <img> [IMG] x n </img> \\n question  <|im_end|> \\n ...

Tokenizers split a string at control tokens before anything else, so encoding chunk by chunk gives exactly the
ids of the whole string. It lets image tokens go in as ids, labels follow from what a chunk *is*, and a question
stay words: text that spells a control token never becomes one.

Nothing here needs torch but what makes tensors: an exported model reads words without it.

Shapes: B sequences; N tokens of the longest; T tiles over all pictures; K masks of one picture; H, W its pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from self1e.errors import CheckpointError, PromptError, SettingError
from self1e.processing import prompts
from self1e.processing.foreign import find_foreign
from self1e.processing.image import Self1EImageProcessor
from self1e.processing.prompts import ChatTemplate, KindChoice
from self1e.processing.tokenizers import (
    add_segmentation_tokens,
    add_what_weights_have,
    added_tokens,
    load_tokenizer,
)

if TYPE_CHECKING:
    from torch import Tensor

IGNORED_LABEL = -100
"""Label of a token that is not supervised."""

_OWN_SETTINGS = ("template", "system_message", "keep_bos", "chat_template")
_HUB_SETTINGS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class Tokenized(NamedTuple):
    """One sequence: ids, and labels of the same length (-100 where not supervised)."""

    input_ids: list[int]
    labels: list[int]


class Self1EProcessor(ProcessorMixin):
    """Picture processor, tokenizer and prompts of one checkpoint.

    Args:
        image_processor: Cuts pictures into tiles.
        tokenizer: Must hold the control tokens and ``[SEG]``; see :meth:`from_base`.
        image_seq_length: Image tokens per tile; 256 for 448-pixel tiles.
        template: Name of a chat template, see :data:`self1e.processing.prompts.TEMPLATES`.
        system_message: In place of the template's own system message.
        keep_bos: Start sequences with BOS. Off in training and mask inference of every released
            checkpoint; InternLM2's own chat has it (METHOD section 3.6).
        chat_template: Jinja text for ``apply_chat_template``; follows from ``template`` if not given.
    """

    image_processor: Self1EImageProcessor
    tokenizer: Any

    # Plain positional names: ProcessorMixin finds the sub-processors and what to save in this signature.
    def __init__(
        self,
        image_processor: Self1EImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        image_seq_length: int = 256,
        template: str = "internvl2_5",
        system_message: str | None = None,
        keep_bos: bool = False,
        chat_template: str | None = None,
    ) -> None:
        if image_seq_length < 1:
            raise SettingError(
                f"image_seq_length={image_seq_length} must be at least 1; it is 256 for 448-pixel tiles."
            )
        self.image_seq_length = image_seq_length
        self.template = template
        self.system_message = system_message
        self.keep_bos = keep_bos
        super().__init__(image_processor, tokenizer, chat_template=chat_template or self.conversation_template.jinja())
        missing = [token for token in _CONTROL_TOKENS if token not in added_tokens(tokenizer)]
        if missing:
            raise CheckpointError(
                f"The tokenizer has no token {', '.join(missing)}; expected an InternVL tokenizer with SELF1E's "
                "tokens. Use Self1EProcessor.from_base(folder), or call add_segmentation_tokens(tokenizer) first."
            )
        if keep_bos and tokenizer.bos_token_id is None:
            raise SettingError("keep_bos=True, but the tokenizer has no BOS token; leave it False.")
        self._added: dict[str, int] = {}
        self._refresh()

    @classmethod
    def from_base(
        cls, folder: str | Path, *, tile_size: int = 448, max_tiles: int = 1, image_seq_length: int = 256, **kwargs: Any
    ) -> Self1EProcessor:
        """Make a processor from the tokenizer of a base model, adding ``[SEG]`` and ``[SEGT]``.

        Args:
            folder: Folder or hub name of the base model (or only of its tokenizer).
            tile_size: Side of one tile in pixels.
            max_tiles: Most tiles per picture when a call does not say.
            image_seq_length: Image tokens per tile.
            kwargs: ``template``, ``system_message``, ``keep_bos``, ``chat_template``; and what
                ``from_pretrained`` of a tokenizer takes to find files, for example ``revision``.
        """
        hub = {name: kwargs.pop(name) for name in _HUB_SETTINGS if name in kwargs}
        tokenizer = load_tokenizer(folder, **hub)
        add_segmentation_tokens(tokenizer)
        images = Self1EImageProcessor(size={"height": tile_size, "width": tile_size}, max_tiles=max_tiles)
        return cls(images, tokenizer, image_seq_length=image_seq_length, **kwargs)

    @classmethod
    def for_weights(cls, folder: str | Path, tokenizer_from: str | Path, **kwargs: Any) -> Self1EProcessor:
        """Make the processor of a foreign checkpoint.

        Args:
            folder: Holds its ``config.json`` and weights.
            tokenizer_from: Folder or hub name of its tokenizer; the base model's will do.
            kwargs: ``template``, ``system_message``, ``keep_bos``, ``chat_template``.

        Raises:
            CheckpointError: The tokenizer does not fit the weights' vocabulary.
        """
        from self1e.configuration import Self1EConfig
        from self1e.model.checkpoints.configs import is_base

        config: Any = Self1EConfig.from_pretrained(folder)
        tokenizer = load_tokenizer(tokenizer_from)
        add_what_weights_have(
            tokenizer, config.text_config.vocab_size, is_base=is_base(folder), source=str(tokenizer_from)
        )
        images = Self1EImageProcessor(size={"height": config.tile_size, "width": config.tile_size}, max_tiles=1)
        return cls(images, tokenizer, image_seq_length=config.image_seq_length, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self1EProcessor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Load what ``save_pretrained`` wrote; settings of the constructor given here replace the saved ones.

        A foreign checkpoint (published, InternVLChat, ``-hf``) has no such processor: its tokenizer then gets the
        tokens that its weights have, and the tiles their size from its configuration (:meth:`for_weights`).
        """
        hub = {name: kwargs[name] for name in _HUB_SETTINGS if kwargs.get(name)}
        foreign = find_foreign(pretrained_model_name_or_path, **hub)
        if foreign is not None:
            settings = {name: kwargs[name] for name in _OWN_SETTINGS if name in kwargs}
            return cls.for_weights(foreign, foreign, **settings)
        if {"template", "system_message"} & set(kwargs):
            kwargs.setdefault("chat_template", None)  # the saved one says what the saved template said
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Load our own two classes: the Auto classes would prefer torchvision, and misread InternLM2."""
        hub = {name: kwargs[name] for name in _HUB_SETTINGS if kwargs.get(name)}
        return [
            Self1EImageProcessor.from_pretrained(pretrained_model_name_or_path, **hub),
            load_tokenizer(pretrained_model_name_or_path, **hub),
        ]

    def _refresh(self) -> None:
        """Learn the tokenizer's added tokens: anybody may add one at any time, and then no question may spell it."""
        added = added_tokens(self.tokenizer)
        if added == self._added:
            return
        self._added = added
        # Longest first, as tokenizers match them.
        self._spelling = re.compile("|".join(re.escape(token) for token in sorted(added, key=len, reverse=True)))
        # An unknown character honestly becomes the unknown token, which is an added one for InternLM2.
        self._forbidden = frozenset(added.values()) - {self.tokenizer.unk_token_id}
        self._encode_cache: dict[str, list[int]] = {}

    # -- what the tokens are ------------------------------------------------------------------------------------

    @property
    def conversation_template(self) -> ChatTemplate:
        """The chat template in use."""
        template = prompts.get_template(self.template)
        if self.system_message is None:
            return template
        return ChatTemplate(name=template.name, system_message=self.system_message, separator=template.separator)

    @property
    def image_token(self) -> str:
        """Where a picture goes in a rendered prompt."""
        return prompts.IMAGE_PLACEHOLDER

    @property
    def seg_token_id(self) -> int:
        """Id of ``[SEG]``."""
        return self._id(prompts.SEG_TOKEN)

    @property
    def image_token_id(self) -> int:
        """Id of ``<IMG_CONTEXT>``, one per image token."""
        return self._id(prompts.IMAGE_TOKEN)

    @property
    def image_start_id(self) -> int:
        """Id of ``<img>``."""
        return self._id(prompts.IMAGE_START)

    @property
    def image_end_id(self) -> int:
        """Id of ``</img>``."""
        return self._id(prompts.IMAGE_END)

    @property
    def turn_start_id(self) -> int:
        """Id of ``<|im_start|>``."""
        return self._id(prompts.TURN_START)

    @property
    def turn_end_id(self) -> int:
        """Id of ``<|im_end|>``: answers stop here (``eos_token_id`` of ``generate``)."""
        return self._id(prompts.TURN_END)

    @property
    def pad_token_id(self) -> int:
        """Id to pad with: the tokenizer's pad token, else its EOS, else its unknown token, else 0.

        Which one is of no consequence where ``attention_mask`` is passed on, as it must be: the published code
        took id 0 for padding, which is "!" for Qwen.
        """
        tokenizer = self.tokenizer
        for found in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
            if isinstance(found, int):
                return found
        return 0

    @property
    def model_input_names(self) -> list[str]:
        """Names of what :meth:`__call__` returns."""
        return ["input_ids", "attention_mask", "pixel_values", "tile_grids"]

    def _id(self, token: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token))

    # -- words to ids -------------------------------------------------------------------------------------------

    def tokenize_conversation(
        self, turns: Sequence[tuple[str, str | None]], *, num_tiles: int, max_length: int | None = None
    ) -> Tokenized:
        """Tokenize questions and answers about one picture.

        Questions are not trusted: words in them that spell a control token stay words. Answers are: training
        answers hold ``[SEG]``.

        Args:
            turns: Questions and answers. A last answer of None makes a generation prompt, which ends with
                ``<|im_start|>assistant`` and a newline. The picture goes where the first question begins with
                ``<image>``; if it does not, ``<image>`` and a newline are put before it. Anywhere else
                ``<image>`` is text.
            num_tiles: Tiles of the picture; 0 for no picture.
            max_length: Cut after so many tokens (published: 512). Image tokens and [SEG] are never cut.

        Returns:
            Ids and labels. Supervised are the answers and their ``<|im_end|>`` (METHOD section 6.2).

        Raises:
            PromptError: The turns are malformed, or ``max_length`` is too small.
        """
        _check_turns(turns, num_tiles)
        self._refresh()
        template = self.conversation_template
        ids: list[int] = self._bos()
        ids += self._encode(template.system_turn) + self._encode(template.separator)
        labels = [IGNORED_LABEL] * len(ids)
        for index, (question, answer) in enumerate(turns):
            asked = self._question(template.user_header, question, num_tiles if index == 0 else 0)
            asked += self._encode(template.separator)
            header = self._encode(template.assistant_header)
            if answer is None:
                asked += header
                ids += asked
                labels += [IGNORED_LABEL] * len(asked)
                break
            # Encoded together, as published: a tokenizer may join the header's newline with one in the answer,
            # and then supervision starts at the joint token.
            answered = self._encode(template.assistant_header + answer, keep=False)
            start = _common_prefix(header, answered)
            end = self._encode(template.separator)
            ids += asked + answered + end
            labels += [IGNORED_LABEL] * (len(asked) + start) + answered[start:]
            labels += [end[0]] + [IGNORED_LABEL] * (len(end) - 1)
        if max_length is not None and len(ids) > max_length:
            self._check_cut(ids, max_length, is_prompt=turns[-1][1] is None)
            ids, labels = ids[:max_length], labels[:max_length]
        return Tokenized(ids, labels)

    def segmentation_inputs(
        self,
        queries: str | Sequence[str],
        *,
        num_tiles: int | Sequence[int],
        kind: KindChoice | Sequence[KindChoice] = "auto",
        template: str | None = None,
        answer: str = prompts.SEG_TOKEN,
        pad_to_multiple_of: int | None = None,
    ) -> dict[str, Tensor]:
        """Tokenize queries for mask inference: :meth:`segmentation_ids`, as tensors.

        Args:
            queries: See :meth:`segmentation_ids`, like all but the last.
            num_tiles: Tiles of the picture, or of each query's picture.
            kind: ``phrase``, ``sentence`` or ``auto``; or one for each query.
            template: A question of one's own with ``{text}``.
            answer: Holds ``[SEG]``.
            pad_to_multiple_of: See :meth:`pad`.

        Returns:
            ``input_ids``, ``attention_mask`` and ``position_ids``, int64 ``(B, N)``, padded on the right.
        """
        sequences = self.segmentation_ids(queries, num_tiles=num_tiles, kind=kind, template=template, answer=answer)
        return self.pad(sequences, pad_to_multiple_of=pad_to_multiple_of)

    def segmentation_ids(
        self,
        queries: str | Sequence[str],
        *,
        num_tiles: int | Sequence[int],
        kind: KindChoice | Sequence[KindChoice] = "auto",
        template: str | None = None,
        answer: str = prompts.SEG_TOKEN,
    ) -> list[list[int]]:
        """Tokenize queries for mask inference: the answer is given, so one forward pass makes every mask.

        Sequences end with the answer's last ``[SEG]``; whatever follows it has no influence (METHOD section 3.5).

        Args:
            queries: What to find; B of them, each its own sequence.
            num_tiles: Tiles of the picture, or of each query's picture.
            kind: ``phrase``, ``sentence`` or ``auto``; or one for each query.
            template: A question of one's own with ``{text}``, in place of the published one.
            answer: Holds ``[SEG]``, several times for a model with several [SEG] tokens.

        Returns:
            B sequences of ids.
        """
        texts = [queries] if isinstance(queries, str) else list(queries)
        tiles = [num_tiles] * len(texts) if isinstance(num_tiles, int) else list(num_tiles)
        kinds: list[Any] = [kind] * len(texts) if isinstance(kind, str) else list(kind)
        if not texts:
            raise PromptError("Found no query; expected at least one.")
        if not len(tiles) == len(kinds) == len(texts):
            raise PromptError(
                f"Found {len(texts)} queries, {len(tiles)} num_tiles and {len(kinds)} kinds; "
                "expected one of each per query, or a single value for all."
            )
        self._refresh()
        head, seg, _ = answer.rpartition(prompts.SEG_TOKEN)
        if not seg:
            raise PromptError(f"answer={answer!r} holds no {prompts.SEG_TOKEN}; without it there is no mask.")
        header = self._encode(self.conversation_template.assistant_header)
        answered = self._encode(self.conversation_template.assistant_header + head + seg)
        if answered[: len(header)] != header:
            raise PromptError(
                f"answer={answer!r} must not begin with white space: it would change the header's tokens."
            )
        tail = answered[len(header) :]
        sequences = []
        for text, count, known in zip(texts, tiles, kinds, strict=True):
            if count < 1:
                raise PromptError(f"num_tiles={count} for query {text!r}; masks need a picture of at least 1 tile.")
            question = prompts.segmentation_question(text, known, template)
            sequences.append(self.tokenize_conversation([(question, None)], num_tiles=count).input_ids + tail)
        return sequences

    def pad(
        self,
        sequences: Sequence[Sequence[int]],
        labels: Sequence[Sequence[int]] | None = None,
        *,
        pad_to_multiple_of: int | None = None,
    ) -> dict[str, Tensor]:
        """Pad sequences on the right, as the dual attention mask needs (left padding makes empty rows).

        Args:
            sequences: B lists of ids.
            labels: B lists of the same lengths.
            pad_to_multiple_of: Make N a multiple of this, so that compiled models see fewer shapes.

        Returns:
            ``input_ids`` (see :attr:`pad_token_id`), ``attention_mask`` (1 at real tokens), ``position_ids``
            (0, 1, ... and 0 at padding, METHOD section 4) and ``labels`` if given; int64 ``(B, N)``.
        """
        import torch

        if not sequences or not all(len(sequence) for sequence in sequences):
            raise PromptError("Found no sequence, or an empty one; expected at least one token in each.")
        lengths = [len(sequence) for sequence in sequences]
        if labels is not None and [len(row) for row in labels] != lengths:
            raise PromptError(
                f"Found sequences of {lengths} tokens but labels of {[len(row) for row in labels]}; they must match."
            )
        longest = max(lengths)
        if pad_to_multiple_of:
            longest = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
        is_real = torch.arange(longest) < torch.tensor(lengths)[:, None]
        batch = {
            "input_ids": _padded(sequences, longest, self.pad_token_id),
            "attention_mask": is_real.long(),
            "position_ids": torch.arange(longest) * is_real,
        }
        if labels is not None:
            batch["labels"] = _padded(labels, longest, IGNORED_LABEL)
        return batch

    def _bos(self) -> list[int]:
        return [int(self.tokenizer.bos_token_id)] if self.keep_bos else []

    def _encode(self, text: str, keep: bool = True) -> list[int]:
        """Encode trusted text; ``keep`` remembers the result (for the few strings of the template)."""
        found = self._encode_cache.get(text)
        if found is None:
            found = list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))
            if keep and len(self._encode_cache) < 64:  # answers of callers end up here too
                self._encode_cache[text] = found
        return found.copy()

    def _question(self, header: str, question: str, num_tiles: int) -> list[int]:
        """Encode a user turn without its separator; the picture, if any, comes first."""
        if not num_tiles:
            return self._encode_words(header, question)
        words = question.removeprefix(prompts.IMAGE_PLACEHOLDER)
        if words == question:
            words = "\n" + question
        ids = self._encode(header + prompts.IMAGE_START)
        ids += [self.image_token_id] * (self.image_seq_length * num_tiles)
        return ids + self._encode_words(prompts.IMAGE_END, words)

    def _encode_words(self, lead: str, words: str) -> list[int]:
        """Encode ``lead + words``, where ``lead`` is ours, begins with a control token, and ``words`` are anybody's.

        If the words spell no control token (nearly always) these are the ids of the whole string. If they do, the
        text is cut inside each spelling and the parts are encoded one by one: every character survives, and the
        control token's id cannot appear.
        """
        _check_letters(words)
        ids: list[int] = []
        for part in _cut(words, lead, self._spelling):
            # Behind a control token every part is encoded as in the middle of a text, not as its beginning.
            guard = lead if not ids else prompts.TURN_END
            found = self._encode(guard + part, keep=False)
            expected = self._encode(guard)
            if _count(found, self._forbidden) != _count(expected, self._forbidden):
                # Not spelled, yet there: a normaliser made it (a full-width form, say). Characters cannot.
                found = expected + self._encode_characters(part)
            ids += found if not ids else found[len(expected) :]
        return ids

    def _encode_characters(self, part: str) -> list[int]:
        """Encode character by character, the last resort."""
        ids: list[int] = []
        for character in part:
            found = self._encode(prompts.TURN_END + character, keep=False)[1:]
            if _count(found, self._forbidden):
                raise PromptError(f"The character {character!r} is a control token of this tokenizer; leave it out.")
            ids += found
        return ids

    def _check_cut(self, ids: list[int], max_length: int, is_prompt: bool) -> None:
        lost = ids[max_length:]
        image, seg = lost.count(self.image_token_id), lost.count(self.seg_token_id)
        if not (image or seg or is_prompt or self.image_end_id in lost):
            return
        what = [f"{image} image tokens"] * bool(image) + [f"{seg} [SEG]"] * bool(seg) or ["the end of the prompt"]
        raise PromptError(
            f"max_length={max_length} would cut {' and '.join(what)} from a sequence of {len(ids)} tokens, "
            f"{ids.count(self.image_token_id)} of them image tokens. Raise max_length to at least {len(ids)}, "
            "lower max_tiles, or shorten the text."
        )

    # -- the idiom of transformers ------------------------------------------------------------------------------

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        max_tiles: int | None = None,
        padding: bool | str = True,
        padding_side: Literal["left", "right"] = "left",
        return_tensors: str | None = "pt",
        add_special_tokens: bool = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare rendered prompts and pictures for ``model.generate``.

        A rendered prompt holds control tokens on purpose, so it is trusted. Words of strangers belong into
        :meth:`tokenize_conversation` or :meth:`segmentation_inputs`, which are safe.

        Args:
            images: Pictures in the order of their ``<image>``, in any nesting; strings are fetched the
                way transformers does (a path, an address).
            text: Prompts, usually from ``apply_chat_template``. Each ``<image>`` becomes its picture's tokens.
            max_tiles: Most tiles per picture.
            padding: Pad to the longest prompt. With False, several prompts must be equally long.
            padding_side: ``left`` for generation; masks need ``right``.
            return_tensors: ``"pt"``, or None for lists of ids (``pixel_values`` are then NumPy).
            add_special_tokens: False leaves BOS out even where ``keep_bos`` is set.

        Returns:
            ``input_ids`` and ``attention_mask``, int64 ``(B, N)``, if there is text; ``pixel_values``
            ``(T, 3, S, S)`` and ``tile_grids`` ``(n, 2)`` (rows, columns), if there are pictures.
        """
        unknown = sorted(name for name, value in kwargs.items() if value not in (None, False))
        if unknown:
            raise SettingError(
                f"Unexpected {', '.join(unknown)}; this processor takes images, text, max_tiles, padding, "
                "padding_side, return_tensors and add_special_tokens. It never truncates."
            )
        if return_tensors not in ("pt", None) or padding not in (True, False, "longest"):
            raise SettingError(
                f"return_tensors={return_tensors!r}, padding={padding!r}: choose 'pt' or None, and True or False."
            )
        if padding_side not in ("left", "right"):
            raise SettingError(f"padding_side={padding_side!r} is unknown; choose 'left' or 'right'.")
        if images is None and text is None:
            raise PromptError("Found neither images nor text; expected at least one of them.")
        self._refresh()
        data: dict[str, Any] = {}
        counts: list[int] = []
        if images is not None:
            pictures = self.image_processor(self._fetch(images), max_tiles=max_tiles, return_tensors=return_tensors)
            counts = [int(count) for count in pictures["num_tiles"]]
            data = {"pixel_values": pictures["pixel_values"], "tile_grids": pictures["tile_grids"]}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            sequences = self._expand(texts, counts, self._bos() if add_special_tokens else [])
            data = self._batch(sequences, bool(padding), padding_side, return_tensors) | data
        return BatchFeature(data)

    def _fetch(self, images: Any) -> Any:
        if isinstance(images, list | tuple):
            return [self._fetch(image) for image in images]
        return self.image_processor.fetch_images(images) if isinstance(images, str) else images

    def _expand(self, texts: list[str], counts: list[int], bos: list[int]) -> list[list[int]]:
        """Encode prompts, each ``<image>`` as the tokens of the next picture."""
        found = sum(text.count(self.image_token) for text in texts)
        if found != len(counts):
            raise PromptError(
                f"Found {found} {self.image_token} in the text but {len(counts)} pictures; they must match. "
                "apply_chat_template writes one for each part of type 'image'."
            )
        tiles = iter(counts)
        sequences = []
        for text in texts:
            first, *rest = text.split(self.image_token)
            ids = bos + self._encode(first + prompts.IMAGE_START * bool(rest), keep=False)
            image_tokens = 0
            for index, words in enumerate(rest, start=1):
                count = next(tiles) * self.image_seq_length
                ids += [self.image_token_id] * count
                image_tokens += count
                more = prompts.IMAGE_START * (index < len(rest))
                ids += self._encode(prompts.IMAGE_END + words + more, keep=False)
            if ids.count(self.image_token_id) != image_tokens:
                raise PromptError(
                    f"The prompt spells {prompts.IMAGE_TOKEN} itself; write {self.image_token} where a picture goes, "
                    "or use tokenize_conversation for words of strangers."
                )
            sequences.append(ids)
        return sequences

    def _batch(
        self, sequences: list[list[int]], padding: bool, side: str, return_tensors: str | None
    ) -> dict[str, Any]:
        longest = max(map(len, sequences), default=0)
        if not padding and return_tensors and any(len(sequence) != longest for sequence in sequences):
            raise PromptError(
                f"Found prompts of {[len(sequence) for sequence in sequences]} tokens and padding=False; "
                "a tensor needs padding=True."
            )
        ids, real = [], []
        for sequence in sequences:
            fill = longest - len(sequence) if padding else 0
            before, after = (fill, 0) if side == "left" else (0, fill)
            ids.append([self.pad_token_id] * before + sequence + [self.pad_token_id] * after)
            real.append([0] * before + [1] * len(sequence) + [0] * after)
        if not return_tensors:
            return {"input_ids": ids, "attention_mask": real}
        import torch

        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(real)}

    # -- masks --------------------------------------------------------------------------------------------------

    @staticmethod
    def post_process_masks(
        mask_logits_per_picture: Iterable[Tensor],
        original_sizes: Sequence[Sequence[int]] | Tensor,
        threshold: float = 0.0,
    ) -> list[Tensor]:
        """Bring mask logits to the pictures' own sizes and threshold them (METHOD section 5, step 9).

        One mask at a time: K full-size float masks of a large picture would not fit where K bool masks do.

        Args:
            mask_logits_per_picture: For each picture logits ``(K, h, w)``; K may be 0.
            original_sizes: (height, width) of each picture; ``original_sizes`` of the image processor.
            threshold: Foreground is strictly above it.

        Returns:
            For each picture bool masks ``(K, H, W)``, on the logits' device.
        """
        import torch
        from torch.nn import functional as F

        sizes = original_sizes.tolist() if isinstance(original_sizes, torch.Tensor) else list(original_sizes)
        logits = [mask_logits.detach() for mask_logits in mask_logits_per_picture]
        if len(sizes) != len(logits):
            raise PromptError(f"Found mask logits of {len(logits)} pictures but {len(sizes)} sizes; they must match.")
        found = []
        for mask_logits, (height, width) in zip(logits, sizes, strict=True):
            masks = torch.empty(len(mask_logits), int(height), int(width), dtype=torch.bool, device=mask_logits.device)
            for index, one in enumerate(mask_logits):
                # float32: the published bf16 upsampling rounds borderline pixels.
                enlarged = F.interpolate(
                    one[None, None].float(), size=masks.shape[-2:], mode="bilinear", align_corners=False
                )
                masks[index] = enlarged[0, 0] > threshold
            found.append(masks)
        return found


_CONTROL_TOKENS = (
    prompts.TURN_START,
    prompts.TURN_END,
    prompts.IMAGE_START,
    prompts.IMAGE_END,
    prompts.IMAGE_TOKEN,
    prompts.SEG_TOKEN,
)


def _check_turns(turns: Sequence[tuple[str, str | None]], num_tiles: int) -> None:
    if not turns:
        raise PromptError("Found no turns; expected at least one question.")
    if num_tiles < 0:
        raise PromptError(f"num_tiles={num_tiles} must be 0 (no picture) or more.")
    open_turns = [index for index, (_, answer) in enumerate(turns) if answer is None]
    if open_turns and open_turns != [len(turns) - 1]:
        raise PromptError(
            f"Turn {open_turns[0]} of {len(turns)} has no answer; only the last may be open, to generate its answer."
        )
    if not num_tiles and turns[0][0].startswith(prompts.IMAGE_PLACEHOLDER):
        raise PromptError(
            f"The question begins with {prompts.IMAGE_PLACEHOLDER} but num_tiles=0; "
            "pass the tiles of its picture, or take the placeholder out."
        )


def _check_letters(words: str) -> None:
    try:
        words.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{words!r:.80} holds {words[error.start]!r}, half of a surrogate pair, which is no character: the words "
            "were not decoded as what they are; read them as UTF-8, or with errors='replace'."
        ) from error


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    for index, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return index
    return min(len(first), len(second))


def _count(ids: Iterable[int], among: frozenset[int]) -> int:
    return sum(index in among for index in ids)


def _cut(words: str, lead: str, spelling: re.Pattern[str]) -> list[str]:
    """Cut words inside every control token they spell, alone or together with the end of ``lead``."""
    parts: list[str] = []
    rest = words
    while True:
        # The lead's own control tokens lie before its end; only a match that reaches into the words counts.
        match = next((m for m in spelling.finditer(lead + rest) if m.end() > len(lead)), None)
        if match is None:
            return [*parts, rest]
        if len(match.group()) == 1:
            raise PromptError(f"The character {match.group()!r} is a control token of this tokenizer; leave it out.")
        cut = max(match.start() + 1 - len(lead), 0)  # 0: the lead's end and the words make one; cut between them
        parts.append(rest[:cut])
        rest, lead = rest[cut:], ""


def _padded(rows: Sequence[Sequence[int]], length: int, fill: int) -> Tensor:
    import torch

    padded = torch.full((len(rows), length), fill, dtype=torch.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = torch.as_tensor(values, dtype=torch.int64)
    return padded
