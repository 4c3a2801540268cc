"""Read requests that come as JSON or as a form."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from self1e.serving.problems import Refusal, invalid
from self1e.serving.schemas import MOST_QUERIES, PictureRequest

M = TypeVar("M", bound=PictureRequest)

_LISTS = {"queries", "formats", "classes"}
_MOST_FIELDS = MOST_QUERIES + 32


def described(model: type[BaseModel]) -> dict[str, Any]:
    """Return what OpenAPI says of a body that comes either way."""
    schema = model.model_json_schema()
    # `PictureRequest` takes exactly one of the two.
    json_schema = {k: v for k, v in schema.items() if k != "title"} | {
        "oneOf": [
            {"required": ["picture"], "properties": {"picture": {"type": "string"}, "url": {"type": "null"}}},
            {"required": ["url"], "properties": {"url": {"type": "string"}, "picture": {"type": "null"}}},
        ]
    }
    fields = {name: value for name, value in schema["properties"].items() if name != "url"}
    form_schema = {
        "type": "object",
        "properties": fields | {"picture": {"type": "string", "format": "binary"}},
        "required": ["picture", *(name for name in schema.get("required", []) if name != "picture")],
        "additionalProperties": False,
    }
    content = {"multipart/form-data": {"schema": form_schema}, "application/json": {"schema": json_schema}}
    return {"requestBody": {"required": True, "content": content}}


async def read(request: Request, model: type[M]) -> tuple[M, bytes | None]:
    """Read a request with a picture.

    Returns:
        The request without its picture, and the picture's bytes, or None if there is a ``url``.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        asked = checked(model, _parse(await request.body()))
        given = None if asked.picture is None else _decode(asked.picture)
    elif kind == "multipart/form-data":
        fields, given = await _read_form(request)
        asked = checked(model, fields)
    else:
        raise Refusal(415, "media-type", "Expected Content-Type: multipart/form-data or application/json.")
    if (given is None) == (asked.url is None):
        raise Refusal(422, "request", "Expected exactly one of picture and url.")
    return asked.model_copy(update={"picture": None}), given


def checked(model: type[M], content: Any) -> M:
    """Check what was sent against a model."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False, include_context=False)) from error


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(422, "request", "The body is not JSON.") from error


def _decode(text: str) -> bytes:
    """Read base64, bare or in a data URL."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(422, "request", "picture: is not base64.") from error


async def _read_form(request: Request) -> tuple[dict[str, Any], bytes | None]:
    fields: dict[str, Any] = {}
    picture: bytes | None = None
    async with request.form(max_files=1, max_fields=_MOST_FIELDS) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != "picture":
                    raise Refusal(422, "request", "The part with a file must be called picture.")
                picture = await value.read()
            elif name == "picture":
                raise Refusal(422, "request", "picture: must be sent as a file, with a file name.")
            elif name in _LISTS:
                fields.setdefault(name, []).append(value)
            elif name in fields:
                raise Refusal(422, "request", "A field that is no list is there twice.")
            else:
                fields[name] = value
    if fields.get("background") == "null":
        fields["background"] = None
    return fields, picture
