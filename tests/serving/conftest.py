"""The service in this process, over nano; and a nano that waits until a test lets it go on."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from PIL import Image

import self1e
from self1e.data.scenes import Scenes
from self1e.serving.app import create_app
from self1e.serving.settings import ServiceSettings

ADDRESS = "http://127.0.0.1"


@pytest.fixture(scope="session")
def nano() -> Any:
    """The model that is inside the package."""
    return self1e.load("nano", device="cpu")


@pytest.fixture(scope="session")
def scene() -> Image.Image:
    """A drawn scene."""
    return Scenes("test", length=4)[3].image


@pytest.fixture(scope="session")
def picture(scene) -> bytes:
    """The same as a PNG file."""
    file = io.BytesIO()
    scene.save(file, format="PNG")
    return file.getvalue()


@pytest.fixture
def start(nano) -> Iterator[Callable[..., Any]]:
    """Start a service with some settings: ``start(max_queries=2)`` gives a client, ``client.service`` what runs."""
    from starlette.testclient import TestClient

    with ExitStack() as stack:

        def start(model: Any = nano, **settings: Any) -> Any:
            app = create_app(model, ServiceSettings(**settings))
            client: Any = stack.enter_context(
                TestClient(app, base_url=ADDRESS, raise_server_exceptions=False, headers={"X-Request-ID": "test"})
            )
            client.service = app.state.service
            return client

        yield start


@pytest.fixture(scope="module")
def client(nano) -> Iterator[Any]:
    """A service with the usual settings."""
    from starlette.testclient import TestClient

    app = create_app(nano)
    with TestClient(app, base_url=ADDRESS, raise_server_exceptions=False) as client:
        yield client


class Held:
    """A model that stops before each pass until it is let go on."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.go, self.is_in = threading.Event(), threading.Event()
        self.go.set()
        self.passes: list[list[tuple[str, ...]]] = []

    def segment_batch(self, requests: Any, **options: Any) -> Any:
        self.is_in.set()
        assert self.go.wait(250)
        self.passes.append([tuple(queries) for _, queries in requests])
        return self._model.segment_batch(requests, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.fixture
def held(nano) -> Iterator[Held]:
    """It is let go on at the end of the test whatever happens."""
    held = Held(nano)
    yield held
    held.go.set()
