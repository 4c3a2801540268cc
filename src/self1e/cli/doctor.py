"""``self1e doctor``: what works on this machine, and what to install."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, NamedTuple

import typer

State = Literal["ok", "note", "broken"]


class Finding(NamedTuple):
    """One line of the report."""

    state: State
    """``broken`` means that self1e cannot work."""
    what: str
    told: str
    advice: str = ""


_OPTIONAL = {
    "pillow_heif": ("pillow-heif", "HEIC pictures of phones"),
}


def doctor() -> None:
    """Show what works on this machine and what to install; exit status 1 if self1e cannot work."""
    findings: list[Finding] = []
    for check in (_python, _torch, _devices, _torchvision, _transformers, _packages, _optional, _nano):
        for finding in _guarded(check):
            mark = {"ok": "ok    ", "note": "note  ", "broken": "BROKEN"}[finding.state]
            typer.echo(
                f"{mark}  {finding.what}: {finding.told}" + (f"\n        {finding.advice}" * bool(finding.advice))
            )
            findings.append(finding)
    broken = [finding.what for finding in findings if finding.state == "broken"]
    if broken:
        typer.echo(f"\nself1e cannot work: {', '.join(broken)}.")
        raise typer.Exit(1)
    typer.echo("\nself1e works on this machine.")


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Run a check; one that fails is itself a finding, and the others still run."""
    try:
        yield from check()
    except Exception as error:  # broken installations fail in every way
        yield Finding("broken", check.__name__.strip("_"), _told(error))


def _python() -> Iterator[Finding]:
    told = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < (3, 11):  # noqa: UP036 (pip checks this; a copied folder does not)
        yield Finding("broken", "Python", told, "self1e needs 3.11 or newer.")
    else:
        yield Finding("ok", "Python", told)


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:
        yield Finding("broken", "torch", _told(error), "pip install torch")
        return
    yield Finding("ok", "torch", f"{torch.__version__}, {torch.get_num_threads()} threads on {os.cpu_count()} cores")


def _devices() -> Iterator[Finding]:
    import torch

    from self1e.inference.loading import choose_device, choose_dtype

    chosen = choose_device()
    dtype = str(choose_dtype("auto", chosen)).removeprefix("torch.")
    yield Finding("ok", "device", f"{chosen} in {dtype} is what auto takes here")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        yield Finding("ok", f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    if chosen.type == "cpu" and torch.version.cuda is None and platform.system() != "Darwin":
        yield Finding(
            "note", "GPU", "this torch is built for the CPU", "With an NVIDIA GPU, install torch from pytorch.org."
        )


def _torchvision() -> Iterator[Finding]:
    """Look for the one package that breaks all models of transformers when it does not match torch."""
    if importlib.util.find_spec("torchvision") is None:
        yield Finding("ok", "torchvision", "not installed, and not needed")
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        yield Finding(
            "broken",
            "torchvision",
            f"installed but broken, and transformers then cannot import any model ({_told(error)})",
            "pip uninstall torchvision (self1e does not need it), or install the build that matches torch.",
        )
        return
    yield Finding("ok", "torchvision", f"{_version('torchvision')}, not used by self1e")


def _transformers() -> Iterator[Finding]:
    found = _version("transformers")
    numbers = tuple(int(part) for part in (found or "0.0").split(".")[:2] if part.isdigit())
    if found is None or not (5, 17) <= numbers < (6,):
        yield Finding("broken", "transformers", found or "not installed", "pip install 'transformers>=5.17,<6'")
        return
    started = time.perf_counter()
    importlib.import_module("self1e.model")
    yield Finding("ok", "transformers", f"{found}, models import in {time.perf_counter() - started:.1f} s")


def _packages() -> Iterator[Finding]:
    missing = []
    names = ("numpy", "pillow", "pycocotools", "safetensors", "tokenizers", "sentencepiece", "accelerate", "peft")
    for name in names:
        if _version(name) is None:
            missing.append(name)
    if missing:
        yield Finding("broken", "packages", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    else:
        yield Finding("ok", "packages", ", ".join(f"{name} {_version(name)}" for name in names))


def _optional() -> Iterator[Finding]:
    for module, (package, use) in _OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            yield Finding("note", package, f"not installed; for {use}", f"pip install {package}")
        else:
            yield Finding("ok", package, f"{_version(package)}, for {use}")


def _nano() -> Iterator[Finding]:
    from self1e.cli.options import load_quietly
    from self1e.inference.loading import NANO

    if not (NANO / "config.json").is_file():
        yield Finding("broken", "nano", f"not in this installation ({NANO})", "Install self1e again.")
        return
    from self1e.data.scenes import Scenes

    sample = Scenes("test", size_wh=(256, 192))[0]
    segmenter = load_quietly("nano", "auto", "auto")
    segmenter.segment(sample.image, "warm up")
    started = time.perf_counter()
    segmenter.segment(sample.image, sample.targets[0].text)
    yield Finding("ok", "nano", f"one query on one picture in {time.perf_counter() - started:.2f} s")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
