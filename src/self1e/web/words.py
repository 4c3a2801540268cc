"""What the page says, as HTML; whatever comes from a person or a model is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from self1e.drawing import distinct_colors
from self1e.web.finding import MAX_QUERIES, Row


def header(model: Any) -> str:
    """Say which model runs, where, and what can be expected of it."""
    facts = [
        f"<b>{escape(model.name)}</b>",
        f"{_count(sum(p.numel() for p in model.model.parameters()))} parameters",
        f"on {escape(str(model.device))}, {str(model.dtype).removeprefix('torch.')}",
    ]
    return (
        "<header class='s1-head'><h1>SELF1E</h1><p>Ask for a thing in a picture, get its mask.</p>"
        f"<p class='s1-facts'>Model: {', '.join(facts)}.<br>"
        f"{escape(knows(model))} {escape(rejects(model))}</p></header>"
    )


def knows(model: Any) -> str:
    """Say what a model was trained on, as far as that is known here."""
    if model.name == "nano":
        from self1e.cli.options import NANO_KNOWS

        known = NANO_KNOWS.partition(";")[0]
        more = "about anything else it guesses. A full model: self1e demo --web --model NAME."
        return f"{known}; {more}"
    return "It takes any words; about things unlike its training data it guesses. Its model card says what those were."


def rejects(model: Any) -> str:
    """Say how reliable "not there" is."""
    least = model.no_target_threshold
    if least is None:
        return "It is not calibrated to say “not there”: asked for a thing that is absent, it often marks something."
    return f"Masks that score below {least:.2f}, its calibrated threshold, are “not there”."


def whose_words(*, has_base: bool) -> str:
    """Say when the base model answers, or why it cannot."""
    if has_base:
        return "Where the answer is words only, the model before its training for masks can give it."
    return (
        "The base model is not at hand. A training checkpoint with the model it was trained from has it: "
        "self1e demo --web --model CHECKPOINT --base FOLDER."
    )


def note(words: str) -> str:
    """A line that tells how it went; screen readers read it out."""
    return f"<p class='s1-note' role='status'>{escape(words)}</p>" if words else ""


def problem(words: str) -> str:
    """A line that says what is wrong and what to do."""
    return f"<p class='s1-problem' role='alert'>{escape(words)}</p>"


def table(rows: Sequence[Row], *, what: str = "Query") -> str:
    """Score and area of each, with its colour."""
    lines = "".join(_line(row) for row in rows)
    return (
        "<table class='s1-table'><thead><tr>"
        f"<th scope='col'>{escape(what)}</th><th scope='col'>Score</th><th scope='col'>Area</th></tr></thead>"
        f"<tbody>{lines}</tbody></table>"
    )


def _line(row: Row) -> str:
    red, green, blue = row.color
    swatch = f"<span class='s1-swatch' style='background:rgb({red},{green},{blue})'></span>"
    name = f"<th scope='row'>{swatch}{escape(row.query)}</th>"
    if not row.is_there:
        close = f" <small>(surest pixel {row.peak:.0%})</small>" if row.peak else ""
        return f"<tr class='s1-absent'>{name}<td colspan='2'>not there{close}</td></tr>"
    return f"<tr>{name}<td>{row.score:.2f}</td><td>{percent(row.share)} <small>{row.area:,} px</small></td></tr>"


def percent(share: float) -> str:
    """0.123 is 12.3 %."""
    return "<0.1 %" if 0 < share < 0.001 else f"{share:.1%}".replace("%", " %")


def style() -> str:
    """The page's own CSS: colours are those of gradio's theme, so that dark mode is followed."""
    swatches = "".join(
        f"#layers label:nth-of-type({k + 1})::before{{background:rgb({red},{green},{blue})}}"
        for k, (red, green, blue) in enumerate(distinct_colors(MAX_QUERIES))
    )
    return _STYLE + swatches


def _count(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)


_STYLE = """
.s1-head h1 {margin: 0; font-size: 1.5rem}
.s1-head p {margin: .1rem 0; color: var(--body-text-color)}
.s1-head .s1-facts {font-size: .85rem; color: var(--body-text-color-subdued)}
.s1-note {margin: .3rem 0; color: var(--body-text-color-subdued)}
.s1-problem {margin: .3rem 0; padding: .5rem .7rem; border-left: 4px solid #c62828; border-radius: 4px;
  background: var(--error-background-fill); color: var(--body-text-color)}
.s1-table {width: 100%; border-collapse: collapse; font-size: .95rem}
.gradio-container .s1-table.s1-table :is(table, tr, th, td), .gradio-container .s1-table.s1-table {border: 0}
.gradio-container .s1-table.s1-table :is(th, td) {padding: .35rem .5rem; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--border-color-primary); overflow-wrap: anywhere}
.s1-table thead th {white-space: nowrap}
.s1-table tbody th {font-weight: 400}
.s1-table td {white-space: nowrap; font-variant-numeric: tabular-nums}
.s1-table small, .s1-absent td, .s1-absent th {color: var(--body-text-color-subdued)}
.s1-swatch, #layers label::before {display: inline-block; width: .85rem; height: .85rem; margin-right: .5rem;
  border-radius: 3px; border: 1px solid rgba(128,128,128,.6); vertical-align: -.1rem; flex: none}
.s1-absent .s1-swatch {background: none !important; border-style: dashed}
#layers label::before {content: ""; margin-right: .1rem}
#file:has(.empty), #map-file:has(.empty), #talk-file:has(.empty), #talk button[title="Share"],
#talk button[aria-label="Share"] {display: none}
#stages .grid-wrap {max-height: none; padding-top: 1.4rem}
#stages .caption-label {white-space: normal; text-overflow: clip}
#picture img, #result img, #map img {object-fit: contain}
.gradio-container :focus-visible {outline: 3px solid #1e88e5; outline-offset: 2px}
@media (max-width: 640px) {
  .gradio-container {padding: .5rem !important}
  .s1-table {font-size: .9rem}
  #stages .grid-container {grid-template-columns: 1fr}
}
"""
