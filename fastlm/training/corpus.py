# SPDX-License-Identifier: Apache-2.0
"""Text files to token ids, and ids to the windows that training and validation read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fastlm.tokenizer import Tokenizer, count_characters, each_path, read_text, split_documents

Paths: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def read_documents(paths: Paths, documents: str) -> list[str]:
    """The documents of one or more UTF-8 text files, ``.gz`` allowed.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If a file is not UTF-8 text, or there is no text at all.
    """
    files = each_path(paths)
    if not files:
        raise ValueError("corpus: expected one or more text files, found an empty list")
    found = [part for file in files for part in split_documents(read_text(file), documents)]
    if not found:
        raise ValueError(f"{', '.join(map(str, files))}: no text found")
    return found


def hold_out(documents: Sequence[str], share: float = 0.05) -> tuple[list[str], list[str]]:
    """Cut the last ``share`` off for validation: whole documents, or a piece if there is only one."""
    wanted = max(1, int(sum(map(len, documents)) * share))
    if len(documents) == 1:
        text = documents[0]
        if len(text) < 2:
            raise ValueError("the corpus is too short: one character cannot be cut in two for validation")
        cut = text.rfind("\n", 0, len(text) - wanted) + 1 or len(text) - wanted  # at a line end if there is one
        return [text[:cut]], [text[cut:]]
    held, first = 0, len(documents)
    while first > 1 and held < wanted:
        first -= 1
        held += len(documents[first])
    return list(documents[:first]), list(documents[first:])


@dataclass(frozen=True)
class Corpus:
    """Documents as one stream of ids, each followed by the border.

    Attributes
    ----------
    ids : int32 array [N]
        A border, then every document with a border behind it. The first is never predicted.
    characters : int
        Length of the text, with the line ends that separate documents.
    document_tokens : float
        Mean tokens of a document, its border included.
    digest : str
        SHA-256 of the ids: tells whether a resumed run reads the same text.
    """

    ids: npt.NDArray[np.int32]
    characters: int
    document_tokens: float
    digest: str

    @property
    def tokens(self) -> int:
        """Tokens that are predicted."""
        return len(self.ids) - 1


def encode(documents: Sequence[str], tokenizer: Tokenizer) -> Corpus:
    """Tokenize documents; the tokenizer must have a border, that is ``bos`` and ``eos`` as one id."""
    ids = np.array([tokenizer.bos, *tokenizer.encode_documents(documents)], np.int32)
    characters = count_characters(documents, tokenizer.documents)
    return Corpus(ids, characters, (len(ids) - 1) / len(documents), hashlib.sha256(ids.tobytes()).hexdigest())


class TrainingWindows:
    """The windows of truncated back-propagation, each a pure function of (seed, step).

    The corpus is cut into ``batch`` streams that are read side by side, ``steps`` tokens at a time, so the
    state after one window is the state before the next. Now and then a stream starts afresh, so that the
    network also learns what it will meet when it generates: a zero state and the border. That happens at
    document borders where there are enough of them, otherwise at the start of a window, whose first input
    then becomes the border.

    Parameters
    ----------
    corpus : Corpus
    border : int
    batch, steps : int
        B streams, T tokens a window.
    seed : int
    fresh : float
        How often a stream starts afresh, a window. 0.03 costs little context (33 windows in the mean).
    """

    def __init__(self, corpus: Corpus, border: int, batch: int, steps: int, seed: int, fresh: float = 0.03) -> None:
        self._ids, self._border, self._batch, self._steps, self._seed = corpus.ids, border, batch, steps, seed
        # Windows of an epoch start up to T-1 tokens later than those of another, hence one window of slack.
        self._stride = (corpus.tokens - steps) // batch
        self.per_epoch = self._stride // steps
        if self.per_epoch < 1:
            raise ValueError(
                f"the corpus is too short: {corpus.tokens} tokens, but batch_size={batch} streams of "
                f"sequence_length={steps} need {(batch + 1) * steps}; give more text or smaller values"
            )
        borders = steps / corpus.document_tokens  # a window
        self._at_border = min(1.0, fresh / borders)
        self._at_start = max(0.0, fresh - borders)

    def from_step(self, first: int) -> tf.data.Dataset:
        """The endless dataset of windows from step ``first`` on.

        Each element: inputs int32 [T, B], targets int32 [T, B], keep float32 [T, B, 1] (see `lstm`).
        """
        ids = tf.constant(self._ids)
        steps = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
        return steps.map(lambda step: self._window(ids, step)).prefetch(4)

    def _window(self, ids: Any, step: Any) -> tuple[Any, Any, Any]:
        epoch, window = step // self.per_epoch, step % self.per_epoch
        shift = tf.random.stateless_uniform([], [self._seed, epoch], 0, self._steps, tf.int32)
        first = tf.range(self._batch) * self._stride + shift + tf.cast(window, tf.int32) * self._steps
        tokens = tf.gather(ids, tf.range(self._steps + 1)[:, None] + first[None, :])
        inputs, targets = tokens[:-1], tokens[1:]
        dice = tf.random.stateless_uniform([self._steps + 1, self._batch], [self._seed + 1, step])
        anew = (dice[-1:] < self._at_start) | (window == 0)
        start = tf.concat([anew, tf.zeros([self._steps - 1, self._batch], tf.bool)], 0)
        inputs = tf.where(start, self._border, inputs)
        fresh = start | ((inputs == self._border) & (dice[:-1] < self._at_border))
        return inputs, targets, tf.cast(~fresh, tf.float32)[:, :, None]
