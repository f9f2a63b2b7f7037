# SPDX-License-Identifier: Apache-2.0
"""The report's text: Markdown tables from what was measured."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compare import Figures, best_peer, limit_us, ratio
from harness import OURS
from targets import NEAR_THE_LIMIT, verdicts

README_MARKERS = "<!-- benchmark-table -->", "<!-- /benchmark-table -->"

_INTRODUCTIONS = {
    "decode": "Greedy decoding of one sequence, median µs per token. *Of limit*: the larger of the time to read the "
    "weights once and the time for the products at the processor's peak, divided by the engine's time. *Time / "
    "fastlm*: against fastlm of the same precision, the median of the ratios of all rounds.",
    "batch": "Greedy decoding of a batch, median µs per step (all sequences advance one token).",
    "latency": "µs from one token to the next as Python sees them come, of every single token, one sequence, one "
    "thread. fastlm: pieces of `stream`; the others: one call a token. Loops inside a graph hand over all tokens at "
    "once and have no such figure. No p99.9 from fewer than 3000 tokens.",
    "scaling": "How the time of a step grows with each size.",
    "task": "A text of 200 tokens drawn at temperature 0.8 with top_p 0.95 from a prompt of one token, µs per token: "
    "one call of `generate` against the loop that a careful user of each engine writes, with the sampling in numpy.",
    "score": "Log-probabilities of all tokens of many texts of 8 to 48 tokens, µs per token: one call of `score` "
    "against one call for every 32 texts, sorted by length and padded. The limit is a batch's of 32.",
    "start": "A fresh process, files in the page cache, median. Memory is resident megabytes of the whole process, "
    "Python and numpy included, after 100 tokens.",
}


def report_text(report: dict[str, Any], plots: dict[str, list[str]]) -> str:
    """`plots`: section -> file names."""
    writers = {"latency": _latency, "start": _start}
    parts = ["# Benchmark report", _about(report["about"]), "## In short", readme_table(report), _targets(report)]
    for section, points in report["sections"].items():
        parts += [f"## {section.capitalize()}", _INTRODUCTIONS[section]]
        parts += [f"![{name}]({name})" for name in plots.get(section, [])]
        parts += writers.get(section, _points)(points)
    return "\n\n".join(parts) + "\n"


def update_readme(path: Path, report: dict[str, Any]) -> None:
    """Put the short table between the markers."""
    before, after = readme_parts(path)
    path.write_text(f"{before}\n{readme_table(report)}\n{after}")


def readme_parts(path: Path) -> tuple[str, str]:
    """What stands up to the first marker and from the second one on. Exits if the file has none."""
    begin, end = README_MARKERS
    before, found, rest = path.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        sys.exit(f"{path}: expected a line {begin} and, further down, a line {end}")
    return before + begin, end + after


def readme_table(report: dict[str, Any]) -> str:
    """One sequence on one thread: fastlm against the fastest peer, in float32 and in int8."""
    rows = []
    for figures in report["sections"].get("decode", {}).values():
        if figures["threads"] == 1:
            cells = [cell for precision in ("f32", "int8") for cell in _against_best(figures, precision)]
            sizes = figures["sizes"]
            name = f"`{figures['workload']}`: V {sizes['V']:,}, H {sizes['H']}, {_count(sizes['L'], 'layer')}"
            rows.append([name, *cells, _time(figures, f"{OURS} int4")])
    headers = ["workload", "fastlm f32", "best peer", "× faster", "fastlm int8", "best peer", "× faster", "fastlm int4"]
    return _markdown(headers, rows)


def _against_best(figures: Figures, precision: str) -> list[str]:
    ours, peer = f"{OURS} {precision}", best_peer(figures, precision)
    if ours not in figures["forms"] or peer is None:
        return [_time(figures, ours), "", ""]
    theirs = f"{_number(figures['forms'][peer]['median_us'])} ({peer})"
    return [_time(figures, ours), theirs, f"**{ratio(figures, peer, ours):.2f}**"]


def _time(figures: Figures, form: str) -> str:
    return _number(figures["forms"][form]["median_us"]) if form in figures["forms"] else "not available"


def _about(about: dict[str, Any]) -> str:
    caches = ", ".join(f"{name} {size // 1024:,} KB" for name, size in about["caches"].items())
    versions = ", ".join(f"{peer} {version}" for peer, version in sorted(about["versions"].items()))
    return _markdown(
        ["", ""],
        [
            ["date", about["date"]],
            ["commit", about["commit"] or "unknown"],
            ["processor", f"{about['cpu']}, {_count(about['cores'], 'core')}; {caches}"],
            ["system", f"{about['system']}, Python {about['python']}"],
            ["engines", versions],
        ],
    )


def _targets(report: dict[str, Any]) -> str:
    rows = [
        [
            verdict.target.point,
            f"{verdict.target.section} {verdict.target.precision}",
            verdict.against,
            f"{verdict.target.wanted:.2f}",
            f"{verdict.ratio:.2f}",
            _share(verdict.of_limit),
            "met" if verdict.met else "**not met**",
        ]
        for verdict in verdicts(report)
    ]
    text = (
        "## Targets\n\nTime of the best peer, whose weights are as precise or more so, over that of fastlm. A line is "
        f"met by its ratio, or by {NEAR_THE_LIMIT:.0%} of what the hardware allows.\n\n"
    )
    headers = ["point", "fastlm", "against", "target", "reached", "of limit", ""]
    met = sum(row[-1] == "met" for row in rows)
    return text + _markdown(headers, rows) + f"\n\n{met} of {len(rows)} measured lines are met."


def _points(points: dict[str, Figures]) -> Iterable[str]:
    for name, figures in points.items():
        rows = []
        for form, found in sorted(figures["forms"].items(), key=lambda item: item[1]["median_us"]):
            limit, base = limit_us(figures, found["precision"]), f"{OURS} {found['precision']}"
            over = f"{ratio(figures, form, base):.2f}" if base in figures["forms"] else ""
            share = _share(limit / found["median_us"] if limit else None)
            rows.append([_emphasised(form), _number(found["median_us"]), share, over])
        yield f"### {name}\n\n" + _markdown(["", "median µs", "of limit", "time / fastlm"], rows)
        yield _limits(figures) + _absent(figures)


def _limits(figures: Figures) -> str:
    limits = []
    for precision, limit in figures["limits"].items():
        what = "reading" if limit["reading_us"] >= limit["products_us"] else "products"
        limits.append(f"{precision} {_number(max(limit.values()))} µs ({what})")
    return f"The hardware allows {', '.join(limits)}." if limits else "The hardware's limits were not measured."


def _latency(points: dict[str, Figures]) -> Iterable[str]:
    for name, figures in points.items():
        rows = []
        for form, found in sorted(figures["forms"].items(), key=lambda item: item[1]["median_us"]):
            p50, p99, p999 = (_number(found["percentiles_us"][p]) for p in ("50", "99", "99.9"))
            enough = found["samples"] >= 3000
            rows.append([_emphasised(form), p50, p99, p999 if enough else "", f"{found['samples']:,}"])
        yield f"### {name}\n\n" + _markdown(["", "p50", "p99", "p99.9", "tokens"], rows) + _absent(figures)


def _start(points: dict[str, Figures]) -> Iterable[str]:
    headers = ["", "import ms", "load ms", "first token ms", "together ms", "memory MB"]
    rows = []
    for name, found in sorted(points.items(), key=lambda item: sum(started_seconds(item[1]))):
        seconds = started_seconds(found)
        rows.append([_emphasised(name), *(f"{1e3 * one:,.1f}" for one in (*seconds, sum(seconds)))])
        rows[-1].append(f"{found['text_mb']:,.0f}")
    yield _markdown(headers, rows)


def started_seconds(found: Figures) -> tuple[float, float, float]:
    """Of importing, loading, and the first token."""
    return found["import"], found["load"], found["token"]


def _absent(figures: Figures) -> str:
    return "".join(f"\n\nNot available: {reason:.200}" for reason in figures["absent"].values())


def _emphasised(form: str) -> str:
    return f"**{form}**" if form.startswith(OURS) else form


def _markdown(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(us: float) -> str:
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 100 else f"{us:,.0f}"


def _share(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.0%}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number > 1 else "")
