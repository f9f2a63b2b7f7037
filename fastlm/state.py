# SPDX-License-Identifier: Apache-2.0
"""A network's past as a value: states that can be copied, compared and stored, sessions that also remember what a
decoder does, and a cache of the states of prompts."""

from __future__ import annotations

import bisect
import json
import struct
import threading
import time
import zlib
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlm import _engine
from fastlm.constraints import Steps
from fastlm.controls import Plan
from fastlm.options import Completion, check_option, timed
from fastlm.writing import Text, Written

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastlm.model import Model, Prompt

_STATE, _SESSION = b"fastlm state", b"fastlm session"
_OUTER = struct.Struct("<16sHHI")  # kind, format, numerics version, CRC-32 of all behind it
_INNER = struct.Struct("<32sQQ")  # the model's fingerprint, position, bytes of values
_FORMAT = 1

SHORTEST_KEPT = 8
"""Tokens of a prompt that is worth remembering."""

KEPT_STATES = 16
"""Places of a session to which it goes back at once; others are read again from the nearest before."""


def _pack(kind: bytes, model: Model, state: _engine.State, rest: bytes) -> bytes:
    values = state.values()
    body = _INNER.pack(model._fingerprint, state.position, len(values)) + values + rest
    return _OUTER.pack(kind, _FORMAT, _engine.NUMERICS_VERSION, zlib.crc32(body)) + body


def _unpack(kind: bytes, model: Model, data: bytes) -> tuple[_engine.State, bytes]:
    """The state, and what is behind it."""
    what = kind.decode().removeprefix("fastlm ")
    outer, behind = _OUTER.size, _OUTER.size + _INNER.size
    found = data[:16].rstrip(b"\0")
    if len(data) < behind or found not in (_STATE, _SESSION):
        raise ValueError(f"these {len(data)} bytes are no {what}: expected bytes() of one")
    if found != kind:
        raise ValueError(f"expected a {what}, found a {found.decode().removeprefix('fastlm ')}")
    _, version, numerics, crc = _OUTER.unpack_from(data)
    if version != _FORMAT:
        raise ValueError(f"a {what} of format {version}: this version of fastlm reads format {_FORMAT}")
    if numerics != _engine.NUMERICS_VERSION:
        own = _engine.NUMERICS_VERSION
        raise ValueError(f"a {what} of numerics version {numerics}: this version of fastlm computes {own}")
    if zlib.crc32(memoryview(data)[outer:]) != crc:
        raise ValueError(f"the {what} is damaged: its checksum does not fit")
    fingerprint, position, size = _INNER.unpack_from(data, outer)
    if fingerprint != model._fingerprint:
        raise ValueError(f"the {what} belongs to another model: load the one that it was made with")
    state = _engine.State(model._engine)
    state.set(position, data[behind : behind + size])
    return state, data[behind + size :]


def _count(n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, Integral) or n < 0:
        raise ValueError(f"fork({n!r}): expected a whole number from 0 on")
    return int(n)


class State:
    """A network's past: all that a model knows of what it has read, a few kilobytes whatever its length.

    Made by `Model.state`. Two are equal if they are of one model and say the same for ever after; ``bytes(state)``
    stores one, and ``model.state(data)`` brings it back. One thread at a time.
    """

    def __init__(self, model: Model, engine: _engine.State, inside: bool = False) -> None:
        self.model, self._engine = model, engine
        self._inside = inside  # a text: what is fed goes on with it

    @property
    def position(self) -> int:
        """Tokens read, the start of text among them."""
        return self._engine.position

    def feed(self, text: Prompt) -> State:
        """Reads a text, or token ids; gives itself."""
        ids = self.model._said(text, self._inside)
        with self.model._decoder() as decoder:
            decoder.feed(self._engine, ids)
        self._inside = self.model._inside(ids, self._inside)
        return self

    def logprobs(self) -> npt.NDArray[np.float32]:
        """Natural log-probabilities of the next token: float32 [V]."""
        with self.model._decoder() as decoder:
            return np.frombuffer(decoder.logprobs(self._engine), np.float32)

    def copy(self) -> State:
        """The same past, of its own."""
        return State(self.model, self._engine.copy(), self._inside)

    def fork(self, n: int) -> list[State]:
        """So many copies."""
        return [self.copy() for _ in range(_count(n))]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return NotImplemented
        same = self.position == other.position and self._engine.values() == other._engine.values()
        return same and self.model._fingerprint == other.model._fingerprint

    __hash__ = None  # type: ignore[assignment]

    def fingerprint(self) -> str:
        """32 hexadecimal digits: equal for equal states, and practically never for others."""
        import hashlib  # takes milliseconds

        return hashlib.blake2b(bytes(self), digest_size=16).hexdigest()

    def __bytes__(self) -> bytes:
        return _pack(_STATE, self.model, self._engine, b"")

    def __repr__(self) -> str:
        return f"<fastlm.State after {self.position} tokens, {self.fingerprint()[:8]}>"


def restored(model: Model, data: bytes) -> State:
    """From ``bytes(state)``.

    Raises
    ------
    ValueError
        It is no state, is damaged, or belongs to another model or another version of the numerics.
    """
    state, rest = _unpack(_STATE, model, bytes(data))
    if rest:
        raise ValueError(f"the state is damaged: {len(rest)} bytes too many")
    return State(model, state, inside=state.position > (model.bos is not None))


class PrefixCache:
    """States after the prompts of late, so that what was read before is not read again. Bounded; what was not used for
    longest goes first. Any number of threads."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._bytes = most_bytes, 0
        self._states: OrderedDict[bytes, _engine.State] = OrderedDict()
        self._lengths: Counter[int] = Counter()  # how many prompts are so long
        self._sorted: list[int] = []  # those of which there are some
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def keeps(self, ids: array[int]) -> bool:
        """Whether a prompt is worth it."""
        return self._most > 0 and len(ids) >= SHORTEST_KEPT

    def find(self, ids: array[int]) -> tuple[_engine.State, int] | None:
        """A copy of the state after the longest known beginning of these tokens, and how many they are."""
        with self._lock:
            for length in reversed(self._sorted[: bisect.bisect_right(self._sorted, len(ids))]):
                key = ids[:length].tobytes()
                if (state := self._states.get(key)) is not None:
                    self._states.move_to_end(key)
                    self.hits += 1
                    return state.copy(), length
            self.misses += 1
            return None

    def keep(self, ids: array[int], state: _engine.State) -> None:
        """Remembers the state after these tokens (a copy of it)."""
        key = ids.tobytes()
        with self._lock:
            if key in self._states:
                self._states.move_to_end(key)
                return
            self._states[key] = state.copy()
            if not self._lengths[len(ids)]:
                bisect.insort(self._sorted, len(ids))
            self._lengths[len(ids)] += 1
            self._bytes += self._size(key, state)
            while self._bytes > self._most and self._states:
                old, gone = self._states.popitem(last=False)
                length = len(old) // ids.itemsize
                self._lengths[length] -= 1
                if not self._lengths[length]:
                    self._sorted.remove(length)
                self._bytes -= self._size(old, gone)

    @staticmethod
    def _size(key: bytes, state: _engine.State) -> int:
        return len(key) + len(state.values()) + 200


class Session:
    """A text that is written bit by bit, with all that a decoder remembers of it.

    Made by `Model.session`. `feed` adds what somebody else says, `generate` and `stream` write on. Where it is
    interrupted does not matter: with the same seed, the tokens are those of one call, also after ``bytes(session)``
    and ``model.session(data)`` on another machine. One thread at a time.

    ``finish_reason`` says how the last call's text ended, as `Completion.finish_reason`; None before.
    """

    finish_reason: str | None = None

    def __init__(self, model: Model, plan: Plan, options: Mapping[str, Any], seed: int, index: int = 0) -> None:
        self.model, self._plan, self._options, self.seed, self.index = model, plan, dict(options), seed, index
        self._state = _engine.State(model._engine)
        self._memory = _engine.Memory(model._engine, plan.options.penalty_window or 0)
        self._amateur = None if plan.amateur is None else _engine.State(plan.amateur._engine)
        self._unread = array("i")  # remembered, but not read yet
        self._kept: deque[tuple[int, _engine.State, _engine.State | None]] = deque(maxlen=KEPT_STATES)
        self._writing: Written | None = None
        self._guide: Steps | None = None
        self._begin = 0  # where in the memory the text being written begins
        if model.bos is not None:
            self._add(array("i", [model.bos]))

    @property
    def tokens(self) -> list[int]:
        """All token ids, read and written."""
        return list(self._memory.tokens)

    @property
    def text(self) -> str:
        """All of it as text, what ended a text (`GenerationOptions.stop`) among it."""
        return self.model.decode(self._memory.tokens)

    def __len__(self) -> int:
        return len(self._memory)

    def feed(self, text: Prompt) -> Session:
        """Adds a text, or token ids, that the model shall read; gives itself. A text that was being written is over."""
        inside = isinstance(text, str) and self.model._inside(self._memory.tokens)
        self._add(self.model._said(text, inside))
        self._writing = None
        return self

    def _add(self, ids: array[int]) -> None:
        self._memory.add(ids)
        self._unread += ids

    def generate(self, max_tokens: int | None = None) -> Completion:
        """Writes on.

        Parameters
        ----------
        max_tokens : int, optional
            Most tokens of this call; default: the session's.

        Returns
        -------
        Completion
            Of this call alone. Its text ends with a whole character, and before what may be the beginning of a stop
            text; the next call's text goes on there.
        """
        return write_together([self], max_tokens, self.model._limits(self._plan.options))[0]

    def stream(self, max_tokens: int | None = None) -> Iterator[str]:
        """The same text as `generate`, piece by piece. A session whose stream is left early has what was written so
        far."""
        text = self._text(max_tokens)
        limits = self.model._limits(self._plan.options)
        while text.job.finish is None:
            _write([self], [text], 1, limits)
            over = text.job.finish not in (None, "length")
            piece = text.written.take() if not over else ""
            if piece:
                yield piece
        if piece := self._taken(text):
            yield piece

    def _text(self, max_tokens: int | None) -> Text:
        self.finish_reason = None
        most = check_option("max_tokens", self._plan.options.max_tokens if max_tokens is None else max_tokens)
        if not len(self._memory):
            raise ValueError("the session has no tokens, not even a start of text: feed it one first")
        self._kept.append((self._position, self._state.copy(), self._amateur and self._amateur.copy()))
        if self._writing is None:
            before = self._memory.tokens
            self._begin, self._writing = len(before), self._new_writing(before)
            self._guide = self._new_guide(before)
        text = Text(
            self._plan,
            None,
            self._memory.tokens,
            self._unread,
            self._state,
            self.seed,
            self.index,
            self._memory,
            self._amateur,
            (self._plan.options.min_tokens - (len(self._memory) - self._begin), most),
            self._guide,
        )
        text.written = self._writing.again()
        return text

    def _new_writing(self, context: array[int]) -> Written:
        known = self.model.tokenizer
        return Written(None if known is None else known.stream(context), self._plan.stops)

    def _new_guide(self, context: array[int]) -> Steps | None:
        return None if self._plan.form is None else self._plan.form.guide(self._plan.allowed, context)

    @property
    def _position(self) -> int:
        """Tokens that the state has read."""
        return len(self._memory) - len(self._unread)

    def _taken(self, text: Text) -> str:
        """What this call has written, as text; the session goes on behind it."""
        self.finish_reason = "stop" if text.written.stopped_by is not None else text.job.finish
        if text.written.read(text.job.tokens) or text.job.finish != "length":
            self._writing = None
            return text.written.rest(text.job.tokens)
        return text.written.take()

    # ---- going back, copies, storing -----------------------------------------------------------------------

    def rewind(self, n: int) -> Session:
        """Takes back the last n tokens; gives itself. A text that was over stays so: what is written next is another.

        Costs reading again what is behind the nearest of `KEPT_STATES` kept states (one is kept at the beginning of
        each call that writes).
        """
        if isinstance(n, bool) or not isinstance(n, Integral) or not 0 <= n <= len(self._memory):
            raise ValueError(
                f"rewind({n!r}): expected a whole number from 0 to {len(self._memory)}, the session's tokens"
            )
        size = len(self._memory) - int(n)
        while self._kept and self._kept[-1][0] > size:
            self._kept.pop()
        if self._position > size:
            read, state, amateur = self._kept.pop() if self._kept else (0, None, None)
            self._state = _engine.State(self.model._engine) if state is None else state.copy()
            if self._plan.amateur is not None:
                self._amateur = _engine.State(self._plan.amateur._engine) if amateur is None else amateur.copy()
        else:
            read = self._position
        self._memory.rewind(size)
        self._unread = self._memory.tokens[read:]
        if self._writing is not None:
            self._replay()
        return self

    def _replay(self) -> None:
        """Brings the text being written to where its tokens are; what was given out stays so."""
        tokens = self._memory.tokens
        self._begin = min(self._begin, len(tokens))
        before = tokens[: self._begin]
        self._writing = self._new_writing(before)
        self._writing.read(tokens[self._begin :])
        self._writing.take()
        self._guide = self._new_guide(before)
        if self._guide is not None:
            for token in tokens[self._begin :]:
                self._guide.accept(token)

    def copy(self) -> Session:
        """The same session, of its own."""
        copied = object.__new__(Session)
        copied.__dict__.update(self.__dict__)
        copied._state, copied._memory = self._state.copy(), self._memory.copy()
        copied._amateur = self._amateur and self._amateur.copy()
        if self._amateur is not None:
            copied._plan = self.model._plan(self._options)  # with a decoder of its own for the second model
        copied._unread, copied._kept = self._unread[:], self._kept.copy()
        if self._writing is not None:
            copied._replay()
        return copied

    def fork(self, n: int) -> list[Session]:
        """So many copies that write differently, as the n texts of one prompt do: each has an index of its own."""
        copies = [self.copy() for _ in range(_count(n))]
        for index, one in enumerate(copies):
            one.index = self.index + index
        return copies

    def __bytes__(self) -> bytes:
        for name in ("cancelled", "logits_processor", "contrastive_model", "corpus"):
            if self._options.get(name) is not None:
                raise ValueError(f"a session with {name} cannot be stored")
        surprises = self._memory.surprises
        facts = {
            "options": _plain(self._options),
            "seed": self.seed,
            "index": self.index,
            "unread": len(self._unread),
            "begin": self._begin,
            "writing": self._writing is not None,
            "finish_reason": self.finish_reason,
            "tokens": len(self._memory),
            "surprised": not np.isnan(surprises).all() if len(surprises) else False,
        }
        said = json.dumps(facts).encode()
        parts = [struct.pack("<Q", len(said)), said, self._memory.tokens.tobytes(), self._memory.written]
        if facts["surprised"]:
            parts.append(surprises.tobytes())
        return _pack(_SESSION, self.model, self._state, b"".join(parts))


def write_together(sessions: Sequence[Session], max_tokens: int | None, limits: Mapping[str, Any]) -> list[Completion]:
    """`Session.generate` of several of one model, side by side. limits: as `Model._limits` says them."""
    begin = time.perf_counter()
    read = sum(len(session._unread) for session in sessions)
    texts = [session._text(max_tokens) for session in sessions]
    _write(sessions, texts, 0, limits)
    timings = timed(begin, read + sum(len(text.job.tokens) for text in texts), [text.job for text in texts])
    return [
        session.model._completion("", text, None, session.seed, timings, session._taken(text))
        for session, text in zip(sessions, texts, strict=True)
    ]


def _write(sessions: Sequence[Session], texts: Sequence[Text], most: int, limits: Mapping[str, Any]) -> None:
    """Writes so many tokens of each, 0 for all. What was written is the sessions', even if something is raised."""
    try:
        if sessions:
            with sessions[0].model._decoder() as decoder:
                decoder.write([text.job for text in texts], most, **limits)
    finally:
        for session, text in zip(sessions, texts, strict=True):
            session._unread = text.job.unread
            text.written.read(text.job.tokens)


def _plain(options: Mapping[str, Any]) -> list[list[Any]]:
    """Options as JSON can hold them: mappings with keys that are numbers become pairs."""
    plain = []
    for name, value in options.items():
        if name == "json_schema":
            value = value if value is None or isinstance(value, str) else json.dumps(value)
        elif isinstance(value, Mapping):
            value = [[int(k), float(v)] for k, v in value.items()]
        elif value is not None and not isinstance(value, (str, int, float, bool)):
            value = [one if isinstance(one, str) else np.asarray(one).tolist() for one in value]
        plain.append([name, value])
    return plain


def resumed(model: Model, data: bytes) -> Session:
    """From ``bytes(session)``.

    Raises
    ------
    ValueError
        It is no session, is damaged, or belongs to another model or another version of the numerics.
    """
    state, rest = _unpack(_SESSION, model, bytes(data))
    try:
        return _session(model, state, rest)
    except (KeyError, TypeError, ValueError, struct.error) as e:
        raise ValueError(f"the session is damaged: {e}") from e


def _session(model: Model, state: _engine.State, rest: bytes) -> Session:
    (size,) = struct.unpack_from("<Q", rest)
    facts = json.loads(rest[8 : 8 + size])
    options = {name: dict(value) if name == "logit_bias" and value else value for name, value in facts["options"]}
    session = Session(model, model._plan(options), options, facts["seed"], facts["index"])
    n, at = facts["tokens"], 8 + size
    tokens, written = np.frombuffer(rest, np.int32, n, at), np.frombuffer(rest, np.uint8, n, at + 4 * n)
    session._memory.rewind(0)
    for begin, end in _runs(written):
        session._memory.add(array("i", tokens[begin:end].tobytes()), bool(written[begin]))
    if facts["surprised"]:
        session._memory.surprises = array("f", rest[at + 5 * n : at + 9 * n])
    session._state, session.finish_reason = state, facts["finish_reason"]
    session._unread = session._memory.tokens[n - facts["unread"] :]
    if facts["writing"]:
        session._begin, session._writing = facts["begin"], Written(None, ())
        session._replay()
    return session


def _runs(flags: npt.NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Where neighbours are equal: begin and end of each run."""
    borders = [0, *(np.flatnonzero(np.diff(flags)) + 1).tolist(), len(flags)]
    return ((a, b) for a, b in pairwise(borders) if a < b)
