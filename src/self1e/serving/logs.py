"""Logs as lines of JSON. They say who asked what kind of thing and how long it took; no picture, no query, no key."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Any

LOGGER = "self1e.serving"


class JsonFormatter(logging.Formatter):
    """One object per line; of an exception its type and where it happened, since its message may hold a query."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        content: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        content |= getattr(record, "fields", {})
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            content["error"] = type(error).__name__
            content["where"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
            ]
        return json.dumps(content)


def log_config() -> dict[str, Any]:
    """Return what uvicorn and ``logging.config.dictConfig`` take: everything to stderr, as JSON."""
    logger = {"handlers": ["stderr"], "level": "INFO", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonFormatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}},
        "loggers": {
            LOGGER: logger,
            "uvicorn": logger,
            # Of its own access log, paths would be known ids; ours has the route.
            "uvicorn.access": {"handlers": [], "level": "CRITICAL", "propagate": False},
        },
    }
