"""``self1e calibrate``: fit the least score of a mask on a validation split, and keep it with the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from self1e.cli.options import DeviceOption, DtypeOption, ModelOption, load_quietly, say
from self1e.errors import SettingError


def calibrate(
    benchmark: Annotated[str, typer.Option(help="A validation split with absent things: grefcoco/val, scenes/val ...")],
    model: ModelOption = "nano",
    data: Annotated[list[Path] | None, typer.Option(help="As for eval.")] = None,
    t_acc: Annotated[float, typer.Option(help="Share of what is there that must be kept.")] = 0.95,
    out: Annotated[Path, typer.Option(help="Rows; run it again to go on where it stopped.")] = Path("calibration"),
    limit: Annotated[int | None, typer.Option(help="Pictures.")] = None,
    save: Annotated[
        Path | None, typer.Option(help="New folder for the model with its threshold [default: the model's own].")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Teach a model to say "not there": masks that score less than the fitted threshold become empty."""
    from self1e.evaluation import runner
    from self1e.evaluation.benchmarks import find_benchmark
    from self1e.evaluation.calibration import check_share, check_split, fit_threshold, save_threshold
    from self1e.files import check_is_new

    check_split(benchmark)
    check_share(t_acc)
    find_benchmark(benchmark)
    if save is not None:
        check_is_new(save)
    elif not (Path(model) / "config.json").is_file():
        raise SettingError(f"{model} is not a folder of yours: say with --save FOLDER where the model goes.")
    loaded = load_quietly(model, device, dtype)
    # Scores do not depend on a threshold that was fitted before, so rows of before serve another share.
    loaded.model.config.no_target_threshold = None
    [job] = runner.plan(loaded, [benchmark], data or [], out, limit=limit)
    if job.options.answer != "teacher-forced" or not job.benchmark.explicit_protocols:
        raise SettingError(f"{benchmark} does not ask about absent things; take grefcoco/val, scenes/val or own data.")
    runner.evaluate(job, loaded)
    found = fit_threshold(runner.all_rows(job), t_acc=t_acc)
    if save is not None:
        loaded.model.save_pretrained(save)
        loaded.processor.save_pretrained(save)
    path = save_threshold(save or Path(model), found.threshold)
    for name, value in found.curve.items():
        typer.echo(f"{name} {'-' if value is None else format(100 * value, '.2f')}")
    typer.echo(
        f"threshold {found.threshold:.4f}: keeps {100 * found.t_acc:.2f} % of {found.there} things that are there, "
        f"rejects {100 * found.n_acc:.2f} % of {found.absent} that are not -> {path}"
    )
    if not found.threshold:
        say(
            f"The model finds nothing for more than {100 * (1 - t_acc):.0f} % of what is there, so no threshold can "
            "keep that many: lower --t-acc."
        )
