"""Run the service under uvicorn until it is told to stop."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from self1e.errors import SettingError
from self1e.serving.logs import log_config
from self1e.serving.settings import ServiceSettings

KEYS = "SELF1E_API_KEYS"
"""Environment variable with API keys, between commas. Never an argument: those every user of the machine can read."""


def read_keys(path: Path | None, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Read API keys from a file, one a line with ``#`` for comments, and from the environment.

    Raises:
        SettingError: The file cannot be read, or is there and holds none.
    """
    keys = [key.strip() for key in environment.get(KEYS, "").split(",")]
    if path is not None:
        try:
            lines = [line.partition("#")[0].strip() for line in path.read_text("utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"--keys-file {path}: cannot be read: {error}.") from error
        if not any(lines):
            raise SettingError(f"--keys-file {path}: holds no key; write one a line.")
        keys += lines
    return tuple(dict.fromkeys(key for key in keys if key))


class Server(uvicorn.Server):
    """uvicorn, which refuses new requests from the moment it is told to stop, and finishes the others."""

    def __init__(self, app: FastAPI, settings: ServiceSettings) -> None:
        self._service = app.state.service
        config = uvicorn.Config(
            app,
            host=settings.host.strip("[]"),
            port=settings.port,
            log_config=log_config(),
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="on",
            timeout_keep_alive=5,
            timeout_graceful_shutdown=max(round(settings.drain_seconds), 1),
            h11_max_incomplete_event_size=2**16,
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        self._service.is_draining = True
        super().handle_exit(sig, frame)


def serve(app: Any, settings: ServiceSettings) -> None:
    """Serve until a signal comes; afterwards all accepted requests are answered."""
    Server(app, settings).run()
