"""``self1e semantic``: class names and pictures in, maps out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from self1e.cli.options import NANO_KNOWS, DeviceOption, DtypeOption, ModelOption, load_quietly, say
from self1e.errors import Self1EError, SettingError

_OUT = Path("self1e-output")
_SHOWN = 4


def semantic(
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE|FOLDER|GLOB", help="What to look at.")],
    classes: Annotated[
        str, typer.Option("--classes", "-c", help="Names with commas between them, or a text file with one per line.")
    ],
    background: Annotated[
        str, typer.Option(help="Pixels whose highest logit is not above it belong to no class; none: every pixel does.")
    ] = "0.0",
    model: ModelOption = "nano",
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = _OUT,
    max_tiles: Annotated[int | None, typer.Option(help="Most tiles per picture, 1 to 12.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do pictures again that are finished.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line per picture, and nothing else.")] = False,
) -> None:
    """Give every pixel the class that fits it best.

    Writes the map (PNG with palette), its legend, the picture with colours, and JSON with areas and scores. A picture
    that cannot be read is reported and does not stop the others; one that was finished with the same weights, classes
    and settings is skipped.
    """
    from self1e.inference.export import DRAWN
    from self1e.inference.folder import fingerprint
    from self1e.inference.semantic import check_classes
    from self1e.processing.pictures import list_pictures
    from self1e.settings import check_max_tiles

    names = check_classes(_names(classes))
    threshold = _threshold(background)
    if max_tiles is not None:
        check_max_tiles(max_tiles)
    found = [path for path in dict.fromkeys(list_pictures(pictures)) if not DRAWN.search(path.name)]
    stems = _stems(pictures, found)
    segmenter = load_quietly(model, device, dtype)
    if segmenter.name == "nano":
        say(NANO_KNOWS)
    settings = {"weights": fingerprint(segmenter), "max_tiles": max_tiles, "dtype": str(segmenter.dtype)[6:]}
    kept = failed = 0
    for path, stem in zip(found, stems, strict=True):
        target = out / stem
        try:
            made_from = settings | {"bytes": path.stat().st_size, "changed": path.stat().st_mtime_ns}
            if not overwrite and _is_done(target, made_from, names, threshold):
                kept += 1
                continue
            result = segmenter.semantic(path, names, background=threshold, max_tiles=max_tiles)
            files = result.save(target.parent, target.name, more={"made_from": made_from})
        # Also what a full disk or an exhausted device raises: the next picture may be smaller.
        except (Self1EError, OSError, MemoryError, RuntimeError) as error:
            failed += 1
            say(f"self1e: {path}: {' '.join(str(error).split()).removeprefix(f'{path}: ')}")
            if as_json:
                typer.echo(json.dumps({"picture": str(path), "error": str(error)}))
        except KeyboardInterrupt:
            say("self1e: stopped; the same command skips what is finished")
            raise typer.Exit(130) from None
        else:
            _show(path, result, [str(file) for file in files], as_json)
    if kept:
        say(f"self1e: {kept} of {len(found)} were finished before; --overwrite does them again")
    if failed:
        raise typer.Exit(1)


def _names(classes: str) -> list[str]:
    """Read the names: from a file if there is one of that name."""
    path = Path(classes)
    try:
        is_file = path.is_file()
    except OSError:  # a list longer than names of files can be
        is_file = False
    if not is_file:
        if path.suffix in (".txt", ".csv") and "," not in classes:
            raise SettingError(f"--classes {classes}: no such file; expected names with commas, or a text file.")
        return [name.strip() for name in classes.split(",") if name.strip()]
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"--classes {path}: cannot be read as UTF-8 text: {error}.") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _threshold(text: str) -> float | None:
    if text.strip().lower() == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value or value in (float("inf"), -float("inf")):
        raise SettingError(f"--background {text}: expected a logit, e.g. 0.0 (published for masks), or none.")
    return value


def _stems(arguments: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Name the files of one picture by its stem, those of many by their whole path below what they have in common."""
    from self1e.inference.folder import name_pictures

    if len(arguments) == 1 and Path(arguments[0]).is_file():
        return [path.stem for path in paths]
    return name_pictures(arguments, paths)


def _is_done(target: Path, made_from: dict[str, Any], names: Sequence[str], threshold: float | None) -> bool:
    """Say whether the map is there, made of the same picture in the same way; its JSON file was written last."""
    try:
        content = json.loads(target.with_name(f"{target.name}.semantic.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(content, dict) or not target.with_name(f"{target.name}.semantic.png").is_file():
        return False
    classes = [entry.get("name") for entry in content.get("classes", [])]
    return (content.get("made_from"), content.get("background"), classes) == (made_from, threshold, list(names))


def _show(path: Path, result: Any, files: Sequence[str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"picture": str(path), **result.to_json(), "files": list(files)}))
        return
    areas, pixels = result.areas, result.labels.size
    order = [k for k in sorted(range(len(areas)), key=lambda k: -areas[k]) if areas[k]]
    told = [f"{result.classes[k]} {100 * areas[k] / pixels:.1f}%" for k in order[:_SHOWN]]
    told += [f"{len(order) - _SHOWN} more"] if len(order) > _SHOWN else []
    told += [f"background {100 * (1 - areas.sum() / pixels):.1f}%"] if areas.sum() < pixels else []
    typer.echo(f"{path}: {', '.join(told)} -> {files[0]} and {len(files) - 1} more")
