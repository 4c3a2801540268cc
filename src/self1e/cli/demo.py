"""``self1e demo``: a drawn scene and a photograph, on any machine, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from self1e.cli.options import NANO_KNOWS, DeviceOption, ModelOption, load_quietly, say, summary

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
) -> None:
    """Segment a drawn scene and a photograph, and say where the pictures are."""
    from self1e.data.scenes import Scenes
    from self1e.evaluation.metrics import intersection_union, iou
    from self1e.inference.export import write_outputs

    segmenter = load_quietly(model, device, "auto")
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
