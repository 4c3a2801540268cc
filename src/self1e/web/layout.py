"""What stands where on the page, and what happens on a click. The only file that knows gradio."""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]

from self1e.errors import Self1EError
from self1e.inference.base_answers import knows_base
from self1e.inference.export import FORMATS
from self1e.web import words
from self1e.web.downloads import conversation_file, map_file, masks_file
from self1e.web.examples import Example, write_examples
from self1e.web.finding import MAX_LETTERS, check_length, described, draw, find, read_queries, rows, with_threshold
from self1e.web.mapping import class_rows, draw_map, read_classes
from self1e.web.seeing import attention_of, attention_share, read_query, see
from self1e.web.talking import MAX_MESSAGES, Message, answered, turn_options
from self1e.web.workspace import Workspaces

_log = logging.getLogger(__name__)

_MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}  # one request at a time, in their order
_LIGHT: dict[str, Any] = {"concurrency_id": "light", "concurrency_limit": 4, "show_progress": "hidden"}
_LIVE: dict[str, Any] = {**_LIGHT, "trigger_mode": "always_last"}  # while a slider is dragged only the last counts
_KEPT_SECONDS = 3600


def lay_out(model: Any, workspaces: Workspaces) -> gr.Blocks:
    """Build the page for a model.

    Args:
        model: From ``self1e.load``.
        workspaces: Where sessions are kept.
    """
    acts = _Acts(model, workspaces)
    with gr.Blocks(title="SELF1E", analytics_enabled=False, delete_cache=(600, _KEPT_SECONDS)) as blocks:
        gr.HTML(words.header(model))
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = gr.Image(
                    label="Picture: drop, paste, or use the camera",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard", "webcam"],
                    height=320,
                    elem_id="picture",
                )
                examples = _write_examples()
                _take_over(picture, [Path(_cache()), *{one.picture.parent for one in examples}])
                about = gr.HTML(words.note("No picture yet."), elem_id="about")
                tiles = gr.Slider(
                    1,
                    12,
                    value=model.processor.image_processor.max_tiles,
                    step=1,
                    label="Detail",
                    info="Most tiles the picture is cut into: more sees smaller things, and takes longer.",
                    elem_id="tiles",
                )
                corner = gr.Column()
            with gr.Column(scale=3, min_width=300):
                with gr.Tab("Find", id="find"):
                    finding = _find_tab(acts, picture, tiles)
                with gr.Tab("Every pixel", id="map"):
                    mapping = _map_tab(acts, picture, tiles)
                with gr.Tab("Chat", id="chat"):
                    talking = _chat_tab(acts, picture, tiles)
                with gr.Tab("How it sees", id="see"):
                    seeing = _see_tab(acts, picture)
        with corner:
            chooser = gr.Dataset(
                components=["image"],
                samples=[[str(one.picture)] for one in examples],
                type="index",
                layout="gallery",
                label="Examples",
                elem_id="examples",
            )
        fields = [finding["queries"], mapping["classes"], talking["words"], seeing["query"]]

        def choose(number: int) -> list[str]:
            one = examples[number]
            return [str(one.picture), one.queries, one.classes, one.question, one.first_query]

        chooser.click(choose, chooser, [picture, *fields], api_name="example", **_LIGHT)
        cleared = [about, *finding["cleared"], *mapping["cleared"], *talking["cleared"], *seeing["cleared"]]
        picture.change(acts.change, picture, cleared, api_name="picture", **_MODEL, show_progress="hidden")
        blocks.unload(acts.leave)
    return blocks


def _take_over(picture: Any, folders: Sequence[Path]) -> None:
    """Open pictures by our own door, and take none but those that were uploaded.

    gradio would decode a file before anybody can bound it or say what is wrong with it; and for whoever calls the
    page's endpoints by hand it would fetch any address, and in a mounted page take any file of this machine.
    """
    move = picture.async_move_resource_to_block_cache
    allowed = [folder.resolve() for folder in folders]

    async def checked(path: Any) -> Any:
        if not any(Path(path).resolve().is_relative_to(folder) for folder in allowed):
            raise gr.Error("This is no picture that was uploaded here. Upload it first.", print_exception=False)
        return await move(path)

    picture.async_move_resource_to_block_cache = checked
    picture.preprocess = lambda payload: None if payload is None else payload.path


def _write_examples() -> list[Example]:
    folder = Path(tempfile.mkdtemp(prefix="self1e-web-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_examples(folder)


# ---------------------------------------------------------------------- tabs


def _find_tab(acts: _Acts, picture: Any, tiles: Any) -> dict[str, Any]:
    queries = gr.Textbox(
        label="What to find",
        placeholder="the person\nthe hair",
        info="One thing per line, a phrase or a sentence. Shift+Enter finds.",
        lines=3,
        max_length=MAX_LETTERS,
        elem_id="queries",
    )
    with gr.Row():
        kind = gr.Radio(
            [("guess", "auto"), ("a phrase", "phrase"), ("a sentence", "sentence")],
            value="auto",
            label="Each line is",
            elem_id="kind",
        )
        go = gr.Button("Find", variant="primary", elem_id="find-go")
    status = gr.HTML(elem_id="find-status")
    result = gr.Image(
        label="Masks", format="webp", interactive=False, buttons=["download", "fullscreen"], elem_id="result"
    )
    layers = gr.CheckboxGroup([], label="Layers", visible=False, elem_id="layers")
    table = gr.HTML(elem_id="scores")
    with gr.Row():
        opacity = gr.Slider(0, 1, value=0.45, step=0.05, label="Opacity", elem_id="opacity")
        threshold = gr.Slider(
            -6,
            6,
            value=0,
            step=0.1,
            label="Threshold",
            info="A logit: 0 is a probability of one half. Higher is stricter.",
            elem_id="threshold",
        )
    with gr.Accordion("Download", open=False):
        formats = gr.Dropdown(
            list(FORMATS), value=["overlay", "json"], multiselect=True, label="Formats", elem_id="formats"
        )
        make = gr.Button("Make the file", elem_id="make")
        file = gr.File(label="File", interactive=False, elem_id="file")
    outputs = [status, result, layers, table, file]
    inputs = [picture, queries, kind, tiles, threshold, opacity]
    gr.on([go.click, queries.submit], acts.find, inputs, outputs, api_name="find", **_MODEL)
    threshold.input(
        acts.threshold, [threshold, layers, opacity], [status, result, table], api_name="threshold", **_LIVE
    )
    gr.on([layers.input, opacity.input], acts.layers, [layers, opacity], [status, result], api_name="layers", **_LIVE)
    make.click(acts.download, formats, [status, file], api_name="download", **_LIGHT)
    return {"queries": queries, "cleared": outputs}


def _map_tab(acts: _Acts, picture: Any, tiles: Any) -> dict[str, Any]:
    classes = gr.Textbox(
        label="Classes",
        placeholder="person, hair, clothes",
        info="One per line, or between commas. Every pixel goes to the class that fits it best.",
        lines=2,
        max_length=MAX_LETTERS,
        elem_id="classes",
    )
    with gr.Row():
        everywhere = gr.Checkbox(label="Leave no pixel without a class", elem_id="everywhere")
        go = gr.Button("Make the map", variant="primary", elem_id="map-go")
    status = gr.HTML(elem_id="map-status")
    result = gr.Image(label="Map", format="webp", interactive=False, buttons=["download", "fullscreen"], elem_id="map")
    opacity = gr.Slider(0, 1, value=0.55, step=0.05, label="Opacity", elem_id="map-opacity")
    table = gr.HTML(elem_id="map-scores")
    make = gr.Button("Make the file", elem_id="map-make")
    file = gr.File(label="File", interactive=False, elem_id="map-file")
    outputs = [status, result, table, file]
    gr.on(
        [go.click, classes.submit],
        acts.map,
        [picture, classes, everywhere, tiles, opacity],
        outputs,
        api_name="map",
        **_MODEL,
    )
    opacity.input(acts.map_opacity, opacity, [status, result], api_name="map_opacity", **_LIVE)
    make.click(acts.map_download, None, [status, file], api_name="map_download", **_LIGHT)
    return {"classes": classes, "cleared": outputs}


def _chat_tab(acts: _Acts, picture: Any, tiles: Any) -> dict[str, Any]:
    talk = gr.Chatbot(
        label="Conversation",
        height=420,
        render_markdown=False,  # what a model writes is words, not links and pictures of other hosts
        feedback_options=None,
        buttons=["copy"],
        placeholder="Ask about the picture.",
        elem_id="talk",
    )
    status = gr.HTML(elem_id="chat-status")
    mode = gr.Radio(
        [("auto: the model decides", "auto"), ("a mask", "segment"), ("words only", "text")],
        value="auto",
        label="Answer with",
        elem_id="mode",
    )
    text = gr.Textbox(label="Message", placeholder="What is in the picture?", max_length=MAX_LETTERS, elem_id="message")
    with gr.Row():
        send = gr.Button("Send", variant="primary", elem_id="send")
        stop = gr.Button("Stop", elem_id="stop")
        new = gr.Button("New conversation", elem_id="new")
    with gr.Accordion("Options", open=False, elem_id="chat-options"):
        adapter = gr.Radio(
            [("as trained", "on"), ("the base model", "off")],
            value="on",
            label="Words come from",
            info=words.whose_words(has_base=acts.has_base),
            interactive=False,
            elem_id="adapter",
        )
        with gr.Row():
            temperature = gr.Slider(
                0,
                2,
                value=0,
                step=0.05,
                label="Temperature",
                info="0 takes the likeliest words.",
                elem_id="temperature",
            )
            top_p = gr.Slider(
                0.05,
                1,
                value=1,
                step=0.05,
                label="Top-p",
                info="Of the likeliest words.",
                interactive=False,
                elem_id="top-p",
            )
            seed = gr.Number(
                label="Seed",
                value=None,
                precision=0,
                minimum=0,
                info="Gives the same words again.",
                interactive=False,
                min_width=160,
                elem_id="seed",
            )
    with gr.Row():
        make = gr.Button("Save the conversation", elem_id="talk-make")
    file = gr.File(label="File", interactive=False, elem_id="talk-file")
    gr.on(
        [send.click, text.submit],
        acts.chat,
        [picture, text, mode, tiles, adapter, temperature, top_p, seed],
        [status, talk, text],
        api_name="chat",
        show_progress="minimal",
        **_MODEL,
    )
    gr.on(
        [mode.change, temperature.change],
        acts.chat_options,
        [mode, temperature],
        [adapter, top_p, seed],
        api_name="chat_options",
        **_LIVE,
    )
    stop.click(acts.stop, None, status, queue=False, api_name="stop", show_progress="hidden")
    # The bin in the corner empties the page; what cannot be seen should not be remembered either.
    gr.on([new.click, talk.clear], acts.new_chat, None, [status, talk, file], api_name="new_chat", **_LIGHT)
    make.click(acts.chat_download, None, [status, file], api_name="chat_download", **_LIGHT)
    return {"words": text, "cleared": [status, talk, file]}


def _see_tab(acts: _Acts, picture: Any) -> dict[str, Any]:
    query = gr.Textbox(label="What to look for", placeholder="the person", max_length=400, elem_id="see-query")
    go = gr.Button("Look inside", variant="primary", elem_id="see-go")
    status = gr.HTML(elem_id="see-status")
    stages = gr.Gallery(
        label="The mask after each stage",
        columns=2,
        object_fit="contain",
        height="auto",
        buttons=["fullscreen"],
        interactive=False,
        elem_id="stages",
    )
    attention = gr.Image(
        label="What [SEG] looks at", format="webp", interactive=False, buttons=["fullscreen"], elem_id="attention"
    )
    layer = gr.Slider(
        0,
        acts.num_layers,
        value=acts.num_layers,
        step=1,
        label="Layer",
        info="Of the language model; 0 is the mean of all. Heads are averaged.",
        elem_id="layer",
    )
    outputs = [status, stages, attention]
    gr.on([go.click, query.submit], acts.see, [picture, query, layer], outputs, api_name="see", **_MODEL)
    layer.input(acts.layer, layer, [status, attention], api_name="layer", **_LIVE)
    return {"query": query, "cleared": outputs}


# ---------------------------------------------------------------------- acts


class _Acts:
    """What happens on a click. The first output is always the line that says how it went."""

    def __init__(self, model: Any, workspaces: Workspaces) -> None:
        self.model = model
        self._workspaces = workspaces

    @property
    def num_layers(self) -> int:
        """Of the language model."""
        return self.model.model.config.text_config.num_hidden_layers

    @property
    def has_base(self) -> bool:
        """Whether the base model's words can be had."""
        return knows_base(self.model)

    # ------------------------------------------------------------------ picture

    def change(self, picture: str | None, request: gr.Request) -> Any:
        """Open another picture, and clear the page."""
        space = self._workspaces.of(request.session_hash)
        hidden = gr.CheckboxGroup(choices=[], value=[], visible=False)
        empty = ["", None, hidden, "", None, "", None, "", None, "", [], None, "", [], None]
        if picture is None:
            space.clear()
            return [words.note("No picture yet."), *empty]

        def opened() -> list[Any]:
            one = space.open(picture)
            width, height = one.image.size
            told = f"{width} x {height} pixels. {' '.join(one.notes)}".strip()
            return [words.note(told), *empty]

        return self._tell(1 + len(empty), opened, otherwise=empty)

    def leave(self, request: gr.Request) -> None:
        """The browser's page was closed: nobody reads on."""
        self.stop(request)
        self._workspaces.drop(request.session_hash)

    # ------------------------------------------------------------------ find

    def find(
        self,
        picture: str | None,
        queries: str,
        kind: str,
        tiles: float,
        threshold: float,
        opacity: float,
        request: gr.Request,
    ) -> Any:
        """Segment each line of the queries; layers, opacity and threshold follow without the model."""

        def act() -> list[Any]:
            asked = read_queries(queries)
            space = self._workspaces.of(request.session_hash)
            encoded = space.encode(self.model, picture, int(tiles))
            found = space.found = find(self.model, encoded, asked, kind=kind, threshold=threshold)
            layers = list(range(len(asked)))
            choices = [(query, str(k)) for k, query in enumerate(asked)]
            group = gr.CheckboxGroup(choices=choices, value=[str(k) for k in layers], visible=True)
            return ["", _drawn(found, layers, opacity), group, words.table(rows(found)), None]

        return self._tell(5, act)

    def threshold(self, threshold: float, layers: list[str], opacity: float, request: gr.Request) -> Any:
        """Make the masks anew from kept logits."""

        def act() -> list[Any]:
            space = self._workspaces.of(request.session_hash)
            if space.found is None:
                return ["", gr.skip(), gr.skip()]  # it will count when something is found
            found = space.found = with_threshold(space.found, threshold)
            return ["", _drawn(found, _numbers(layers), opacity), words.table(rows(found))]

        return self._tell(3, act)

    def layers(self, layers: list[str], opacity: float, request: gr.Request) -> Any:
        """Draw some layers at some opacity."""

        def act() -> list[Any]:
            found = self._workspaces.of(request.session_hash).found
            return ["", gr.skip() if found is None else _drawn(found, _numbers(layers), opacity)]

        return self._tell(2, act)

    def download(self, formats: list[str], request: gr.Request) -> Any:
        """Write all masks at the threshold that is set, at the picture's own size."""

        def act() -> list[Any]:
            found = self._workspaces.of(request.session_hash).found
            if found is None:
                return [words.problem("There is nothing to write yet: find something first."), None]
            return _handed(*masks_file(found.result, formats))

        return self._tell(2, act)

    # ------------------------------------------------------------------ map

    def map(
        self,
        picture: str | None,
        classes: str,
        everywhere: bool,
        tiles: float,
        opacity: float,
        request: gr.Request,
    ) -> Any:
        """Give every pixel a class."""

        def act() -> list[Any]:
            names = read_classes(classes)
            space = self._workspaces.of(request.session_hash)
            encoded = space.encode(self.model, picture, int(tiles))
            background = None if everywhere else 0.0
            found = space.classes = self.model.semantic(encoded, names, background=background)
            return ["", draw_map(found, opacity), words.table(class_rows(found), what="Class"), None]

        return self._tell(4, act)

    def map_opacity(self, opacity: float, request: gr.Request) -> Any:
        """Draw the map anew."""

        def act() -> list[Any]:
            found = self._workspaces.of(request.session_hash).classes
            return ["", gr.skip() if found is None else draw_map(found, opacity)]

        return self._tell(2, act)

    def map_download(self, request: gr.Request) -> Any:
        """Write the map: labels, legend, overlay and JSON."""

        def act() -> list[Any]:
            found = self._workspaces.of(request.session_hash).classes
            if found is None:
                return [words.problem("There is no map yet: make one first."), None]
            return _handed(*map_file(found))

        return self._tell(2, act)

    # ------------------------------------------------------------------ chat

    def chat(
        self,
        picture: str | None,
        text: str,
        mode: str,
        tiles: float,
        adapter: str,
        temperature: float,
        top_p: float,
        seed: int | None,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        """Take one turn; the answer comes as it is written."""
        space = self._workspaces.of(request.session_hash)
        try:
            check_length(text)
            options = turn_options(mode, adapter, temperature, top_p, seed, has_base=self.has_base)
            encoded = space.encode(self.model, picture, int(tiles))
            session = space.session
            if session is None:
                session = self.model.session(encoded, max_new_tokens=128)
                space.session, space.messages = session, ()
            events = session.ask(text, **options)
            before = (*space.messages, Message("user", text.strip()))
            yield [words.note("writing ..."), _bubbles(before), ""]
            for answer, told in answered(events):
                if space.session is not session:  # a new one was begun meanwhile, and the page cleared
                    return
                space.messages = (*before, *answer)[-MAX_MESSAGES:]
                yield [words.note(told or "writing ..."), _bubbles(space.messages), gr.skip()]
        except Exception as error:
            yield [_explained(error), _bubbles(space.messages), gr.skip()]
        finally:
            self._workspaces.settle()

    def chat_options(self, mode: str, temperature: float) -> list[Any]:
        """Switch on what has an effect: the base model in turns of words only, ways of drawing with a temperature."""
        is_drawn = temperature > 0
        can_switch = self.has_base and mode == "text"
        return [gr.update(interactive=can_switch), gr.update(interactive=is_drawn), gr.update(interactive=is_drawn)]

    def stop(self, request: gr.Request) -> Any:
        """End the answer before its next word."""
        session = self._workspaces.of(request.session_hash).session
        if session is not None:
            session.cancel()
        return gr.skip()

    def new_chat(self, request: gr.Request) -> Any:
        """Forget the conversation."""
        space = self._workspaces.of(request.session_hash)
        session, space.session, space.messages = space.session, None, ()
        if session is not None:
            session.cancel()
        return ["", [], None]

    def chat_download(self, request: gr.Request) -> Any:
        """Write the conversation as ``self1e chat --resume`` reads it."""

        def act() -> list[Any]:
            session = self._workspaces.of(request.session_hash).session
            if session is None or not session.turns:
                return [words.problem("There is no conversation yet: send a message first."), None]
            return _handed(*conversation_file(session))

        return self._tell(2, act)

    # ------------------------------------------------------------------ see

    def see(self, picture: str | None, query: str, layer: float, request: gr.Request) -> Any:
        """Look inside while the model answers one query."""

        def act() -> list[Any]:
            asked = read_query(query)
            space = self._workspaces.of(request.session_hash)
            sight = space.sight = see(self.model, space.open(picture).image, asked)
            stages = [(image, name) for name, image in sight.stages]
            return [_share(sight, int(layer)), stages, attention_of(sight, int(layer))]

        return self._tell(3, act)

    def layer(self, layer: float, request: gr.Request) -> Any:
        """Show another layer's attention."""

        def act() -> list[Any]:
            sight = self._workspaces.of(request.session_hash).sight
            if sight is None:
                return ["", gr.skip()]
            return [_share(sight, int(layer)), attention_of(sight, int(layer))]

        return self._tell(2, act)

    # ------------------------------------------------------------------ all

    def _tell(self, count: int, act: Callable[[], list[Any]], *, otherwise: Sequence[Any] | None = None) -> list[Any]:
        """Do something; should it fail, say why, and leave the other outputs as they are."""
        try:
            return act()
        except Exception as error:
            return [_explained(error), *(otherwise or [gr.skip()] * (count - 1))]
        finally:
            self._workspaces.settle()


def _explained(error: Exception) -> str:
    if isinstance(error, Self1EError):
        return words.problem(" ".join(str(error).split()))
    _log.exception("The page could not answer")
    if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
        return words.problem("There is not enough memory for this: take a smaller picture, less detail or fewer lines.")
    kind = type(error).__name__
    return words.problem(f"Something failed inside ({kind}). The server's log says more; please report it.")


def _drawn(found: Any, layers: Sequence[int], opacity: float) -> Any:
    return gr.Image(value=draw(found, layers, opacity), alt_text=described(found))


def _numbers(layers: Sequence[str]) -> list[int]:
    return [int(layer) for layer in layers]


def _share(sight: Any, layer: int) -> str:
    which = "On the mean of all layers" if layer <= 0 else f"In layer {layer}"
    share = attention_share(sight, layer)
    return words.note(f"“{sight.query}”. {which}, [SEG] gives {share:.0%} of its attention to the picture.")


def _bubbles(messages: Sequence[Message]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for message in messages:
        if message.picture is not None:
            content = {"path": _cached_picture(message.picture), "alt_text": message.text}
            found.append({"role": message.role, "content": content})
        found.append({"role": message.role, "content": message.text})
    return found


def _cached_picture(picture: Any) -> str:
    from gradio.processing_utils import save_pil_to_cache  # pyright: ignore[reportMissingImports]

    return save_pil_to_cache(picture, _cache(), name="mask", format="webp")


def _handed(name: str, data: bytes) -> list[Any]:
    """Put a file where the browser may fetch it."""
    from gradio.processing_utils import save_bytes_to_cache  # pyright: ignore[reportMissingImports]

    path = save_bytes_to_cache(data, name, _cache())
    size = len(data) / 1024
    return [words.note(f"{name} is ready, {f'{size:,.0f} KB' if size < 1024 else f'{size / 1024:,.1f} MB'}."), path]


def _cache() -> str:
    from gradio.utils import get_upload_folder  # pyright: ignore[reportMissingImports]

    return get_upload_folder()
