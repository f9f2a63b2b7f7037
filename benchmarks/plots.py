# SPDX-License-Identifier: Apache-2.0
"""The report's pictures. An engine has the same colour in all of them, and a precision the same marker."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compare import Figures, limit_us
from harness import OURS
from tables import started_seconds

# Okabe and Ito's palette, which people with any kind of colour vision can tell apart.
COLOURS = {
    "fastlm": "#D55E00",
    "ONNX Runtime": "#0072B2",
    "LiteRT": "#009E73",
    "OpenVINO": "#56B4E9",
    "PyTorch": "#CC79A7",
    "TensorFlow": "#E69F00",
    "Keras": "#888888",
}
MARKERS = {"f32": "o", "bf16": "D", "int8": "s", "int4": "^"}
LINES = {"f32": "-", "bf16": "-.", "int8": "--", "int4": ":"}

_STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "savefig.dpi": 130,
}


def draw_all(report: dict[str, Any], folder: Path) -> dict[str, list[str]]:
    """Every picture that the report's sections have data for: section -> file names."""
    mpl.use("Agg")
    found: dict[str, list[str]] = {}
    with mpl.rc_context(_STYLE):
        for section, draws in PLOTS.items():
            points = report["sections"].get(section)
            for name, draw in draws.items() if points else ():
                figure = draw(points)
                if figure:
                    figure.savefig(folder / f"{name}.png", bbox_inches="tight")
                    plt.close(figure)
                    found.setdefault(section, []).append(f"{name}.png")
    return found


# ---- what is shown -----------------------------------------------------------------------------------------


def best_forms(figures: Figures) -> dict[tuple[str, str], Figures]:
    """For each engine and precision the fastest contender, fastest first."""
    best: dict[tuple[str, str], Figures] = {}
    for form in sorted(figures["forms"].values(), key=lambda form: form["median_us"]):
        if form["role"] == "contender":
            best.setdefault((form["peer"], form["precision"]), form)
    return best


def _one_thread(points: dict[str, Figures]) -> list[Figures]:
    return [figures for figures in points.values() if figures["threads"] == 1]


def speed(points: dict[str, Figures]) -> Figure:
    """µs per token, one panel a workload; every engine's best form of each precision."""
    panels = _one_thread(points)
    rows = max(len(best_forms(figures)) for figures in panels)
    columns = min(3, len(panels))
    height = -(-len(panels) // columns)
    figure, grid = plt.subplots(height, columns, figsize=(5.4 * columns, (0.3 * rows + 1) * height), squeeze=False)
    for axes, figures in zip(grid.flat, panels, strict=False):
        _speed_panel(axes, figures)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    _headline(figure, "Time of a token, one sequence, one thread: µs, further left is faster")
    figure.tight_layout(h_pad=2)
    return figure


def _speed_panel(axes: Axes, figures: Figures) -> None:
    best = best_forms(figures)
    times = [form["median_us"] for form in best.values()]
    axes.set(xscale="log", xlim=(min(times) / 1.4, max(times) * 3), ylim=(len(best) - 0.4, -0.6), title=_title(figures))
    axes.set(yticks=range(len(best)), yticklabels=[f"{peer} {precision}" for peer, precision in best])
    for place, (time, (peer, precision)) in enumerate(zip(times, best, strict=True)):
        axes.scatter(time, place, s=90, color=COLOURS[peer], marker=MARKERS[precision], zorder=3)
        shown = f"{time:,.1f}" if time < 100 else f"{time:,.0f}"
        axes.annotate(
            shown, (time, place), (9, 0), textcoords="offset points", va="center", weight=_weight(peer), size=9.5
        )
    for label, (peer, _) in zip(axes.get_yticklabels(), best, strict=True):
        label.set_weight(_weight(peer))
    axes.tick_params(axis="y", length=0)
    plain_numbers(axes.xaxis)


def roofline(points: dict[str, Figures]) -> Figure | None:
    """Fraction of what the hardware allows, one row a workload and precision."""
    panels = [figures for figures in _one_thread(points) if figures["limits"]]
    if not panels:
        return None
    rows, most = [(figures, precision) for figures in panels for precision in ("f32", "int8")], 1.0
    figure, axes = plt.subplots(figsize=(10, 0.55 * len(rows) + 1.6))
    for place, (figures, precision) in enumerate(rows):
        limit = limit_us(figures, precision)
        shares = {
            peer: limit / form["median_us"]
            for (peer, kind), form in best_forms(figures).items()
            if kind == precision and limit
        }
        largest = max(shares.values(), default=0)
        most = max(most, largest)
        axes.plot([0, largest], [place, place], color="#dddddd", zorder=1)
        for peer, share in shares.items():
            axes.scatter(share, place, s=150 if peer == OURS else 80, color=COLOURS[peer], edgecolor="white", zorder=3)
    axes.axvline(1, color="#444444", linewidth=1)
    axes.text(0.99, len(rows) - 0.6, "the hardware's limit", ha="right", va="center", color="#444444", size=10)
    labels = [f"{figures['workload']} {precision}" for figures, precision in rows]
    axes.set(yticks=range(len(rows)), yticklabels=labels, xlim=(0, most + 0.05), ylim=(len(rows) - 0.3, -0.7))
    axes.set_title("Fraction of what the hardware allows, one sequence, one thread", pad=30)
    axes.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    axes.grid(axis="y", visible=False)
    _peer_legend(axes, {peer for figures in panels for peer, _ in best_forms(figures)})
    return figure


def batches(points: dict[str, Figures]) -> Figure:
    """How many times as long as fastlm of the same precision the others take, one row a workload."""
    panels = _one_thread(points)
    names = list(dict.fromkeys(figures["batch"] for figures in panels))
    figure, grid = plt.subplots(1, len(names), figsize=(max(9, 6 * len(names)), 5.6), squeeze=False)
    for axes, batch in zip(grid[0], names, strict=True):
        chosen = [figures for figures in panels if figures["batch"] == batch]
        for place, figures in enumerate(chosen):
            best = best_forms(figures)
            for (peer, precision), form in best.items():
                if peer != OURS and (OURS, precision) in best:
                    offset = {"f32": -0.22, "bf16": 0.0, "int8": 0.22}[precision]
                    over = form["median_us"] / best[OURS, precision]["median_us"]
                    style: dict[str, Any] = {"color": COLOURS[peer], "marker": MARKERS[precision], "edgecolor": "white"}
                    axes.scatter(over, place + offset, s=70, zorder=3, **style)
        axes.axvline(1, color=COLOURS[OURS], linewidth=2)
        axes.text(1.04, -0.6, "fastlm", color=COLOURS[OURS], weight="bold", size=10, va="center")
        axes.set(xscale="log", yticks=range(len(chosen)), yticklabels=[one["workload"] for one in chosen])
        axes.set(ylim=(len(chosen) - 0.5, -0.8), title=f"batch {batch}")
        plain_numbers(axes.xaxis)
        axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axes.grid(axis="y", visible=False)
    present = {peer for figures in panels for peer, _ in best_forms(figures)} - {OURS}
    keys = _keys({peer: ("o", colour) for peer, colour in COLOURS.items() if peer in present})
    keys += _keys({precision: (MARKERS[precision], "#444444") for precision in ("f32", "bf16", "int8")})
    _headline(figure, "Time of a step over that of fastlm of the same precision, one thread")
    figure.tight_layout()
    figure.legend(handles=keys, frameon=False, ncols=5, loc="upper left", bbox_to_anchor=(0, 0.0))
    return figure


def latency(points: dict[str, Figures]) -> Figure:
    """p50, p99 and p99.9 of single tokens."""
    figure, grid = plt.subplots(1, len(points), figsize=(6.4 * len(points), 5.2), squeeze=False)
    for axes, (name, figures) in zip(grid[0], points.items(), strict=True):
        forms = best_forms(figures)
        for place, ((peer, _), form) in enumerate(forms.items()):
            values = [form["percentiles_us"][p] for p in ("50", "99", "99.9")]
            values = values if form["samples"] >= 3000 else values[:2]
            axes.plot([values[0], values[-1]], [place, place], color=COLOURS[peer], linewidth=3, alpha=0.4)
            for value, marker in zip(values, "o|x", strict=False):
                axes.plot(value, place, marker, color=COLOURS[peer], markersize=8, markeredgewidth=2)
        axes.set(xscale="log", yticks=range(len(forms)), yticklabels=[f"{peer} {kind}" for peer, kind in forms])
        axes.invert_yaxis()
        axes.set_title(name)
        for label, (peer, _) in zip(axes.get_yticklabels(), forms, strict=True):
            label.set_weight(_weight(peer))
        axes.grid(axis="y", visible=False)
        plain_numbers(axes.xaxis)
    style = {"color": "#444444", "linestyle": "", "markeredgewidth": 2}
    shown = zip("o|x", ("p50", "p99", "p99.9"), strict=True)
    keys = [mpl.lines.Line2D([], [], marker=marker, label=label, **style) for marker, label in shown]
    _headline(figure, "Time from one token to the next, one thread (µs)")
    figure.tight_layout()
    figure.legend(handles=keys, frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, 0.0))
    return figure


def scaling(points: dict[str, Figures]) -> Figure | None:
    """One panel for each size that was varied: hidden units, vocabulary, batch, threads."""
    panels = [panel for panel in _scaling_panels(points) if len(panel[2]) > 1]
    if not panels:
        return None
    figure, grid = plt.subplots(2, 2, figsize=(14, 11))
    for axes, (title, unit, series) in zip(grid.flat, panels, strict=False):
        _curves(axes, series)
        axes.set(title=title, xlabel=unit, ylabel="µs per token")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.tight_layout(w_pad=4)
    return figure


def _scaling_panels(points: dict[str, Figures]) -> Iterator[tuple[str, str, dict[int, Figures]]]:
    everything = list(points.values())
    for title, letter in (("hidden", "H"), ("vocabulary", "V")):
        chosen = [figures for figures in everything if figures["workload"].startswith(title)]
        fixed = (
            ", ".join(f"{other} {chosen[0]['sizes'][other]}" for other in "VHL" if other != letter) if chosen else ""
        )
        unit = "hidden units" if letter == "H" else "words in the vocabulary"
        yield f"{unit} ({fixed})", unit, {figures["sizes"][letter]: figures for figures in chosen}
    model = [figures for figures in everything if figures["workload"] == "ptb-medium"]
    yield "batch (ptb-medium)", "sequences", {figures["batch"]: figures for figures in model if figures["threads"] == 1}
    yield "threads (ptb-medium)", "threads", {figures["threads"]: figures for figures in model if figures["batch"] == 1}


def _curves(axes: Axes, series: dict[int, Figures]) -> None:
    ends = {}
    for form in dict.fromkeys(form for figures in series.values() for form in figures["forms"]):
        known = {size: figures for size, figures in sorted(series.items()) if form in figures["forms"]}
        facts = next(iter(known.values()))["forms"][form]
        values = [figures["forms"][form]["median_us"] / figures["batch"] for figures in known.values()]
        style = {"color": COLOURS[facts["peer"]], "marker": MARKERS[facts["precision"]]}
        width = 2.6 if facts["peer"] == OURS else 1.6
        axes.plot(list(known), values, LINES[facts["precision"]], linewidth=width, **style)
        ends[f"{facts['peer']} {facts['precision']}"] = (list(known)[-1], values[-1], facts["peer"])
    axes.set(xscale="log", yscale="log", xticks=sorted(series))
    axes.minorticks_off()
    axes.set_xticklabels([f"{size:,}" for size in sorted(series)])
    plain_numbers(axes.yaxis)
    axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    _end_labels(axes, ends)


def _end_labels(axes: Axes, ends: dict[str, tuple[float, float, str]]) -> None:
    """Names at the right ends of curves, moved apart where they would overlap."""
    low, high = np.log(axes.get_ylim())
    least, last = (high - low) / 22, -np.inf
    for name, (x, y, peer) in sorted(ends.items(), key=lambda item: item[1][1]):
        last = max(np.log(y), last + least)
        style = {"color": COLOURS[peer], "size": 9, "weight": _weight(peer)}
        place = {"xytext": (12, np.exp(last)), "textcoords": ("offset points", "data"), "annotation_clip": False}
        axes.annotate(name, (x, y), va="center", **place, **style)


def task(points: dict[str, Figures]) -> Figure:
    """µs per drawn token; every form."""
    return _speeds(points, "A text of 200 drawn tokens (T 0.8, top_p 0.95): µs per token")


def score(points: dict[str, Figures]) -> Figure:
    """µs per scored token; every form."""
    return _speeds(points, "Log-probabilities of many short texts: µs per token")


def _speeds(points: dict[str, Figures], headline: str) -> Figure:
    wide = min(2, len(points))
    tall = -(-len(points) // wide)
    figure, grid = plt.subplots(tall, wide, figsize=(6.6 * wide, 4.6 * tall), squeeze=False)
    for axes, (name, figures) in zip_longest(grid.flat, points.items(), fillvalue=(None, None)):
        axes.set_visible(name is not None)
        if name is not None:
            _speed_panel(axes, figures)
            axes.set_title(name)
    _headline(figure, headline)
    figure.tight_layout()
    return figure


def start(points: dict[str, Figures]) -> Figure:
    """Import, load and first token, stacked."""
    ranked = dict(sorted(points.items(), key=lambda item: sum(started_seconds(item[1]))))
    figure, axes = plt.subplots(figsize=(10, 0.4 * len(points) + 1.4))
    left = np.zeros(len(ranked))
    for part, shade in enumerate((1.0, 0.6, 0.3)):
        widths = np.array([started_seconds(found)[part] for found in ranked.values()])
        colours = [(*mpl.colors.to_rgb(COLOURS[found["peer"]]), shade) for found in ranked.values()]
        axes.barh(range(len(ranked)), widths, left=left, color=colours, height=0.7)
        left += widths
    for place, seconds in enumerate(left):
        axes.text(seconds, place, f"  {1e3 * seconds:,.0f} ms", va="center", size=9.5)
    axes.set(yticks=range(len(ranked)), yticklabels=ranked, xlabel="seconds", xlim=(0, 1.12 * max(left)))
    axes.set_title("From import to the first token, ptb-medium\n(dark: import, middle: load, light: first token)")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    return figure


def memory(points: dict[str, Figures]) -> Figure:
    """Resident megabytes after 100 tokens."""
    ranked = dict(sorted(points.items(), key=lambda item: item[1]["text_mb"]))
    figure, axes = plt.subplots(figsize=(10, 0.4 * len(points) + 1.4))
    megabytes = [found["text_mb"] for found in ranked.values()]
    axes.barh(range(len(ranked)), megabytes, color=[COLOURS[found["peer"]] for found in ranked.values()], height=0.7)
    for place, size in enumerate(megabytes):
        axes.text(size, place, f"  {size:,.0f}", va="center", size=9.5)
    axes.set(yticks=range(len(ranked)), yticklabels=ranked, xlabel="MB")
    axes.set_title("Resident memory after 100 tokens, ptb-medium")
    axes.set_xlim(0, 1.1 * max(megabytes))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    return figure


PLOTS = {
    "decode": {"speed": speed, "roofline": roofline},
    "batch": {"batch": batches},
    "latency": {"latency": latency},
    "scaling": {"scaling": scaling},
    "task": {"task": task},
    "score": {"score": score},
    "start": {"start": start, "memory": memory},
}


# ---- details -----------------------------------------------------------------------------------------------


def _headline(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", weight="bold")


def _title(figures: Figures) -> str:
    sizes = figures["sizes"]
    return f"{figures['workload']}  (V {sizes['V']:,}, H {sizes['H']}, L {sizes['L']})"


def _weight(peer: str) -> str:
    return "bold" if peer == OURS else "normal"


def plain_numbers(axis: Any) -> None:
    axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(mpl.ticker.NullFormatter())


def _peer_legend(axes: Axes, peers: set[str]) -> None:
    """Above the axes, under their title."""
    keys = _keys({peer: ("o", colour) for peer, colour in COLOURS.items() if peer in peers})
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1.0)}
    axes.legend(handles=keys, frameon=False, ncols=len(keys), columnspacing=1, handletextpad=0.2, **place)


def _keys(shown: dict[str, tuple[str, str]]) -> list[Any]:
    """Legend entries: name -> marker and colour."""
    return [
        mpl.lines.Line2D([], [], color="w", markersize=10, marker=marker, markerfacecolor=colour, label=name)
        for name, (marker, colour) in shown.items()
    ]
