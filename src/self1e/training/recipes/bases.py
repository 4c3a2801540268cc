"""The base models of the paper: what a recipe has to know of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Base:
    """A published InternVL."""

    name: str
    """As the paper writes it."""
    hub: str
    """Its repository on the hub."""
    language: Literal["qwen2", "qwen3", "internlm2"]
    large: bool = False
    """7B and more in the language model: the paper's 8B settings."""

    @property
    def slug(self) -> str:
        """How recipes spell it: ``internvl2.5-2b``."""
        return self.name.lower()


def _family(version: str, language: Literal["qwen2", "qwen3", "internlm2"], *sizes: str) -> tuple[Base, ...]:
    # Repositories of 2.5 and 3.5 are spelt InternVL2_5 and InternVL3_5.
    hub = f"OpenGVLab/InternVL{version.replace('.', '_')}"
    return tuple(
        Base(name=f"InternVL{version}-{size}", hub=f"{hub}-{size}", language=language, large=size == "8B")
        for size in sizes
    )


BASES: tuple[Base, ...] = (
    *_family("2", "internlm2", "2B", "8B"),
    *_family("2.5", "internlm2", "2B", "8B"),
    *_family("3", "qwen2", "1B", "2B", "8B"),
    *_family("3.5", "qwen3", "2B", "8B"),
)
"""Every base that has recipes."""


def find_base(name: str) -> Base:
    """Find a base by the paper's name for it."""
    return next(base for base in BASES if base.name == name)
