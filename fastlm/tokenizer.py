# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back: characters, bytes, and Hugging Face ``tokenizers``.

A tokenizer also knows how a text begins and ends: ``bos`` is fed to the fresh network before the first
token, ``eos`` is what the network says when the text is over. fastlm's own training lays documents end
to end with one *border* token between them, so there the two are the same id. `Tokenizer.fields` is what
the model file stores.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

DOCUMENTS = ("file", "blank-line", "line")
"""How a text file is cut into documents: not at all, at blank lines, or at every line end."""

_CHAR_SPECIALS = ("<|border|>", "<|unknown|>")


def split_documents(text: str, documents: str) -> Iterator[str]:
    """Cut a file's text into documents, none of them empty.

    Parameters
    ----------
    text : str
    documents : one of `DOCUMENTS`
        With ``"blank-line"`` the blank lines fall away and a document keeps its inner line ends; with
        ``"line"`` every line is one document, without its line end and surrounding spaces.
    """
    if documents not in DOCUMENTS:
        raise ValueError(f"documents={documents!r}: expected one of {', '.join(DOCUMENTS)}")
    if documents == "file":
        parts: Iterable[str] = (text,)
    elif documents == "line":
        parts = (line.strip() for line in text.split("\n"))
    else:
        parts = (part.strip("\n") for part in text.replace("\r\n", "\n").split("\n\n"))
    return (part for part in parts if part)


def each_path(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
    """One path, or several, as a list."""
    return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)


def count_characters(parts: Iterable[str], documents: str) -> int:
    """Characters of a file's documents for bits per character: with the line ends that part them."""
    line_ends = {"file": 0, "line": 1, "blank-line": 2}[documents]
    return sum(len(part) + line_ends for part in parts)


def read_text(path: str | os.PathLike[str]) -> str:
    """A UTF-8 text file, plain or gzip (told by its first bytes), without a byte-order mark.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is a damaged gzip file, or not UTF-8; the message names the file and the byte.
    """
    with open(path, "rb") as file:
        data = file.read()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as e:
            raise ValueError(f"{path}: the gzip file is damaged ({e})") from e
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: expected UTF-8 text, found byte 0x{data[e.start]:02x} at offset {e.start}") from None


class TextStream:
    """Turns token ids into text piece by piece; no piece ends inside a character."""

    def push(self, token: int) -> str:
        """The text that ``token`` completes (may be empty)."""
        raise NotImplementedError

    def finish(self) -> str:
        """What is left at the end: U+FFFD for the bytes of an unfinished character."""
        return ""


class _Pieces(TextStream):
    def __init__(self, piece: Callable[[int], str]) -> None:
        self._piece = piece

    def push(self, token: int) -> str:
        return self._piece(token)


class _Bytes(TextStream):
    def __init__(self, piece: Callable[[int], bytes]) -> None:
        self._piece = piece
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(self._piece(token))

    def finish(self) -> str:
        return self._utf8.decode(b"", True)


class _Led(_Bytes):
    """Of texts with a lead, which is left out."""

    def __init__(self, known: HuggingFaceTokenizer, inside: bool) -> None:
        super().__init__(known._bytes_of)
        self._borders, self._lead, self._inside = (known.bos, known.eos), known.lead.encode(), inside

    def push(self, token: int) -> str:
        piece = self._piece(token)
        if token in self._borders:
            self._inside = False
        elif piece and not self._inside:
            self._inside, piece = True, piece.removeprefix(self._lead)
        return self._utf8.decode(piece)


class _Window(TextStream):
    """For decoders that look at their neighbours (word separators): decode a short window twice, with
    and without the new tokens, and hand out the difference. The context is what came before."""

    CONTEXT = 6

    def __init__(self, decode: Callable[[list[int]], str], context: Sequence[int]) -> None:
        self._decode = decode
        self._before = list(context[-self.CONTEXT :])
        self._new: list[int] = []

    def push(self, token: int) -> str:
        self._new.append(token)
        text = self._difference()
        if text.endswith("\ufffd") and len(self._new) < 4:  # half a character (at most 4 bytes in UTF-8)
            return ""
        self._before = (self._before + self._new)[-self.CONTEXT :]
        self._new = []
        return text

    def finish(self) -> str:
        return self._difference() if self._new else ""

    def _difference(self) -> str:
        before = self._decode(self._before)
        return self._decode(self._before + self._new)[len(before) :]


class Tokenizer:
    """What every tokenizer offers. Ids run from 0 to ``vocab_size - 1``.

    Attributes
    ----------
    vocab_size : int
    bos, eos : int or None
        Ids that a text starts with and ends with; None if it has no such mark.
    unknown : int or None
        Id that stands for what the vocabulary lacks; None if nothing is unknown.
    documents : str
        How a file is cut into documents, one of `DOCUMENTS`.
    exact_pieces : bool
        Whether a text's bytes are those of its tokens' `pieces`, one after the other, but for the lead.
    lead : str
        What a text begins with in its tokens, though it is no part of it: a space, so that its first word is the same
        tokens as inside a text; or nothing.
    """

    exact_pieces = True
    lead = ""
    kind: str
    vocab_size: int
    bos: int | None = None
    eos: int | None = None
    unknown: int | None = None
    documents: str = "file"

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, without borders. Raises ValueError for text that is not valid Unicode."""
        raise NotImplementedError

    def encode_inside(self, text: str) -> list[int]:
        """Ids of a piece of text that stands behind other text: without the lead."""
        return self.encode(text)

    def inside(self, context: Sequence[int], before: bool = False) -> bool:
        """Whether what follows ``context`` stands inside a text: there is text behind its last border.
        ``before``: whether the context itself does. Without a lead that makes no difference, and is not looked at."""
        if not self.lead:
            return before
        for token in reversed(context):
            if token in (self.bos, self.eos):
                return False
            if token < self.vocab_size and self.pieces[token]:
                return True
        return before

    def lead_behind(self, context: Sequence[int]) -> str:
        """The lead of a text that follows ``context``."""
        return "" if self.inside(context) else self.lead

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where in ``text`` each token of `encode` comes from: its first character, and the one behind its last."""
        raise NotImplementedError

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        """A decoder for tokens that follow ``context``."""
        raise NotImplementedError

    def fields(self) -> dict[str, Any]:
        """The model file's keys for this tokenizer; `from_fields` reads them back."""
        raise NotImplementedError

    @cached_property
    def pieces(self) -> list[bytes]:
        """What each token adds to a text, in UTF-8; of those that are no text, nothing."""
        return [self._piece(token) for token in range(self.vocab_size)]

    def _piece(self, token: int) -> bytes:
        raise NotImplementedError

    def decode(self, tokens: Iterable[int], context: Sequence[int] = ()) -> str:
        """Text of ``tokens``; ``bos`` and ``eos`` are left out."""
        stream = self.stream(context)
        return "".join([stream.push(t) for t in tokens] + [stream.finish()])

    def encode_documents(self, parts: Iterable[str]) -> list[int]:
        """Documents as one stream of ids, each followed by ``eos``."""
        end = [] if self.eos is None else [self.eos]
        return [t for part in parts for t in self.encode(part) + end]

    def _common_fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"tokenizer.ggml.model": self.kind, "lstm.text.documents": self.documents}
        if self.bos is not None:
            fields["tokenizer.ggml.bos_token_id"] = self.bos
        if self.eos is not None:
            fields["tokenizer.ggml.eos_token_id"] = self.eos
        if self.unknown is not None:
            fields["tokenizer.ggml.unknown_token_id"] = self.unknown
        return fields


class CharTokenizer(Tokenizer):
    """One token a Unicode character. Characters outside the vocabulary become ``unknown``, which
    decodes to U+FFFD; every other text comes back exactly.

    Parameters
    ----------
    tokens : sequence of str
        The border, the unknown token, then the characters, each once.
    """

    kind = "chars"
    bos = eos = 0
    unknown = 1

    def __init__(self, tokens: Sequence[str], documents: str = "file") -> None:
        characters = tokens[2:]
        if len(tokens) < 2 or any(len(c) != 1 for c in characters) or len(set(characters)) != len(characters):
            raise ValueError("a character tokenizer wants two special tokens, then single characters, each once")
        self.documents = documents
        self.vocab_size = len(tokens)
        self._tokens = list(tokens)
        self._text = ["", "\ufffd", *characters]
        self._ids = {c: i for i, c in enumerate(tokens) if i >= 2}

    @classmethod
    def train(cls, texts: Iterable[str], documents: str = "file") -> CharTokenizer:
        """The characters that occur in ``texts``, in code-point order."""
        return cls([*_CHAR_SPECIALS, *sorted({c for text in texts for c in text})], documents)

    def encode(self, text: str) -> list[int]:
        get = self._ids.get
        return [get(c, 1) for c in text]

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [(n, n + 1) for n in range(len(text))]

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        texts, ends = self._text, (self.bos, self.eos)
        return _Pieces(lambda token: texts[token] if token < len(texts) and token not in ends else "")

    def _piece(self, token: int) -> bytes:
        return b"" if token in (self.bos, self.eos) else self._text[token].encode()

    def fields(self) -> dict[str, Any]:
        return {**self._common_fields(), "tokenizer.ggml.tokens": self._tokens}


class ByteTokenizer(Tokenizer):
    """One token a UTF-8 byte (0 to 255), and 256 for the border. Any Unicode text comes back exactly."""

    kind = "bytes"
    bos = eos = 256
    vocab_size = 257

    def __init__(self, documents: str = "file") -> None:
        self.documents = documents

    def encode(self, text: str) -> list[int]:
        return list(_utf8(text))

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [(n, n + 1) for n, character in enumerate(text) for _ in character.encode()]

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        return _Bytes(self._piece)

    def _piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 and token not in (self.bos, self.eos) else b""

    def fields(self) -> dict[str, Any]:
        return self._common_fields()


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the ``tokenizers`` library (BPE, WordLevel, Unigram, WordPiece), from its JSON.

    Byte-level BPE brings any Unicode text back exactly; only if its JSON puts a space before a text
    (``add_prefix_space``: `lead`), one that begins with a space loses it. WordLevel and Unigram replace what
    they lack by their own unknown token, and may normalise spaces, as their JSON says. A special token's name
    inside a text is ordinary text: only the engine places borders.

    Parameters
    ----------
    source : str
        The JSON text.
    bos, eos : str, int or None
        The tokens that start and end a text, by name or id.

    Raises
    ------
    ImportError
        If the ``tokenizers`` package is missing.
    ValueError
        If the JSON cannot be read or ``bos`` or ``eos`` is not in its vocabulary.
    """

    kind = "huggingface"

    def __init__(
        self,
        source: str,
        bos: str | int | None = None,
        eos: str | int | None = None,
        documents: str = "file",
    ) -> None:
        try:
            import tokenizers
        except ImportError as e:
            raise ImportError("this model's tokenizer needs the 'tokenizers' package: pip install tokenizers") from e
        try:
            spec = json.loads(source)
            self._library = tokenizers.Tokenizer.from_str(source)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:  # the library raises bare Exception, and its panics are not even that
            raise ValueError(f"not a tokenizer that the 'tokenizers' package can read: {e}") from e
        self._library.no_truncation()  # a text is never cut short, and never filled up
        self._library.no_padding()
        self._source = source
        self.documents = documents
        self.vocab_size = 1 + max(self._library.get_vocab(with_added_tokens=True).values(), default=-1)
        self.bos, self.eos = self._find(bos), self._find(eos)
        self._library.encode_special_tokens = True
        model, decoder = (part if isinstance(part := spec.get(key), dict) else {} for key in ("model", "decoder"))
        unknown = model.get("unk_token")
        self.unknown = self._library.token_to_id(unknown) if isinstance(unknown, str) else None
        if self.unknown is None:
            self.unknown = model.get("unk_id")  # Unigram
        self._special = {t.content for t in self._library.get_added_tokens_decoder().values() if t.special}
        self._byte_level = decoder.get("type") == "ByteLevel"
        self._inner = self._library  # for what stands inside a text
        kind = tokenizers.pre_tokenizers.ByteLevel
        if self._byte_level and isinstance(before := self._library.pre_tokenizer, kind) and before.add_prefix_space:
            self.lead = " "
            self._inner = tokenizers.Tokenizer.from_str(self._library.to_str())
            self._inner.pre_tokenizer.add_prefix_space = False
            self._inner.encode_special_tokens = True

    def _find(self, token: str | int | None) -> int | None:
        found = self._library.token_to_id(token) if isinstance(token, str) else token
        if token is not None and (found is None or not 0 <= found < self.vocab_size):
            raise ValueError(f"{token!r} is not a token of this tokenizer ({self.vocab_size} tokens)")
        return found

    def encode(self, text: str) -> list[int]:
        return self._encode(self._library, text)

    def encode_inside(self, text: str) -> list[int]:
        return self._encode(self._inner, text)

    def _encode(self, library: Any, text: str) -> list[int]:
        _utf8(text)
        try:
            ids: list[int] = library.encode(text, add_special_tokens=False).ids
        except Exception as e:  # the library raises bare Exception, for instance for what is unknown to Unigram
            raise ValueError(f"the tokenizer cannot encode this text: {e}") from e
        ends = {self.bos, self.eos}
        if self.unknown is not None and not ends.isdisjoint(ids):  # WordLevel knows its special words by sight
            ids = [self.unknown if t in ends else t for t in ids]
        return ids

    def spans(self, text: str) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = self._library.encode(text, add_special_tokens=False).offsets
        return found

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        if self._byte_level:
            return _Led(self, self.inside(context)) if self.lead else _Bytes(self._bytes_of)
        return _Window(self._decode_visible, context)

    @property
    def exact_pieces(self) -> bool:  # type: ignore[override]
        return self._byte_level

    def _piece(self, token: int) -> bytes:
        if self._byte_level:
            return self._bytes_of(token)
        before = [self._word]
        return self._decode_visible([*before, token])[len(self._decode_visible(before)) :].encode()

    @cached_property
    def _word(self) -> int:
        """Some token that is text, to stand before another."""
        return next((token for token in range(self.vocab_size) if self._decode_visible([token]).isalpha()), 0)

    def _decode_visible(self, tokens: list[int]) -> str:
        text: str = self._library.decode([t for t in tokens if t not in (self.bos, self.eos)], skip_special_tokens=True)
        return text

    def _bytes_of(self, token: int) -> bytes:
        name = self._library.id_to_token(token)
        if name is None or token in (self.bos, self.eos) or name in self._special:
            return b""
        table = _byte_level_table()
        return bytes(table[c] for c in name) if all(c in table for c in name) else name.encode()

    def parts(self) -> dict[int, tuple[int, int]]:
        """The two tokens that byte-level BPE merges into each token that is merged; of other models none."""
        ids, merges = self._library.get_vocab(), json.loads(self._source)["model"].get("merges", [])
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        return {ids[left + right]: (ids[left], ids[right]) for left, right in pairs if left + right in ids}

    def fields(self) -> dict[str, Any]:
        return {**self._common_fields(), "tokenizer.huggingface.json": self._source}


def train_bpe(
    texts: Iterable[str], vocab_size: int, documents: str = "file", lead: bool = False
) -> HuggingFaceTokenizer:
    """Byte-level BPE (Sennrich et al. 2016, on bytes as in GPT-2) trained by the ``tokenizers`` library.

    Parameters
    ----------
    texts : iterable of str
        Documents to learn from.
    vocab_size : int
        Tokens in all: 256 bytes, one border, the rest merges (fewer if the text has not that many).
    lead : bool
        Whether texts begin with a space in their tokens, see `Tokenizer.lead`.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise ValueError(f"vocab_size={vocab_size}: byte-level BPE needs at least 257 (256 bytes and the border)")
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=lead)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|border|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return HuggingFaceTokenizer(library.to_str(), "<|border|>", "<|border|>", documents)


def train_words(texts: Iterable[str], vocab_size: int, documents: str = "line") -> HuggingFaceTokenizer:
    """Whole words between white space (WordLevel), the commonest ``vocab_size``; others become ``<unk>``.
    A border ``<eos>`` ends every document, as in the usual Penn Treebank set-up."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers

    counts = Counter(word for text in texts for word in text.split())
    words = [w for w, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    names = ["<eos>", "<unk>"] + [w for w in words if w not in ("<eos>", "<unk>")]
    library = Library(models.WordLevel({w: i for i, w in enumerate(names[:vocab_size])}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return HuggingFaceTokenizer(library.to_str(), "<eos>", "<eos>", documents)


def from_fields(fields: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of a model file (its keys to values); None if the file has none.

    Raises
    ------
    ValueError
        If the keys do not describe a tokenizer that fastlm knows.
    """
    known = _from_fields(fields)
    if known is not None:
        known.bos, known.eos = (fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    return known


def _from_fields(fields: Mapping[str, Any]) -> Tokenizer | None:
    kind = fields.get("tokenizer.ggml.model")
    documents = fields.get("lstm.text.documents", "file")
    if documents not in DOCUMENTS:
        raise ValueError(f"lstm.text.documents: expected one of {', '.join(DOCUMENTS)}, found {documents!r}")
    if kind is None:
        return None
    if kind == "chars":
        tokens = fields.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise ValueError(f"tokenizer.ggml.tokens: expected an array of text, found {tokens!r:.60}")
        return CharTokenizer(tokens, documents)
    if kind == "bytes":
        return ByteTokenizer(documents)
    if kind == "huggingface":
        source = fields.get("tokenizer.huggingface.json")
        if not isinstance(source, str):
            raise ValueError("tokenizer.huggingface.json: expected the tokenizer's JSON text, found nothing")
        return HuggingFaceTokenizer(source, documents=documents)
    raise ValueError(f"tokenizer.ggml.model: expected chars, bytes or huggingface, found {kind!r}")


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as e:
        raise ValueError(f"text is not valid Unicode: {text[e.start]!r} at character {e.start} stands alone") from None


def _byte_level_table() -> dict[str, int]:
    """Character to byte, in the alphabet of byte-level BPE: printable Latin-1 stands for itself, the 68
    other bytes for the code points from 256 on, in order."""
    if not _BYTE_LEVEL:
        shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        hidden = [b for b in range(256) if b not in shown]
        _BYTE_LEVEL.update({chr(b): b for b in shown})
        _BYTE_LEVEL.update({chr(256 + i): b for i, b in enumerate(hidden)})
    return _BYTE_LEVEL


_BYTE_LEVEL: dict[str, int] = {}
