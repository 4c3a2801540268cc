"""``report.html``: one file, no network. Cards, filters, tables; style and script lie beside this file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import Any

from self1e.evaluation.report import panels
from self1e.evaluation.report.cases import LENGTHS, PICKS, SIZES, Case, Part, length_of
from self1e.evaluation.report.tables_html import classes_table, paper_table, parts_table, run_tables
from self1e.evaluation.report.truths import Found
from self1e.evaluation.runner import SHORT
from self1e.evaluation.tables import FilledTable, Measured


@dataclass(kw_only=True)
class Section:
    """One run in the report."""

    measured: Measured
    score: str
    """What a sample's score is."""
    parts: list[Part]
    bars: list[int]
    classes: dict[str, float | None] = field(default_factory=dict)
    """IoU of each class of a class map."""
    cards: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader must know: data that were not found, cards left out."""
    tags: list[str] = field(default_factory=list)
    names_model: bool = False
    """Whether the name must say the model, because others measured the same."""

    @property
    def name(self) -> str:
        """Benchmark and way of asking."""
        run = self.measured.run
        return f"{run.dataset}, {SHORT[run.answer]}" + (f", {run.model}" if self.names_model else "")


class Photographs:
    """Every picture once, as a rule of the style sheet that its cards share."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}

    def name(self, key: str, found: Found) -> str:
        """Class of a picture; the first time its pixels are kept."""
        if key not in self._rules:
            width, height = panels.small_size(found.image)
            shape = f"aspect-ratio:{width}/{height};background-image:url({panels.photograph_url(found.image)})"
            self._rules[key] = f".p{len(self._rules)} .pic{{{shape};--ratio:{width / height:.4f}}}"
        return f"p{list(self._rules).index(key)}"

    @property
    def size(self) -> int:
        """Bytes so far."""
        return sum(map(len, self._rules.values()))

    @property
    def style(self) -> str:
        """All rules."""
        return "\n".join(self._rules.values())


def card(case: Case, found: Found | None, section: Section, photographs: Photographs) -> str:
    """One sample: picture | truth | prediction | error, or question and answers."""
    row, run = case.row, section.measured.run
    words = found.words if found is not None and found.words else str(row.get("query", ""))
    said = [f"{case.score:.2f}" if case.score is not None else "", *case.picks]
    data = {
        "run": _values([section.name]),
        "pick": _values(case.picks),
        "size": _values([case.size]),
        "length": _values([length_of(words)]),
        "tag": _values(case.tags),
        "words": " ".join([words, str(row.get("prediction", "")), row["id"]]).lower(),
    }
    attributes = " ".join(f'data-{name}="{escape(value)}"' for name, value in data.items())
    facts = [
        run.dataset,
        row["id"] if words else "",
        case.size,
        f"{row['gt_area']} pixels" if row.get("gt_area") else "",
        *case.tags,
    ]
    if row.get("score") is not None:
        facts.append(f"confidence {row['score']:.2f}")
    if row["failed"]:
        facts.append(f"failed: {row.get('error', 'no prediction')}")
    kind = "" if found is None else photographs.name(f"{run.dataset}/{row.get('unit')}", found)
    kind += " portrait" if found is not None and found.image.width < found.image.height else ""
    inside = "" if found is None else _answer(row, found, case) if found.truth is None else _panels(found)
    title = escape(words or row["id"])
    return (
        f'<article class="case {kind}" {attributes}><h3><span>{title}</span>'
        f"<b>{escape(' · '.join(filter(None, said)))}</b></h3>"
        f"<p>{escape(' · '.join(filter(None, dict.fromkeys(facts))))}</p>{inside}</article>"
    )


def _values(values: Sequence[str]) -> str:
    """Values of a filter as the script reads them: names of categories may hold any separator."""
    return json.dumps([value for value in values if value], ensure_ascii=False)


def _panels(found: Found) -> str:
    figures = [("picture", "")]
    figures += [(name, f'<img src="{url}" alt="">') for name, url in panels.layers(found)]
    empty = {} if found.classes else {"truth": found.truth, "prediction": found.prediction}
    drawn = "".join(
        f'<figure><button type="button" aria-label="{name}, enlarge">'
        f'<span class="{"pic over" if layer else "pic"}">{layer}</span></button>'
        f"<figcaption>{name}{_note(empty.get(name))}</figcaption></figure>"
        for name, layer in figures
    )
    legend = ""
    if found.classes:
        legend = _legend([*panels.class_legend(found), ("wrong class", panels.EXTRA)])
    return f'<div class="panels">{drawn}</div>{legend}'


def _note(mask: Any) -> str:
    """A panel without colour looks like a mistake unless it is said that nothing is there."""
    return "" if mask is None or mask.any() else ": nothing"


def _answer(row: dict[str, Any], found: Found, case: Case) -> str:
    answers = row.get("answers") or [row[key] for key in ("answer", "label") if key in row]
    truth = ", ".join(dict.fromkeys(map(str, answers)))
    options = row.get("options") or {}
    listed = "".join(f"<dt>{escape(letter)}</dt><dd>{escape(text)}</dd>" for letter, text in options.items())
    kind, verdict = _verdict(case.score)
    said = escape(str(row.get("prediction"))) + (f" ({verdict})" if verdict else "")
    return (
        '<div class="answer"><button type="button" class="plain" aria-label="picture, enlarge">'
        f'<span class="pic"></span></button><dl><dt>asked</dt><dd>{escape(found.words)}</dd>{listed}'
        f"<dt>truth</dt><dd>{escape(truth) or '-'}</dd>"
        f'<dt>prediction</dt><dd class="{kind}">{said}</dd></dl></div>'
    )


def _verdict(score: float | None) -> tuple[str, str]:
    """CSS class and words for an answer's accuracy; nothing where only a test server knows."""
    if score is None:
        return "", ""
    if 0 < score < 1:
        return ("right" if score >= 0.5 else "wrong"), f"as {score:.2f} of the people said"
    return ("right", "right") if score else ("wrong", "wrong")


def _legend(entries: Sequence[tuple[str, tuple[int, int, int]]]) -> str:
    items = "".join(f'<li><i style="background:rgb{colour}"></i>{escape(name)}</li>' for name, colour in entries)
    return f'<ul class="legend">{items}</ul>'


def page(
    sections: Sequence[Section],
    tables: Sequence[FilledTable],
    provenance: Sequence[dict[str, Any]],
    photographs: Photographs,
) -> str:
    """Put the page together."""
    here = files("self1e.evaluation.report")
    models = ", ".join(dict.fromkeys(section.measured.run.model for section in sections))
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Evaluation: {escape(models)}</title>",
        f"<style>{(here / 'page.css').read_text('utf-8')}\n{photographs.style}</style></head><body>",
        '<a class="skip" href="#samples">Skip to the samples</a>',
        f"<header><h1>Evaluation</h1><p>{escape(models)}</p>{_contents(sections, tables)}</header><main>",
        '<p class="faint">Percent, with 95 % intervals (bootstrap over pictures); n is the number of samples. '
        "tf: [SEG] was given, as in published tables; gen: the model wrote its answer. "
        "† marks what is not the whole benchmark.</p>",
    ]
    if tables:
        parts += ['<h2 id="paper">Beside the published numbers</h2>', *map(paper_table, tables)]
    parts += ['<h2 id="runs">Every run</h2>', *(_run(k, section) for k, section in enumerate(sections))]
    parts += [_failed(sections), _samples(sections), _provenance(sections, provenance), "</main>"]
    parts += [
        '<dialog aria-label="One sample"><form method="dialog"><button type="button" id="before">Previous</button>'
        '<button type="button" id="after">Next</button><button>Close</button></form><div id="large"></div></dialog>',
        f"<script>{(here / 'page.js').read_text('utf-8')}</script></body></html>\n",
    ]
    return "\n".join(parts)


def _contents(sections: Sequence[Section], tables: Sequence[FilledTable]) -> str:
    links = [("paper", "Beside the published numbers")] if tables else []
    links += [(f"run-{k}", section.name) for k, section in enumerate(sections)]
    links += [("failed", "Failed samples"), ("samples", "Samples"), ("made", "How this was made")]
    return (
        "<nav aria-label='Contents'><ul>"
        + "".join(f'<li><a href="#{place}">{escape(name)}</a></li>' for place, name in links)
        + "</ul></nav>"
    )


def _run(number: int, section: Section) -> str:
    one, run = section.measured, section.measured.run
    partial = f" <strong>Partial†: {escape(one.partial)}.</strong>" if one.partial else ""
    described = (
        f"Prompt {run.prompt}; annotations {run.annotations}; rejection: {run.rejection}; threshold {run.threshold:g}; "
        f"IoU at {run.resolution} resolution."
    )
    most = max(section.bars) or 1
    bars = "".join(
        f'<i style="height:{100 * bar / most:.0f}%" title="{k / 10:.1f} to {(k + 1) / 10:.1f}: {bar}"></i>'
        for k, bar in enumerate(section.bars)
    )
    spoken = ", ".join(f"{k / 10:.1f} and above: {bar}" for k, bar in enumerate(section.bars))
    notes = "".join(f"<p><strong>{escape(note)}</strong></p>" for note in section.notes)
    return (
        f'<section id="run-{number}"><h3>{escape(section.name)}</h3><p class="faint">{escape(described)}{partial}</p>'
        f"{notes}{run_tables(one)}{_folded('By size, length and category', parts_table(section.parts, section.score))}"
        f"{_folded('By class', classes_table(section.classes))}"
        f"<p class='faint'>How many samples reach which {escape(section.score)}:</p>"
        f'<div class="bars" role="img" aria-label="{spoken}">{bars}</div>'
        '<div class="axis" aria-hidden="true"><span>0</span><span>0.5</span><span>1</span></div></section>'
    )


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>" if content else ""


def _failed(sections: Sequence[Section]) -> str:
    items = [
        f"<li>{escape(section.name)}, <code>{escape(row['id'])}</code>: {escape(str(row.get('error', '')))}</li>"
        for section in sections
        for row in section.measured.rows
        if row["failed"]
    ]
    told = f"<p>{len(items)}; each counts as wrong.</p>" if items else "<p>None.</p>"
    shown = "".join(items[:200]) + (f"<li>and {len(items) - 200} more</li>" if len(items) > 200 else "")
    return f'<h2 id="failed">Failed samples</h2>{told}<ul>{shown}</ul>'


def _samples(sections: Sequence[Section]) -> str:
    tags = sorted({tag for section in sections for tag in section.tags})
    choices = [
        ("run", "Benchmark", [section.name for section in sections]),
        ("pick", "Chosen as", [*PICKS, "failed"]),
        ("size", "Size of the target", list(SIZES)),
        ("length", "Length of the words", list(LENGTHS)),
        ("tag", "Category", tags),
    ]
    selects = "".join(
        f'<label>{title}<select name="{name}"><option value="">all</option>'
        + "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in values)
        + "</select></label>"
        for name, title, values in choices
    )
    legend = _legend(
        [
            ("truth", panels.TRUTH),
            ("prediction", panels.PREDICTION),
            ("right", panels.RIGHT),
            ("false positive: predicted, not true", panels.EXTRA),
            ("false negative: missed", panels.MISSED),
            ("ignored", panels.IGNORED),
        ]
    )
    return (
        '<h2 id="samples">Samples</h2><p class="faint">Worst and best by score, and others at random: only those say '
        "how the model usually does. Press a picture to enlarge it; arrow keys go on. Small is below 32 x 32 pixels, "
        f"medium below 96 x 96.</p>{legend}"
        f'<form class="filters" onsubmit="return false" aria-label="Filters">{selects}'
        '<label>Search in the words<input id="words" type="search" autocomplete="off"></label>'
        '<button id="reset" type="button">Show all</button>'
        '<output id="count" aria-live="polite"></output></form>'
        '<p id="none" hidden>No sample shown here fits all of these.</p>'
        + "\n".join(one for section in sections for one in section.cards)
    )


def _provenance(sections: Sequence[Section], provenance: Sequence[dict[str, Any]]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td style="text-align:left;white-space:normal">'
        f"{escape(str(value))}</td></tr>"
        for entry in provenance
        for name, value in entry.items()
        if value
    )
    models = "".join(
        f"<li><code>{escape(name)}</code></li>"
        for name in dict.fromkeys(section.measured.run.model for section in sections)
    )
    known = (
        f'<div class="wide"><table>{rows}</table></div>' if rows else "<p>Command and machine were not recorded.</p>"
    )
    told = "<p>Models, with a fingerprint of their weights:</p>"
    return f'<h2 id="made">How this was made</h2>{told}<ul>{models}</ul>{known}'
