"""lmms-eval calls a self1e model: any of its tasks on pictures whose answers are generated.

With lmms-eval installed beside self1e, the model is there by its entry point::

    python -m lmms_eval --model self1e --model_args pretrained=nano,max_tiles=6 --tasks pope,mme --batch_size 16

This module is imported by lmms-eval alone (it needs its base class). What it implements is lmms-eval's "simple" model:
``args`` of a request are ``(context, generation settings, doc_to_visual, doc_id, task, split)``, and pictures are
fetched by ``doc_to_visual(self.task_dict[task][split][doc_id])``.

Not offered, with an error that says so: scores of given answers (``loglikelihood``), several pictures or a video in
one request, sampling and beams, several processes, several rounds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from self1e.errors import MissingDependencyError, SettingError
from self1e.inference.answering import BATCH, answer_questions
from self1e.inference.segmenter import load
from self1e.machine import process_count

try:
    from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise MissingDependencyError(
        "self1e.evaluation.lmms is what lmms-eval imports, and lmms-eval is not installed: pip install lmms-eval."
    ) from error

_PLACEHOLDER = re.compile(r"[ \t]*<image>[ \t]*\n?")
_DEFAULT_TOKENS = 128
_NOT_GREEDY = ("do_sample", "num_beams", "temperature")


class Self1ELmms(lmms):  # pyright: ignore[reportUntypedBaseClass]
    """A self1e model for lmms-eval.

    Args:
        pretrained: What ``self1e.load`` takes: ``nano``, a folder, a name on the hub.
        device: See ``self1e.load``; lmms-eval passes ``cuda:0`` and the like.
        dtype: See ``self1e.load``.
        batch_size: Most questions per pass; ``auto`` or nothing lets self1e choose.
        max_tiles: Most tiles per picture; left out, what the checkpoint says.
        max_batch_size: Passed by lmms-eval; heeded as an upper limit.

    Raises:
        SettingError: A setting is unknown or cannot work, or there are several processes.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "nano",
        device: str | None = "auto",
        dtype: str = "auto",
        batch_size: int | str | None = None,
        max_tiles: int | str | None = None,
        max_batch_size: int | str | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise SettingError(
                f"--model_args: unknown {', '.join(unknown)}; self1e takes pretrained, device, dtype, batch_size and "
                "max_tiles."
            )
        if process_count() > 1:
            raise SettingError(
                "self1e runs in one process under lmms-eval, found WORLD_SIZE above 1; for several devices use "
                "torchrun -m self1e eval, which shares pictures out."
            )
        self.pretrained = str(pretrained)  # lmms-eval names its cache by it
        super().__init__()
        self.max_tiles = None if max_tiles in (None, "") else int(max_tiles)
        self.batch_size_per_gpu = min(_number(batch_size), _number(max_batch_size))
        self.segmenter = load(self.pretrained, device=_device(device), dtype=dtype)

    @property
    def batch_size(self) -> int:
        """Most questions per pass."""
        return self.batch_size_per_gpu

    @property
    def device(self) -> Any:
        """Where the weights are."""
        return self.segmenter.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer every request, greedily, in the order of the requests.

        Raises:
            SettingError: A request asks for what self1e does not do; it names the request.
        """
        found: list[str] = [""] * len(requests)
        by_length: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            by_length.setdefault(_max_new_tokens(request.args[1]), []).append(index)
        for max_new_tokens, members in by_length.items():
            for start in range(0, len(members), self.batch_size):
                batch = members[start : start + self.batch_size]
                asked = [self._asked(requests[index]) for index in batch]
                answers = answer_questions(
                    self.segmenter,
                    asked,
                    max_new_tokens=max_new_tokens,
                    max_tiles=self.max_tiles,
                    batch_size=self.batch_size,
                )
                for index, [answer] in zip(batch, answers, strict=True):
                    context, settings = requests[index].args[:2]
                    found[index] = _cut(answer, settings.get("until"))
                    self.cache_hook.add_partial("generate_until", (context, settings), found[index])
        return found

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refused."""
        raise NotImplementedError(
            "self1e generates answers and does not score given ones (loglikelihood); choose the generate_until form "
            "of the task."
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused."""
        raise NotImplementedError("self1e answers one question at a time here; choose a task of one round.")

    def _asked(self, request: Any) -> tuple[Any, list[str]]:
        """The picture of a request, or None, and its question without the mark of the picture's place."""
        context, settings, doc_to_visual, doc_id, task, split = request.args
        where = f"{task}/{split}/{doc_id}"
        _check_greedy(settings, where)
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) if doc_to_visual is not None else []
        pictures = list(visuals or [])
        if len(pictures) > 1 or not all(isinstance(picture, Image.Image) for picture in pictures):
            kinds = ", ".join(type(picture).__name__ for picture in pictures)
            raise SettingError(f"{where}: {len(pictures)} visuals ({kinds}); self1e takes one picture per question.")
        return (pictures[0].convert("RGB") if pictures else None), [_PLACEHOLDER.sub("", context)]


def model_manifest() -> Any:
    """Tell lmms-eval's registry of this model (its entry-point group ``lmms_eval.models``)."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest(model_id="self1e", simple_class_path=f"{__name__}.{Self1ELmms.__name__}")


def _number(batch_size: int | str | None) -> int:
    if batch_size is None or str(batch_size).startswith("auto"):
        return BATCH
    if not str(batch_size).isdecimal() or int(batch_size) < 1:
        raise SettingError(f"batch_size={batch_size!r} must be a whole number of at least 1, or auto.")
    return int(batch_size)


def _device(device: str | None) -> str:
    """lmms-eval passes None for "you choose", and ``cuda`` also where there is none."""
    return "auto" if device in (None, "") else str(device)


def _max_new_tokens(settings: Mapping[str, Any]) -> int:
    return int(settings.get("max_new_tokens") or _DEFAULT_TOKENS)


def _check_greedy(settings: Mapping[str, Any], where: str) -> None:
    temperature = settings.get("temperature")
    sampled = bool(settings.get("do_sample")) and (temperature is None or float(temperature) > 0)  # None means 1
    if sampled or int(settings.get("num_beams") or 1) > 1:
        asked = ", ".join(f"{name}={settings[name]}" for name in _NOT_GREEDY if name in settings)
        raise SettingError(f"{where}: {asked}; self1e answers greedily. Set do_sample=False and num_beams=1.")


def _cut(answer: str, until: str | Sequence[str] | None) -> str:
    """End an answer before the first stop word."""
    stops = [until] if isinstance(until, str) else list(until or [])
    ends = [answer.find(stop) for stop in stops if stop and stop in answer]
    return answer[: min(ends)].rstrip() if ends else answer
