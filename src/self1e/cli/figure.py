"""``self1e figure``: the paper's figures, from any model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from self1e.cli.options import DeviceOption, DtypeOption, ModelOption, load_quietly, say
from self1e.errors import SettingError

figure = typer.Typer(help="Draw the paper's figures from any model.", no_args_is_help=True)

PictureArgument = Annotated[Path, typer.Argument(help="Picture file.")]
QueryOption = Annotated[list[str], typer.Option("--query", "-q", help="What to find; may be given several times.")]
TilesOption = Annotated[int | None, typer.Option("--max-tiles", help="Most tiles; left out, what the model says.")]


@figure.command()
def stages(
    picture: PictureArgument,
    query: QueryOption,
    model: ModelOption = "nano",
    out: Annotated[Path | None, typer.Option(help="PNG file [default: NAME.stages.png, here].")] = None,
    max_tiles: TilesOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Fig. 4: the mask after low resolution, + fine features, + RFR, + RFA."""
    from self1e.figures.stages import draw_stages

    place = _place(out, picture, "stages")
    image = _open(picture)
    sheet = draw_stages(load_quietly(model, device, dtype), image, _queries(query), max_tiles=max_tiles)
    _save(sheet, place)


@figure.command()
def attention(
    picture: PictureArgument,
    query: QueryOption,
    model: ModelOption = "nano",
    out: Annotated[Path | None, typer.Option(help="PNG file [default: NAME.attention.png, here].")] = None,
    layer: Annotated[str, typer.Option(help="1, 2, ... -1 is the last; or 'mean' of all. Heads are averaged.")] = "-1",
    max_tiles: TilesOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Fig. 8: what [SEG] looks at in the picture, under each attention rule of Table 7."""
    from self1e.figures.attention import draw_attention

    place = _place(out, picture, "attention")
    image = _open(picture)
    chosen = _layer(layer)
    loaded = load_quietly(model, device, dtype)
    _save(draw_attention(loaded, image, _queries(query), layer=chosen, max_tiles=max_tiles), place)


@figure.command()
def gallery(
    source: Annotated[str, typer.Argument(help="CSV or JSON lines with picture and query; or a benchmark's name.")],
    model: ModelOption = "nano",
    out: Annotated[Path, typer.Option(help="PNG file.")] = Path("gallery.png"),
    data: Annotated[list[Path] | None, typer.Option(help="Folder of data, for a benchmark.")] = None,
    limit: Annotated[int, typer.Option(help="Most pictures.")] = 12,
    columns: Annotated[int, typer.Option(help="Cells in a row.")] = 4,
    max_tiles: TilesOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Fig. 6 and 7: many pictures and queries in a grid, with the truth of a benchmark beside."""
    from self1e.figures.gallery import benchmark_entries, draw_gallery, read_entries

    place = _place(out, out, "gallery")
    if limit < 1 or columns < 1:
        raise SettingError(f"--limit {limit} --columns {columns}: both must be at least 1.")
    is_list = Path(source).suffix.lower() in (".csv", ".jsonl") or Path(source).is_file()
    entries = read_entries(source)[:limit] if is_list else benchmark_entries(source, data or [], limit)
    loaded = load_quietly(model, device, dtype)
    title = Path(source).stem if is_list else source
    _save(draw_gallery(loaded, entries, columns=columns, max_tiles=max_tiles, title=f"{title}, {loaded.name}"), place)


@figure.command()
def vqa(
    source: Annotated[
        Path, typer.Argument(help="Picture; or CSV or JSON lines with picture, question and perhaps answer.")
    ],
    question: Annotated[
        list[str] | None, typer.Option("--question", "-q", help="About the picture; may be given several times.")
    ] = None,
    model: ModelOption = "nano",
    against: Annotated[str | None, typer.Option(help="The other model: a name or a folder.")] = None,
    base: Annotated[
        Path | None, typer.Option(help="Or the base of MODEL, whose adapters are then turned off for its answers.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="PNG file [default: NAME.vqa.png, here].")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 64,
    max_tiles: TilesOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Fig. 5: the answers of two models to the same questions, side by side."""
    from self1e.evaluation.vqa_adapter import load_for_eval
    from self1e.figures.vqa import Asked, answering, base_answering, draw_vqa, read_asked

    place = _place(out, source, "vqa")
    if (against is None) == (base is None):
        raise SettingError("Answers are compared with one other model: give --against MODEL or --base FOLDER.")
    is_list = source.suffix.lower() in (".csv", ".jsonl")
    if is_list == bool(question):
        raise SettingError(f"{source}: a list holds its questions; a picture needs them: -q 'What is on the table?'.")
    asked = read_asked(source) if is_list else [Asked(picture=_open(source), question=one) for one in question or ()]
    loaded = load_for_eval(model, base, device=device, dtype=dtype)
    models = [(loaded.name, answering(loaded, max_new_tokens=max_new_tokens, max_tiles=max_tiles))]
    if against is None:
        models.append((f"{base}, base", base_answering(loaded, max_new_tokens=max_new_tokens, max_tiles=max_tiles)))
    else:
        other = load_for_eval(against, None, device=device, dtype=dtype)
        models.append((other.name, answering(other, max_new_tokens=max_new_tokens, max_tiles=max_tiles)))
    _save(draw_vqa(models, asked), place)


def _open(picture: Path) -> Any:
    from self1e.processing.pictures import open_picture

    return open_picture(picture).image


def _queries(queries: list[str]) -> list[str]:
    if not queries or any(not query.strip() for query in queries):
        raise SettingError("A query is empty; write what to find: -q 'the red cup'.")
    return queries


def _layer(text: str) -> int | None:
    if text == "mean":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise SettingError(f"--layer {text!r} is neither a number nor 'mean'.") from error


def _place(out: Path | None, picture: Path, name: str) -> Path:
    place = out or Path(f"{picture.stem}.{name}.png")  # here, not beside the picture: that folder is not ours
    if place.suffix.lower() != ".png":
        raise SettingError(f"--out {place}: figures are PNG files; name it {place.with_suffix('.png')}.")
    return place


def _save(sheet: Any, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(place)
    say(f"Figure: {place}")
