# SPDX-License-Identifier: Apache-2.0
"""From options to what the engine takes: texts become tokens, recommendations of the model file become values, and
neutral steps fall away."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastlm import _engine
from fastlm.constraints import Form, Phrase, Shape, grammar_of, token_mask
from fastlm.novelty import CorpusIndex
from fastlm.options import NEUTRAL, RECOMMENDABLE, SAMPLERS, GenerationOptions

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastlm.model import Model

DRY_BREAKERS = ("\n", ":", '"', "*")
"""What DRY does not look across by default."""

KEPT_FORMS = 64

_DEFAULTS = {
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_window": 0,
    "xtc_threshold": 0.1,
    "mirostat_eta": 0.1,
    "contrastive_alpha": 0.1,
    "contrastive_beta": 0.5,
}
"""Of options that belong to another one."""

_PASSED_ON = tuple(name for name in (*NEUTRAL, *_DEFAULTS) if not name.startswith(("contrastive_", "num_beam")))
"""Options that the engine takes as they are."""

_FIRST_RESTRICTING = SAMPLERS.index("top_n_sigma")


@dataclass(frozen=True)
class Plan:
    """What a call's options mean for one model. The same for all texts of a call, and of any call with these
    options."""

    options: GenerationOptions
    sampling: _engine.Sampling
    temperature: float
    allowed: npt.NDArray[np.uint32] | None
    stops: tuple[str, ...]
    ends: frozenset[int]
    form: Shape | None
    amateur: Model | None
    phrases: tuple[Phrase, ...]

    @property
    def count(self) -> int:
        """Texts to draw for each prompt."""
        return self.options.best_of or self.options.n

    @property
    def vocab_size(self) -> int:
        return self.sampling.model.vocab_size

    @property
    def alternatives(self) -> int:
        asked = self.options.logprobs
        return 0 if asked is None or isinstance(asked, bool) else int(asked)

    @property
    def logprobs(self) -> bool:
        """Whether the engine shall report them."""
        asked = self.options.logprobs
        return (asked is not None and asked is not False) or self.options.best_of is not None


def plan(model: Model, options: GenerationOptions) -> Plan:
    """Raises ValueError or TypeError for what this model cannot do."""
    _check_against(model, options)
    amateur = options.contrastive_model
    settled = _settled(model, options)
    steps = options.steps(settled)
    if settled["temperature"] == 0 and options.num_beams == 1:
        for name in options.given("n", "best_of"):
            raise ValueError(
                f"{name}={getattr(options, name)}: the model's file recommends temperature=0, at which all texts are "
                "the same: give a temperature"
            )
    if settled["temperature"] == 0:
        steps = [step for step in steps if SAMPLERS.index(step) < _FIRST_RESTRICTING and step != "temperature"]
    stops, stop = _stop_texts(options.stop), _stop_tokens(model, options)
    form = _form(model, options, stop)
    bias_ids, biases = _biases(model, options)
    sampling = _engine.Sampling(
        model._engine,
        steps=steps,
        **{name: settled[name] for name in _PASSED_ON},
        bias_ids=bias_ids,
        biases=biases,
        dry_breakers=_breakers(model, options) if "dry" in steps else None,
        mirostat_tau=settled["mirostat_tau"] or 0,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        corpus=None if options.corpus is None else options.corpus._engine,
        most_copied=options.max_copied or 0,
        bad_words=_bad_words(model, options.bad_words),
        amateur=None if amateur is None else _engine.Decoder(amateur._engine),
        contrast_alpha=settled["contrastive_alpha"],
        contrast_beta=settled["contrastive_beta"],
        stop=stop,
        pauses=_pauses(model, stops),
        stop_repeats=options.stop_repeats,
    )
    return Plan(
        options,
        sampling,
        settled["temperature"],
        _allowed(model, options),
        stops,
        frozenset(stop),
        form,
        amateur,
        _phrases(model, options.must_include),
    )


def _form(model: Model, options: GenerationOptions, stop: array[int]) -> Form | None:
    """Compiled once for a model."""
    grammar = grammar_of(options)
    if grammar is None:
        return None
    key = grammar, tuple(dict.fromkeys(stop))
    found = model._forms.get(key)
    if found is None:
        found = Form(model, *key)
        remember(model._forms, KEPT_FORMS, key, found)
    return found


def remember(kept: dict[Any, Any], most: int, key: Any, value: Any) -> None:
    """Puts a value into a cache, whose oldest go. Any number of threads."""
    for old in list(kept)[: max(0, len(kept) + 1 - most)]:
        kept.pop(old, None)
    kept[key] = value


def _settled(model: Model, options: GenerationOptions) -> dict[str, Any]:
    """Every number's value: asked for, else recommended by the model file, else neutral."""
    settled = dict(NEUTRAL) | _DEFAULTS | {"mirostat_tau": None, "logit_bias": None}
    for name in settled:
        asked = getattr(options, name)
        if asked is not None:
            settled[name] = asked
        elif name in RECOMMENDABLE and _may_recommend(name, options):
            settled[name] = model.recommended.get(name, settled[name])
    return settled


def _may_recommend(name: str, options: GenerationOptions) -> bool:
    """A recommended restriction gives way to Mirostat, and to an order of steps that leaves it out."""
    if name == "temperature":
        return True
    return options.mirostat_tau is None and (options.samplers is None or name in options.samplers)


def _check_against(model: Model, options: GenerationOptions) -> None:
    for name in options.given(*model.refuses):
        raise ValueError(f"{name}: {model.refuses[name]}: leave it out")
    if options.echo and model.tokenizer is None:
        raise ValueError("echo=True: this model has no tokenizer, so there is no text to put a prompt before")
    if not isinstance(options.logprobs, bool) and (options.logprobs or 0) > model.vocab_size:
        raise ValueError(f"logprobs={options.logprobs}: this model has {model.vocab_size} tokens")
    if options.corpus is not None:
        if not isinstance(options.corpus, CorpusIndex):
            raise TypeError(f"corpus={options.corpus!r:.60}: expected an index, as fastlm.load_index gives")
        options.corpus.check(model)
    other = options.contrastive_model
    if other is None:
        return
    if type(other) is not type(model):
        raise TypeError(f"contrastive_model={other!r:.60}: expected a model, as fastlm.load gives")
    if not same_vocabulary(model, other):
        raise ValueError(
            "contrastive_model: its tokens differ from this model's; fastlm train --tokenizer makes one with the same"
        )


def same_vocabulary(one: Model, other: Model) -> bool:
    """Whether a token is the same piece of text to both."""
    a, b = one.tokenizer, other.tokenizer
    if one.vocab_size != other.vocab_size:
        return False
    if a is None or b is None:
        return a is b
    return bool(a.pieces == b.pieces and (a.bos, a.eos) == (b.bos, b.eos))


def token_array(tokens: Any, name: str) -> array[int]:
    """Token ids as the engine takes them; TypeError names the option."""
    try:
        return array("i", tokens)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name}: expected token ids, as in [0, 13]; found {tokens!r:.60}") from None


def _checked(model: Model, tokens: Any, name: str) -> array[int]:
    found = token_array(list(tokens), name)
    model._check_tokens(found, f"{name}:")
    return found


def _stop_tokens(model: Model, options: GenerationOptions) -> array[int]:
    own = array("i", [] if model.eos is None else [model.eos])
    return (
        own + _checked(model, options.stop_token_ids, "stop_token_ids") if options.stop_token_ids is not None else own
    )


def _stop_texts(stop: str | Iterable[str] | None) -> tuple[str, ...]:
    texts = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"stop: expected text, found {text!r:.60}; token ids go in stop_token_ids")
        if not text:
            raise ValueError("stop: an empty text is everywhere, so nothing would be written: leave it out")
    return texts


def _pauses(model: Model, stops: Sequence[str]) -> bytes | None:
    """Tokens after which a text may have come to a stop: those in which the last byte of one is."""
    if not stops:
        return None
    known = model._need_tokenizer()
    lasts = {stop.encode("utf-8", "surrogatepass")[-1] for stop in stops}
    flags = bytearray(model.vocab_size)
    for token, piece in enumerate(known.pieces):
        flags[token] = not known.exact_pieces or not lasts.isdisjoint(piece)
    return bytes(flags)


def _biases(model: Model, options: GenerationOptions) -> tuple[array[int] | None, array[float] | None]:
    if options.logit_bias is None:
        return None, None
    ids = _checked(model, options.logit_bias, "logit_bias")
    for token, bias in options.logit_bias.items():
        if isinstance(bias, bool) or not isinstance(bias, Real) or not -100 <= bias <= 100:
            raise ValueError(f"logit_bias: {bias!r} for token {token}: expected a number from -100 to 100")
    return ids, array("f", options.logit_bias.values())


def _allowed(model: Model, options: GenerationOptions) -> npt.NDArray[np.uint32] | None:
    if options.allowed_token_ids is None:
        return None
    allowed = _checked(model, options.allowed_token_ids, "allowed_token_ids")
    if not allowed:
        raise ValueError("allowed_token_ids: an empty list allows nothing; leave it out to allow all")
    return token_mask(model.vocab_size, allowed)


_Word: TypeAlias = "str | Sequence[int]"


def _ways(model: Model, words: Iterable[_Word] | None, name: str) -> Iterator[tuple[_Word, list[tuple[int, ...]]]]:
    """Each of an option's words, and how it may be written in tokens: a text also after a space."""
    for word in () if words is None else (words,) if isinstance(words, str) else words:
        if isinstance(word, (bytes, bytearray)):
            raise TypeError(f"{name}: expected texts or token ids, found {word!r:.60}")
        if isinstance(word, (str, Sequence)) and not word:
            raise ValueError(f"{name}: an empty word is everywhere: leave it out")
        if isinstance(word, str):
            known = model._need_tokenizer()
            ways = [known.encode_inside(word), known.encode_inside(" " + word.lstrip())]
            yield word, [tuple(way) for way in ways if way and known.unknown not in way]
        else:
            ids = tuple(_checked(model, word if isinstance(word, Sequence) else [word], name))
            yield ids, [ids]


def _bad_words(model: Model, words: Iterable[_Word] | None) -> list[tuple[int, ...]]:
    """A word that the model has no tokens for is never written anyway."""
    found = dict.fromkeys(way for _, ways in _ways(model, words, "bad_words") for way in ways)
    return [word for word in found if not any(word != other and word[-len(other) :] == other for other in found)]


def _phrases(model: Model, words: Iterable[_Word] | None) -> tuple[Phrase, ...]:
    found = []
    for word, ways in _ways(model, words, "must_include"):
        if not ways:
            raise ValueError(f"must_include: the model has no tokens for {word!r}")
        exact = isinstance(word, str) and model._need_tokenizer().exact_pieces
        shortest = [way for way in dict.fromkeys(ways) if not any(way != o and way[-len(o) :] == o for o in ways)]
        said = word if isinstance(word, str) else tuple(word)
        text = word.encode() if exact and isinstance(word, str) else b""
        known = model.tokenizer.pieces if text and model.tokenizer is not None else ()
        lasts = frozenset(token for token, piece in enumerate(known) if text[-1:] in piece)
        found.append(Phrase(said, text, tuple(shortest), lasts))
    return tuple(dict.fromkeys(found))


def _breakers(model: Model, options: GenerationOptions) -> bytes | None:
    asked = options.dry_sequence_breakers
    texts = DRY_BREAKERS if asked is None else (asked,) if isinstance(asked, str) else tuple(asked)
    if model.tokenizer is None:
        if asked is not None:
            raise ValueError("dry_sequence_breakers: this model has no tokenizer, so no token has a text")
        return None
    flags = bytearray(model.vocab_size)
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ValueError(f"dry_sequence_breakers: expected text, found {text!r:.60}")
        having = [token for token, piece in enumerate(model.tokenizer.pieces) if text.encode() in piece]
        if not having and asked is not None:
            raise ValueError(f"dry_sequence_breakers: no token contains {text!r}; one of several tokens cannot be had")
        for token in having:
            flags[token] = 1
    return bytes(flags)
