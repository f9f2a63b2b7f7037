# SPDX-License-Identifier: Apache-2.0
"""Texts in few bytes: arithmetic coding (Rissanen 1976; as a range coder, Martin 1979) on a model's own probabilities.

A file is ``fL``, a byte of flags and versions, 4 bytes of the model's fingerprint, a CRC-32 of what was given and the
code, the length of what was given (7 bits a byte, low ones first), then the code. What the model's tokens cannot write
follows an escape as it is. It takes no more bytes than the model's entropy says, but for these and less than a
thousandth.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastlm import _engine

if TYPE_CHECKING:
    from fastlm.model import Model
    from fastlm.tokenizer import Tokenizer

_HEAD = struct.Struct("<2sB4sI")
_MAGIC = b"fL"
_VERSION = 1  # of the file, in bits 4 to 6
_ESCAPES = 0x80
_MOST_RAW = 1 << 30  # bytes behind one escape: their number has 32 bits


def compress(model: Model, data: str | bytes) -> bytes:
    """See `Model.compress`."""
    if not isinstance(data, (str, bytes, bytearray)):
        raise TypeError(f"data={data!r:.60}: expected text or bytes, found {type(data).__name__}")
    given = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else bytes(data)
    parts = list(_parts(_tokenizer(model), given))
    escapes = any(isinstance(part, bytes) for part in parts)
    with model._decoder() as decoder:
        coder = _engine.Coder(decoder, model.state()._engine, escapes)
        for part in parts:
            if isinstance(part, bytes):
                for at in range(0, len(part), _MOST_RAW):
                    coder.encode_raw(part[at : at + _MOST_RAW])
            else:
                coder.encode(part)
        code = coder.finish()
    kind = _VERSION << 4 | _engine.NUMERICS_VERSION | (_ESCAPES if escapes else 0)
    head = _HEAD.pack(_MAGIC, kind, model._fingerprint[:4], zlib.crc32(code, zlib.crc32(given)))
    return head + _number(len(given)) + code


def decompress(model: Model, data: bytes) -> bytes:
    """See `Model.decompress`."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"data={data!r:.60}: expected bytes, found {type(data).__name__}")
    data = bytes(data)
    if len(data) <= _HEAD.size or data[:2] != _MAGIC:
        raise ValueError(f"these {len(data)} bytes are no compressed text: expected what compress gave")
    _, kind, fingerprint, crc = _HEAD.unpack_from(data)
    if kind & 0x7F != _VERSION << 4 | _engine.NUMERICS_VERSION:
        raise ValueError("the text was compressed by another version of fastlm, whose numbers differ")
    if fingerprint != model._fingerprint[:4]:
        raise ValueError("the text was compressed with another model: load the one that it was made with")
    try:
        size, at = _read_number(data, _HEAD.size)
        found = _decode(model, data[at:], size, bool(kind & _ESCAPES))
    except (ValueError, IndexError) as e:
        raise ValueError(f"the compressed text is damaged: {e}") from None
    if zlib.crc32(data[at:], zlib.crc32(found)) != crc:
        raise ValueError("the compressed text is damaged: its checksum does not fit")
    return found


def _decode(model: Model, code: bytes, size: int, escapes: bool) -> bytes:
    pieces, found = _tokenizer(model).pieces, bytearray()
    longest = max(map(len, pieces))
    with model._decoder() as decoder:
        coder = _engine.Coder(decoder, model.state()._engine, escapes, code)
        while len(found) < size:
            tokens, escape = coder.decode(max(1, (size - len(found)) // longest))  # never more than there are
            for token in tokens:
                if token >= len(pieces) or not pieces[token]:
                    raise ValueError("a token that is no text")
                found += pieces[token]
                if len(found) >= size:
                    break
            else:
                if escape:
                    found += coder.decode_raw(min(size - len(found), len(code)))  # each takes 8 bits of the code
    return bytes(found)


def _tokenizer(model: Model) -> Tokenizer:
    known = model._need_tokenizer()
    if not known.exact_pieces:
        raise ValueError("compression needs tokens that are text as they are; this model joins its tokens with spaces")
    return known


def _parts(known: Tokenizer, given: bytes) -> Iterator[array[int] | bytes]:
    """Tokens, and in turn bytes that no tokens stand for."""
    text, begin = given.decode("utf-8", "surrogateescape"), 0
    writable: dict[str, bool] = {}
    for place, character in enumerate(text):
        if character not in writable:
            writable[character] = _same(known, character) is not None
        if place and writable[character] != writable[text[place - 1]]:
            yield from _part(known, text[begin:place])
            begin = place
    if text:
        yield from _part(known, text[begin:])


def _part(known: Tokenizer, text: str) -> Iterator[array[int] | bytes]:
    tokens = _same(known, text)
    yield text.encode("utf-8", "surrogateescape") if tokens is None else array("i", tokens)


def _same(known: Tokenizer, text: str) -> list[int] | None:
    """The text's tokens, if they are the text again."""
    try:
        tokens = known.encode_inside(text)
    except ValueError:  # half a character
        return None
    same = known.unknown not in tokens and b"".join([known.pieces[token] for token in tokens]) == text.encode()
    return tokens if same else None


def _number(n: int) -> bytes:
    found = bytearray()
    while n > 127:
        found.append(n & 127 | 128)
        n >>= 7
    return bytes([*found, n])


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    """The number, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
        if shift > 56:
            raise ValueError("a length beyond measure")
