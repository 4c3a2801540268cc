"""What goes over the wire: paths, requests, answers, events, problems. Nothing of the model is imported here.

Pictures come as a part ``picture`` of a multipart form, or as base64 in JSON; everything else of a request is the same
in both. Forms repeat a field to make a list: ``queries=a&queries=b``.

Masks go out as COCO's compressed run-length codes, as polygons or as PNG, whichever ``formats`` names. Errors are
`Problem`, of type ``application/problem+json`` (RFC 9457).

Chat answers with server-sent events. Each has a name and JSON data::

    event: text         {"text": "Sure, "}                       `TextEvent`
    event: mask         {"query": "the car", "score": ...}        `Found`
    event: not_there    {"query": "the car", "score": ...}        `Found`, whose mask is empty
    event: done         {"text": ..., "decision": "segment"}      `DoneEvent`, the last one of a turn
    event: problem      {"type": ..., "status": 504}              `Problem`, in place of ``done``
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from self1e.inference.events import Adapter, Mode

IMAGES = "/v1/images"
IMAGE = "/v1/images/{image_id}"
IMAGE_SEGMENT = "/v1/images/{image_id}/segment"
IMAGE_SEMANTIC = "/v1/images/{image_id}/semantic"
IMAGE_SESSIONS = "/v1/images/{image_id}/sessions"
SESSION = "/v1/sessions/{session_id}"
SESSION_TURNS = "/v1/sessions/{session_id}/turns"
SEGMENT = "/v1/segment"
SEMANTIC = "/v1/semantic"
MODELS = "/v1/models"
HEALTH = "/health"
READY = "/ready"
METRICS = "/metrics"

REQUEST_ID = "X-Request-ID"
"""Header of every answer; a request may bring its own: 1 to 64 letters, digits, ``.``, ``_`` and ``-``."""
DEADLINE = "X-Deadline-Seconds"
"""Header of a request that would rather have no answer than a late one; the service's own deadline is the most."""
EVENT_SCHEMA = {
    "type": "object",
    "description": "One server-sent event; its data is JSON, of the schema that belongs to its name.",
    "properties": {
        "event": {"type": "string", "enum": ["text", "mask", "not_there", "done", "problem"]},
        "data": {"type": "string"},
    },
    "required": ["event", "data"],
}
PROBLEM_TYPE = "application/problem+json"

MOST_QUERIES = 1000
MOST_LETTERS = 4000
"""Of one query. These two are what the format takes; a service is usually set to less."""

MaskFormat = Literal["rle", "polygons", "png"]
Words = Annotated[str, Field(min_length=1, max_length=MOST_LETTERS)]


class Message(BaseModel):
    """Whatever is sent: unknown fields are refused, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


# ---------------------------------------------------------------------- requests


class PictureRequest(Message):
    """``POST /v1/images`` as JSON: exactly one of ``picture`` and ``url``."""

    picture: str | None = Field(None, description="Base64 of a picture file; a data URL will do.")
    url: str | None = Field(None, max_length=2000, description="Where to fetch it; only if the service allows that.")
    max_tiles: int | None = Field(None, ge=1, le=12, description="Most tiles; left out, what the checkpoint says.")


class Asking(Message):
    """What to find, and how."""

    queries: list[Words] = Field(min_length=1, max_length=MOST_QUERIES, description="Phrases or sentences.")
    kind: Literal["auto", "phrase", "sentence"] = "auto"
    template: str | None = Field(None, max_length=MOST_LETTERS, description="A question of your own with {text}.")
    threshold: float = Field(0.0, ge=-1e6, le=1e6, description="Foreground is where the logit is above it.")
    reject: bool = Field(True, description="Empty the masks that score below the model's calibrated threshold.")
    split: bool = Field(False, description="One result per connected piece, the largest first.")
    fill_holes: bool = False
    min_area: int = Field(0, ge=0, le=2**31, description="Leave out pieces of fewer pixels.")
    formats: list[MaskFormat] = Field(["rle"], max_length=3, description="How masks are written; may be empty.")


class SegmentRequest(Asking):
    """``POST /v1/images/{image_id}/segment``."""


class OneShotSegmentRequest(Asking, PictureRequest):
    """``POST /v1/segment``: a picture and what to find in it."""


class Classes(Message):
    """Which classes there are."""

    classes: list[Words] = Field(min_length=1, max_length=MOST_QUERIES, description="One name each, all different.")
    background: float | None = Field(
        0.0, ge=-1e6, le=1e6, description="Logit that a pixel's best class must exceed; null gives every pixel a class."
    )
    template: str | None = Field(None, max_length=MOST_LETTERS, description="A question of your own with {text}.")


class SemanticRequest(Classes):
    """``POST /v1/images/{image_id}/semantic``."""


class OneShotSemanticRequest(Classes, PictureRequest):
    """``POST /v1/semantic``: a picture and its classes."""


Temperature = Annotated[float, Field(ge=0, le=100)]
TopP = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class SessionRequest(Message):
    """``POST /v1/images/{image_id}/sessions``: begin a conversation about a picture."""

    mode: Mode = Field("auto", description="Who decides that there is a mask.")
    adapter: Adapter = Field("on", description="off: the base model's words in turns of mode text, if it is at hand.")
    temperature: Temperature = Field(0.0, description="0: the likeliest words; above it they are drawn.")
    top_p: TopP = Field(1.0, description="With a temperature: draw from the fewest tokens of this probability in all.")
    seed: Seed | None = Field(None, description="With a temperature: the same answers every time.")
    threshold: float = Field(0.0, ge=-1e6, le=1e6)
    reject: bool = True


class TurnRequest(Message):
    """``POST /v1/sessions/{session_id}/turns``: ask; the answer is a stream of events."""

    text: Words
    mode: Mode | None = Field(None, description="For this turn.")
    kind: Literal["auto", "phrase", "sentence"] = "auto"
    max_new_tokens: int | None = Field(None, ge=1, le=8192, description="Longest answer.")
    adapter: Adapter | None = Field(None, description="For this turn, of mode text; see the conversation.")
    temperature: Temperature | None = Field(None, description="For this turn, like what follows.")
    top_p: TopP | None = None
    seed: Seed | None = None
    formats: list[MaskFormat] = Field(["rle"], max_length=3)


# ---------------------------------------------------------------------- answers


class ImageInfo(Message):
    """A picture that the service keeps."""

    id: str
    width: int
    height: int
    tiles: list[int] = Field(description="Rows and columns.")
    notes: list[str] = Field(description="What a person might want to know about the file.")
    bytes: int = Field(description="What keeping it takes.")
    expires_in: float = Field(description="Seconds, if it is not used before; every use begins them anew.")


class RLE(Message):
    """COCO's compressed run-length code."""

    size: list[int] = Field(description="Height and width.")
    counts: str


class MaskPolygon(Message):
    """A connected piece; filling all its rings by the even-odd rule gives the mask exactly."""

    exterior: list[list[int]] = Field(description="Points x, y on the edges of pixels.")
    holes: list[list[list[int]]]


class Found(Message):
    """What became of one query, or of a piece of it. ``rle``, ``polygons``, ``png`` are null if not asked for."""

    query: str
    score: float = Field(description="Mean sigmoid over the mask's pixels, 0 to 1.")
    not_there: bool = Field(description="No pixel belongs to it.")
    area: int = Field(description="Pixels.")
    box_xyxy: list[int] = Field(description="Half-open, in pixels; zeros if it is not there.")
    text: str = Field(description="What the model said.")
    rle: RLE | None = None
    polygons: list[MaskPolygon] | None = None
    png: str | None = Field(None, description="Base64: 255 is the mask, 0 the rest.")


class SegmentResponse(Message):
    """One result per query, in their order, or one per piece."""

    model: str
    width: int
    height: int
    results: list[Found]


class ClassInfo(Message):
    """One class of a map."""

    label: int = Field(description="Its number in the map; 0 is the background.")
    name: str
    area: int
    score: float
    color: list[int]


class SemanticResponse(Message):
    """A map of classes."""

    model: str
    width: int
    height: int
    background: float | None
    classes: list[ClassInfo]
    png: str = Field(description="Base64: an indexed PNG of the labels in their colours.")


class SessionInfo(Message):
    """A conversation."""

    id: str
    image_id: str
    mode: Mode
    turns: int
    tokens: int = Field(description="In the model's view, picture included.")
    max_tokens: int
    expires_in: float


class TextEvent(Message):
    """More of an answer's words."""

    text: str


class DoneEvent(Message):
    """The end of a turn; see ``self1e.inference.session.Done``."""

    text: str
    mode: Mode
    decision: Literal["segment", "text"]
    probability: float
    stopped: Literal["end", "length", "cancelled"]
    new_tokens: int
    prompt_tokens: int
    known_tokens: int
    dropped_turns: int
    adapter: Adapter


class ModelInfo(Message):
    """The model that answers."""

    id: str
    device: str
    dtype: str
    no_target_threshold: float | None
    knows: str | None = Field(description="What it was trained on, if it does not know everything.")
    adapters: list[Adapter] = Field(description="Whose words it has: on, as trained; off, its base model's.")


class ModelList(Message):
    """``GET /v1/models``: one, and what a request may hold."""

    models: list[ModelInfo]
    limits: dict[str, Any]


class Status(Message):
    """``GET /health`` and ``GET /ready``."""

    status: str
    version: str


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field(description="One of a few fixed names, ``urn:self1e:...``.")
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[dict[str, Any]] | None = Field(None, description="With 422: where (``loc``) and why (``msg``).")
