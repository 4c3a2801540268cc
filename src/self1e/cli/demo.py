"""``self1e demo``: a drawn scene and a photograph, on any machine, offline; ``--web``: a page to try your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from self1e.cli.options import NANO_KNOWS, BaseOption, DeviceOption, ModelOption, load_quietly, say, summary

PHOTOGRAPH = Path(__file__).parent.parent / "assets" / "astronaut.jpg"
"""Eileen Collins, NASA, public domain."""
PHOTOGRAPH_QUERIES = ("the person", "the clothes")
# Of the test split, so not trained on; chosen because nano does well here. Averages: docs/results/nano.md.
_SCENE, _SIZE_WH = 219, (500, 500)
_TAGS = ("relation", "superlative")


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("self1e-demo"),
    model: ModelOption = "nano",
    device: DeviceOption = "auto",
    web: Annotated[bool, typer.Option("--web", help="Serve a web page instead (extra: demo); Ctrl-C ends it.")] = False,
    host: Annotated[
        str, typer.Option(help="With --web: 127.0.0.1 is this machine only; 0.0.0.0 is everybody, without password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="With --web; 0 takes any that is free.", min=0, max=65535)] = 7860,
    base: BaseOption = None,
) -> None:
    """Segment a drawn scene and a photograph, and say where the pictures are.

    With --web: a page for pictures of your own, with masks, class maps, chat and a look inside the model.
    """
    if web:
        _serve(model, device, host, port, base)
        return
    from self1e.data.scenes import Scenes
    from self1e.evaluation.metrics import intersection_union, iou
    from self1e.inference.export import write_outputs

    segmenter = load_quietly(model, device, "auto", base)
    sample = Scenes("test", size_wh=_SIZE_WH)[_SCENE]
    targets = [target for target in sample.targets if target.tag in _TAGS]
    drawn = segmenter.segment(sample.image, [target.text for target in targets], kind=[t.kind for t in targets])
    typer.echo("A drawn scene:")
    for k, target in enumerate(targets):
        typer.echo(
            f"  {_told(drawn, k)}, IoU with the truth {iou(*intersection_union(drawn.mask(k), target.mask)):.2f}"
        )
    files = write_outputs(drawn, out, "scene", ["overlay"])
    if PHOTOGRAPH.is_file():
        photograph = segmenter.segment(PHOTOGRAPH, PHOTOGRAPH_QUERIES, kind="phrase")
        typer.echo("A photograph (Eileen Collins, NASA):")
        for k in range(len(photograph)):
            typer.echo(f"  {_told(photograph, k)}")
        files += write_outputs(photograph, out, "astronaut", ["overlay"])
    else:
        say(f"self1e: the photograph is missing from this installation ({PHOTOGRAPH})")
    typer.echo("Look at " + " and ".join(str(file) for file in files))
    if segmenter.name == "nano":
        say(NANO_KNOWS)
    if not PHOTOGRAPH.is_file():
        raise typer.Exit(1)


def _told(result: Any, k: int) -> str:
    width, height = result.size_wh
    return summary(result.queries[k], int(result.areas[k]), width * height, float(result.scores[k]))


def _serve(name: str, device: str, host: str, port: int, base: Path | None) -> None:
    from self1e.web.page import check_gradio, serve

    check_gradio()  # before the model is loaded, which may take minutes
    loaded = load_quietly(name, device, "auto", base)
    if host not in ("127.0.0.1", "localhost", "::1"):
        say(f"self1e: --host {host}: every machine that reaches this one can use the page; there is no password")
    serve(loaded, host=host, port=port, started=lambda address: typer.echo(f"{address}  (Ctrl-C ends it)"))
