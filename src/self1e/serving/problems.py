"""Errors as answers: ``application/problem+json`` (RFC 9457), without paths, tracebacks or what was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from self1e.errors import PictureError, PromptError, SettingError
from self1e.serving.schemas import PROBLEM_TYPE, Problem

_MOST_ERRORS = 20
_PHRASES = {499: "Client Closed Request"}


class Refusal(HTTPException):
    """A request that is not answered as it was asked.

    Args:
        status: Of HTTP.
        kind: What a program can tell it by: the end of ``urn:self1e:KIND``.
        detail: For a person; it may be shown to anybody.
        headers: Of the answer.
        errors: Places in the request, for 422.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(status, detail, headers)
        self.kind = kind
        self.errors = list(errors) if errors is not None else None


def busy(detail: str, retry_after: float) -> Refusal:
    """Say 429, and when to come again."""
    return Refusal(429, "busy", detail, headers={"Retry-After": str(max(round(retry_after), 1))})


def draining() -> Refusal:
    """Say 503: the service is stopping."""
    return Refusal(503, "stopping", "The service is stopping; ask another one.", headers={"Retry-After": "5"})


def late() -> Refusal:
    """Say 504."""
    return Refusal(504, "deadline", "The answer was not ready before the request's deadline.")


def as_refusal(error: BaseException) -> Refusal:
    """Translate what the library and the framework raise; whatever is not known becomes 500 without a word of it."""
    match error:
        case Refusal():
            return error
        case RequestValidationError():
            return invalid(error.errors())
        case HTTPException():
            return Refusal(error.status_code, "http", str(error.detail), headers=error.headers)
        case PictureError():
            return Refusal(422, "picture", str(error).replace("bytes: ", "picture: ", 1))
        case PromptError() | SettingError():
            return Refusal(422, "request", str(error))
        case TimeoutError():
            return late()
        case _ if _is_shortage(error):
            return busy("There is not enough memory for this request now; ask for less, or later.", 10)
    return Refusal(500, "internal", "Something went wrong here; the log names it by the request's id.")


def _is_shortage(error: BaseException) -> bool:
    from self1e.inference.memory import is_shortage  # it imports torch

    return is_shortage(error)


def invalid(errors: Sequence[Any]) -> Refusal:
    """Say 422 and where; values are not repeated."""
    told = [
        {"loc": [_plain(str(place)[:80]) for place in one.get("loc", ())], "msg": _plain(str(one.get("msg", ""))[:300])}
        for one in errors[:_MOST_ERRORS]
    ]
    first = told[0] if told else {"loc": [], "msg": "The request cannot be read."}
    place = ".".join(first["loc"])
    return Refusal(422, "request", f"{place}: {first['msg']}" if place else first["msg"], errors=told)


def problem(error: BaseException, request_id: str) -> Problem:
    """Describe an error."""
    refusal = as_refusal(error)
    status = refusal.status_code
    return Problem(
        type="about:blank" if refusal.kind == "http" else f"urn:self1e:{refusal.kind}",
        title=_PHRASES.get(status) or HTTPStatus(status).phrase,
        status=status,
        detail=_plain(str(refusal.detail)),
        request_id=request_id,
        errors=refusal.errors,
    )


def problem_response(error: BaseException, request_id: str) -> Response:
    """Answer with an error."""
    refusal = as_refusal(error)
    content = problem(refusal, request_id).model_dump_json(exclude_none=True)
    return Response(content, refusal.status_code, refusal.headers, PROBLEM_TYPE)


def _plain(text: str) -> str:
    """Replace halves of surrogate pairs, which a field's name may hold and UTF-8 cannot say."""
    return text.encode("utf-8", "replace").decode()
