"""Questions asked of the model as trained, or of its base: what segmentation did to its other abilities (Table 9).

    self1e eval --suite vqa --model CHECKPOINT --base BASE --vqa-adapter on  --out eval/on
    self1e eval --suite vqa --model CHECKPOINT --base BASE --vqa-adapter off --out eval/off

``off`` is the base, bit for bit (`self1e.inference.base_answers`), by the same prompts, pictures and code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from self1e.errors import SettingError
from self1e.evaluation.benchmarks.vqa import VQA_BENCHMARKS

ADAPTER = ("on", "off")


def check_adapter(adapter: str, names: Sequence[str]) -> None:
    """Refuse what cannot be asked, before a model is loaded.

    Args:
        adapter: ``"on"`` or ``"off"``.
        names: Of benchmarks.

    Raises:
        SettingError: There is no such way, or a benchmark of masks would be asked of the base.
    """
    if adapter not in ADAPTER:
        raise SettingError(f"--vqa-adapter {adapter!r} is unknown; choose on (as trained) or off (the base's answers).")
    masks = [name for name in names if name not in VQA_BENCHMARKS]
    if adapter == "off" and masks:
        raise SettingError(
            f"--vqa-adapter off asks the base, which makes no masks, but {', '.join(masks[:3])} need them; name "
            "benchmarks of questions only, or --suite vqa."
        )


def load_for_eval(name: str, base: Path | None, *, device: str, dtype: str) -> Any:
    """Load a model without progress bars; with a base, its adapters stay apart so that they can be turned off."""
    from transformers.utils import logging

    from self1e.inference.base_answers import load_with_base
    from self1e.inference.segmenter import load

    logging.disable_progress_bar()
    if base is None:
        return load(name, device=device, dtype=dtype)
    return load_with_base(name, base, device=device, dtype=dtype)


@contextmanager
def switched(model: Any, adapter: str) -> Iterator[None]:
    """Ask the model as trained (``"on"``) or its base (``"off"``) inside the block; rows of the two never mix.

    Raises:
        CheckpointError: The base's tensors are not at hand.
    """
    if adapter == "on":
        yield
        return
    from self1e.inference.base_answers import base_answers

    name = model.name
    with base_answers(model):
        model.name = f"{Path(name).name}, adapter off"
        try:
            yield
        finally:
            model.name = name
