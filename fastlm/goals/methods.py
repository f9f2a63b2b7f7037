# SPDX-License-Identifier: Apache-2.0
"""Published methods that steer each token, as a ``logits_processor`` of `fastlm.Model.generate`."""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlm import _engine
from fastlm.goals.soft import Label, check_beside, check_writes
from fastlm.goals.tradeoffs import Lane
from fastlm.options import check_whole

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastlm.classifier import Classifier
    from fastlm.model import Model

    Logits = npt.NDArray[np.float32]

_KEPT = 256
"""Texts whose states are kept: those that are written side by side."""


class _Followed:
    """What is known of texts that grow by a token at a time; the oldest are forgotten, and begun anew if need be. Any
    number of threads may ask."""

    def __init__(self, begin: Callable[[Sequence[int]], Any], extend: Callable[[Any, int], Any]) -> None:
        self._begin, self._extend = begin, extend
        self._known: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, tokens: Sequence[int]) -> Any:
        key = tuple(tokens)
        with self._lock:
            if key not in self._known:
                before = self._known.get(key[:-1])
                self._known[key] = self._begin(key) if before is None else self._extend(before, key[-1])
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
            return self._known[key]


class Experts:
    """DExperts (Liu et al. 2021): the logits of a model like which texts shall be are added, and those of one
    unlike which they shall be are taken away, both times ``alpha``. The first alone makes a product of experts (Hinton
    2002).

    Parameters
    ----------
    model : Model
        That writes.
    like, unlike : Model, optional
        Of the same vocabulary.
    alpha : float
    """

    def __init__(
        self, model: Model, like: Model | None = None, unlike: Model | None = None, alpha: float = 1.0
    ) -> None:
        if like is None and unlike is None:
            raise ValueError("Experts: expected a model like which texts shall be, or unlike which, or both")
        self._models: list[tuple[Model, float, _Followed]] = []
        for name, other, sign in (("like", like, 1), ("unlike", unlike, -1)):
            if other is not None:
                _check(model, other, f"Experts: {name}")
                self._models.append((other, sign * alpha, _Followed(*_reading(other))))

    def __call__(self, tokens: Sequence[int], logits: Logits) -> Logits:
        for model, weight, followed in self._models:
            with model._decoder() as decoder:
                logits = logits + weight * np.frombuffer(decoder.logits(followed(tokens)), np.float32)
        return logits


def _check(model: Model, other: Any, name: str) -> None:
    check_writes(other, name)
    check_beside(other, model, name)


def _reading(model: Model) -> tuple[Callable[[Sequence[int]], Any], Callable[[Any, int], Any]]:
    """How a model's states are made and go on."""

    def begin(tokens: Sequence[int]) -> _engine.State:
        return fed(_engine.State(model._engine), tokens)

    def fed(state: _engine.State, tokens: Sequence[int]) -> _engine.State:
        with model._decoder() as decoder:
            decoder.feed(state, array("i", tokens))
        return state

    return begin, lambda state, token: fed(state.copy(), [token])


class Specific:
    """Conditional pointwise mutual information (van der Poel et al. 2022): of each token's log-probability,
    ``strength`` times that of a model of generic text is taken away, so that what any text could say gets rarer; only
    where the model is unsure, for where it is sure, what is generic is right.

    Parameters
    ----------
    model : Model
        That writes.
    generic : Model
        Of the same vocabulary; for instance a small one, or one of other text.
    strength : float
    least_entropy : float
        Nats that the model's distribution must have, 0 for always; small models have about 3 in the mean.
    """

    def __init__(self, model: Model, generic: Model, strength: float = 0.3, least_entropy: float = 2.0) -> None:
        for name, value in (("strength", strength), ("least_entropy", least_entropy)):
            if not isinstance(value, (int, float)) or not 0 <= value < np.inf:
                raise ValueError(f"Specific: {name}={value!r:.60}: expected a finite number from 0 on")
        _check(model, generic, "Specific: generic")
        self._experts, self._least = Experts(model, unlike=generic, alpha=strength), least_entropy

    def __call__(self, tokens: Sequence[int], logits: Logits) -> Logits:
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        entropy = -float((shares * np.log(np.maximum(shares, 1e-30))).sum())
        changed = self._experts(tokens, logits)  # in any case, for the generic model reads along
        return logits if entropy < self._least else changed


class Fudge:
    """FUDGE (Yang & Klein 2021): a token's log-probability grows by that of a label, which a classifier gives the text
    with the token, times ``strength``; of the ``top_k`` likeliest tokens, the others may not come.

    Parameters
    ----------
    model : Model
        That writes.
    classifier : Classifier
    label : str
    strength : float
    top_k : int
    """

    def __init__(
        self, model: Model, classifier: Classifier, label: str, strength: float = 1.0, top_k: int = 50
    ) -> None:
        check_whole("Fudge: top_k", top_k, 1)
        self._model, self._goal, self._strength, self._top = model, Label(classifier, label), strength, top_k
        self._followed = _Followed(self._begin, self._extend)

    def _begin(self, tokens: Sequence[int]) -> Lane:
        lane = Lane("", array("i"))
        lane.marks = [self._goal.start(self._model, lane)]
        lane.extend(self._model, tokens, [])
        return lane

    def _extend(self, lane: Lane, token: int) -> Lane:
        found = lane.copy(0)
        found.extend(self._model, [token], [])
        return found

    def __call__(self, tokens: Sequence[int], logits: Logits) -> Logits:
        top = np.argsort(-logits, kind="stable")[: self._top]
        top = top[logits[top] > -np.inf]
        lane: Lane = self._followed(tokens)
        ways = [self._extend(lane, int(token)) for token in top]
        odds = np.array(self._goal.values(ways, [way.marks[0] for way in ways]))
        found = np.full_like(logits, -np.inf)
        found[top] = logits[top] - self._strength * np.log1p(np.exp(-odds))
        return found
