"""``self1e serve``: the HTTP service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from self1e.cli.options import NANO_KNOWS, BaseOption, DeviceOption, DtypeOption, ModelOption, load_quietly, say
from self1e.errors import MissingDependencyError, SettingError


def serve(
    model: ModelOption = "nano",
    host: Annotated[
        str, typer.Option(help="Address to listen at; anything but this machine's own needs API keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    keys_file: Annotated[
        Path | None,
        typer.Option(help="File with API keys, one a line; or put them into SELF1E_API_KEYS, between commas."),
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="Web page that may ask from a browser, as https://example.org. Repeat it.")
    ] = None,
    web: Annotated[bool, typer.Option("--web", help="Show the web page at / as well.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting, as max_body_bytes=5000000. Repeat it; see docs/service.md."),
    ] = None,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Serve masks over HTTP.

    Only this machine reaches it unless --host says otherwise. It logs to stderr, as JSON, and on SIGTERM or Ctrl-C
    finishes what it has accepted.
    """
    try:
        from self1e.serving.app import create_app
        from self1e.serving.server import read_keys
        from self1e.serving.server import serve as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "self1e":
            raise
        raise MissingDependencyError(
            f"self1e serve needs the package {error.name}: pip install 'self1e[serve]'."
        ) from error
    if any(setting.strip().startswith("api_keys") for setting in settings or ()):
        raise SettingError("--set api_keys: every user of this machine can read arguments; use --keys-file.")
    from self1e.serving.settings import ServiceSettings
    from self1e.training.recipes.overriding import change

    # Checked together, and before seconds go into loading a model.
    unchecked = ServiceSettings(port=port, origins=tuple(origin or ()), api_keys=read_keys(keys_file))
    chosen = change(unchecked, [f"host={host}", *(settings or ())])
    loaded = load_quietly(model, device, dtype, base)
    if loaded.name == "nano":
        say(NANO_KNOWS)
    run(create_app(loaded, chosen, web=web), chosen)
