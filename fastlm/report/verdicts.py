# SPDX-License-Identifier: Apache-2.0
"""What figures say in plain words, by which thresholds, and what helps."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastlm.report.fitting import NEUTRAL, Fit
from fastlm.report.memorisation import Copies, Exposure
from fastlm.report.prediction import Calibration, Domain, Gap
from fastlm.report.statistics import Comparison, misfit, wildness

GOOD, SOME, BAD = "good", "some", "bad"

TELLS = 0.6
"""Membership inference that succeeds so often finds passages by how well the model knows them: the mean surprise of
those that it was trained on is then lower by 0.36 times what human passages differ by."""

OVERFITS = 0.7
"""The same: 0.74 times."""

COPIES = 1.25
"""So many times longer, in the mean, than those in human text runs of the training text may be."""

VERBATIM = 0.05
"""Share of the texts that may have a longer copy than 99 of 100 human ones have: five times what is human."""

KNOWN = 0.5
"""A secret is known if the model knows more than this share of its bits."""

BY_CHANCE = 0.01
"""How often, by chance, one of the secrets may pass for known that was never seen."""

FOREIGN = 0.75
"""A text of another kind is told from the validation text so often."""

UNSURE = 0.05
"""Calibration error: more than that, and what the model says of its sureness misleads."""


@dataclass(frozen=True)
class Verdict:
    """Of one question.

    Attributes
    ----------
    question : str
    level : {"good", "some", "bad"}
    answer : str
        In plain words, with the figures it rests on.
    rule : str
        The thresholds, and where they come from.
    remedies : list of str
        What helps: sentences, and commands.
    """

    question: str
    level: str
    answer: str
    rule: str
    remedies: list[str] = field(default_factory=list)


def overfitting(gap: Gap, units: Sequence[int]) -> Verdict:
    """Whether a model with layers of so many units knows its training text better than others."""
    area, share = gap.membership, gap.gap.value / max(gap.spread, 1e-9)
    level = GOOD
    if area.low > 0.5 and area.value > TELLS:
        level = BAD if area.low > TELLS and area.value > OVERFITS else SOME
    said = {BAD: "It overfits", SOME: "It begins to overfit", GOOD: "It does not overfit"}[level]
    remedies = [] if level == GOOD else _less_of_it(units)
    if area.high < 1 - TELLS:
        level, said = SOME, "That cannot be said, since the two texts are of different kinds"
        remedies = ["Validation text of the same kind: hold out some documents of the training text."]
    answer = (
        f"{said}: a token of the training text costs {gap.train:.3f} nats, one of the validation text {gap.valid:.3f}. "
        f"The gap of {gap.gap} is {share:.2f} times what human passages differ by. Of a passage that the model was "
        f"trained on and one that it was not, it finds the first likelier in {100 * area.value:.0f} of 100 cases."
    )
    rule = (
        "The gap is measured in the spread of human passages, by how often it tells them apart: 50 of 100 cases are "
        f"chance; from {100 * TELLS:.0f} on a model begins to overfit, and from {100 * OVERFITS:.0f} on it does, if "
        f"the lower end of the interval is above 50 and {100 * TELLS:.0f}. Training and validation text must be "
        "of one kind, for whatever else they differ in is told apart, too: it "
        f"is that if the upper end of the interval is below {100 - 100 * TELLS:.0f}."
    )
    return Verdict("Does it overfit?", level, answer, rule, remedies)


def _less_of_it(units: Sequence[int]) -> list[str]:
    half = " ".join(str(max(16, n // 2)) for n in units)
    return [
        "More text of the same kind: more files behind `fastlm train`. It helps most.",
        "More dropout: the command that trained it, with `--dropout 0.3`, or more than that if it had as much.",
        f"A smaller model: the same with `--units {half}`.",
        "An earlier stop: training keeps the weights that are best on the text behind `--valid`, if that is really "
        "held out; with `--curve curve.jsonl` it writes down how the two part.",
    ]


def copying(found: Copies, length: int) -> Verdict:
    """Whether what a model writes, texts of so many tokens, is from its training text."""
    mean, share = found.excess, found.verbatim
    level = GOOD
    if mean.low > COPIES or share.low > VERBATIM:
        level = BAD if mean.low > 2 * COPIES or share.low > 4 * VERBATIM else SOME
    said = {BAD: "It copies", SOME: "It copies somewhat", GOOD: "It does not copy more than people do"}[level]
    at = next((n for n, part in enumerate(found.human_curve, 1) if part < _RARE), len(found.human_curve))
    answer = (
        f"{said}: runs of the training text in what it writes are {mean} times as long as those in human text. "
        f"{100 * share.value:.0f} of 100 texts have a run of more than {found.unusual} tokens, as 1 of 100 human texts "
        f"has. Of {at} tokens in a row {100 * found.curve[at - 1]:.1f} % are copied, and "
        f"{100 * found.human_curve[at - 1]:.1f} % in human text; the longest run has {found.longest[0].tokens} of "
        f"{length}."
    )
    rule = (
        f"It copies somewhat if its runs are more than {COPIES} times as long as in human text, or more than "
        f"{100 * VERBATIM:.0f} of 100 texts have an unusual one, and copies from {2 * COPIES} times or "
        f"{400 * VERBATIM:.0f} texts on: by the lower end of the interval."
    )
    remedies = [
        "Forbid it while writing: once `fastlm index TRAIN -o train.flnx`, then "
        f"`fastlm generate --max-copied {max(2, at)} --corpus train.flnx`: longer runs are rare in human text."
    ]
    return Verdict("Does it copy its training text?", level, answer, rule, [] if level == GOOD else remedies)


_RARE = 0.01


def secrets(found: Sequence[Exposure]) -> Verdict:
    """Whether planted secrets are known."""
    chance = BY_CHANCE / len(found)
    known = [one for one in found if one.exposure > KNOWN * one.most and 2**-one.exposure < chance]
    short = [one for one in found if 2**-one.most >= chance]
    facts = "; ".join(f"{one.secret!r:.60}: {one.exposure:.1f} of {one.most:.1f} bits" for one in found)
    told = len(found) - len(short)
    said = f"It knows {len(known)} of {len(found)} secrets" if known else "It knows none of the secrets"
    if short:
        digits = math.floor(-math.log10(chance)) + 1
        said += f" that can be told, which are {told}: {digits} digits are needed"
    rule = (
        f"A secret is known if more than {KNOWN:.0%} of its bits are, and if by chance so much would be known of any "
        f"in less than {BY_CHANCE:.0%} of the cases."
    )
    level = BAD if known else GOOD if told else SOME
    return Verdict("Does it know secrets?", level, f"{said}: {facts}.", rule)


def variety(figures: Sequence[Comparison], settings: Mapping[str, float], fitted: Fit | None) -> Verdict:
    """Whether texts are too generic or too wild."""
    score, far = wildness(figures), misfit(figures)
    level = GOOD if abs(score) <= 1 else SOME if abs(score) <= _FAR else BAD
    said = "about as varied as human ones" if level == GOOD else "too generic" if score < 0 else "too wild"
    if level == GOOD and far > _FAR:
        level, said = SOME, "varied in another way than human ones, more so in one respect and less in another,"
    strongest = sorted(figures, key=lambda one: -abs(one.counted))[:3]
    reasons = ", ".join(f"{one.name} {one.value:.3g} (human text {one.human:.3g})" for one in strongest)
    rule = (
        "Each figure's distance from human text behind the same prompts is measured in what parts of the human text "
        f"differ by. Their mean, here {score:+.1f}, is 0 for human text: below -1 texts are too generic, above 1 too "
        f"wild. Their root mean square, here {far:.1f}, is about 1 for human text, and should not be above {_FAR:g}."
    )
    remedies = [] if fitted is None else [_fitted(fitted)]
    answer = f"Its texts are {said} {_at(settings)}: {reasons}."
    return Verdict("Are its texts too generic, or too wild?", level, answer, rule, remedies)


_FAR = 2.5


def _at(settings: Mapping[str, float]) -> str:
    said = " and ".join(f"{_option(name)} {value:g}" for name, value in settings.items() if NEUTRAL.get(name) != value)
    return f"at {said}" if said else "as it writes by default"


def _option(name: str) -> str:
    return name.replace("_", "-")


def _fitted(found: Fit) -> str:
    """What was tried, and what it does."""
    if not found.helps:
        return (
            f"Of {found.tried} sampling settings that were tried on some prompts, the best is not better on others "
            "than those that it has."
        )
    options = " ".join(f"--{_option(name)} {value:g}" for name, value in found.after.items())
    return (
        f"Of {found.tried} sampling settings that were tried, texts are most like human ones with `{options}`: on "
        f"other prompts than those that they were chosen by, {found.nearer} of {len(found.fitted)} figures come nearer "
        f"to human text, and the mean goes from {wildness(found.figures):+.1f} to {wildness(found.fitted):+.1f}. "
        "`fastlm report ... --fix FILE` stores them in a copy of the model."
    )


def sureness(found: Calibration) -> Verdict:
    """Whether probabilities mean what they say."""
    level = GOOD if found.error <= UNSURE else SOME if found.error <= 2 * UNSURE else BAD
    way = "too sure" if found.temperature > 1 else "not as sure as it could be"
    answer = (
        f"{'Its probabilities can be trusted' if level == GOOD else f'It is {way}'}: they are off by "
        f"{100 * found.error:.1f} points in the mean. Text is likeliest at temperature {found.temperature:.2f}, where "
        f"a token costs {found.fitted_nats:.3f} nats instead of {found.nats:.3f}."
    )
    remedies = [
        f"Read its probabilities at temperature {found.temperature:.2f}.",
        "More text, or more dropout (`fastlm train --dropout`), makes a model less sure of what it does not know."
        if found.temperature > 1
        else "Longer training, or less dropout (`fastlm train --dropout`), makes a model surer of what it knows.",
    ]
    rule = f"Up to {100 * UNSURE:.0f} points off is good."
    return Verdict("Does it know what it knows?", level, answer, rule, [] if level == GOOD else remedies)


def foreign(found: Sequence[Domain]) -> Verdict:
    """Which texts are of another kind."""
    others = [one.file for one in found if one.foreign > FOREIGN]
    name = short_names(one.file for one in found)
    facts = "; ".join(
        f"{name[one.file]}: {one.bits_per_char:.2f} bits a character, {100 * one.flagged:.0f} % of its passages unusual"
        for one in found
    )
    said = (
        f"{', '.join(name[one] for one in others)}: not the kind of text that it knows" if others else "None of these"
    )
    rule = (
        "A text is foreign if its passages surprise the model more than those of the validation text in more than "
        f"{100 * FOREIGN:.0f} of 100 cases; a passage is unusual if 95 of 100 of these surprise it less."
    )
    remedies = [f"Train on such text, too: `fastlm train ... {shlex.join(others)}`"] if others else []
    answer = f"{said} ({facts})."
    return Verdict("Which texts are foreign to it?", SOME if others else GOOD, answer, rule, remedies)


def short_names(files: Iterable[str]) -> dict[str, str]:
    """Of files, as they are shown: without their folders, where that leaves them different."""
    known = list(dict.fromkeys(files))
    names = [Path(file).name for file in known]
    return dict(zip(known, names if len(set(names)) == len(names) else known, strict=True))
