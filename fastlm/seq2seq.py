# SPDX-License-Identifier: Apache-2.0
"""Models that write a text for another one: translations, summaries, answers."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlm import _engine, controls, tokenizer
from fastlm.model import Model, Prompt, Start, pieces_of, refused, token_array
from fastlm.options import Completion, Score
from fastlm.search import Found

SOURCE = "lstm.source."
"""How the keys start that say of a source what others say of a text: its tokenizer, if it has one of its own."""

END_KEY = f"{SOURCE}end_token_id"
"""The token that is put behind every source, if any."""

_SOURCES = "is a language model's: this model writes a text for a source, which generate takes"

_LOOKING = ("attention", "replace_unknown", "coverage_penalty")  # options that need attention

_LEAST_COVERAGE = 1e-6  # of a place, so that its logarithm is a number

_TOGETHER = 64  # sources, as many as the engine reads side by side


def names_in(source: str) -> set[str]:
    """Words that a translation keeps: with a digit, with a mark that only names, commands and paths have, with a
    capital behind the first letter, or with one at the beginning though it begins no sentence."""
    found = set()
    for sentence in re.split(r"(?<=[.!?])\s+", source):
        for place, word in enumerate(words_in(sentence)):
            if re.search(r"\d|[_/+@]|.[A-Z]", word) or (word[:1].isupper() and place > 0 and len(word) > 1):
                found.add(word)
    return found


def words_in(text: str) -> list[str]:
    """What stands between spaces, commas, brackets and quotes, without dots at the ends."""
    return [word.strip(".") for word in re.findall(r"[^\s,;:()\[\]\"'!?<>„“»«]+", text)]


def stands_in(name: str, text: str) -> bool:
    """Whether a name is in a text, as a word or as part of one with hyphens."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


class Seq2Seq(Model):
    """A sequence-to-sequence model: `generate` and `stream` take a source (or several) and write what the model makes
    of it. Immutable; any number of threads may use it at once.

    Besides those of `Model`: ``source_vocab_size`` (int) and ``source_tokenizer`` (the texts' own, if they share one).
    """

    refuses: Mapping[str, str] = {
        "echo": "a source is no part of the text",
        "prompt_logprobs": "a source is given, not guessed: score says how likely a text is",
        "token_healing": "a text does not go on where its source ends",
        "contrastive_model": "it would need the source, too",
    }

    def __init__(self, engine: _engine.Model, prefix_cache_bytes: int = 0) -> None:
        super().__init__(engine, prefix_cache_bytes)
        self.source_vocab_size: int = engine.source_vocab_size
        self.source_tokenizer = self._read_source_tokenizer()
        bos = self.bos
        if bos is None:
            raise _engine.FormatError("key 'tokenizer.ggml.bos_token_id': expected, since a text has to begin with it")
        self._begin = bos
        if not engine.attends:
            none = "this model has no attention"
            self.refuses = {**self.refuses, **dict.fromkeys(_LOOKING, none)}
        self._end = self.metadata.get(END_KEY)
        if self._end is not None and not (isinstance(self._end, int) and 0 <= self._end < self.source_vocab_size):
            found = f"expected a token below {self.source_vocab_size}, found {self._end!r:.20}"
            raise _engine.FormatError(f"key '{END_KEY}': {found}")

    def _read_source_tokenizer(self) -> tokenizer.Tokenizer | None:
        own = {key.removeprefix(SOURCE): self.metadata[key] for key in self.metadata if key.startswith(SOURCE + "tok")}
        try:
            found = tokenizer.from_fields(own) if own else self.tokenizer
        except ValueError as e:
            raise _engine.FormatError(f"keys '{SOURCE}tokenizer.*': {e}") from None
        if found is not None and found.vocab_size > self.source_vocab_size:
            raise _engine.FormatError(
                f"the source's tokenizer has {found.vocab_size} tokens, but its embedding only {self.source_vocab_size}"
            )
        return found

    # ---- sources -------------------------------------------------------------------------------------

    def encode_source(self, text: str) -> list[int]:
        """Token ids of a source as the model reads them, with its end."""
        if not isinstance(text, str):
            raise TypeError(f"source={text!r:.60}: expected a str, found {type(text).__name__}")
        if self.source_tokenizer is None:
            raise ValueError("this model has no tokenizer: it takes token ids and gives token ids, no text")
        return self.source_tokenizer.encode(text) + ([] if self._end is None else [self._end])

    def _plan(self, given: Mapping[str, Any]) -> controls.Plan:
        plan = super()._plan(given)
        if plan.options.replace_unknown and plan.stops:
            raise ValueError("replace_unknown and stop: a text is cut where it is written, before words are replaced")
        return plan

    def _ids(self, prompt: Prompt) -> array[int]:
        ids = array("i", self.encode_source(prompt)) if isinstance(prompt, str) else token_array(prompt)
        empty = len(ids) == (isinstance(prompt, str) and self._end is not None)
        if empty:
            raise ValueError("the source is empty: there is nothing to write about")
        if len(ids) > _engine.MOST_SOURCE:
            raise ValueError(
                f"a source of {len(ids)} tokens: expected at most {_engine.MOST_SOURCE}; cut it into parts"
            )
        for place, token in enumerate(ids):
            if not 0 <= token < self.source_vocab_size:
                raise ValueError(f"source token {token} at place {place}: expected 0 to {self.source_vocab_size - 1}")
        return ids

    def _starts(
        self, decoder: _engine.Decoder, ids: Sequence[array[int]], plans: Sequence[controls.Plan]
    ) -> list[Start]:
        start = array("i", [self._begin])
        sources = self._read_sources(decoder, ids)
        return [Start(self, decoder, start, plan, source) for plan, source in zip(plans, sources, strict=True)]

    def _read_sources(self, decoder: _engine.Decoder, ids: Sequence[array[int]]) -> list[_engine.Source]:
        return list(self._each_source(decoder, ids))

    def _each_source(self, decoder: _engine.Decoder, ids: Sequence[array[int]]) -> Iterator[_engine.Source]:
        """Some are read at a time, so that Ctrl-C is heard between them."""
        for at in range(0, len(ids), _TOGETHER):
            yield from decoder.read_sources(list(ids[at : at + _TOGETHER]))

    # ---- what is only known of a whole text ----------------------------------------------------------------

    def _finished(self, decoder: _engine.Decoder, start: Start, prompt: Prompt, completion: Completion) -> Completion:
        options, tokens = start.plan.options, completion.token_ids
        replaces = options.replace_unknown and self.tokenizer is not None and self.tokenizer.unknown in tokens
        if not options.attention and not replaces:
            return completion
        assert start.source is not None
        weights = self._weights(decoder, start.source, tokens)
        text = self._with_source_words(prompt, tokens, weights) if replaces else completion.text
        return replace(completion, text=text, attention=weights if options.attention else None)

    def _in_order(self, decoder: _engine.Decoder, prompt: Prompt, start: Start, found: list[Found]) -> list[Found]:
        """Texts that are as they should be first, then those with most of the source's names, then by likeness if it
        is asked for, or else by score and coverage."""
        if penalty := start.plan.options.coverage_penalty:
            found = self._by_coverage(decoder, start, found, penalty)
        found = super()._in_order(decoder, prompt, start, found)
        if start.plan.options.keep_names:
            found = self._by_names(prompt, found)
        return found

    def _by_names(self, prompt: Prompt, found: list[Found]) -> list[Found]:
        known = self.tokenizer
        if not isinstance(prompt, str) or known is None:
            raise ValueError("keep_names: expected the source as a text, found token ids")
        names = names_in(prompt)
        texts = [known.decode(one.tokens) for one in found]
        lost = [sum(not stands_in(name, text) for name in names) for text in texts]
        order = sorted(range(len(found)), key=lambda n: (*found[n].rank[:2], lost[n]))
        return [found[n] for n in order]

    def _by_coverage(self, decoder: _engine.Decoder, start: Start, found: list[Found], penalty: float) -> list[Found]:
        assert start.source is not None
        again = []
        for one in found:
            ids = one.tokens if one.ended_by is None else (*one.tokens, one.ended_by)
            looked = self._weights(decoder, start.source, ids).sum(0, dtype=np.float64)
            coverage = float(np.log(np.clip(looked, _LEAST_COVERAGE, 1)).sum())
            again.append(replace(one, score=one.score + penalty * coverage))
        return sorted(again, key=lambda one: one.rank)

    def _weights(
        self, decoder: _engine.Decoder, source: _engine.Source, tokens: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        read = array("i", [self._begin, *tokens[:-1]]) if tokens else array("i")
        found = decoder.align(_engine.State(self._engine, source), read)
        return np.frombuffer(found, np.float32).reshape(len(read), len(source))

    def _with_source_words(self, prompt: Prompt, tokens: Sequence[int], weights: npt.NDArray[np.float32]) -> str:
        """The text with the source's word that was looked at most in the place of each unknown token."""
        known, source = self._need_tokenizer(), self.source_tokenizer
        if not isinstance(prompt, str) or source is None:
            raise ValueError("replace_unknown: expected the source as a text, found token ids")
        words = [prompt[begin:end] for begin, end in source.spans(prompt)]
        text = ""
        for token, piece, row in zip(tokens, pieces_of(known, tokens), weights, strict=True):
            if token == known.unknown:
                word = words[min(int(row.argmax()), len(words) - 1)]  # behind them is only the source's end
                piece = (" " if text and not known.exact_pieces else "") + word
            text += piece
        return text

    # ---- score -----------------------------------------------------------------------------------------

    def score(self, text: Any, source: Any = None, *, documents: bool = False) -> Any:
        """How likely the model finds a text given its source.

        Parameters
        ----------
        text, source : str or sequence of int, or lists of as many
            A text is read behind the start of text, and its end is scored, too; token ids are read as they are, the
            first from the state that the source has begun.

        Returns
        -------
        Score
            Or a list of them.
        """
        if documents:
            raise ValueError("documents: a text for a source is one")
        if source is None:
            raise ValueError("score(text, source): expected the source, too")
        several = isinstance(text, list) and not (text and isinstance(text[0], int))
        if not several:
            return self._scores([text], [source])[0]
        if not isinstance(source, list) or len(source) != len(text):
            raise ValueError(f"score(texts, sources): expected as many sources as there are texts, {len(text)}")
        return self._scores(text, source)

    def _scores(self, texts: Sequence[Prompt], sources: Sequence[Prompt]) -> list[Score]:
        end = [] if self.eos is None else [self.eos]
        found = []
        with self._decoder() as decoder:
            for text, source in zip(texts, self._each_source(decoder, self._ids_of_each(sources)), strict=True):
                state, ids = _engine.State(self._engine, source), self._said(text)
                if isinstance(text, str):
                    decoder.feed(state, array("i", [self._begin]))
                    ids.extend(end)
                logprobs = decoder.score(state, ids)
                found.append(self._scored(ids, logprobs, len(text) if isinstance(text, str) else None))
        return found

    # ---- what language models do ---------------------------------------------------------------------------

    suggest = refused(_SOURCES)
    state = refused(_SOURCES)
    session = refused(_SOURCES)
    compress = refused(_SOURCES)
    decompress = refused(_SOURCES)
