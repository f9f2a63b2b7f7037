# SPDX-License-Identifier: Apache-2.0
"""What of a text stands in a corpus: an index of the training text, exact and about as large as its tokens."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from fastlm import _engine
from fastlm.options import check_whole
from fastlm.tokenizer import Tokenizer, each_path, read_text, split_documents

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastlm.model import Model

MOST_COPIED = 1000
"""Tokens up to which copies are found for certain, also where blocks of the index meet."""

BLOCK = 1 << 24
"""Tokens that are sorted at once: half a gigabyte of memory."""

_MAGIC = 1 << 32 | 0x584E4C46
_HEADER = struct.Struct("<QQQQ32s")
_PART = 1 << 20  # characters that are cut into tokens at once


class CorpusIndex:
    """Which runs of tokens stand in a corpus. Immutable; any number of threads may ask it.

    Attributes
    ----------
    tokens : int
        Of the corpus.
    bytes : int
        Of the file.
    """

    def __init__(self, data: bytes) -> None:
        self._engine = _engine.Index(data)
        *_, self.separator, self._tokenizer = _HEADER.unpack_from(data)
        self.tokens, self.bytes = len(self._engine), len(data)

    def __repr__(self) -> str:
        return f"<fastlm.CorpusIndex: {self.tokens:,} tokens, {self.bytes / 1e6:.1f} MB>"

    def check(self, model: Model) -> None:
        """Raises ValueError if the model's tokens are not those of the index."""
        known = model._need_tokenizer()
        expected = max(self.separator + 1, model.vocab_size)
        if self._engine.vocab_size != expected or self._tokenizer != _digest(known):
            raise ValueError("the index is of another tokenizer: build one with this model (fastlm index)")

    def count(self, tokens: Sequence[int]) -> int:
        """How often tokens, one or more, stand there in a row; twice what lies in `MOST_COPIED` tokens that blocks of
        the index share."""
        return self._engine.count(array("i", tokens))

    def longest(self, tokens: Sequence[int]) -> npt.NDArray[np.uint32]:
        """For each token how many in a row, it and those before it, stand there at most; uint32 [N]."""
        return np.frombuffer(self._engine.longest(array("i", tokens)), np.uint32)

    def copies(self, tokens: Sequence[int], least: int) -> list[Copy]:
        """Runs of at least so many tokens that stand there, each as long as it is, the longest first."""
        check_whole("least", least, 1)
        lengths = self.longest(tokens).astype(np.int64)
        ends = np.flatnonzero((lengths >= least) & (np.append(lengths[1:], 0) <= lengths))
        found = [Copy(int(end - lengths[end] + 1), int(lengths[end])) for end in ends]
        return sorted(found, key=lambda one: (-one.length, one.begin))


@dataclass(frozen=True)
class Copy:
    """A run of tokens that stands in a corpus: where it begins in a text, and how many they are."""

    begin: int
    length: int


def load_index(path: str | os.PathLike[str]) -> CorpusIndex:
    """An index that `build_index` wrote, read into memory.

    Raises
    ------
    OSError
        If it cannot be read.
    fastlm.FormatError
        If it is no index, or is damaged.
    """
    try:
        return CorpusIndex(Path(path).read_bytes())
    except _engine.FormatError as e:
        raise _engine.FormatError(f"{path}: {e}") from None


def build_index(
    corpus: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    model: Model,
    path: str | os.PathLike[str],
    *,
    documents: str | None = None,
    block: int = BLOCK,
) -> CorpusIndex:
    """Index text files with a model's tokens; needs the ``pydivsufsort`` package.

    The index is an FM-index (Ferragina & Manzini 2000) of the corpus backwards, as a wavelet matrix (Claude & Navarro
    2012): a bit a token for each of the vocabulary's, 11 bits for 2,048 tokens. Text is sorted in blocks of ``block``
    tokens.

    Parameters
    ----------
    corpus : path or iterable of paths
        UTF-8 text, ``.gz`` allowed.
    model : Model
    path : path
        To write.
    documents : str, optional
        How a file is cut into documents; default: as the model's tokenizer does. No run reaches across documents.
    block : int
        Tokens.

    Raises
    ------
    ImportError
        ``pydivsufsort`` is missing.
    OSError, ValueError
        A file cannot be read or written, or there is no text.
    """
    from fastlm.format import atomic  # with what writing model files takes

    files = each_path(corpus)
    known = model._need_tokenizer()
    check_whole("block", block, 2 * MOST_COPIED, 1 << 29)
    separator = separator_of(model)
    vocab_size = max(separator + 1, model.vocab_size)
    stream = corpus_tokens(files, known, separator, documents or known.documents)
    with atomic(path) as temporary, open(temporary, "wb") as file:
        file.write(bytes(_HEADER.size))
        blocks = sum(1 for tokens in _blocks(stream, block) if _write(file, tokens, vocab_size))
        if not blocks:
            raise ValueError(f"{', '.join(map(str, files)) or 'corpus'}: no text found")
        file.seek(0)
        file.write(_HEADER.pack(_MAGIC, vocab_size, blocks, separator, _digest(known)))
    return load_index(path)


def _digest(known: Tokenizer) -> bytes:
    return hashlib.sha256(json.dumps(known.fields(), sort_keys=True, default=str).encode()).digest()


def separator_of(model: Model) -> int:
    """What is put between documents: an end that the model knows, or one more token than it has."""
    return next((token for token in (model.eos, model.bos) if token is not None), model.vocab_size)


def corpus_tokens(
    files: Sequence[str | os.PathLike[str]], known: Tokenizer, separator: int, documents: str
) -> Iterator[npt.NDArray[np.int32]]:
    """Of all documents, each with the separator behind it."""
    for file in files:
        for document in split_documents(read_text(file), documents):
            for place, part in enumerate(_parts(document)):
                yield np.array(known.encode_inside(part) if place else known.encode(part), np.int32)
            yield np.array([separator], np.int32)


def _parts(text: str) -> Iterator[str]:
    """Long texts are cut at ends of lines."""
    at = 0
    while at < len(text):
        end = at + _PART
        cut = text.rfind("\n", at + 1, end) if end < len(text) else len(text)
        cut = cut if cut > at else min(end, len(text))
        yield text[at:cut]
        at = cut


def _blocks(stream: Iterator[npt.NDArray[np.int32]], size: int) -> Iterator[npt.NDArray[np.int32]]:
    """So many tokens at a time; each begins with the last ones of the block before, so that no run is missed."""
    held: list[npt.NDArray[np.int32]] = []
    count = again = 0
    for part in stream:
        held.append(part)
        count += len(part)
        while count >= size:
            together = np.concatenate(held)
            yield together[:size]
            held, again = [together[size - MOST_COPIED :]], MOST_COPIED
            count = len(held[0])
    if count > again:
        yield np.concatenate(held)


def _write(file: BinaryIO, tokens: npt.NDArray[np.int32], vocab_size: int) -> bool:
    """A block: its tokens, the row of the transform where they begin, and the bits of the levels."""
    transform, sentinel = _transformed(tokens[::-1], vocab_size)
    file.write(struct.pack("<QQ", len(transform), sentinel))
    levels = max(1, (vocab_size - 1).bit_length())
    for level in range(levels - 1, -1, -1):
        bits = transform >> level & 1
        packed = np.packbits(bits.astype(bool), bitorder="little")
        file.write(packed.tobytes() + bytes(-len(packed) % 8))
        transform = np.concatenate([transform[bits == 0], transform[bits == 1]])
    return True


def _transformed(tokens: npt.NDArray[np.int32], vocab_size: int) -> tuple[npt.NDArray[np.int32], int]:
    """The Burrows-Wheeler transform of tokens with an end behind them, which is left out of it, and its row."""
    try:
        from pydivsufsort import divsufsort  # type: ignore[import-untyped]
    except ImportError as e:
        raise ImportError("an index needs the 'pydivsufsort' package: pip install 'fastlm[report]'") from e
    wide = ">u1" if vocab_size <= 1 << 8 else ">u2" if vocab_size <= 1 << 16 else ">u4"
    size = int(wide[-1])  # bytes in the order of numbers: where tokens begin, suffixes are sorted as those of tokens
    order = divsufsort(np.ascontiguousarray(tokens.astype(wide)).view(np.uint8))
    suffixes = order[order % size == 0] // size
    before = np.append(np.int64(len(tokens)), suffixes.astype(np.int64)) - 1  # the first row is that of the end
    sentinel = int(np.flatnonzero(before < 0)[0])
    return tokens[np.delete(before, sentinel)].astype(np.int32), sentinel
