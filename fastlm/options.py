# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of arguments and results: what `generate` and `score` take and give back."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, SupportsIndex, TypedDict

# Names that other engines use, so that a caller who types one is told ours.
_ELSEWHERE = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "num_predict": "max_tokens",
    "n_predict": "max_tokens",
    "temp": "temperature",
    "do_sample": "temperature (0 is greedy)",
    "num_return_sequences": "n",
    "random_seed": "seed",
    "eos_token_id": "stop_token_ids",
}

# Names that belong to the API and come with later versions.
_PLANNED = {
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "num_beams",
    "length_penalty",
    "best_of",
    "min_tokens",
    "stop",
    "logit_bias",
    "bad_words",
    "allowed_token_ids",
    "deadline_ms",
    "logits_processor",
}


class Options(TypedDict, total=False):
    """Keyword arguments of `generate` and `stream`, for type checkers; `GenerationOptions` explains them."""

    n: int
    max_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    stop_token_ids: Iterable[int] | None
    logprobs: bool | None
    echo: bool
    seed: int | None


@dataclass(frozen=True)
class GenerationOptions:
    """How to draw text. ``None`` means: as the model file recommends, else neutral.

    The steps, in order: logits are divided by ``temperature``; ``top_k`` keeps the likeliest tokens;
    ``top_p`` keeps of those the fewest whose probabilities, summed from the likeliest, reach it; one of
    what is left is drawn by its probability (Gumbel-max: Gumbel 1954, Maddison et al. 2014).

    Attributes
    ----------
    n : int
        Completions for each prompt, 1 to 65536. They differ by their index, not by the seed.
    max_tokens : int
        Most tokens to draw, at least 0.
    temperature : float
        0 (always the likeliest token) to 1000; neutral is 1.
    top_k : int
        0 keeps all tokens and is neutral.
    top_p : float
        Above 0, at most 1, which is neutral (Holtzman et al. 2020, "nucleus sampling").
    stop_token_ids : iterable of int
        Further tokens that end the text, beside the model's own end of text. They are not part of it.
    logprobs : bool
        Also return each drawn token's natural log-probability (full softmax, temperature 1).
    echo : bool
        Put the prompt in front of the text.
    seed : int
        0 to 2**64 - 1. The same seed and prompt give the same text on every machine; None draws one and
        reports it.
    """

    n: int = 1
    max_tokens: int = 128
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    stop_token_ids: Iterable[int] | None = None
    logprobs: bool | None = None
    echo: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        _whole("n", self.n, 1, 2**16)
        _whole("max_tokens", self.max_tokens, 0, 2**62)
        _real("temperature", self.temperature, 0.0, 1000.0)
        _whole("top_k", self.top_k, 0, 2**31 - 1)
        _real("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise ValueError("top_p=0 would keep no token: expected above 0 and at most 1 (for greedy, temperature=0)")
        _whole("seed", self.seed, 0, 2**64 - 1)
        stop = self.stop_token_ids
        if stop is not None and (isinstance(stop, (str, bytes)) or not isinstance(stop, Iterable)):
            raise TypeError(f"stop_token_ids={self.stop_token_ids!r}: expected token ids, as in [0, 13]")
        for name, allowed in (("logprobs", (bool, type(None))), ("echo", bool)):
            if not isinstance(getattr(self, name), allowed):
                raise TypeError(f"{name}={getattr(self, name)!r}: expected True or False")
        if self.temperature == 0:
            useless = {"n": self.n != 1, "top_k": bool(self.top_k), "top_p": self.top_p not in (None, 1)}
            for name, given in useless.items():
                if given:
                    raise ValueError(
                        f"temperature=0 always takes the likeliest token, so {name}={getattr(self, name)!r} would do "
                        f"nothing: leave it out, or raise the temperature"
                    )

    @classmethod
    def of(cls, options: dict[str, Any]) -> GenerationOptions:
        """Options from keyword arguments.

        Raises
        ------
        TypeError
            For an unknown name (with the right one, if it can be guessed) or a value of the wrong type.
        ValueError
            For a value out of range.
        """
        for name in options:
            if name in _KNOWN:
                continue
            if name in _PLANNED:
                raise TypeError(f"option {name!r} is not in this version; it has {', '.join(_KNOWN)}")
            guess = _ELSEWHERE.get(name) or next(iter(difflib.get_close_matches(name, _KNOWN, 1)), None)
            hint = f"did you mean {guess}?" if guess else f"expected one of {', '.join(_KNOWN)}"
            raise TypeError(f"unknown option {name!r}: {hint}")
        return cls(**options)


_KNOWN = tuple(f.name for f in fields(GenerationOptions))


def _whole(name: str, value: object, least: int, most: int) -> None:
    if type(value) is int and least <= value <= most:  # looking for SupportsIndex takes a microsecond
        return
    if value is None and name not in ("n", "max_tokens"):
        return
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name}={value!r}: expected a whole number, found {type(value).__name__}")
    if not least <= operator.index(value) <= most:
        raise ValueError(f"{name}={value!r}: expected {least} to {most}")


def _real(name: str, value: object, least: float, most: float) -> None:
    if value is None:
        return
    try:
        number = float("x") if isinstance(value, (bool, str)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{name}={value!r}: expected a number, found {type(value).__name__}") from None
    if not least <= number <= most:  # also refuses NaN
        raise ValueError(f"{name}={value!r}: expected {least:g} to {most:g}")


class Usage(TypedDict):
    """Tokens read and drawn."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Timings(TypedDict):
    """Where the time went: seconds in all, and tokens (read and drawn) a second."""

    seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class Completion:
    """A generated text; ``str()`` gives the text.

    Attributes
    ----------
    text : str
        What was written (after the prompt, or with it if ``echo``).
    token_ids : list of int
        The drawn tokens.
    finish_reason : str
        ``"stop"`` (the model ended the text, or a stop token did) or ``"length"`` (``max_tokens``).
    logprobs : list of float or None
        Natural log-probability of each drawn token, if asked for.
    seed : int
        Gives this text again.
    usage : Usage
    timings : Timings
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    logprobs: list[float] | None
    seed: int
    usage: Usage
    timings: Timings

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text.

    Attributes
    ----------
    token_ids : list of int
    logprobs : list of float
        Natural log-probability of each token given all before it.
    characters : int
        Unicode characters of the text.
    """

    token_ids: list[int]
    logprobs: Sequence[float]
    characters: int

    @property
    def total(self) -> float:
        """Natural log-probability of the whole text."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """exp(mean negative log-probability per token); NaN for no tokens, infinite where a float ends."""
        if not self.logprobs:
            return math.nan
        mean = -self.total / len(self.logprobs)
        return math.exp(mean) if mean < 709 else math.inf

    @property
    def bits_per_char(self) -> float:
        """Bits per Unicode character, comparable between tokenizers; NaN for no characters."""
        return -self.total / math.log(2) / self.characters if self.characters else math.nan
