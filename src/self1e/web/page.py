"""The web page's door: build it, mount it in a FastAPI application, or serve it alone.

    from self1e.web.page import mount
    mount(app, model, path="/web")          # app is a FastAPI application

Nothing leaves the machine: no analytics, no fonts or scripts of other hosts, no version check. Pictures and files are
kept for an hour at most.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from self1e.errors import MissingDependencyError, SettingError

DEFAULT_PORT = 7860
MAX_UPLOAD = "64mb"
"""Largest file that is taken."""


def build(model: Any, *, max_waiting: int = 32, max_sessions: int = 64, max_bytes: int = 2**30) -> Any:
    """Build the page.

    Args:
        model: From ``self1e.load``. One request at a time is computed; others wait.
        max_waiting: Most requests that wait; further ones are turned away with a message.
        max_sessions: Most browser sessions whose picture and results are kept.
        max_bytes: Memory that all of them may take together.

    Returns:
        ``gradio.Blocks``.

    Raises:
        MissingDependencyError: gradio is not installed.
        SettingError: A bound is less than 1.
    """
    for name, value in (("max_waiting", max_waiting), ("max_sessions", max_sessions), ("max_bytes", max_bytes)):
        if value < 1:
            raise SettingError(f"{name}={value} must be at least 1.")
    check_gradio()
    from self1e.web.layout import lay_out
    from self1e.web.workspace import Workspaces

    blocks = lay_out(model, Workspaces(max_count=max_sessions, max_bytes=max_bytes))
    blocks.has_launched = True  # also where it is mounted: only then gradio checks whose files are handed around
    blocks.state_session_capacity = 4 * max_sessions  # gradio's own bookkeeping, about 100 KB each
    return blocks.queue(max_size=max_waiting, default_concurrency_limit=1)


def mount(app: Any, model: Any, *, path: str = "/web", **bounds: Any) -> Any:
    """Put the page under a path of a FastAPI application.

    Args:
        app: The application; it is changed.
        model: See ``build``.
        path: Where; ``"/"`` takes everything that the application does not answer itself.
        bounds: See ``build``.

    Returns:
        The application.
    """
    blocks = build(model, **bounds)
    import gradio  # pyright: ignore[reportMissingImports]
    from gradio.themes import Default  # pyright: ignore[reportMissingImports]

    from self1e.web.words import style

    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # none is loaded from anywhere
    theme = Default(primary_hue="blue", neutral_hue="slate", font=fonts[0], font_mono=fonts[1])
    return gradio.mount_gradio_app(
        app,
        blocks,
        path=path,
        server_name="127.0.0.1",
        footer_links=["settings"],
        run_history=False,
        show_error=True,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css=style(),
    )


def application(model: Any, **bounds: Any) -> Any:
    """Return a FastAPI application that is the page and nothing else."""
    check_gradio()
    from fastapi import FastAPI

    return mount(FastAPI(openapi_url=None), model, path="/", **bounds)


def serve(
    model: Any,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    started: Callable[[str], None] | None = None,
    **bounds: Any,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        model: See ``build``.
        host: Who can reach it: ``127.0.0.1`` this machine only, ``0.0.0.0`` every machine of the network; there is no
            password.
        port: 0 takes any that is free.
        started: Called with the page's address when it can be reached.
        bounds: See ``build``.

    Raises:
        SettingError: The address cannot be had.
    """
    app = application(model, **bounds)
    import uvicorn

    with _listening(host, port) as listener:
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        address = f"http://{f'[{shown}]' if ':' in shown else shown}:{listener.getsockname()[1]}/"
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
        if started is not None:
            started(address)  # the socket listens already: who comes early waits
        server.run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise SettingError(
            f"--host {host} --port {port}: cannot listen there: {error}. Another program may have the port: try "
            "--port 0 for any that is free."
        ) from error


def check_gradio() -> None:
    """Say what to install; and keep gradio from telling anybody that it runs."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError("The web page needs gradio: pip install 'self1e[demo]'.") from error
