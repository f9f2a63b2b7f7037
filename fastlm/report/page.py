# SPDX-License-Identifier: Apache-2.0
"""A report as a page of HTML that needs no other file: the verdicts, then what they rest on."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from fastlm.report.statistics import wildness
from fastlm.report.verdicts import BAD, GOOD, SOME, Verdict, short_names

if TYPE_CHECKING:
    from fastlm.report.report import Report

_COLOURS = {GOOD: "#2e7d32", SOME: "#b26a00", BAD: "#c62828"}
_WORDS = {GOOD: "good", SOME: "look at this", BAD: "a problem"}
_MODEL, _HUMAN, _FITTED = "#1f5fa8", "#777777", "#2e7d32"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem }
.verdict { border-left: .4rem solid; padding: .3rem 1rem; margin: 1rem 0; background: #f7f7f7 }
.verdict h3 { margin: .2rem 0; font-size: 1.05rem } .verdict p { margin: .4rem 0 }
.level { font-size: .8rem; color: #fff; border-radius: .3rem; padding: .1rem .5rem; margin-left: .6rem }
.rule, .small { color: #666; font-size: .85rem } .beware { background: #fff4e0; padding: .6rem 1rem }
code { background: #eee; padding: .1rem .3rem; overflow-wrap: anywhere; font-size: .85em }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
td, th { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
svg { max-width: 100%; height: auto } .passage { white-space: pre-wrap; font-size: .9rem }
"""


def page(report: Report) -> str:
    """All of it."""
    sections = [
        _copies(report),
        _gap(report),
        _variety(report),
        _sureness(report),
        _domains(report),
        _samples(report),
    ]
    body = [
        f"<h1>{escape(report.name)}</h1><p class='small'>What the model makes of text that it has seen, of text "
        "that it has not, and of its own: the answers first, then what they rest on.</p>",
        *(f"<p class='beware'>Beware: {escape(one)}.</p>" for one in report.warnings),
        *map(_verdict, report.verdicts),
        *filter(None, sections),
    ]
    head = f"<meta charset='utf-8'><title>{escape(report.name)}</title><style>{_STYLE}</style>"
    return f"<!DOCTYPE html>\n<html lang='en'><head>{head}</head>\n<body>{''.join(body)}</body></html>\n"


def _verdict(one: Verdict) -> str:
    colour = _COLOURS[one.level]
    remedies = "".join(f"<li>{_with_code(remedy)}</li>" for remedy in one.remedies)
    return (
        f"<div class='verdict' style='border-color:{colour}'><h3>{escape(one.question)}"
        f"<span class='level' style='background:{colour}'>{_WORDS[one.level]}</span></h3><p>{escape(one.answer)}</p>"
        + (f"<p>What helps:</p><ul>{remedies}</ul>" if remedies else "")
        + f"<p class='rule'>{escape(one.rule)}</p></div>"
    )


def _with_code(text: str) -> str:
    """What stands between backticks is a command."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _section(title: str, about: str, *parts: str) -> str:
    return f"<h2>{escape(title)}</h2><p class='small'>{escape(about)}</p>{''.join(parts)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Numbers stand on the right."""

    def cell(value: Any, tag: str, number: bool) -> str:
        said = f"{value:.4g}" if isinstance(value, float) else str(value)
        return f"<{tag}{' class=number' if number else ''}>{escape(said)}</{tag}>"

    listed = [list(row) for row in rows]
    numbers = [not isinstance(value, str) for value in (listed[0] if listed else head)]
    lines = [
        "".join(cell(value, tag, number) for value, number in zip(row, numbers, strict=True))
        for tag, row in [("th", head), *(("td", row) for row in listed)]
    ]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _plot(draw: Callable[[Any], None], width: float = 7.0, height: float = 3.2) -> str:
    """A picture as SVG, the same for the same numbers."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "fastlm", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]


# ---- what the answers rest on --------------------------------------------------------------------------


def _copies(report: Report) -> str:
    found = report.copies
    if found is None:
        return ""

    def draw(axes: Any) -> None:
        for curve, colour, label in (
            (found.curve, _MODEL, "the model's texts"),
            (found.human_curve, _HUMAN, "human texts behind the same prompts"),
        ):
            shown = [100 * share for share in curve if share > 0]
            axes.plot(range(1, len(shown) + 1), shown, color=colour, label=label)
        axes.set(xlabel="tokens in a row", ylabel="% that stand in the training text", yscale="log")
        axes.legend(frameon=False)

    about = (
        "How many runs of so many tokens stand word for word in the training text. People repeat common phrases, too."
    )
    rows = [(span.text, span.tokens, span.count) for span in found.longest]
    longest = _table(("the longest copied runs", "tokens", "times in the training text"), rows)
    secrets = [(one.secret, one.exposure, one.most) for one in report.exposures]
    return _section(
        "Copies",
        about,
        _plot(draw),
        longest,
        _table(("secret", "bits exposed", "bits that it has"), secrets) if secrets else "",
    )


def _gap(report: Report) -> str:
    found, curve = report.gap, report.curve
    parts = []
    if found is not None:

        def draw(axes: Any) -> None:
            both = [*found.valid_passages, *found.train_passages]
            style = {
                "bins": 40,
                "range": (min(both), max(both)),
                "density": True,
                "histtype": "stepfilled",
                "alpha": 0.5,
            }
            axes.hist(found.valid_passages, color=_HUMAN, label="validation text", **style)
            axes.hist(found.train_passages, color=_MODEL, label="training text", **style)
            axes.set(xlabel="surprise of a passage, nats a token", yticks=[])
            axes.legend(frameon=False)

        parts.append(_plot(draw))
    if curve:

        def draw_curve(axes: Any) -> None:
            epochs = [row["epoch"] for row in curve]
            for key, colour in (("train", _MODEL), ("valid", _HUMAN)):
                axes.plot(epochs, [row[key] for row in curve], color=colour, label=key)
            axes.set(xlabel="epochs", ylabel="nats a token")
            axes.legend(frameon=False)

        parts.append(_plot(draw_curve))
    about = "How surprising passages are: if the model knows those that it was trained on much better, the two part."
    return _section("What it knows by heart", about, *parts) if parts else ""


def _variety(report: Report) -> str:
    fitted = {one.name: one for one in report.fit.fitted} if report.fit else {}

    def draw(axes: Any) -> None:
        names = [one.name for one in report.figures][::-1]
        axes.axvspan(-1, 1, color="#eeeeee")
        axes.barh(names, [one.counted for one in report.figures][::-1], color=_MODEL, height=0.4, label="now")
        if fitted:
            axes.plot(
                [fitted[name].counted for name in names], names, "D", color=_FITTED, label="with the fitted settings"
            )
            axes.legend(frameon=False)
        axes.axvline(0, color="#444444", linewidth=0.8)
        axes.set(xlabel="more generic  <  distance from human text, in its own spread  >  wilder", xlim=(-8.3, 8.3))

    about = (
        "Figures of the model's texts beside those of human text behind the same prompts. Within the grey band are "
        f"parts of the human text among themselves. All together: {report.wildness:+.1f}"
        + (f", {wildness(report.fit.fitted):+.1f} with the fitted settings" if report.fit else "")
        + f". As the model itself sees texts, its own are like human ones elsewhere to {report.likeness:.2f} "
        f"(human ones in their place: {report.human_likeness:.2f}; 1 is the same)."
    )
    rows = [
        (one.name, one.about, one.value, *([fitted[one.name].value] if fitted else []), one.human, one.spread)
        for one in report.figures
    ]
    head = ("figure", "what it is", "now", *(["fitted"] if fitted else []), "human text", "its spread")
    return _section("How varied it writes", about, _plot(draw), _table(head, rows))


def _sureness(report: Report) -> str:
    found = report.calibration

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color="#bbbbbb")
        axes.plot(found.confidence, found.accuracy, "o-", color=_MODEL)
        axes.set(xlabel="how sure it is of the next token", ylabel="how often it is right")

    about = "A model that knows what it knows is right in as many cases as it says: on the line."
    return _section("What it is sure of", about, _plot(draw, 4.2, 3.6))


def _domains(report: Report) -> str:
    name = short_names(one.file for one in report.domains)
    rows = [
        (name[one.file], one.passages, one.nats, one.bits_per_char, 100 * one.foreign, 100 * one.flagged)
        for one in report.domains
    ]
    head = ("file", "passages", "nats a token", "bits a character", "told from the validation text, %", "unusual, %")
    parts = [_table(head, rows), "<p>The passages that surprise it most; the redder a token, the more it does:</p>"]
    for one in report.surprising:
        marked = "".join(
            f"<span style='background:rgba(200,40,40,{min(1.0, nats / 12):.2f})'>{escape(piece)}</span>"
            for piece, nats in zip(one.pieces, one.surprises, strict=True)
        )
        parts.append(
            f"<p class='small'>{escape(name[one.file])}: {one.nats:.2f} nats a token</p><p class='passage'>{marked}</p>"
        )
    return _section("Texts that surprise it", "What it makes of each file.", *parts)


def _samples(report: Report) -> str:
    rows = [(prompt, text, human) for prompt, text, human in report.samples]
    about = "Read them: no figure sees what a reader sees."
    return _section("Texts", about, _table(("it goes on from", "it writes", "people wrote"), rows))
