# SPDX-License-Identifier: Apache-2.0
"""Load a model, and generate, stream and score with it."""

from __future__ import annotations

import errno
import os
import secrets
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np

from fastlm import _engine, tokenizer
from fastlm.options import Completion, GenerationOptions, Options, Score

if TYPE_CHECKING:
    from typing_extensions import Unpack

Prompt: TypeAlias = "str | Sequence[int]"

BUNDLED = ("stories",)
"""Names of the models that come with the package."""

_IDLE_SESSIONS = 4  # kept for the next call: their memory is touched already, which a new one's is not


class Model:
    """A language model, mapped from its file. Immutable; any number of threads may use it at once.

    Made by `load`. Attributes: ``vocab_size`` (int), ``tokenizer`` (or None), ``bos`` and ``eos`` (token
    ids that start and end a text, or None), ``metadata`` (dict: the file's keys), ``recommended`` (dict:
    sampling settings that are the defaults of `generate`).
    """

    def __init__(self, engine: _engine.Model) -> None:
        self._engine = engine
        self._idle: list[_engine.Session] = []
        self.metadata: dict[str, Any] = engine.fields()
        facts = engine.info()
        self.vocab_size: int = facts["vocab_size"]
        self.bos: int | None = facts["bos"]
        self.eos: int | None = facts["eos"]
        self.tokenizer = self._read_tokenizer()
        self.recommended = self._read_recommended()

    def _read_tokenizer(self) -> tokenizer.Tokenizer | None:
        try:
            found = tokenizer.from_fields(self.metadata)
        except ValueError as e:
            raise _engine.FormatError(str(e)) from None
        if found is not None and found.vocab_size > self.vocab_size:
            raise _engine.FormatError(
                f"the tokenizer has {found.vocab_size} tokens, but the output layer only {self.vocab_size}"
            )
        return found

    def _read_recommended(self) -> dict[str, Any]:
        keys = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p"}
        found = {name: self.metadata.get(f"general.sampling.{key}") for name, key in keys.items()}
        try:
            GenerationOptions.of(found)
        except (TypeError, ValueError) as e:
            raise _engine.FormatError(f"keys 'general.sampling.*': {e}") from None
        return {name: value for name, value in found.items() if value is not None}

    @property
    def info(self) -> dict[str, Any]:
        """What the model is: sizes, layers, tokenizer, how texts start and end, and the instruction set in use."""
        facts = self._engine.info()
        shapes = {name: shape for name, shape, _, _ in self._engine.tensors()}
        return {
            "name": self.metadata.get("general.name"),
            "license": self.metadata.get("general.license"),
            "description": self.metadata.get("general.description"),
            "task": self.metadata["lstm.task"],
            **facts,
            "tokenizer": None if self.tokenizer is None else self.tokenizer.kind,
            "documents": None if self.tokenizer is None else self.tokenizer.documents,
            "recommended": self.recommended,
            "tensors": shapes,
        }

    def check(self) -> tuple[float, float]:
        """Runs the test vector that travels with the file.

        Returns
        -------
        largest, tolerance : float
            The largest difference of a log-probability from what the training framework computed, and what
            the file allows.

        Raises
        ------
        FormatError
            If the file has no test vector.
        """
        return self._engine.verify()

    # ---- text and ids --------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without start and end."""
        return self._need_tokenizer().encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        for place, token in enumerate(tokens):
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token {token} at place {place}: expected 0 to {self.vocab_size - 1}")
        return self._need_tokenizer().decode(tokens)

    def _need_tokenizer(self) -> tokenizer.Tokenizer:
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer: pass token ids instead of text")
        return self.tokenizer

    def _ids(self, prompt: Prompt) -> array[int]:
        """A text behind the start of text; ids as they are; nothing at all as the bare start of text."""
        start = [] if self.bos is None else [self.bos]
        ids = start + self.encode(prompt) if isinstance(prompt, str) else list(prompt) or start
        if not ids:
            raise ValueError("the prompt is empty and this model has no start of text: give it at least one token")
        try:
            return array("i", ids)
        except (TypeError, OverflowError):
            raise TypeError("a prompt is a str or a sequence of token ids (int), or a list of such prompts") from None

    # ---- sessions ------------------------------------------------------------------------------------

    @contextmanager
    def _session(self) -> Iterator[_engine.Session]:
        try:
            session = self._idle.pop()
        except IndexError:
            session = _engine.Session(self._engine)
        try:
            yield session
        finally:
            if len(self._idle) < _IDLE_SESSIONS:
                session.reset()
                self._idle.append(session)

    # ---- generate ------------------------------------------------------------------------------------

    def _settle(self, given: Options) -> tuple[GenerationOptions, dict[str, Any]]:
        """Options, and the engine's arguments after the file's recommendation and the neutral values."""
        options = GenerationOptions.of(dict(given))
        neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        settled: dict[str, Any] = {}
        for name, value in neutral.items():
            asked = getattr(options, name)
            settled[name] = asked if asked is not None else self.recommended.get(name, value)
        settled["seed"] = options.seed if options.seed is not None else secrets.randbits(63)
        ends = {*(options.stop_token_ids or ()), *(() if self.eos is None else (self.eos,))}
        try:
            settled["stop"] = array("i", sorted(ends))
        except (TypeError, OverflowError):
            raise TypeError(f"stop_token_ids={options.stop_token_ids!r}: expected token ids, as in [0, 13]") from None
        return options, settled

    @overload
    def generate(self, prompt: str, **options: Unpack[Options]) -> Completion: ...
    @overload
    def generate(self, prompt: Sequence[str] | Sequence[Sequence[int]], **options: Unpack[Options]) -> Any: ...
    @overload
    def generate(self, prompt: Sequence[int], **options: Unpack[Options]) -> Completion: ...
    def generate(self, prompt: Any, **options: Unpack[Options]) -> Any:
        """Writes on from a prompt.

        Parameters
        ----------
        prompt : str, sequence of int, or list of such
            A text, which follows the model's start of text; or token ids, which are used as they are. May be
            empty if the model has a start of text.
        **options
            See `GenerationOptions`: n, max_tokens, temperature, top_k, top_p, stop_token_ids, logprobs,
            echo, seed.

        Returns
        -------
        Completion
            A list of them for a list of prompts, and for ``n`` above 1 (in a list of prompts: lists).

        Raises
        ------
        TypeError, ValueError
            For a prompt or an option that cannot be used; the message says what would be right.

        Examples
        --------
        >>> import fastlm
        >>> text = str(fastlm.load("stories").generate("Once upon a time", max_tokens=20, seed=1))
        """
        chosen, settled = self._settle(options)
        if isinstance(prompt, str) or not _is_batch(prompt):
            return self._complete(prompt, chosen, settled)
        return [self._complete(one, chosen, settled) for one in prompt]

    def _complete(self, prompt: Prompt, options: GenerationOptions, settled: dict[str, Any]) -> Any:
        ids = self._ids(prompt)
        with self._session() as session:
            if options.n == 1:
                return self._draw(session, prompt, ids, ids, 0, options, settled)
            session.feed(ids)
            found = []
            for index in range(options.n):
                with self._session() as fork:
                    fork.copy_from(session)
                    found.append(self._draw(fork, prompt, ids, array("i"), index, options, settled))
            return found

    def _draw(
        self,
        session: _engine.Session,
        prompt: Prompt,
        ids: array[int],
        unread: array[int],
        index: int,
        options: GenerationOptions,
        settled: dict[str, Any],
    ) -> Completion:
        begin = time.perf_counter()
        tokens, logprobs, stopped = session.generate(
            unread, options.max_tokens, index=index, logprobs=options.logprobs, **settled
        )
        seconds = time.perf_counter() - begin
        text = ""
        if self.tokenizer is not None:
            text = self._echo(prompt, ids, options) + self.tokenizer.decode(tokens, context=ids)
        return Completion(
            text=text,
            token_ids=tokens,
            finish_reason="stop" if stopped else "length",
            logprobs=logprobs,
            seed=settled["seed"],
            usage={"prompt_tokens": len(ids), "completion_tokens": len(tokens), "total_tokens": len(ids) + len(tokens)},
            timings={"seconds": seconds, "tokens_per_second": (len(unread) + len(tokens)) / max(seconds, 1e-9)},
        )

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Iterator[str]:
        """The same text as `generate`, piece by piece, as it is written.

        Returns
        -------
        iterator of str
            Pieces of whole characters; together they are ``generate(...).text``. Closing it (or leaving the
            loop) stops the work.

        Raises
        ------
        TypeError, ValueError
            As `generate`, at once; also for a list of prompts, ``n`` above 1 and ``logprobs``.
        """
        chosen, settled = self._settle(options)
        if not isinstance(prompt, str) and _is_batch(prompt):
            raise TypeError("stream takes one prompt; use generate for a list")
        for name, usable in (("n", chosen.n == 1), ("logprobs", not chosen.logprobs)):
            if not usable:
                raise ValueError(f"stream yields one text and no {name}; use generate")
        ids = self._ids(prompt)
        return self._pieces(ids, self._need_tokenizer().stream(ids), self._echo(prompt, ids, chosen), chosen, settled)

    def _pieces(
        self,
        ids: array[int],
        text: tokenizer.TextStream,
        echo: str,
        options: GenerationOptions,
        settled: dict[str, Any],
    ) -> Iterator[str]:
        if echo:
            yield echo
        unread = ids
        with self._session() as session:
            for _ in range(options.max_tokens):
                tokens, _scores, stopped = session.generate(unread, 1, index=0, logprobs=False, **settled)
                if stopped:
                    break
                unread = array("i", tokens)
                if piece := text.push(tokens[0]):
                    yield piece
        if piece := text.finish():
            yield piece

    def _echo(self, prompt: Prompt, ids: array[int], options: GenerationOptions) -> str:
        if not options.echo:
            return ""
        return prompt if isinstance(prompt, str) else self._need_tokenizer().decode(ids)

    # ---- score ---------------------------------------------------------------------------------------

    @overload
    def score(self, text: Prompt, *, documents: bool = False) -> Score: ...
    @overload
    def score(self, text: list[str], *, documents: bool = False) -> list[Score]: ...
    def score(self, text: Any, *, documents: bool = False) -> Any:
        """How likely the model finds a text.

        Parameters
        ----------
        text : str, sequence of int, or list of such
            A text is read after the model's start of text; token ids are read as they are, the first from
            the fresh network.
        documents : bool
            Take the text as a file like those the model was trained on: cut it into documents, end each with
            the end of text (which is scored too), and carry the state from one to the next. This is how the
            perplexity of a corpus is measured.

        Returns
        -------
        Score
            A list of them for a list of texts.
        """
        if isinstance(text, str) or not _is_batch(text):
            return self._score(text, documents)
        return [self._score(one, documents) for one in text]

    def _score(self, text: Prompt, documents: bool) -> Score:
        start = array("i", [] if self.bos is None or not isinstance(text, str) else [self.bos])
        if isinstance(text, str):
            known = self._need_tokenizer()
            ids = known.encode_documents(text) if documents else known.encode(text)
            characters = len(text)
        else:
            if documents:
                raise ValueError("documents=True wants a text, not token ids")
            ids = list(self._ids(text)) if len(text) else []
            characters = 0 if self.tokenizer is None else len(self.tokenizer.decode(ids))
        with self._session() as session:
            session.feed(start)
            return Score(ids, list(session.score(array("i", ids))), characters)


def _is_batch(prompt: Any) -> bool:
    """Whether this is a list of prompts rather than one list of ids."""
    if isinstance(prompt, (bytes, bytearray)) or not isinstance(prompt, (Sequence, np.ndarray, array)):
        raise TypeError(f"a prompt is a str or a sequence of token ids (int), found {type(prompt).__name__}")
    return len(prompt) > 0 and (isinstance(prompt[0], str) or hasattr(prompt[0], "__len__"))


def load(
    model: str | os.PathLike[str] | bytes = "stories",
    *,
    threads: int | None = None,
    isa: str | None = None,
    row_cache_mb: float = 16,
) -> Model:
    """Opens a model.

    Parameters
    ----------
    model : path, bytes, or name of a bundled model
        A path is mapped, so it costs no copy and other processes share its memory; the file must not be
        truncated while it is used, since the system kills whoever reads a page that is gone. Bytes are copied.
    threads : int, optional
        Threads that work on one token. This version has one.
    isa : str, optional
        Instruction set by name (`cpu_info` lists them). Default: ``FASTLM_ISA``, else the best there is. The
        results do not depend on it.
    row_cache_mb : float
        Megabytes (2**20 bytes) set aside for first-layer rows of tokens already seen; used only as they come.

    Raises
    ------
    FormatError
        The file is not a model that this version can run.
    OSError
        The file cannot be read.
    ValueError
        ``isa`` is unknown or this processor lacks it, ``threads`` is not 1, or ``row_cache_mb`` is negative.
    """
    if threads not in (None, 1):
        raise ValueError(f"threads={threads!r}: this version works on a token with 1 thread")
    if not 0 <= row_cache_mb <= 2**20:
        raise ValueError(f"row_cache_mb={row_cache_mb!r}: expected 0 to {2**20} megabytes")
    cache = int(row_cache_mb * 2**20)
    if isinstance(model, (bytes, bytearray, memoryview)):
        return Model(_engine.Model(None, memoryview(model).cast("B"), isa, cache))
    path = os.fspath(model)
    if path in BUNDLED:
        path = str(resources.files("fastlm.models") / f"{path}.gguf")
    elif not os.path.exists(path) and os.sep not in path and not path.endswith(".gguf"):
        raise FileNotFoundError(errno.ENOENT, f"neither a file nor a bundled model ({', '.join(BUNDLED)})", path)
    return Model(_engine.Model(path, None, isa, cache))


_loaded: dict[str, Model] = {}


def generate(prompt: Any, *, model: Any = "stories", **options: Unpack[Options]) -> Any:
    """Writes on from a prompt; `Model.generate` says with what options.

    ``model`` is a `Model`, or what `load` takes (default: the bundled model). A bundled model stays loaded
    for the next call; load any other once yourself if you call often.

    Examples
    --------
    >>> import fastlm
    >>> story = fastlm.generate("Once upon a time", max_tokens=20, seed=1)
    >>> story.finish_reason
    'length'
    """
    if isinstance(model, str) and model in BUNDLED:
        if model not in _loaded:
            _loaded[model] = load(model)
        model = _loaded[model]
    return (model if isinstance(model, Model) else load(model)).generate(prompt, **options)


def cpu_info() -> dict[str, Any]:
    """Which instruction-set levels this build has, which this processor supports, which `load` uses, and why."""
    levels = dict(_engine.isa_levels())
    forced = os.environ.get("FASTLM_ISA")
    best = [name for name, supported in levels.items() if supported][-1]
    return {
        "isa": forced or best,
        "why": f"FASTLM_ISA={forced}" if forced else "the best this processor supports",
        "levels": levels,
    }
