# SPDX-License-Identifier: Apache-2.0
"""What goals reach: verdicts in time, hard goals met, trade-offs found, texts steered.

python benchmarks/goals.py conflicts|hard|pareto|steering [--guide FILE ... --judge FILE] [--count N] [--json FILE]

``conflicts`` times `fastlm.goals.check` on random sets; ``hard`` counts texts that meet random hard goals, or say which
they miss; ``pareto`` compares forked texts with drafts of as many tokens, by hypervolume; ``steering`` writes on from
neutral prompts towards a label, and has another classifier judge. Guides and judge are classifiers with the labels
"negative" and "positive" that were trained on different data: of reviews, two of which are harder to please without
cause than one, and SST-2's, whose manner of writing texts are brought into.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fastlm
from fastlm.goals import (
    Brief,
    ConflictError,
    Diverse,
    Exclude,
    Fudge,
    Include,
    Label,
    Length,
    Likely,
    Search,
    check,
    hypervolume,
)
from task_data import parted

PROMPT = "Once upon a time there was a fox who"
WORDS = ["fox", "river", "old man", "bear", "sea", "house", "winter", "little", "tree", "king", "bread", "to sleep"]
COMMON = ["the", "a", "and", "was", "he", "said", "to", "of", "it", "that"]

SUBJECTS = (
    *("The story", "The book", "This house", "The food", "My day", "Her voice", "The garden", "The old man"),
    *("The journey", "His letter", "The music", "The weather", "That evening", "The dinner", "The party"),
    *("Our neighbour", "The play", "The road", "The visit", "The morning"),
)
VERBS = ("was", "seemed", "is", "had been", "turned out to be", "looked", "would be", "became", "felt", "must be")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--model", default="stories", help="that writes (default: stories)")
    parser.add_argument("--guide", nargs="+", help="classifiers that steer (pareto: the first; steering)")
    parser.add_argument("--judge", help="classifier that judges (steering)")
    parser.add_argument("--count", type=int, help="sets, texts, seeds or prompts (default: as published)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    publish(PARTS[options.part](options), options.json)


def publish(figures: dict[str, Any], path: Path | None) -> None:
    """Prints figures, and writes them to a file if one is wanted."""
    text = json.dumps(figures, indent=1)
    print(text)
    if path is not None:
        path.write_text(text + "\n", encoding="utf-8")


# ---- hard goals ----------------------------------------------------------------------------------------


def some_wishes(r: random.Random) -> list[Any]:
    """Hard goals, most of which can be had."""
    least = r.randint(3, 12)
    found: list[Any] = [Length("words", least, least + r.randint(0, 15))] if r.random() < 0.6 else []
    if r.random() < 0.6:
        found.append(Include(r.sample(WORDS, r.randint(1, 3))))
    if r.random() < 0.5:
        found.append(Exclude(r.sample(COMMON, r.randint(1, 4))))
    if r.random() < 0.3:
        found.append(Length("sentences", 1, r.randint(1, 3)))
    if r.random() < 0.3:
        found.append(Length("characters", 40, r.randint(60, 160)))
    return found or [Include("sea")]


def conflicts(options: argparse.Namespace) -> dict[str, Any]:
    r, seconds, verdicts = random.Random(0), [], []
    for _ in range(options.count or 500):
        goals = some_wishes(r)
        begin = time.perf_counter()
        try:
            verdicts.append(str(check(goals).possible))
        except ConflictError:
            verdicts.append("False")
        seconds.append(time.perf_counter() - begin)
    counts = {name: verdicts.count(name) for name in ("True", "False", "None")}
    return {"sets": len(seconds), "possible": counts, "ms": summary(1e3 * np.array(seconds))}


def hard(options: argparse.Namespace) -> dict[str, Any]:
    r, model = random.Random(1), fastlm.load(options.model)
    met = missed = wrong = impossible = 0
    seconds = []
    while len(seconds) < (options.count or 1000):
        goals = some_wishes(r)
        begin = time.perf_counter()
        try:
            text = model.generate(PROMPT, goals=goals, seed=len(seconds), max_tokens=80, best_of=4)
        except ConflictError:
            impossible += 1
            continue
        seconds.append(time.perf_counter() - begin)
        truth = [goal_met(goal, text.text) for goal in goals]
        wrong += truth != [one.satisfied for one in text.goals]
        met += all(truth)
        missed += not all(truth)
    figures = {"texts": len(seconds), "met": met, "missed and named": missed - wrong, "wrongly named": wrong}
    return figures | {"impossible sets besides": impossible, "seconds": summary(np.array(seconds))}


def goal_met(goal: Any, text: str) -> bool:
    if isinstance(goal, Length):
        length = goal.of(text)
        return length is not None and goal.within(length)
    return bool(goal.met(text))


def summary(values: Any) -> dict[str, float]:
    return {
        "median": round(float(np.median(values)), 3),
        "p99": round(float(np.quantile(values, 0.99)), 3),
        "most": round(float(values.max()), 3),
    }


# ---- soft goals ----------------------------------------------------------------------------------------


def pareto(options: argparse.Namespace) -> dict[str, Any]:
    model, guide = fastlm.load(options.model), fastlm.load(options.guide[0])
    pairs = {
        "likely, positive": [Likely(), Label(guide, "positive")],
        "likely, diverse": [Likely(), Diverse()],
        "negative, diverse": [Label(guide, "negative"), Diverse()],
        "negative, brief": [Label(guide, "negative"), Brief()],
    }
    return {name: volumes(model, goals, options.count or 10) for name, goals in pairs.items()}


def volumes(model: Any, goals: list[Any], seeds: int) -> dict[str, Any]:
    """Of the fronts of both methods, within what either has found: ratios, and the 95 % interval of their mean."""
    ratios = []
    for seed in range(seeds):
        values = [
            model.generate(PROMPT, goals=goals, search=Search(method=method), max_tokens=40, seed=seed).tradeoff.values
            for method in ("fork", "best_of_n")
        ]
        both = np.vstack(values)
        low, spread = both.min(0), np.maximum(np.ptp(both, 0), 1e-9)
        fork, drafts = (hypervolume((one - low) / spread, [-0.01] * len(goals)) for one in values)
        ratios.append(fork / drafts)
    half = 2.262 * np.std(ratios, ddof=1) / math.sqrt(len(ratios))
    mean = float(np.mean(ratios))
    return {"ratio": round(mean, 2), "interval": [round(mean - half, 2), round(mean + half, 2)], "seeds": seeds}


def prompts() -> list[str]:
    """Neutral ones."""
    return [f"{subject} {verb}" for subject in SUBJECTS for verb in VERBS]


LANES, TOKENS = 32, 40


def steering(options: argparse.Namespace) -> dict[str, Any]:
    """Success by the judge, and the perplexity under the model as a multiple of that of texts that are not steered."""
    model, judge, *guides = (fastlm.load(path) for path in (options.model, options.judge, *options.guide))
    given = prompts()[: options.count or 200]
    plain = [model.generate(prompt, max_tokens=TOKENS, seed=n) for n, prompt in enumerate(given)]
    base, found = perplexity(model, given, plain), {}
    for name, write in ways(model, guides):
        rows = []
        for label in ("positive", "negative"):
            texts = [write(prompt, label, n) for n, prompt in enumerate(given)]
            rows.append((success(judge, given, texts, label), perplexity(model, given, texts) / base))
        found[name] = {"success": round(float(np.mean([row[0] for row in rows])), 3)}
        found[name] |= {"perplexity": round(float(np.mean([row[1] for row in rows])), 3)}
        print(name, found[name], flush=True)
    for label in ("positive", "negative"):
        found[f"not steered, {label}"] = {"success": success(judge, given, plain, label), "perplexity": 1.0}
    return {"prompts": len(given), "perplexity of plain texts": round(base, 2), **found}


def ways(model: Any, guides: Sequence[Any]) -> Iterator[tuple[str, Callable[[str, str, int], Any]]]:
    """Methods that write as many tokens each, at strengths of their own."""

    def searched(method: str, weight: float) -> Callable[[str, str, int], Any]:
        def write(prompt: str, label: str, seed: int) -> Any:
            goals = [*(Label(one, label, weight=weight, at_least=0.98) for one in guides), Likely()]
            return model.generate(
                prompt, goals=goals, search=Search(method=method, lanes=LANES), max_tokens=TOKENS, seed=seed
            )

        return write

    def fudge(strength: float) -> Callable[[str, str, int], Any]:
        fudges = {label: Fudge(model, guides[0], label, strength) for label in ("positive", "negative")}

        def write(prompt: str, label: str, seed: int) -> Any:
            return model.generate(prompt, logits_processor=fudges[label], max_tokens=TOKENS, seed=seed)

        return write

    for weight in (2.0, 8.0):
        yield f"fork, weight {weight:g}", searched("fork", weight)
        yield f"best of {LANES}, weight {weight:g}", searched("best_of_n", weight)
    for strength in (2.0, 6.0):
        yield f"FUDGE (of one text), strength {strength:g}", fudge(strength)


def success(judge: Any, given: list[str], texts: list[Any], label: str) -> float:
    judged = judge.classify([parted(prompt + text.text) for prompt, text in zip(given, texts, strict=True)])
    return float(np.mean([one.label == label for one in judged]))


def perplexity(model: Any, given: list[str], texts: list[Any]) -> float:
    nats = tokens = 0.0
    for prompt, text in zip(given, texts, strict=True):
        ids = model._ids(prompt)
        logprobs = model.score([*ids, *text.token_ids]).logprobs[len(ids) :]
        nats, tokens = nats - sum(logprobs), tokens + len(logprobs)
    return math.exp(nats / tokens)


PARTS = {"conflicts": conflicts, "hard": hard, "pareto": pareto, "steering": steering}


if __name__ == "__main__":
    main()
