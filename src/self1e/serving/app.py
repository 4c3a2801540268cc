"""The application: routes, and what OpenAPI says of them.

app = create_app(self1e.load("nano"))             # any ASGI server runs it
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response

from self1e import __version__
from self1e.serving import answers, bodies, schemas
from self1e.serving.gate import Gate
from self1e.serving.problems import Refusal, problem_response
from self1e.serving.service import Service
from self1e.serving.settings import ServiceSettings
from self1e.serving.store import KeptImage, KeptSession
from self1e.serving.turns import EventStream, Turn

Deadline = Annotated[
    float | None,
    Header(alias=schemas.DEADLINE, gt=0, le=86400, description="Seconds after which an answer is of no use."),
]


class _Events(Response):
    """What OpenAPI calls the answer of a turn."""

    media_type = "text/event-stream"


def create_app(model: Any, settings: ServiceSettings | None = None, *, web: bool = False) -> FastAPI:
    """Build the service.

    Args:
        model: A ``Self1E``.
        settings: Limits and doors; left out, the safe ones.
        web: Show the web page at ``/`` as well; needs the extra ``demo``.

    Returns:
        The application; ``app.state.service`` is what it runs on. It is started and stopped by its lifespan, once.
    """
    settings = settings or ServiceSettings()
    service = Service(model, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="self1e",
        summary="Ask a vision-language model for a thing, get its mask.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        responses={status: {"model": schemas.Problem} for status in _PROBLEMS},
    )
    app.state.service = service
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer_with_problem)
    app.add_middleware(Gate, settings=settings, metrics=service.metrics)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", schemas.REQUEST_ID, schemas.DEADLINE],
            expose_headers=[schemas.REQUEST_ID, "Retry-After", "Location"],
        )
    _add_images(app, service)
    _add_masks(app, service)
    _add_sessions(app, service)
    _add_facts(app, service)
    _say_problems(app)
    if web:
        from self1e.web.page import mount

        mount(app, model, path="/")
    return app


_PROBLEMS = (400, 401, 403, 404, 405, 408, 409, 410, 413, 415, 421, 422, 429, 500, 503, 504)


async def _answer_with_problem(request: Request, error: Exception) -> Response:
    return problem_response(error, request.state.request_id)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(content.model_dump_json(), status, headers, "application/json")


# ---------------------------------------------------------------------- pictures


def _add_images(app: FastAPI, service: Service) -> None:
    store = service.store

    def info(image: KeptImage) -> schemas.ImageInfo:
        encoded = image.encoded
        return schemas.ImageInfo(
            id=image.id,
            width=encoded.size_wh[0],
            height=encoded.size_wh[1],
            tiles=list(encoded.grid.shape_hw),
            notes=list(encoded.notes),
            bytes=image.bytes,
            expires_in=store.expires_in(image),
        )

    @app.post(
        schemas.IMAGES,
        status_code=201,
        response_model=schemas.ImageInfo,
        tags=["images"],
        openapi_extra=bodies.described(schemas.PictureRequest),
    )
    async def upload_image(request: Request, deadline: Deadline = None) -> Response:
        """Encode a picture once and keep it for a while, for many questions."""
        asked, content = await bodies.read(request, schemas.PictureRequest)
        async with service.accept(request, deadline) as flight:
            image = store.add(await flight.encode(asked, content))
        return _json(info(image), 201, {"Location": f"{schemas.IMAGES}/{image.id}"})

    @app.get(schemas.IMAGE, response_model=schemas.ImageInfo, tags=["images"])
    async def describe_image(image_id: str) -> Response:
        """Say what is kept of a picture."""
        return _json(info(store.get(image_id)))

    @app.delete(schemas.IMAGE, status_code=204, response_class=Response, tags=["images"])
    async def forget_image(image_id: str) -> None:
        """Forget a picture, and the conversations about it; their turns end before the next word."""
        store.remove(image_id)


# ---------------------------------------------------------------------- masks


def _add_masks(app: FastAPI, service: Service) -> None:
    store = service.store

    @app.post(schemas.IMAGE_SEGMENT, response_model=schemas.SegmentResponse, tags=["masks"])
    async def segment_image(
        image_id: str, asked: schemas.SegmentRequest, request: Request, deadline: Deadline = None
    ) -> Response:
        """Find what the words mean in a picture that was uploaded."""
        encoded = store.get(image_id).encoded
        async with service.accept(request, deadline) as flight:
            result = await flight.segment(encoded, asked)
            return await flight.write(lambda: _json(answers.segmented(service.name, result, asked.formats)))

    @app.post(
        schemas.SEGMENT,
        response_model=schemas.SegmentResponse,
        tags=["masks"],
        openapi_extra=bodies.described(schemas.OneShotSegmentRequest),
    )
    async def segment(request: Request, deadline: Deadline = None) -> Response:
        """Find what the words mean in a picture that comes along, and keep nothing."""
        asked, content = await bodies.read(request, schemas.OneShotSegmentRequest)
        async with service.accept(request, deadline) as flight:
            flight.check_queries(asked)
            result = await flight.segment(await flight.encode(asked, content), asked)
            return await flight.write(lambda: _json(answers.segmented(service.name, result, asked.formats)))

    @app.post(schemas.IMAGE_SEMANTIC, response_model=schemas.SemanticResponse, tags=["masks"])
    async def map_image(
        image_id: str, asked: schemas.SemanticRequest, request: Request, deadline: Deadline = None
    ) -> Response:
        """Give every pixel of an uploaded picture a class."""
        encoded = store.get(image_id).encoded
        async with service.accept(request, deadline) as flight:
            result = await flight.semantic(encoded, asked)
            return await flight.write(lambda: _json(answers.mapped(service.name, result)))

    @app.post(
        schemas.SEMANTIC,
        response_model=schemas.SemanticResponse,
        tags=["masks"],
        openapi_extra=bodies.described(schemas.OneShotSemanticRequest),
    )
    async def semantic(request: Request, deadline: Deadline = None) -> Response:
        """Give every pixel of a picture that comes along a class, and keep nothing."""
        asked, content = await bodies.read(request, schemas.OneShotSemanticRequest)
        async with service.accept(request, deadline) as flight:
            flight.check_classes(asked)
            result = await flight.semantic(await flight.encode(asked, content), asked)
            return await flight.write(lambda: _json(answers.mapped(service.name, result)))


# ---------------------------------------------------------------------- conversations


def _add_sessions(app: FastAPI, service: Service) -> None:
    store = service.store

    def info(image: KeptImage, kept: KeptSession) -> schemas.SessionInfo:
        session = kept.session
        return schemas.SessionInfo(
            id=kept.id,
            image_id=image.id,
            mode=session.mode,
            turns=len(session.turns),
            tokens=session.num_tokens,
            max_tokens=session.max_tokens,
            expires_in=store.expires_in(image),
        )

    @app.post(schemas.IMAGE_SESSIONS, status_code=201, response_model=schemas.SessionInfo, tags=["chat"])
    async def begin_session(
        image_id: str, asked: schemas.SessionRequest, request: Request, deadline: Deadline = None
    ) -> Response:
        """Begin a conversation about a picture that was uploaded."""
        image = store.get(image_id)
        async with service.accept(request, deadline) as flight:
            kept = store.add_session(image, await flight.begin(image.encoded, asked))
        return _json(info(image, kept), 201, {"Location": schemas.SESSION.format(session_id=kept.id)})

    @app.get(schemas.SESSION, response_model=schemas.SessionInfo, tags=["chat"])
    async def describe_session(session_id: str) -> Response:
        """Say how far a conversation is."""
        return _json(info(*store.get_session(session_id)))

    @app.delete(schemas.SESSION, status_code=204, response_class=Response, tags=["chat"])
    async def forget_session(session_id: str) -> None:
        """End a conversation; a turn that waits or is being written ends before its next word, with a problem."""
        store.remove_session(session_id)

    @app.post(
        schemas.SESSION_TURNS,
        response_class=_Events,
        responses={200: {"content": {"text/event-stream": {"schema": schemas.EVENT_SCHEMA}}}},
        tags=["chat"],
    )
    async def ask(session_id: str, asked: schemas.TurnRequest, request: Request, deadline: Deadline = None) -> Response:
        """Take a turn; the answer comes as server-sent events: text, mask, not_there, done, problem."""
        _, kept = store.get_session(session_id)
        if len(kept.session.turns) >= service.settings.max_turns:
            raise Refusal(409, "session-long", f"A conversation has {service.settings.max_turns} turns at most.")
        async with AsyncExitStack() as place:
            flight = await place.enter_async_context(service.accept(request, deadline))
            flight.check_turn(asked)
            turn = Turn(flight, kept, asked)
            await turn.begin()
            return EventStream(turn, request, place.pop_all())


# ---------------------------------------------------------------------- facts


def _add_facts(app: FastAPI, service: Service) -> None:
    @app.get(schemas.MODELS, response_model=schemas.ModelList, tags=["facts"])
    async def list_models() -> schemas.ModelList:
        """Say which model answers, and what a request may hold."""
        model = service.model
        one = schemas.ModelInfo(
            id=service.name,
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            no_target_threshold=model.no_target_threshold,
            knows=_NANO_KNOWS if service.name == "nano" else None,
            adapters=service.adapters,
        )
        return schemas.ModelList(models=[one], limits=service.settings.limits())

    @app.get(schemas.HEALTH, response_model=schemas.Status, tags=["facts"])
    async def health() -> schemas.Status:
        """Say that the process lives."""
        return schemas.Status(status="ok", version=__version__)

    @app.get(schemas.READY, response_model=schemas.Status, tags=["facts"])
    async def ready() -> schemas.Status:
        """Say whether requests are taken; 503 if not."""
        if not service.is_ready:
            raise Refusal(503, "not-ready", "No requests are taken now.", headers={"Retry-After": "5"})
        return schemas.Status(status="ready", version=__version__)

    @app.get(schemas.METRICS, response_class=PlainTextResponse, tags=["facts"])
    async def metrics() -> Response:
        """Write counters as Prometheus reads them."""
        return Response(service.metrics.text(), media_type=service.metrics.content_type)


_NANO_KNOWS = "drawn shapes, and people and 58 kinds of clothing in photographs"


def _say_problems(app: FastAPI) -> None:
    """Let OpenAPI say that errors are ``application/problem+json``, and that a key may be needed."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            for path in generate()["paths"].values():
                for operation in path.values():
                    for status, response in operation["responses"].items():
                        content = response.get("content", {})
                        if int(status) >= 400 and content:
                            response["content"] = {schemas.PROBLEM_TYPE: next(iter(content.values()))}
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi
