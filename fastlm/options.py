# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of arguments and results: what `generate` and `score` take and give back."""

from __future__ import annotations

import copy
import difflib
import math
import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeAlias, TypedDict

from fastlm import _engine

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fastlm.goals.tradeoffs import Tradeoff
    from fastlm.goals.writing import Outcome
    from fastlm.model import Model
    from fastlm.novelty import CorpusIndex

# Names that other engines use, so that a caller who types one is told ours.
_ELSEWHERE = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "n_predict": "max_tokens",
    "min_new_tokens": "min_tokens",
    "min_length": "min_tokens",
    "temp": "temperature",
    "sampling_temperature": "temperature",
    "sampling_topk": "top_k",
    "sampling_topp": "top_p",
    "typ_p": "typical_p",
    "typical": "typical_p",
    "top_nsigma": "top_n_sigma",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "penalty_window",
    "penalty_last_n": "penalty_window",
    "dry_penalty_last_n": "dry_window",
    "dry_sequence_breaker": "dry_sequence_breakers",
    "mirostat": "mirostat_tau (any value turns Mirostat 2 on)",
    "mirostat_ent": "mirostat_tau",
    "mirostat_lr": "mirostat_eta",
    "bad_words_ids": "bad_words",
    "suppress_tokens": "bad_words",
    "suppress_sequences": "bad_words",
    "force_words_ids": "must_include",
    "sequence_bias": "logit_bias",
    "sampler_order": "samplers",
    "do_sample": "temperature (0 is greedy)",
    "num_return_sequences": "n",
    "num_hypotheses": "n",
    "random_seed": "seed",
    "eos_token_id": "stop_token_ids",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "top_logprobs": "logprobs (a number: so many alternatives)",
    "n_probs": "logprobs (a number: so many alternatives)",
    "max_time": "deadline_ms",
    "repetition_detection": "stop_repeats",
    "beam_size": "num_beams",
    "ignore_eos": "min_tokens",
    "n_cmpl": "n",
    "stopping_criteria": "stop, stop_repeats or cancelled",
    "structured_outputs": "regex, json_schema, grammar or choices",
    "response_format": "json_schema",
    "return_scores": "logprobs",
    "output_scores": "logprobs",
    "t_max_predict_ms": "deadline_ms",
    "stop_words": "stop",
    "force_words": "must_include",
    "end_token": "stop_token_ids",
    "include_prompt_in_result": "echo",
    "unique": "without_replacement",
}

FORMS = ("regex", "json_schema", "grammar", "choices")
"""Options that say what form a text has; only one at a time."""

SAMPLERS = tuple(_engine.CONTROLS)
"""The steps from logits to a token, in their usual order, which is Hugging Face's where it has them."""

_CHANGING = SAMPLERS[:3]
"""Steps that change logits: they look at all tokens, and so come before all that restrict the set."""

_OF_STEP = {
    "logit_bias": ("logit_bias",),
    "penalties": ("repetition_penalty", "frequency_penalty", "presence_penalty"),
    "dry": ("dry_multiplier",),
    "xtc": ("xtc_probability",),
    "mirostat": ("mirostat_tau",),
}
"""Which options turn a step on, if not the one of its name."""

_NEEDED_BY = {
    "penalty_window": ("repetition_penalty", "presence_penalty", "frequency_penalty"),
    "max_copied": ("corpus",),
    "corpus": ("max_copied",),
    "dry_base": ("dry_multiplier",),
    "dry_allowed_length": ("dry_multiplier",),
    "dry_window": ("dry_multiplier",),
    "dry_sequence_breakers": ("dry_multiplier",),
    "xtc_threshold": ("xtc_probability",),
    "mirostat_eta": ("mirostat_tau",),
    "contrastive_alpha": ("contrastive_model",),
    "contrastive_beta": ("contrastive_model",),
    "length_penalty": ("num_beams",),
    "coverage_penalty": ("num_beams",),
    "keep_names": ("num_beams",),
    "mbr": ("num_beams",),
    "early_stopping": ("num_beams",),
    "num_beam_groups": ("num_beams",),
    "diversity_penalty": ("num_beam_groups",),
    "must_include": ("num_beams",),
}
"""Options that do nothing without one of others."""

NEUTRAL: Mapping[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_n_sigma": 0.0,
    "xtc_probability": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "dry_multiplier": 0.0,
    "num_beams": 1,
    "num_beam_groups": 1,
}
"""Values that do nothing."""

RECOMMENDABLE = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
"""Options whose defaults a model file may name, and its keys (``general.sampling.*``)."""


class Options(TypedDict, total=False):
    """Keyword arguments of `generate` and `stream`, for type checkers; `GenerationOptions` explains them."""

    n: int
    best_of: int | None
    max_tokens: int
    min_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    top_n_sigma: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    mirostat_tau: float | None
    mirostat_eta: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    penalty_window: int | None
    no_repeat_ngram_size: int
    max_copied: int | None
    corpus: CorpusIndex | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_window: int | None
    dry_sequence_breakers: Iterable[str] | None
    logit_bias: Mapping[int, float] | None
    bad_words: Iterable[str | Sequence[int]] | None
    allowed_token_ids: Iterable[int] | None
    contrastive_model: Model | None
    contrastive_alpha: float | None
    contrastive_beta: float | None
    samplers: Sequence[str] | None
    stop: str | Iterable[str] | None
    stop_token_ids: Iterable[int] | None
    stop_repeats: int
    deadline_ms: float | None
    cancelled: Callable[[], bool] | None
    logits_processor: Callable[[list[int], Any], Any] | None
    num_beams: int
    length_penalty: float | None
    coverage_penalty: float | None
    keep_names: bool
    mbr: bool
    early_stopping: bool | str | None
    num_beam_groups: int | None
    diversity_penalty: float | None
    must_include: Iterable[str | Sequence[int]] | None
    without_replacement: bool
    regex: str | None
    json_schema: Mapping[str, Any] | str | bool | None
    grammar: str | None
    choices: Sequence[str] | None
    token_healing: bool
    attention: bool
    replace_unknown: bool
    logprobs: bool | int | None
    prompt_logprobs: bool
    echo: bool
    seed: int | None


@dataclass(frozen=True)
class GenerationOptions:
    """How to draw text. ``None`` means: as the model file recommends, else neutral. docs/options.md has the definitions
    side by side with the names of other engines.

    A token is drawn in these steps, whose order `samplers` can change. Tokens that may not come (``bad_words``,
    ``allowed_token_ids``, ``no_repeat_ngram_size``, ``max_copied``, stop tokens before ``min_tokens``) are taken out.
    Then logits are changed: by contrastive decoding, ``logit_bias``, the penalties, DRY. Then they are divided by
    ``temperature``, and the set of tokens is restricted by ``top_n_sigma``, ``top_k``, ``top_p``, ``min_p``,
    ``typical_p``, ``epsilon_cutoff``, ``eta_cutoff``, XTC and Mirostat, each looking at the probabilities of what the
    steps before have left. One of the tokens that remain is drawn by its probability (Gumbel-max: Gumbel 1954, Maddison
    et al. 2014). Equal logits rank by rising id.

    Attributes
    ----------
    n : int
        Completions for each prompt, 1 to 65536. They differ by their index, not by the seed.
    best_of : int
        Draw so many, at least n, and give the n whose mean log-probability per token is highest (that of the model
        itself, before any control), the best first.
    max_tokens : int
        Most tokens to draw, at least 0.
    min_tokens : int
        No stop token (the model's end of text, ``stop_token_ids``) comes before so many.
    temperature : float
        0 (always the likeliest token that may come) to 1000; neutral is 1.
    top_k : int
        Keep the k likeliest; 0 keeps all tokens and is neutral.
    top_p : float
        Keep the fewest likeliest tokens whose probabilities reach it; above 0, at most 1, which is neutral (Holtzman
        et al. 2020, "nucleus sampling").
    min_p : float
        Keep tokens with at least so much of the likeliest one's probability; 0, which is neutral, to 1 (Nguyen et al.
        2024).
    typical_p : float
        Keep the fewest tokens whose surprise is nearest to the entropy and whose probabilities reach it; above 0, at
        most 1, which is neutral (Meister et al. 2022, "locally typical sampling").
    epsilon_cutoff, eta_cutoff : float
        Keep tokens whose probability reaches epsilon, or min(eta, sqrt(eta) * exp(-entropy)), and the likeliest in
        any case; 0, which is neutral, to 1 (Hewitt et al. 2022).
    top_n_sigma : float
        Keep tokens whose logit is at most so many standard deviations of all logits below the largest; 0 keeps all
        and is neutral (Tang et al. 2024; the deviation as in llama.cpp: of all finite logits, divided by their
        number).
    xtc_probability, xtc_threshold : float
        With this probability at each token, take out all tokens that reach the threshold (0 to 0.5; default 0.1) but
        the least likely of them ("exclude top choices", text-generation-webui pull request 6335; no token is exempt,
        as in llama.cpp). Has random numbers of its own.
    mirostat_tau, mirostat_eta : float
        Mirostat 2 in llama.cpp's form (Basu et al. 2020): tokens more surprising than mu bits go; mu starts at 2 tau
        and moves by eta (default 0.1) times what the surprise of the token drawn misses tau by. Instead of all other
        restrictions.
    repetition_penalty : float
        Divides positive and multiplies negative logits of all tokens read or written; above 0, neutral is 1 (Keskar
        et al. 2019).
    frequency_penalty, presence_penalty : float
        Taken from the logit of a token for each time, or once if, it was written; -2 to 2, neutral is 0 (OpenAI).
    penalty_window : int
        The last so many tokens, the prompt's among them, count for the three penalties; 0, the default: all.
    no_repeat_ngram_size : int
        No so many tokens in a row come twice, the prompt's among them; 0: they may.
    max_copied, corpus : int, fastlm.CorpusIndex
        Of the tokens that are written, no more than so many in a row stand in the corpus, exactly; 1 to 1000.
        `fastlm.load_index` gives an index that `fastlm.build_index` has made.
    dry_multiplier, dry_base, dry_allowed_length, dry_window, dry_sequence_breakers :
        DRY ("don't repeat yourself", text-generation-webui pull request 5677): a token that would prolong a
        repetition of L tokens, L at least the allowed length (2), loses multiplier * base ** (L - allowed length)
        (base 1.75; L counts up to 50). Nothing is repeated across a token that contains one of the breakers
        (``"\\n"``, ``":"``, ``'"'``, ``"*"``). The window (0: all) is in tokens, the prompt's among them.
    logit_bias : mapping of token id to float
        Added to logits; -100 to 100 (OpenAI).
    bad_words : iterable of str or sequence of int
        Never written: a text also after a space (vLLM), in the tokens that the tokenizer makes of it; or token ids.
    allowed_token_ids : iterable of int
        Only these may come. The end of text is not among them by itself.
    contrastive_model, contrastive_alpha, contrastive_beta : Model, float, float
        Contrastive decoding (Li et al. 2022, in the form of O'Brien & Lewis 2023): (1 + beta) times the logit less
        beta (default 0.5) times the logit of a weaker model with the same tokens, among tokens that have at least
        alpha (0.1) of the likeliest one's probability.
    samplers : sequence of str
        The order of the steps, by the names in `fastlm.options.SAMPLERS`; each that an option turns on must be there.
        Those that change logits come first.
    stop : str or iterable of str
        Texts that end the text where they first appear, across tokens too. They are not part of it.
    stop_token_ids : iterable of int
        Further tokens that end the text, beside the model's own end of text. They are not part of it.
    stop_repeats : int
        Ends the text (``finish_reason="repetition"``) when a pattern of 1 to 64 tokens was written so often in a row,
        2 at least; 0: never.
    deadline_ms : float
        Milliseconds from the call after which no further token is begun (``finish_reason="deadline"``);
        ``prompt_logprobs`` are computed all the same.
    cancelled : callable
        Called without arguments now and then; once it is true, the text ends (``finish_reason="cancelled"``). For
        instance the ``is_set`` of a `threading.Event`.
    logits_processor : callable
        Called at each token with all token ids so far (the prompt's and those written: list of int) and the logits
        (float32 array of V, which may be changed in place); gives logits, or None for those. Before all other steps.
    num_beams : int
        Above 1: nothing is drawn, but a beam search of so many texts side by side gives the n (at most that many)
        that it finds likeliest, the best first; see `fastlm.search`. Controls that change logits act on
        log-probabilities. A text that can be spelled or can end in several ways, or that several groups find, may
        come several times. Not together with ``stop``, ``stop_repeats``, ``logits_processor``, ``token_healing`` and
        alternatives (a number of ``logprobs``).
    length_penalty : float
        A text's score is its log-probability (with its end) by its number of tokens to this power; default 1.
    coverage_penalty : float
        Of a model with a source, 0 to 100: the texts that a beam search has found are put in order once more, with this
        times the sum, over the source's places, of log(min(1, how much the text looked at it in all)) added to each
        score (Wu et al. 2016, "Google's Neural Machine Translation System").
    keep_names : bool
        Of a model with a source: of the texts that a beam search has found those come first that have most of its
        names, versions and commands: words with a digit, with one of ``_/+@``, with a capital behind the first letter,
        or with one at the beginning though they begin no sentence. More beams give more to choose from.
    mbr : bool
        Of the texts that a beam search has found those come first that are most like all of them, by the F1 of their
        words, each weighing by e to its score (minimum Bayes risk: Kumar & Byrne 2004); with ``keep_names`` among those
        with as many names. The more beams there are, the more it knows: 16 to 32. A word is a run of letters and
        digits: where a script has no spaces, the likeliest text mostly stays the first.
    early_stopping : bool or "never"
        When a beam search ends: with so many whole texts as beams (True), when an unfinished one is not better as it
        is (False, the default), or when it cannot become better ("never").
    num_beam_groups, diversity_penalty : int, float
        Diverse beams (Vijayakumar et al. 2016): groups choose in turn, and a token loses the penalty for each beam of
        the groups before that chose it at this step.
    must_include : iterable of str or sequence of int
        Texts (perhaps inside of longer words) or token ids that each text of a beam search must include (constrained
        beam search with dynamic allocation, Post & Vilar 2018); ``Completion.missing`` names what it could not.
    without_replacement : bool
        The n texts are all different: each is drawn by its probability among those not drawn yet (stochastic beam
        search, Kool et al. 2019). ``Completion.score`` is the log-probability with which it is drawn (with the token
        that ended it, if there are several such). Not together
        with ``num_beams`` and what that excludes, ``best_of``, ``mirostat_tau``, ``contrastive_model``.
    regex, json_schema, grammar, choices : str, mapping or JSON, str, sequence of str
        The whole text matches a regular expression (Rust's syntax), is JSON of this schema, is derived from a Lark
        grammar, or is one of several (with the ``llguidance`` package). One of them at a time. The text ends when
        nothing more may come, or where it may end and the model says so; if it ends otherwise (``max_tokens``),
        ``Completion.satisfied`` is False.
    token_healing : bool
        Where the prompt ends inside what a token could write whole, its last tokens (4 at most) are written anew,
        with what comes. The text is what follows the prompt all the same.
    attention : bool
        Of a model with a source: also return where it looked for each token (`Completion.attention`).
    replace_unknown : bool
        Of a model with a source: the source's word that was looked at most stands where the model wrote its unknown
        token (Luong et al. 2015).
    logprobs : bool or int
        Also return each drawn token's natural log-probability (full softmax, temperature 1, of the model itself
        before any control); a number: with so many likeliest tokens at each place.
    prompt_logprobs : bool
        Also return that of each of the prompt's tokens, given all before it.
    echo : bool
        Put the prompt in front of the text.
    seed : int
        0 to 2**64 - 1. The same seed and prompt give the same text on every machine; None draws one and
        reports it.
    """

    n: int = 1
    best_of: int | None = None
    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    penalty_window: int | None = None
    no_repeat_ngram_size: int = 0
    max_copied: int | None = None
    corpus: CorpusIndex | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_window: int | None = None
    dry_sequence_breakers: Iterable[str] | None = None
    logit_bias: Mapping[int, float] | None = None
    bad_words: Iterable[str | Sequence[int]] | None = None
    allowed_token_ids: Iterable[int] | None = None
    contrastive_model: Model | None = None
    contrastive_alpha: float | None = None
    contrastive_beta: float | None = None
    samplers: Sequence[str] | None = None
    stop: str | Iterable[str] | None = None
    stop_token_ids: Iterable[int] | None = None
    stop_repeats: int = 0
    deadline_ms: float | None = None
    cancelled: Callable[[], bool] | None = None
    logits_processor: Callable[[list[int], Any], Any] | None = None
    num_beams: int = 1
    length_penalty: float | None = None
    coverage_penalty: float | None = None
    keep_names: bool = False
    mbr: bool = False
    early_stopping: bool | str | None = None
    num_beam_groups: int | None = None
    diversity_penalty: float | None = None
    must_include: Iterable[str | Sequence[int]] | None = None
    without_replacement: bool = False
    regex: str | None = None
    json_schema: Mapping[str, Any] | str | bool | None = None
    grammar: str | None = None
    choices: Sequence[str] | None = None
    token_healing: bool = False
    attention: bool = False
    replace_unknown: bool = False
    logprobs: bool | int | None = None
    prompt_logprobs: bool = False
    echo: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not _DEFAULTS[name] and (used := check(name, value)) is not value:
                object.__setattr__(self, name, used)  # numpy's numbers as Python's, lists as copies
        given = self._given()
        if not given:
            return
        self._check_companions(given)
        self._check_greedy(given)
        self._check_beams(given)
        self._check_without_replacement(given)
        for name in FORMS if self.token_healing else ():
            if name in given:
                raise ValueError(f"token_healing and {name} both say what the first tokens are: leave one out")
        self._check_samplers(given)
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}")
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of={self.best_of} is less than n={self.n}: so many cannot be chosen from")
        if self.stop_repeats == 1:
            raise ValueError("stop_repeats=1 would end the text at its first token: expected 2 or more, or 0 for never")

    def _given(self) -> dict[str, Any]:
        """Options with a value that is not their default."""
        found = {name: getattr(self, name) for name in _DEFAULTS}
        return {name: value for name, value in found.items() if value is not _DEFAULTS[name]}

    def given(self, *names: str) -> list[str]:
        """Those of these options that ask for something."""
        return [name for name in names if _asks(name, getattr(self, name))]

    def _check_companions(self, given: Mapping[str, Any]) -> None:
        for name, others in _NEEDED_BY.items():
            if given.get(name) is not None and not any(_acts(other, getattr(self, other)) for other in others):
                raise ValueError(f"{name}={given[name]!r} does nothing without {' or '.join(others)}")
        if self.mirostat_tau is not None:
            for name in _RESTRICTING:
                if _acts(name, getattr(self, name)):
                    raise ValueError(f"mirostat_tau decides how many tokens are kept, so {name} cannot: leave one out")
        if self.logits_processor is not None and self.contrastive_model is not None:
            raise ValueError("contrastive_model together with logits_processor is not supported: leave one out")

    def _check_greedy(self, given: Mapping[str, Any]) -> None:
        if self.temperature != 0 or self.num_beams > 1:
            return
        for name in ("n", "best_of", *_RESTRICTING, "mirostat_tau", "samplers"):
            if name in given and (name in ("n", "best_of") or _acts(name, given[name])):
                raise ValueError(
                    f"temperature=0 always takes the likeliest token, so {name}={given[name]!r} would do "
                    f"nothing: leave it out, or raise the temperature"
                )

    def _check_beams(self, given: Mapping[str, Any]) -> None:
        if self.num_beams == 1:
            return
        self._check_alternatives(f"num_beams={self.num_beams}")
        for name in (*DRAWING, *WITHOUT_BEAMS):
            if acts(name, given.get(name)):
                draws = name in DRAWING or name == "seed"
                why = f"draws nothing, so there is no {name}" if draws else f"together with {name} is not supported"
                raise ValueError(f"num_beams={self.num_beams} {why}: leave one out")
        if self.n > self.num_beams:
            raise ValueError(f"n={self.n}: a search of num_beams={self.num_beams} finds no more than these")
        if self.num_beams % (groups := self.num_beam_groups or 1):
            raise ValueError(f"num_beams={self.num_beams} cannot be shared out to num_beam_groups={groups}")
        if groups > 1 and not self.diversity_penalty:
            raise ValueError(f"num_beam_groups={groups} without a diversity_penalty would all find the same")

    def _check_alternatives(self, what: str) -> None:
        if self.logprobs and self.logprobs is not True:
            raise ValueError(
                f"{what} together with logprobs={self.logprobs} is not supported: leave one out, or say True"
            )

    def _check_without_replacement(self, given: Mapping[str, Any]) -> None:
        if not self.without_replacement:
            return
        if self.n == 1:
            raise ValueError("without_replacement does nothing without n: it makes n texts differ")
        self._check_alternatives("without_replacement")
        if self.n > 64:
            raise ValueError(f"n={self.n}: without_replacement draws 2 to 64")
        for name in ("num_beams", "mirostat_tau", "contrastive_model", *WITHOUT_BEAMS[:-1]):
            if acts(name, given.get(name)):
                raise ValueError(f"without_replacement together with {name} is not supported: leave one out")

    def _check_samplers(self, given: Mapping[str, Any]) -> None:
        if self.samplers is None:
            return
        for name in _acting(SAMPLERS, given):
            if name not in self.samplers and name != "temperature":
                raise ValueError(f"samplers={list(self.samplers)!r} leaves out {name!r}, which is asked for")

    def steps(self, settled: Mapping[str, Any]) -> list[str]:
        """The steps that act, in order, given the options' final values."""
        return _acting(SAMPLERS if self.samplers is None else self.samplers, settled)

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
            if name in _DEFAULTS:
                continue
            if name in ("goals", "search"):
                raise TypeError(f"{name}: only generate has it, and for all prompts of a call")
            guess = _ELSEWHERE.get(name) or next(iter(difflib.get_close_matches(name, _DEFAULTS, 1)), None)
            hint = f"did you mean {guess}?" if guess else f"expected one of {', '.join(_DEFAULTS)}"
            raise TypeError(f"unknown option {name!r}: {hint}")
        return cls(**options)


_DEFAULTS = {f.name: f.default for f in fields(GenerationOptions)}


def _acts(name: str, value: object) -> bool:
    return value is not None and value != NEUTRAL.get(name)


def acts(name: str, value: Any) -> bool:
    """Whether an option with this value does anything."""
    return _asks(name, value) and _acts(name, value)


def _asks(name: str, value: Any) -> bool:
    """Whether an option's value is more than to say that nothing is wanted."""
    if value is None or value is False or (isinstance(value, Sized) and len(value) == 0):
        return False
    return name not in _DEFAULTS or isinstance(value, Sized) or bool(value != _DEFAULTS[name])


def _acting(steps: Sequence[str], settled: Mapping[str, Any]) -> list[str]:
    return [step for step in steps if any(_acts(name, settled.get(name)) for name in _OF_STEP.get(step, (step,)))]


_RESTRICTING = (
    "top_n_sigma",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "xtc_probability",
)

WITHOUT_BEAMS = ("best_of", "stop", "stop_repeats", "logits_processor", "token_healing", "seed")

DRAWING = (*_RESTRICTING, "temperature", "mirostat_tau", "samplers", "contrastive_model")


# ---- checks of single values ---------------------------------------------------------------------------

# Each gives the value as it is used; TypeError or ValueError if the option of this name cannot have it.

_Check: TypeAlias = "Callable[[str, Any], Any]"


def _whole(least: int, most: int) -> _Check:
    def check(name: str, value: Any) -> Any:
        if type(value) is int and least <= value <= most:  # looking for SupportsIndex takes a microsecond
            return value
        if value is None and _DEFAULTS.get(name, 0) is None:
            return None
        if isinstance(value, bool) or not isinstance(value, SupportsIndex):
            raise TypeError(f"{name}={value!r}: expected a whole number, found {type(value).__name__}")
        number = operator.index(value)
        if not least <= number <= most:
            raise ValueError(f"{name}={value!r}: expected {least} to {most}")
        return number

    return check


def _real(least: float, most: float, why_not_least: str | None = None) -> _Check:
    """why_not_least: the least value itself is refused, and why."""

    def check(name: str, value: Any) -> Any:
        if value is None:
            return None
        if type(value) is not float:
            value = _float(name, value)
        number: float = value
        if number == least and why_not_least is not None:
            raise ValueError(f"{name}={value!r}: expected above {least:g} and at most {most:g}; {why_not_least}")
        if not least <= number <= most:  # also refuses NaN
            wanted = f"{least:g} to" if why_not_least is None else f"above {least:g} and at most"
            raise ValueError(f"{name}={value!r}: expected {wanted} {most:g}")
        return number

    return check


def _float(name: str, value: Any) -> float:
    try:
        if not isinstance(value, (bool, str, bytes, bytearray)):
            return float(value)
    except (TypeError, ValueError):
        pass
    except OverflowError:
        return math.inf
    raise TypeError(f"{name}={value!r:.60}: expected a number, found {type(value).__name__}")


def _truth(name: str, value: Any) -> Any:
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: expected True or False")
    return value


def _truth_or_count(name: str, value: Any) -> Any:
    return value if value is None or isinstance(value, bool) else _whole(0, 2**31 - 1)(name, value)


def _callable(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise TypeError(f"{name}={value!r:.60}: expected something to call, found {type(value).__name__}")
    return value


def _lasting(name: str, value: Any) -> Any:
    """A copy that nobody else changes, of what may be an iterator, a view or an array."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray, memoryview, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"{name}={value!r:.60}: expected a list, found {type(value).__name__}")
    try:
        found = [*value]
    except TypeError:  # an array without dimensions
        raise TypeError(f"{name}={value!r:.60}: expected a list, found one {type(value).__name__}") from None
    plain = [one.tolist() if hasattr(one, "tolist") else one for one in found]
    return [[*one] if isinstance(one, (list, tuple)) else one for one in plain]


def _check_unicode(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}={value!r:.60}: not valid Unicode") from None


def _ids(name: str, value: Any) -> Any:
    if value is not None and (isinstance(value, str) or not isinstance(value, Iterable)):
        raise TypeError(f"{name}={value!r:.60}: expected token ids, as in [0, 13]")
    return _lasting(name, value)


def _stopping(name: str, value: Any) -> Any:
    if value is not None and value is not True and value is not False and value != "never":
        raise ValueError(f'{name}={value!r:.60}: expected True, False or "never"')
    return value


def _text(name: str, value: Any) -> Any:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name}={value!r:.60}: expected text, found {type(value).__name__}")
    if value is not None:
        _check_unicode(name, value)
    return value


def _choices(name: str, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str):
        raise TypeError(f"{name}={value!r:.60}: expected several texts in a list")
    value = _lasting(name, value)
    for choice in value:
        if not isinstance(choice, str) or not choice:
            raise ValueError(f"{name}: expected texts, found {choice!r:.60}")
        _check_unicode(name, choice)
    if not value:
        raise ValueError(f"{name}: an empty list leaves nothing to write; leave it out to allow all")
    return value


def _biases(name: str, value: Any) -> Any:
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{name}={value!r:.60}: expected a mapping of token ids to numbers, as in {{13: -100}}")
    return value if value is None else dict(value)


def _order(name: str, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name}={value!r:.60}: expected names of steps in a list, as in {list(SAMPLERS[3:6])}")
    value = _lasting(name, value)
    for step in value:
        if step not in SAMPLERS:
            guess = next(iter(difflib.get_close_matches(str(step), SAMPLERS, 1)), None)
            hint = f"did you mean {guess!r}?" if guess else f"expected some of {', '.join(SAMPLERS)}"
            raise ValueError(f"{name}: unknown step {step!r}: {hint}")
    if len(set(value)) != len(value):
        raise ValueError(f"{name}={list(value)!r}: a step is there twice")
    firsts = [step for step in value if step in _CHANGING]
    if list(value[: len(firsts)]) != firsts:
        raise ValueError(
            f"{name}={list(value)!r}: {', '.join(_CHANGING)} change logits of all tokens, so they come first"
        )
    if "mirostat" in value and value[-1] != "mirostat":
        raise ValueError(f"{name}={list(value)!r}: mirostat looks at what is drawn from, so it comes last")
    return value


_CHECKS: Mapping[str, _Check] = {
    "n": _whole(1, 2**16),
    "best_of": _whole(1, 2**16),
    "max_tokens": _whole(0, 2**62),
    "min_tokens": _whole(0, 2**62),
    "temperature": _real(0.0, 1000.0),
    "top_k": _whole(0, 2**31 - 1),
    "top_p": _real(0.0, 1.0, "0 would keep no token (for greedy, temperature=0)"),
    "min_p": _real(0.0, 1.0),
    "typical_p": _real(0.0, 1.0, "0 would keep no token"),
    "epsilon_cutoff": _real(0.0, 1.0),
    "eta_cutoff": _real(0.0, 1.0),
    "top_n_sigma": _real(0.0, 1000.0),
    "xtc_probability": _real(0.0, 1.0),
    "xtc_threshold": _real(0.0, 0.5, "at 0 only the least likely of all tokens would be left"),
    "mirostat_tau": _real(0.0, 100.0, "it is the surprise to aim at, in bits"),
    "mirostat_eta": _real(0.0, 10.0),
    "repetition_penalty": _real(0.0, 100.0, "1 is neutral"),
    "presence_penalty": _real(-2.0, 2.0),
    "frequency_penalty": _real(-2.0, 2.0),
    "penalty_window": _whole(0, 2**31 - 1),
    "no_repeat_ngram_size": _whole(0, 2**31 - 1),
    "max_copied": _whole(1, 1000),
    "dry_multiplier": _real(0.0, 100.0),
    "dry_base": _real(1.0, 100.0),
    "dry_allowed_length": _whole(1, 50),
    "dry_window": _whole(0, 2**31 - 1),
    "dry_sequence_breakers": _lasting,
    "logit_bias": _biases,
    "bad_words": _lasting,
    "allowed_token_ids": _ids,
    "contrastive_alpha": _real(0.0, 1.0, "0 would leave tokens that the stronger model rules out"),
    "contrastive_beta": _real(0.0, 10.0),
    "samplers": _order,
    "stop": _lasting,
    "stop_token_ids": _ids,
    "stop_repeats": _whole(0, 2**31 - 1),
    "deadline_ms": _real(0.0, 1e9),
    "cancelled": _callable,
    "logits_processor": _callable,
    "num_beams": _whole(1, 64),
    "length_penalty": _real(-10.0, 10.0),
    "coverage_penalty": _real(0.0, 100.0),
    "keep_names": _truth,
    "mbr": _truth,
    "early_stopping": _stopping,
    "num_beam_groups": _whole(1, 64),
    "diversity_penalty": _real(0.0, 100.0),
    "must_include": _lasting,
    "without_replacement": _truth,
    "regex": _text,
    "json_schema": lambda name, value: copy.deepcopy(value),  # read by fastlm.constraints
    "grammar": _text,
    "choices": _choices,
    "logprobs": _truth_or_count,
    "token_healing": _truth,
    "attention": _truth,
    "replace_unknown": _truth,
    "prompt_logprobs": _truth,
    "echo": _truth,
    "seed": _whole(0, 2**64 - 1),
}


def check_option(name: str, value: Any, called: str | None = None) -> Any:
    """The value as it is used; raises TypeError or ValueError if the option cannot have it. called: how the caller
    calls it."""
    return _CHECKS[name](called or name, value)


def check_whole(called: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number within bounds; raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        wanted = f"from {least:,} on" if most is None else f"from {least:,} to {most:,}"
        raise ValueError(f"{called}={value!r:.60}: expected a whole number {wanted}")
    return value


# ---- results -------------------------------------------------------------------------------------------


class Usage(TypedDict):
    """Tokens read and drawn."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


def used(prompt_tokens: int, completion_tokens: int) -> Usage:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


class Timings(TypedDict):
    """Where the time of a call went: seconds in all, and tokens (read and drawn) a second. ``screened_tokens`` is how
    many were drawn with a screen of the output matrix (docs/screening.md), and ``rows_finished`` how many of the
    matrix's rows it could not rule out, over all of them."""

    seconds: float
    tokens_per_second: float
    screened_tokens: int
    rows_finished: int


def timed(begin: float, tokens: int, jobs: Iterable[_engine.Job] = ()) -> Timings:
    """Of work on so many tokens that began at this value of `time.perf_counter`, and of those who wrote."""
    seconds, jobs = time.perf_counter() - begin, list(jobs)
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / max(seconds, 1e-9),
        "screened_tokens": sum(job.screened for job in jobs),
        "rows_finished": sum(job.finished for job in jobs),
    }


@dataclass(frozen=True)
class Completion:
    """A generated text; ``str()`` gives the text.

    Attributes
    ----------
    text : str
        What was written (after the prompt, or with it if ``echo``).
    token_ids : list of int
        The drawn tokens, those of a text in ``stop`` among them.
    finish_reason : str
        ``"stop"`` (the model ended the text, or a stop token or text did), ``"length"`` (``max_tokens``),
        ``"repetition"`` (``stop_repeats``), ``"deadline"``, ``"cancelled"``, or ``"unsatisfiable"`` (no token was
        left that may come).
    stop_reason : int, str or None
        The token or the text in ``stop`` that ended the text.
    logprobs : list of float or None
        Natural log-probability of each drawn token, if asked for.
    top_logprobs : list of dict or None
        For each place the likeliest tokens (ids) with their log-probabilities, the likeliest first, if asked for.
    prompt_logprobs : list of float or None
        Natural log-probability of each of the prompt's tokens, if asked for; None for a start of text, which is given.
    score : float or None
        Of a search: by which texts are ranked, unless ``mbr`` or ``keep_names`` put them in another order.
    attention : float32 [tokens, source tokens] or None
        Of a sequence-to-sequence model: where it looked before it wrote each token, if asked for. A row adds up to 1.
    satisfied : bool or None
        Whether the text has the form that was asked for (``regex`` and the like) and all of ``must_include``; None if
        neither was.
    missing : list of str or tuple of int
        What of ``must_include`` the text lacks.
    goals : list of fastlm.goals.Outcome
        What became of each goal.
    tradeoff : fastlm.goals.Tradeoff or None
        Of soft goals: what else can be had.
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
    stop_reason: int | str | None = None
    top_logprobs: list[dict[int, float]] | None = None
    prompt_logprobs: list[float | None] | None = None
    satisfied: bool | None = None
    missing: Sequence[str | tuple[int, ...]] = ()
    score: float | None = None
    goals: Sequence[Outcome] = ()
    tradeoff: Tradeoff | None = None
    attention: npt.NDArray[np.float32] | None = None

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
    unknown : int
        Tokens that stand for what the vocabulary lacks. They are scored as any other.
    pieces : list of str
        What each token adds to the text; empty without a tokenizer.
    """

    token_ids: list[int]
    logprobs: Sequence[float]
    characters: int
    unknown: int = 0
    pieces: Sequence[str] = ()

    @property
    def words(self) -> list[tuple[str, float]]:
        """Words (what stands between white space) with their natural log-probabilities, that of the space before
        among them. A token of several words counts for the last."""
        words: list[tuple[str, float]] = []
        for piece, logprob in zip(self.pieces, self.logprobs, strict=False):
            begins = not words or (piece[:1].isspace() and not words[-1][0].isspace()) or len(piece.split()) > 1
            word, total = ("", 0.0) if begins else words.pop()
            words.append((word + piece, total + logprob))
        return [(word.strip(), total) for word, total in words]

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
