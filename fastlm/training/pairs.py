# SPDX-License-Identifier: Apache-2.0
"""Pairs of a source and its text as token ids, and ids as the batches that training and validation read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fastlm.tokenizer import HuggingFaceTokenizer, Tokenizer

Ids: TypeAlias = npt.NDArray[np.int32]

MULTIPLE = 4
"""Pairs whose lengths differ by less are mixed: batches of other pairs in every epoch, with little padding."""


@dataclass(frozen=True)
class Pairs:
    """Sources and texts as ids: sources with the end that they are read with, texts without borders.

    Attributes
    ----------
    sources, texts : list of int32 arrays
    bos, eos : int
        What a text begins and ends with.
    characters : int
        Of the texts.
    digest : str
        Tells whether a resumed run reads the same pairs.
    """

    sources: list[Ids]
    texts: list[Ids]
    bos: int
    eos: int
    characters: int
    digest: str

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str]], source: Tokenizer, text: Tokenizer) -> Pairs:
        """The text's tokenizer must have a start and an end."""
        end = [] if source.eos is None else [source.eos]
        sources = [np.array(source.encode(one) + end, np.int32) for one, _ in pairs]
        texts = [np.array(text.encode(one), np.int32) for _, one in pairs]
        assert text.bos is not None
        assert text.eos is not None
        return cls(sources, texts, text.bos, text.eos, sum(len(one) for _, one in pairs), digest_of(*sources, *texts))

    def sample(self, count: int) -> Pairs:
        """So many of them, evenly spread, or all."""
        chosen = np.unique(np.linspace(0, len(self.sources) - 1, count).astype(int))
        sources, texts = ([part[n] for n in chosen] for part in (self.sources, self.texts))
        return replace(self, sources=sources, texts=texts, characters=0)

    @property
    def tokens(self) -> int:
        """That are predicted: those of the texts and their ends."""
        return sum(len(text) + 1 for text in self.texts)


def digest_of(*arrays: Ids) -> str:
    """A hash of all."""
    hashed = hashlib.sha256()
    for ids in arrays:
        hashed.update(len(ids).to_bytes(4, "little") + ids.tobytes())
    return hashed.hexdigest()


Batch: TypeAlias = tuple[Ids, Ids, Ids, Ids]
"""sources [S, B], padded in front; their lengths [B]; texts behind their start [T, B] and before their end [T, B],
padded behind with -1 where nothing is predicted."""


class Splits:
    """Tokens that fall apart at random into those that BPE merged into them, and these again.

    So a model sees a word in other pieces every time, and learns what the pieces are (after BPE-dropout, Provilkov et
    al. 2020, which leaves out merges instead; subword regularisation, Kudo 2018). In a source and its text a token of a
    shared vocabulary falls apart alike: what can be copied stays what can be copied.

    Parameters
    ----------
    share : float
        Of the vocabulary's merged tokens, drawn for each pair: in it one falls apart wherever it stands, or nowhere.
    source, text : HuggingFaceTokenizer
        Of BPE; the same object if they share a vocabulary.
    """

    def __init__(self, share: float, source: HuggingFaceTokenizer, text: HuggingFaceTokenizer) -> None:
        self._share, self._alike = share, source is text
        self._source, self._text = _parts(source), _parts(text)

    def __call__(self, source: Ids, text: Ids, random: np.random.Generator) -> tuple[Ids, Ids]:
        apart = self._drawn(self._source, random)
        source = _split(source, self._source, apart)
        return source, _split(text, self._text, apart if self._alike else self._drawn(self._text, random))

    def _drawn(self, parts: Ids, random: np.random.Generator) -> npt.NDArray[np.bool_]:
        drawn: npt.NDArray[np.bool_] = (random.random(len(parts)) < self._share) & (parts[:, 0] >= 0)
        return drawn


def _parts(tokenizer: HuggingFaceTokenizer) -> Ids:
    """[vocab_size, 2], -1 where nothing is merged."""
    table = np.full((tokenizer.vocab_size, 2), -1, np.int32)
    for token, parts in tokenizer.parts().items():
        table[token] = parts
    return table


def _split(ids: Ids, parts: Ids, apart: npt.NDArray[np.bool_]) -> Ids:
    while (split := apart[ids]).any():
        pieces = np.where(split[:, None], parts[ids], ids[:, None])
        ids = pieces[np.stack([np.ones_like(split), split], 1)]
    return ids


class Batches:
    """Batches of pairs of like lengths, each a pure function of (seed, step).

    Parameters
    ----------
    pairs : Pairs
    tokens : int
        About so many of source and text together, padding included, are read at once.
    seed : int or None
        Of the order, another one in every epoch; None: always the same, the longest first.
    splits : Splits, optional
        How tokens fall apart, in another way in every epoch. Lengths count without.
    """

    def __init__(self, pairs: Pairs, tokens: int, seed: int | None, splits: Splits | None = None) -> None:
        self._pairs, self._tokens, self._seed, self._splits = pairs, tokens, seed, splits
        self._lengths = np.array(
            [(len(s), len(t) + 1) for s, t in zip(pairs.sources, pairs.texts, strict=True)], np.int64
        )
        self.per_epoch = len(self._cut(self._order(0)))

    def from_step(self, first: int) -> Iterator[Batch]:
        """The endless stream of batches from step ``first`` on."""
        epoch, at = divmod(first, self.per_epoch)
        while True:
            batches = self._of_epoch(epoch)
            for batch in batches[at:]:
                yield self._batch(batch, epoch)
            epoch, at = epoch + 1, 0

    def once(self) -> Iterator[Batch]:
        """Every pair once."""
        for batch in self._of_epoch(0):
            yield self._batch(batch, 0)

    def _of_epoch(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        cut = self._cut(self._order(epoch))
        if self._seed is None:
            return cut
        return [cut[n] for n in np.random.default_rng([self._seed, epoch, 1]).permutation(len(cut))]

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Pairs of like padded lengths behind one another, in random order among themselves; so every epoch has as many
        batches, of the same sizes."""
        padded, mixed = -(-self._lengths // MULTIPLE), np.arange(len(self._lengths))
        if self._seed is not None:
            mixed = np.random.default_rng([self._seed, epoch, 0]).permutation(mixed)
        order: npt.NDArray[np.int64] = mixed[np.lexsort((-padded[mixed, 0], -padded[mixed, 1]))]
        return order

    def _cut(self, order: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        found, begin, longest = [], 0, np.zeros(2, np.int64)
        for at, lengths in enumerate(-(-self._lengths[order] // MULTIPLE) * MULTIPLE):
            longest = np.maximum(longest, lengths)
            if at > begin and (at + 1 - begin) * int(longest.sum()) > self._tokens:
                found.append(order[begin:at])
                begin, longest = at, lengths
        return [*found, order[begin:]]

    def _batch(self, chosen: npt.NDArray[np.int64], epoch: int) -> Batch:
        pairs = [(self._pairs.sources[n], self._pairs.texts[n]) for n in chosen]
        if self._splits is not None:
            random = np.random.default_rng([self._seed or 0, epoch, 2, int(chosen[0])])  # 0 and 1: the order
            pairs = [self._splits(source, text, random) for source, text in pairs]
        S, T = max(len(source) for source, _ in pairs), max(len(text) + 1 for _, text in pairs)
        read = np.zeros((S, len(chosen)), np.int32)
        inputs, targets = np.full((T, len(chosen)), self._pairs.eos, np.int32), np.full((T, len(chosen)), -1, np.int32)
        for j, (source, text) in enumerate(pairs):
            read[S - len(source) :, j] = source
            inputs[: len(text) + 1, j] = [self._pairs.bos, *text]
            targets[: len(text) + 1, j] = [*text, self._pairs.eos]
        return read, np.array([len(source) for source, _ in pairs], np.int32), inputs, targets
