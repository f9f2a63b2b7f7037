# SPDX-License-Identifier: Apache-2.0
"""Passages of human text, and what a model writes in their place: the two that are compared."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastlm.novelty import corpus_tokens, separator_of
from fastlm.scoring import score_each
from fastlm.tokenizer import each_path, read_text

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastlm.model import Model

Files: TypeAlias = "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]"

_CHARACTERS = 700  # of a passage, about

_LOOKED_AT = 20_000
"""Characters by which it is told how many a token has."""

LEAST = 24
"""Passages; fewer are too few to say anything."""


@dataclass(frozen=True)
class Sizes:
    """Of passages, in tokens.

    Attributes
    ----------
    prompt : int
        That a model goes on from; what they cost it is not counted, for it does not know what came before.
    text : int
        Behind them.
    same : int
        A passage with so many in a row from the training text is not held out.
    """

    prompt: int = 32
    text: int = 128
    same: int = 64

    @classmethod
    def of(cls, model: Model, files: Sequence[str]) -> Sizes:
        """So many for words and pieces of them; twice or four times as many where a token is about a character, for
        passages that say as much."""
        text = next((text for text in map(read_text, files) if text), "")[:_LOOKED_AT]
        characters = len(text) / max(1, len(model.encode(text)))
        many = 4 if characters < 1.5 else 2 if characters < 2.5 else 1
        return cls(many * cls.prompt, many * cls.text, many * cls.same)


@dataclass(frozen=True)
class Passage:
    """A piece of a file.

    Attributes
    ----------
    file : str
    prompt : array of int
        What a text goes on from.
    text : array of int
        How it goes on.
    """

    file: str
    prompt: array[int]
    text: array[int]

    @property
    def tokens(self) -> array[int]:
        """Both."""
        return self.prompt + self.text


def listed(files: Files) -> list[str]:
    """Names of files, each once."""
    return list({os.path.realpath(one): os.fspath(one) for one in each_path(files)}.values())


def passages(
    model: Model, files: Files, sizes: Sizes, most: int, seed: int, what: str, documents: str | None = None
) -> list[Passage]:
    """Passages drawn from files, at most so many, in the order of the text.

    Raises
    ------
    OSError, ValueError
        A file cannot be read, or there is too little text.
    """
    random, kept, count = np.random.default_rng(seed), list[tuple[int, Passage]](), 0
    size, names = sizes.prompt + sizes.text, listed(files)
    if not names:
        raise ValueError(f"{what}: expected at least one file, found none")
    for name in names:
        for tokens in _windows(model, name, size, documents):
            # Each of those that were seen is kept with the same probability (Vitter 1985).
            place = count if count < most else int(random.integers(count + 1))
            if place < most:
                kept[place : place + 1] = [(count, Passage(name, tokens[: sizes.prompt], tokens[sizes.prompt :]))]
            count += 1
    if count < LEAST:
        raise ValueError(
            f"{what}: {', '.join(names)}: {count} passages of {size} tokens: expected {LEAST} at least, "
            f"about {LEAST * _CHARACTERS:,} characters of text"
        )
    return [passage for _, passage in sorted(kept, key=lambda one: one[0])]


def _windows(model: Model, file: str, size: int, documents: str | None) -> Iterator[array[int]]:
    """One behind the other from where a document begins; short documents are joined by what separates them."""
    held = array("i")
    for document in _documents(model, file, documents):
        held += document
        if len(held) < size:
            continue
        for at in range(0, len(held) - size + 1, size):
            yield held[at : at + size]
        held = array("i")


def _documents(model: Model, file: str, documents: str | None) -> Iterator[array[int]]:
    """Tokens of each, with the model's end behind them if it has one."""
    known, separator = model._need_tokenizer(), separator_of(model)
    held = array("i")
    for part in corpus_tokens([file], known, separator, documents or known.documents):
        held.frombytes(part.tobytes())
        if len(part) and part[-1] == separator:
            yield held[:-1] if separator >= model.vocab_size else held
            held = array("i")


# ---- what a model makes of them ------------------------------------------------------------------------


def started(model: Model, tokens: Sequence[int]) -> list[int]:
    """With the model's start of text in front, if it has one."""
    return [*tokens] if model.bos is None else [model.bos, *tokens]


def surprises(model: Model, texts: Iterable[Passage]) -> npt.NDArray[np.float64]:
    """Negative natural log-probability of each token behind the prompts, [passages, tokens]."""
    chosen = list(texts)
    scores = score_each(model, (started(model, one.tokens) for one in chosen))
    return -np.array([s.logprobs[-len(one.text) :] for s, one in zip(scores, chosen, strict=True)], np.float64)


def written(model: Model, texts: Sequence[Passage], seed: int, **options: Any) -> list[Passage]:
    """What the model writes behind the same prompts, of the same lengths: where it ends a text it begins another."""
    found, size = [array("i") for _ in texts], len(texts[0].text)
    end = separator_of(model)  # of a model that has none, texts only end when they are long enough
    while short := [n for n, one in enumerate(found) if len(one) < size]:
        prompts = [started(model, texts[n].prompt + found[n]) for n in short]
        each: Any = [{"max_tokens": size - len(found[n]), "seed": seed + 1000 * n + len(found[n])} for n in short]
        for n, one in zip(short, model.generate(prompts, each=each, **options), strict=True):
            found[n].extend(one.token_ids)
            if len(found[n]) < size:
                if end >= model.vocab_size:
                    raise ValueError(
                        f"the model stopped writing after {len(found[n])} of {size} tokens ({one.finish_reason}), and "
                        "has no token for the end of a text that could stand there: expected no `stop` among the "
                        "settings that its file recommends"
                    )
                found[n].append(end)
    return [Passage(one.file, one.prompt, text[:size]) for one, text in zip(texts, found, strict=True)]


def decoded(model: Model, passage: Passage) -> str:
    """What a passage says behind its prompt; between texts is the end of a line."""
    known, texts, held = model._need_tokenizer(), list[str](), list[int]()
    for token in [*passage.text, None]:
        if token is None or token in (model.bos, model.eos):
            if held:
                texts.append(known.decode(held, context=passage.prompt if not texts else ()))
            held = []
        else:
            held.append(token)
    return "\n".join(texts)
