# SPDX-License-Identifier: Apache-2.0
"""`report`: whether a model says again what it was trained on, or nothing in particular, and what helps."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastlm.evaluation import needed
from fastlm.goals.texts import folded, split_words
from fastlm.model import model_path
from fastlm.novelty import CorpusIndex, build_index
from fastlm.options import RECOMMENDABLE
from fastlm.report import verdicts
from fastlm.report.divergence import features, likeness
from fastlm.report.fitting import NEUTRAL, Fit, fit
from fastlm.report.memorisation import Copies, Exposure, copies, digits, exposure, seen
from fastlm.report.passages import LEAST, Files, Passage, Sizes, decoded, listed, passages, surprises, written
from fastlm.report.prediction import (
    Array,
    Calibration,
    Domain,
    Gap,
    Surprise,
    calibration,
    domains,
    gap,
    most_surprising,
)
from fastlm.report.statistics import Comparison, Human, misfit, wildness
from fastlm.report.verdicts import Verdict

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastlm.model import Model

TEXTS = 150
"""That the model writes, and as many human ones that they are compared with."""

_MOSTLY = 0.9  # of the passages of a training text its index has: where short documents meet it may miss one

PASSAGES = 1200
"""Of the validation text and of the training text, at most."""


@dataclass(frozen=True)
class Report:
    """What was found of a model.

    Attributes
    ----------
    name : str
        The model's.
    settings : dict
        With which texts were written.
    verdicts : list of Verdict
        The answers, by which to begin.
    warnings : list of str
        What makes answers doubtful.
    figures : list of Comparison
        How varied its texts are, beside human ones.
    likeness, human_likeness : float
        How near texts are to human ones behind other prompts as the model sees them, and how near the human ones in
        their place are to these (Pillutla et al. 2021), 0 to 1.
    calibration : Calibration
    domains : list of Domain
    surprising : list of Surprise
    gap : Gap or None
        With the training text.
    copies : Copies or None
    exposures : list of Exposure
    fit : Fit or None
        Sampling settings that were tried.
    curve : list of dict
        Of the training: the gap as it went.
    samples : list of (str, str, str)
        A prompt, what the model writes, and how people went on.
    """

    name: str
    settings: dict[str, float]
    verdicts: list[Verdict]
    warnings: list[str]
    figures: list[Comparison]
    likeness: float
    human_likeness: float
    calibration: Calibration
    domains: list[Domain]
    surprising: list[Surprise]
    gap: Gap | None
    copies: Copies | None
    exposures: list[Exposure]
    fit: Fit | None
    curve: list[dict[str, float]]
    samples: list[tuple[str, str, str]]

    @property
    def wildness(self) -> float:
        """Below -1 texts are too generic, above 1 too wild: see `fastlm.report.statistics.wildness`."""
        return wildness(self.figures)

    @property
    def misfit(self) -> float:
        """How far texts are from human ones, whether more or less varied: see `fastlm.report.statistics.misfit`."""
        return misfit(self.figures)

    def __str__(self) -> str:
        lines = [f"{verdict.question} {verdict.answer}" for verdict in self.verdicts]
        return "\n".join([*(f"Beware: {one}" for one in self.warnings), *lines])

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes ``index.html``, a page that needs no other file, and ``report.json``; returns the page's path. The
        folder is made if it is not there. Needs ``matplotlib``."""
        from fastlm.format import atomic
        from fastlm.report.page import page

        needed("matplotlib", what="the page of a report", extra="report")
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        data = {**asdict(self), "wildness": self.wildness, "misfit": self.misfit}
        figures = json.dumps(data, indent=1, allow_nan=False) + "\n"
        for name, text in (("report.json", figures), ("index.html", page(self))):
            with atomic(target / name) as temporary:
                Path(temporary).write_text(text, "utf-8")
        return target / "index.html"

    def fix(self, source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
        """Stores the sampling settings that were found in a copy of the model's file, which is otherwise the same.

        Raises
        ------
        ValueError
            None were tried.
        ImportError, OSError
            The ``gguf`` package is missing, or a file cannot be read or written.
        """
        from fastlm.format import rewrite

        if self.fit is None:
            raise ValueError("no sampling settings were tried: leave fitted=False out")
        if not self.fit.helps:
            raise ValueError(f"none of {self.fit.tried} sampling settings is better than those that the model has")
        settings = {f"general.sampling.{RECOMMENDABLE[name]}": value for name, value in self.fit.after.items()}
        rewrite(model_path(source), path, settings)


_PACKAGES = (("sklearn", "scikit-learn"), ("scipy", None), ("sacrebleu", None), ("pydivsufsort", None))


def report(
    model: Model,
    valid: Files,
    train: Files | None = None,
    *,
    also: Files = (),
    index: CorpusIndex | None = None,
    canaries: Iterable[str] = (),
    curve: str | os.PathLike[str] | None = None,
    documents: str | None = None,
    temperature: float | None = None,
    fitted: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Whether a model overfits, copies, is too generic or too wild, is sure for good reasons, and knows a kind of text.

    Parameters
    ----------
    model : Model
        A language model.
    valid : path or list of paths
        Human text that the model was not trained on, UTF-8, ``.gz`` allowed: all is compared with it.
    train : path or list of paths, optional
        What it was trained on; without it nothing is said of overfitting and copies.
    also : path or list of paths
        Other kinds of text.
    index : CorpusIndex, optional
        Of the training text (`fastlm.build_index`); it is made otherwise, and thrown away.
    canaries : iterable of str
        Lines that were put into the training text, whose digits are a secret.
    curve : path, optional
        What `fastlm.training.GapCurve` wrote.
    documents : str, optional
        How files are cut; default: as the model's tokenizer does.
    temperature : float, optional
        To write with, and with no other setting; default: all that the model file recommends.
    fitted : bool
        Try sampling settings.
    seed : int
    progress : function, optional
        Is told what is being done.

    Returns
    -------
    Report

    Raises
    ------
    ImportError
        A package is missing: ``pip install 'fastlm[report]'``.
    TypeError, ValueError, OSError
        For a model or texts that cannot be used.
    """
    if isinstance(model, (str, os.PathLike)):
        raise TypeError(f"model={str(model)!r:.60}: expected a model, as fastlm.load gives")
    if model.info["task"] != "lm":
        raise ValueError(f"report: expected a language model, this is a model of task {model.info['task']!r}")
    say = progress or (lambda _: None)
    for package, known_as in _PACKAGES:
        needed(package, known_as, what="a report", extra="report")
    if isinstance(canaries, str):
        raise TypeError(f"canaries={canaries!r:.60}: expected several texts, found one")
    valid, also, secrets = listed(valid), listed(also), list(canaries)
    train = None if train is None else listed(train)
    if again := sorted({*map(os.path.realpath, valid)} & {*map(os.path.realpath, also)}):
        raise ValueError(f"also: {again[0]} is validation text, too: expected texts of another kind")
    if index is not None:
        if train is None:
            raise ValueError("index: it is of the training text: expected that, too (train=, --train)")
        if not isinstance(index, CorpusIndex):
            raise TypeError(f"index={index!r:.60}: expected an index, as fastlm.load_index gives")
        index.check(model)
    for secret in secrets:
        digits(secret)
    went = [] if curve is None else read_curve(curve)
    say("reading the validation text")
    sizes = Sizes.of(model, valid)
    more = [passages(model, [file], sizes, PASSAGES, seed, "also", documents) for file in also]
    held = _Held.of(model, passages(model, valid, sizes, PASSAGES, seed, "valid", documents))
    say("reading the training text")
    trained = None if train is None else _Trained.of(model, train, index, documents, held, sizes, seed)
    held = held if trained is None else held.without(trained.again)
    if len(held.passages) < LEAST:
        raise ValueError(
            f"valid: {len(held.passages)} passages are left that do not stand in the training text: expected {LEAST} "
            "at least"
        )
    words: set[str] = set() if trained is None else trained.words
    settings = dict(model.recommended) if temperature is None else {**NEUTRAL, "temperature": float(temperature)}
    shown, others = held.half(0), held.half(1)
    human = held.human(shown, others, words)
    say("writing")
    texts = written(model, shown.texts, seed, **settings)
    fitting = (held.human(others, shown, words), others.texts), (human, shown.texts)
    kinds = domains(model, held.passages, held.surprises, held.surprises)
    for others_of in more:
        kinds += domains(model, others_of, surprises(model, others_of), held.surprises)
    say("looking at what it is sure of")
    human_states, other_states = features(model, shown.texts), features(model, others.texts)
    found = Report(
        name=str(model.metadata.get("general.name", "a model")),
        settings=settings,
        verdicts=[],
        warnings=[] if trained is None else trained.warnings,
        figures=human.compared([decoded(model, one) for one in texts]),
        likeness=likeness(features(model, texts), other_states, seed),
        human_likeness=likeness(human_states, other_states, seed),
        calibration=calibration(model, shown.texts),
        domains=kinds,
        surprising=most_surprising(model, held.passages, held.surprises),
        gap=None if trained is None else gap(trained.surprises, held.surprises, seed),
        copies=None if trained is None else copies(model, trained.index, texts, shown.texts, held.passages, seed),
        exposures=[exposure(model, secret, seed) for secret in secrets],
        fit=fit(model, *fitting, settings, seed, say) if fitted else None,
        curve=went,
        samples=[
            (model.decode(one.prompt), decoded(model, text), decoded(model, one))
            for one, text in list(zip(shown.texts, texts, strict=True))[:: max(1, len(texts) // 3)][:3]
        ],
    )
    return replace(found, verdicts=_verdicts(model, found, also))


def _verdicts(model: Model, found: Report, also: list[str]) -> list[Verdict]:
    """The answers, in the order in which people would ask."""
    answers = []
    if found.gap is not None and found.copies is not None:
        answers += [
            verdicts.overfitting(found.gap, model.info["units"]),
            verdicts.copying(found.copies, 2 * len(found.copies.curve)),
        ]
    if found.exposures:
        answers.append(verdicts.secrets(found.exposures))
    answers += [verdicts.variety(found.figures, found.settings, found.fit), verdicts.sureness(found.calibration)]
    others = [one for one in found.domains if one.file in also]
    return [*answers, *([verdicts.foreign(others)] if others else [])]


# ---- what is read --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Half:
    """Passages, what they say, and those of them behind whose prompts texts are written."""

    said: list[str]
    texts: list[Passage]
    shown: list[str]


@dataclass(frozen=True)
class _Held:
    """The validation text, and each token's surprise in it."""

    model: Model
    passages: list[Passage]
    surprises: Array

    @classmethod
    def of(cls, model: Model, texts: list[Passage]) -> _Held:
        return cls(model, texts, surprises(model, texts))

    def without(self, these: npt.NDArray[np.bool_]) -> _Held:
        """But for some passages."""
        kept = np.flatnonzero(~these)
        return _Held(self.model, [self.passages[n] for n in kept], self.surprises[kept])

    def half(self, which: int) -> _Half:
        """Every second passage: what is fitted to one half is judged by the other."""
        half = self.passages[which::2]
        count = min(TEXTS, len(half))
        said, places = [decoded(self.model, one) for one in half], [n * len(half) // count for n in range(count)]
        return _Half(said, [half[n] for n in places], [said[n] for n in places])

    @staticmethod
    def human(half: _Half, other: _Half, words: set[str]) -> Human:
        """The figures of a half; the words to be covered are the other's."""
        return Human.of(half.shown, half.said, _words(other.said), words)


def _words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in split_words(folded(text))}


@dataclass(frozen=True)
class _Trained:
    """The training text: its index, words and passages, and each token's surprise in these."""

    index: CorpusIndex
    words: set[str]
    surprises: Array
    warnings: list[str]
    again: npt.NDArray[np.bool_]
    """Which validation passages stand in it."""

    @classmethod
    def of(
        cls,
        model: Model,
        files: Sequence[str],
        index: CorpusIndex | None,
        documents: str | None,
        held: _Held,
        sizes: Sizes,
        seed: int,
    ) -> _Trained:
        """Raises ValueError if most of the validation text stands in it, or the index is of another text."""
        texts = passages(model, files, sizes, PASSAGES, seed, "train", documents)
        if index is None:
            with tempfile.TemporaryDirectory() as folder:
                index = build_index(files, model, Path(folder) / "train.flnx", documents=documents)
        elif seen(index, texts, sizes.same).mean() < _MOSTLY:
            raise ValueError("index: it is of another text than train: expected one of the same files (fastlm index)")
        held_again, warnings = seen(index, held.passages, sizes.same), list[str]()
        again = int(held_again.sum())
        if 2 * again > len(held.passages):
            raise ValueError(
                f"valid: {again} of {len(held.passages)} passages stand in the training text: expected text that the "
                "model was not trained on"
            )
        if again:
            warnings.append(
                f"{again} of {len(held.passages)} passages of the validation text stand in the training text; they "
                "are left out"
            )
        return cls(index, _words(decoded(model, one) for one in texts), surprises(model, texts), warnings, held_again)


def read_curve(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """What `fastlm.training.GapCurve` wrote.

    Raises
    ------
    OSError, ValueError
        The file cannot be read.
    """
    found = []
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            found.append({key: float(row[key]) for key in ("epoch", "train", "valid")})
            if not all(map(math.isfinite, found[-1].values())):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{path}: line {number}: expected epoch, train and valid, as training writes them"
            ) from None
    return found
