# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: freethreading_compatible=True, embedsignature=True, auto_pickle=False, autotestdict=False
"""The only bridge between Python and the C core: turns Python values into C ones, releases the GIL, makes
one call, and turns C errors into exceptions. What arrives here has its final type; defaults and units
belong to `fastlm.model` and `fastlm.options`."""

import os
import struct
import sys
from array import array

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

from capi cimport *


class FormatError(ValueError):
    """The file is not a model that this version can run; the message says what, where, expected and found."""

    __module__ = "fastlm"


cdef extern from *:
    """
    /* Tokens at most between two looks at pending signals (Ctrl-C) and cancellations; a prompt is read faster than a text
     * is written. SOON_NS: how long that shall take, so that fewer are asked for of a large model. */
    enum { CHUNK = 32, READ = 128 };
    #define SOON_NS 20000000
    #define AT_ONCE_NS 2000000 /* the same for prompts, if there is a deadline */
    /* A Python string takes several times what it takes in the file: no more of them than any vocabulary has. */
    enum { MOST_STRINGS = 1 << 20 };
    enum { MOST_PLACES = 1 << 14 }; /* as fl_read_sources has it */
    """
    const int CHUNK
    const int READ
    const int SOON_NS
    const int AT_ONCE_NS
    const int MOST_STRINGS
    const int MOST_PLACES


cdef const int32_t[::1] NOTHING = array("i", [])

MOST_SOURCE = MOST_PLACES
"""Tokens of a source."""

NUMERICS_VERSION = FL_NUMERICS_VERSION

CONTROLS = {
    "logit_bias": FL_LOGIT_BIAS,
    "penalties": FL_PENALTIES,
    "dry": FL_DRY,
    "temperature": FL_TEMPERATURE,
    "top_n_sigma": FL_TOP_N_SIGMA,
    "top_k": FL_TOP_K,
    "top_p": FL_TOP_P,
    "min_p": FL_MIN_P,
    "typical_p": FL_TYPICAL_P,
    "epsilon_cutoff": FL_EPSILON_CUTOFF,
    "eta_cutoff": FL_ETA_CUTOFF,
    "xtc": FL_XTC,
    "mirostat": FL_MIROSTAT,
}
"""Steps from logits to the next token, in their usual order, with the engine's numbers."""

SCREENING = {"useful": FL_SCREEN_USEFUL, "never": FL_SCREEN_NEVER, "always": FL_SCREEN_ALWAYS,
             "checked": FL_SCREEN_CHECKED}
"""When a screen of the output matrix is used, with the engine's numbers."""

_FINISH = {
    FL_FINISH_LENGTH: "length",
    FL_FINISH_STOP: "stop",
    FL_FINISH_REPETITION: "repetition",
    FL_FINISH_UNSATISFIABLE: "unsatisfiable",
    FL_FINISH_DEADLINE: "deadline",
}


cdef object _error(fl_error *error, object path):
    message = error.message.decode("utf-8", "replace")
    if error.status == FL_ERROR_OS:
        return OSError(error.os_code, os.strerror(error.os_code), path)
    if error.status == FL_ERROR_MEMORY:
        return MemoryError(message)
    if error.status == FL_ERROR_ARGUMENT:
        return ValueError(message)
    return FormatError(message if path is None or message.startswith(path) else f"{path}: {message}")


def isa_levels():
    """All compiled instruction-set levels, slowest first: list of (name, supported here)."""
    cdef const char *name
    levels = []
    for i in range(fl_isa_count()):
        name = fl_isa_name(i)
        levels.append((name.decode(), bool(fl_isa_supported(i))))
    return levels


def isa_choose():
    """The level that a model loaded now would use. Raises ValueError if FASTLM_ISA names none that runs."""
    cdef fl_error error
    cdef const char *name
    if fl_isa_choose(NULL, &name, &error) != FL_OK:
        raise _error(&error, None)
    return name.decode()


# GGUF value types that are numbers, as formats of struct and array (which has no truth values).
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


cdef object _value(const fl_field *field):
    """Text, a number, a list of text, or an array of numbers (which takes no more memory than the file)."""
    data = (<const char *>field.data)[:field.data_size]
    if field.item_type == 8:
        if field.count > MOST_STRINGS:
            raise FormatError(f"an array of {field.count} strings: expected at most {MOST_STRINGS}")
        items, at = [], 0
        for _ in range(field.count):
            size = int.from_bytes(data[at:at + 8], "little")
            items.append(data[at + 8:at + 8 + size].decode())
            at += 8 + size
        return items if field.type == 9 else items[0]
    number = _NUMBERS[field.item_type]
    if field.type == 9:
        return array("B" if number == "?" else number, data)
    return struct.unpack(f"<{number}", data)[0]


@cython.final
cdef class Model:
    """A model file, mapped (`path`) or copied (`data`), validated, ready to compute.

    Raises FormatError, OSError, MemoryError, or ValueError for an unknown or missing `isa`.
    """

    cdef fl_model *_model
    cdef readonly uint32_t vocab_size
    cdef readonly uint32_t source_vocab_size  # of a sequence-to-sequence model; 0: no such model
    cdef readonly uint32_t labels  # of a classifier; 0: no classifier
    cdef readonly bint bidirectional
    cdef readonly bint attends

    def __cinit__(self, str path, const uint8_t[::1] data, str isa, size_t row_cache_bytes, uint32_t threads=0,
                  str screening="useful"):
        cdef fl_error error
        cdef fl_load_options options
        cdef fl_model_info info
        cdef fl_status status
        cdef const char *c_path = NULL
        cdef const uint8_t *c_data = NULL
        cdef size_t size = 0
        isa_bytes = None if isa is None else isa.encode()
        options.isa = NULL if isa is None else <const char *>isa_bytes
        options.row_cache_bytes = row_cache_bytes
        options.threads = threads
        options.screening = SCREENING[screening]
        if path is not None:
            path_bytes = os.fsencode(path)
            if b"\0" in path_bytes:
                raise ValueError(f"{path!r}: a path cannot contain a null character")
            c_path = path_bytes
        else:
            size = data.shape[0]
            c_data = &data[0] if size else NULL
        with nogil:
            if c_path != NULL:
                status = fl_model_open(c_path, &options, &self._model, &error)
            else:
                status = fl_model_from_memory(c_data, size, &options, &self._model, &error)
        if status != FL_OK:
            raise _error(&error, path)
        fl_model_get_info(self._model, &info)
        self.vocab_size = info.vocab_size
        self.source_vocab_size = info.source_vocab_size
        self.labels = info.labels
        self.bidirectional = info.bidirectional
        self.attends = info.attends

    def __dealloc__(self):
        fl_model_close(self._model)

    def info(self):
        """What the engine made of the file, as a dict."""
        cdef fl_model_info info
        fl_model_get_info(self._model, &info)
        return {
            "vocab_size": info.vocab_size,
            "embedding_size": info.embedding_size,
            "units": [fl_model_units(self._model, i) for i in range(info.layers)],
            "tied": bool(info.tied),
            "bos": None if info.bos < 0 else info.bos,
            "eos": None if info.eos < 0 else info.eos,
            "file_bytes": info.file_bytes,
            "row_cache_bytes": info.row_cache_bytes,
            "threads": info.threads,
            "isa": info.isa.decode(),
            "screened": bool(info.screened),
            "attends": bool(info.attends),
            "source_vocab_size": info.source_vocab_size or None,
            "labels": info.labels or None,
            "bidirectional": bool(info.bidirectional),
        }

    def keys(self):
        """All keys of the file with their places; of a repeated key the first counts, as for the engine."""
        cdef fl_field field
        found = {}
        for i in range(fl_model_field_count(self._model)):
            fl_model_field(self._model, i, &field)
            found.setdefault(field.key[:field.key_size].decode(), i)
        return found

    def value(self, size_t place):
        """The value of the key at a place."""
        cdef fl_field field
        if place >= fl_model_field_count(self._model):
            raise IndexError(place)
        fl_model_field(self._model, place, &field)
        return _value(&field)

    def tensors(self):
        """All tensors of the file: list of (name, shape as numpy orders it, offset in the file, bytes, GGML type)."""
        cdef fl_tensor tensor
        found = []
        for i in range(fl_model_tensor_count(self._model)):
            fl_model_tensor(self._model, i, &tensor)
            name = tensor.name[:tensor.name_size].decode()
            shape = tuple(tensor.dims[j] for j in reversed(range(tensor.n_dims)))
            found.append((name, shape, tensor.offset, tensor.size, tensor.type))
        return found

    def fingerprint(self):
        """32 bytes that tell models of other weights apart: a hash of all tensors with their names and shapes."""
        cdef fl_tensor tensor
        import hashlib  # takes milliseconds

        hash = hashlib.blake2b(digest_size=32)
        for i in range(fl_model_tensor_count(self._model)):
            fl_model_tensor(self._model, i, &tensor)
            hash.update(tensor.name[:tensor.name_size] + repr((tensor.type, tensor.dims)).encode())
            if tensor.size:
                hash.update(<const uint8_t[:tensor.size]>tensor.data)
        return hash.digest()

    def verify(self):
        """Runs the file's test vector: (largest difference of a log-probability, tolerance)."""
        cdef fl_error error
        cdef double largest = 0, tolerance = 0
        cdef fl_status status
        with nogil:
            status = fl_model_verify(self._model, &largest, &tolerance, &error)
        if status != FL_OK:
            raise _error(&error, None)
        return largest, tolerance


cdef int _check_tokens(Model model, const int32_t[::1] tokens, bint of_source=False) except -1:
    cdef Py_ssize_t i
    cdef int32_t vocab_size = <int32_t>(model.source_vocab_size if of_source else model.vocab_size)
    for i in range(tokens.shape[0]):
        if tokens[i] < 0 or tokens[i] >= vocab_size:
            raise ValueError(f"token {tokens[i]} at place {i}: expected 0 to {vocab_size - 1}")
    return 0


cdef const int32_t[::1] _copied(const int32_t[::1] tokens):
    return tokens.copy() if tokens.shape[0] else NOTHING  # an array of none cannot be copied


cdef int _check_mask(Model model, const uint32_t[::1] allowed) except -1:
    """Of tokens that may come: a bit each."""
    cdef size_t words = (model.vocab_size + 31) // 32
    if allowed is not None and <size_t>allowed.shape[0] < words:
        raise ValueError(f"a mask of {allowed.shape[0]} words: expected {words}")
    return 0


@cython.final
cdef class Source:
    """What a sequence-to-sequence model was given, read: `Decoder.read_sources`. Nothing changes it."""

    cdef fl_source *_source
    cdef readonly Model model  # kept alive

    def __dealloc__(self):
        fl_source_free(self._source)

    def __len__(self):
        return 0 if self._source == NULL else fl_source_size(self._source)


@cython.final
cdef class State:
    """A sequence's past, which a source may have begun. One thread at a time."""

    cdef fl_state *_state
    cdef readonly Model model  # kept alive, and so the next
    cdef readonly Source source

    def __cinit__(self, Model model not None, Source source=None):
        cdef fl_error error
        self.model = model
        if source is not None and source.model is not model:
            raise ValueError("the source belongs to another model")
        if model.labels:
            raise ValueError("a classifier writes no text")
        if fl_state_new(model._model, &self._state, &error) != FL_OK:
            raise _error(&error, None)
        if source is not None:
            self.source = source
            fl_state_begin(self._state, source._source)

    def __dealloc__(self):
        fl_state_free(self._state)

    @property
    def position(self):
        return fl_state_position(self._state)

    def reset(self):
        fl_state_reset(self._state)

    def copy(self):
        """The same past, in a state of its own."""
        cdef State state = State(self.model, self.source)
        fl_state_copy(state._state, self._state)
        return state

    def values(self):
        """All of it but the position, as bytes of float32 (docs/format.md)."""
        cdef size_t n
        cdef const float *values = fl_state_values(self._state, &n)
        return (<const char *>values)[:n * sizeof(float)]

    def set(self, uint64_t position, const uint8_t[::1] values not None):
        """Becomes a state of the same model. Raises ValueError for another size, or numbers that no state has."""
        cdef fl_error error
        cdef size_t n
        fl_state_values(self._state, &n)
        if <size_t>values.shape[0] != n * sizeof(float):
            raise ValueError(f"expected {n * sizeof(float)} bytes of values, found {values.shape[0]}")
        copied = array("f", bytes(values))  # aligned
        cdef float[::1] numbers = copied
        if fl_state_set(self._state, self.model._model, position, &numbers[0], &error) != FL_OK:
            raise _error(&error, None)


@cython.final
cdef class Judged:
    """What a classifier that reads forwards has read of a text that goes on. One thread at a time."""

    cdef fl_state *_state
    cdef readonly Model model  # kept alive

    def __cinit__(self, Model model not None):
        cdef fl_error error
        self.model = model
        if not model.labels or model.bidirectional:
            raise ValueError("expected a classifier that reads forwards")
        if fl_state_new(model._model, &self._state, &error) != FL_OK:
            raise _error(&error, None)

    def __dealloc__(self):
        fl_state_free(self._state)

    @property
    def position(self):
        return fl_state_position(self._state)

    def copy(self):
        """The same past, in a state of its own."""
        cdef Judged state = Judged(self.model)
        fl_state_copy(state._state, self._state)
        return state


@cython.final
cdef class Beams:
    """Texts that `Decoder.extend` looks at together: their states, the token that each reads, and what it is worth so far;
    of the ways in which they may go on the best `most` are wanted. All but the mask is copied: the caller may change his."""
    cdef list states
    cdef const int32_t[::1] tokens
    cdef const double[::1] totals
    cdef Sampling sampling
    cdef size_t most, of_each
    cdef Py_ssize_t min_tokens
    cdef const uint32_t[::1] allowed

    def __cinit__(self, list states not None, const int32_t[::1] tokens not None, const double[::1] totals not None,
                  Sampling sampling not None, uint32_t most, Py_ssize_t min_tokens=0, const uint32_t[::1] allowed=None):
        cdef size_t V = sampling.model.vocab_size
        cdef Py_ssize_t n = len(states)
        if tokens.shape[0] != n or totals.shape[0] != n:
            raise ValueError(f"{tokens.shape[0]} tokens and {totals.shape[0]} totals for {n} states")
        if sampling.needs_memory or sampling.amateur is not None:
            raise ValueError("expected controls that look at nothing but the next token")
        _check_mask(sampling.model, allowed)
        _check_tokens(sampling.model, tokens)
        self.states, self.tokens, self.totals, self.sampling = list(states), _copied(tokens), totals.copy() if len(states) else totals, sampling
        self.most, self.of_each, self.min_tokens, self.allowed = most, min(most, V), max(min_tokens, 0), allowed

    cdef list best(self, const fl_request *requests):
        """Merges what was found for each text, which is in order."""
        cdef Py_ssize_t i, best, n = len(self.states)
        cdef double lowest, minus
        cdef size_t *at = <size_t *>PyMem_Calloc(n, sizeof(size_t))
        if at == NULL and n:
            raise MemoryError
        found = []
        try:
            while <size_t>len(found) < self.most:
                best = -1
                for i in range(n):
                    if at[i] < self.of_each and requests[i].alternative_ids[at[i]] >= 0:
                        minus = -self.totals[i] - <double>requests[i].alternative_logprobs[at[i]]
                        if best < 0 or minus < lowest:
                            best, lowest = i, minus
                if best < 0:
                    break
                found.append((lowest, best, requests[best].alternative_ids[at[best]],
                              requests[best].alternative_logprobs[at[best]]))
                at[best] += 1
        finally:
            PyMem_Free(at)
        return found


@cython.final
cdef class Decoder:
    """The room to compute in. One thread at a time."""

    cdef fl_decoder *_decoder
    cdef readonly Model model  # kept alive

    def __cinit__(self, Model model not None):
        cdef fl_error error
        self.model = model
        if fl_decoder_new(model._model, &self._decoder, &error) != FL_OK:
            raise _error(&error, None)

    def __dealloc__(self):
        fl_decoder_free(self._decoder)

    cdef int _check(self, State state, const int32_t[::1] tokens) except -1:
        if state is None:
            raise TypeError("expected a state, found None")
        if state.model is not self.model:
            raise ValueError("the state belongs to another model")
        return _check_tokens(self.model, tokens)

    cdef int _feed(self, State state, const int32_t[::1] tokens, Py_ssize_t size) except -1:
        cdef Py_ssize_t at = 0, n
        while at < size:
            n = min(<Py_ssize_t>READ, size - at)
            with nogil:
                fl_feed(self._decoder, state._state, &tokens[at], n)
            PyErr_CheckSignals()
            at += n
        return 0

    def feed(self, State state not None, const int32_t[::1] tokens not None):
        """Reads tokens."""
        self._check(state, tokens)
        self._feed(state, tokens, tokens.shape[0])

    def read_sources(self, list texts not None):
        """Reads sources (arrays of int32), all side by side: list of Source."""
        cdef Py_ssize_t i, n = len(texts)
        cdef fl_error error
        cdef fl_status status
        cdef const int32_t[::1] tokens
        cdef Source source
        if not self.model.source_vocab_size:
            raise ValueError("only a sequence-to-sequence model has a source")
        cdef fl_source_text *given = <fl_source_text *>PyMem_Calloc(n + 1, sizeof(fl_source_text) + sizeof(fl_source *))
        if given == NULL:
            raise MemoryError
        cdef fl_source **read = <fl_source **>(given + n)
        found, views = [], []  # views of the texts, while they are read
        try:
            for i in range(n):
                tokens = texts[i]
                views.append(tokens)
                if not 0 < tokens.shape[0] <= MOST_PLACES:
                    raise ValueError(f"a source of {tokens.shape[0]} tokens: expected 1 to {MOST_PLACES}")
                _check_tokens(self.model, tokens, True)
                given[i].tokens, given[i].n = &tokens[0], tokens.shape[0]
            with nogil:
                status = fl_read_sources(self._decoder, given, n, read, &error)
            if status != FL_OK:
                raise _error(&error, None)
            for i in range(n):
                source = Source()
                source.model, source._source, read[i] = self.model, read[i], NULL
                found.append(source)
            PyErr_CheckSignals()
            return found
        finally:
            for i in range(n):
                fl_source_free(read[i])  # what was not handed over
            PyMem_Free(given)

    def align(self, State state not None, const int32_t[::1] tokens not None):
        """Reads tokens; where attention looked behind each: array of T * places floats."""
        self._check(state, tokens)
        if not self.model.attends or state.source is None:
            raise ValueError("expected a model with attention, and a state that a source has begun")
        found = array("f", bytes(4 * len(state.source) * tokens.shape[0]))
        cdef float[::1] weights = found
        if tokens.shape[0]:
            with nogil:
                fl_align(self._decoder, state._state, &tokens[0], tokens.shape[0], &weights[0])
        return found

    def logits(self, State state not None):
        """Logits of the next token: array of V floats (a copy)."""
        cdef const float *logits
        self._check(state, NOTHING)
        with nogil:
            logits = fl_logits(self._decoder, state._state)
        return array("f", (<const char *>logits)[:4 * self.model.vocab_size])

    def logprobs(self, State state not None):
        """Natural log-probabilities of the next token: array of V floats."""
        self._check(state, NOTHING)
        found = array("f", bytes(4 * self.model.vocab_size))
        cdef float[::1] logprobs = found
        with nogil:
            fl_logprobs(self._decoder, state._state, &logprobs[0])
        return found

    def advance(self, list states not None, const int32_t[::1] tokens not None):
        """States read a token each; the log-probabilities of what follows: array of n * V floats."""
        cdef Py_ssize_t i, n = len(states)
        cdef fl_state **each
        if tokens.shape[0] != n:
            raise ValueError(f"{tokens.shape[0]} tokens for {n} states")
        found = array("f", bytes(4 * self.model.vocab_size * n))
        cdef float[::1] logprobs = found
        if not n:
            return found
        each = <fl_state **>PyMem_Calloc(n, sizeof(fl_state *))
        if each == NULL:
            raise MemoryError
        try:
            _check_tokens(self.model, tokens)
            for i in range(n):
                self._check(states[i], NOTHING)
                each[i] = (<State>states[i])._state
            with nogil:
                fl_advance(self._decoder, each, &tokens[0], n, &logprobs[0])
        finally:
            PyMem_Free(each)
        return found

    def follow(self, list states not None, const int32_t[::1] tokens, const uint8_t[::1] ending not None, uint32_t most):
        """States read a token each (tokens None: none); for each what may follow: (probability of tokens with `ending`, of
        others that are listed, of those that are not, the likeliest others, at most so many, their log-probabilities)."""
        cdef Py_ssize_t i, n = len(states)
        if tokens is not None and tokens.shape[0] != n:
            raise ValueError(f"{tokens.shape[0]} tokens for {n} states")
        cdef const uint8_t *flags = _flags(ending, self.model)
        cdef const int32_t *read = &tokens[0] if tokens is not None and n else NULL
        cdef fl_branches *branches = <fl_branches *>PyMem_Calloc(n + 1, sizeof(fl_branches) + sizeof(fl_state *) + 8 * <size_t>most)
        cdef fl_state **each = <fl_state **>(branches + n)
        cdef int32_t *ids = <int32_t *>(each + n)
        if branches == NULL:
            raise MemoryError
        try:
            _check_tokens(self.model, NOTHING if tokens is None else tokens)
            for i in range(n):
                self._check(states[i], NOTHING)
                each[i] = (<State>states[i])._state
                branches[i].ids, branches[i].logprobs = ids + i * most, <float *>(ids + (n + i) * most)
            with nogil:
                fl_follow(self._decoder, each, read, n, flags, most, branches)
            return [(branches[i].ended, branches[i].listed, branches[i].unlisted, array("i", (<const char *>branches[i].ids)[:4 * branches[i].n]),
                     array("f", (<const char *>branches[i].logprobs)[:4 * branches[i].n])) for i in range(n)]
        finally:
            PyMem_Free(branches)

    def score(self, State state not None, const int32_t[::1] tokens not None):
        """Reads tokens; the natural log-probability of each given what was read before: array of floats."""
        cdef Py_ssize_t at = 0, n, size = tokens.shape[0]
        self._check(state, tokens)
        found = array("f", bytes(4 * size))
        cdef float[::1] logprobs = found
        while at < size:
            n = min(<Py_ssize_t>READ, size - at)
            with nogil:
                fl_score(self._decoder, state._state, &tokens[at], n, &logprobs[at])
            PyErr_CheckSignals()
            at += n
        return found

    def score_texts(self, State start not None, list texts not None):
        """The same for many texts (buffers of tokens) that all begin behind `start`, which stays as it is: list of arrays."""
        cdef Py_ssize_t i, n = len(texts)
        cdef const int32_t[::1] tokens
        cdef float[::1] logprobs
        cdef State state
        self._check(start, NOTHING)
        cdef fl_text *rows = <fl_text *>PyMem_Calloc(n, sizeof(fl_text))
        if rows == NULL:
            raise MemoryError
        found, states = [], []
        try:
            for i in range(n):
                tokens = texts[i]
                self._check(start, tokens)
                found.append(array("f", bytes(4 * tokens.shape[0])))
                if not tokens.shape[0]:
                    continue
                logprobs, state = found[i], start.copy()
                states.append(state)
                rows[i] = fl_text(state._state, &tokens[0], tokens.shape[0], &logprobs[0])
            with nogil:
                fl_score_texts(self._decoder, rows, n)
        finally:
            PyMem_Free(rows)
        return found

    def classify(self, list texts not None, list states=None):
        """Reads texts (arrays of int32), each on from its own state, which changes, if there are any; the natural
        log-probabilities of the labels: array of n * labels floats."""
        cdef Py_ssize_t i, n = len(texts)
        cdef size_t labels = self.model.labels
        cdef fl_error error
        cdef fl_status status = FL_OK
        cdef const int32_t[::1] tokens
        if not labels:
            raise ValueError("this model is no classifier")
        kept = None if states is None else list(states)  # while texts are read
        if kept is not None and (len(kept) != n or len(set(map(id, kept))) != n):
            raise ValueError(f"expected a state for each of {n} texts, and no state twice")
        found = array("f", bytes(4 * labels * n))
        if not n:
            return found
        cdef float[::1] logprobs = found
        cdef fl_text *rows = <fl_text *>PyMem_Calloc(n, sizeof(fl_text))
        if rows == NULL:
            raise MemoryError
        views = []  # of the texts, while they are read
        try:
            for i in range(n):
                tokens = texts[i]
                views.append(tokens)
                if not 0 < tokens.shape[0] <= MOST_PLACES:
                    raise ValueError(f"a text of {tokens.shape[0]} tokens: expected 1 to {MOST_PLACES}")
                _check_tokens(self.model, tokens)
                rows[i] = fl_text(NULL, &tokens[0], tokens.shape[0], &logprobs[i * labels])
                if kept is not None:
                    if (<Judged?>kept[i]).model is not self.model:
                        raise ValueError("the state belongs to another model")
                    rows[i].state = (<Judged>kept[i])._state
            with nogil:
                status = fl_classify(self._decoder, rows, n, &error)
            if status != FL_OK:
                raise _error(&error, None)
        finally:
            PyMem_Free(rows)
        PyErr_CheckSignals()
        return found

    def candidates(self, State state not None, Job job not None):
        """What a job would draw its next token from, after what it has read: (ids, logits after all
        changes), in no order."""
        cdef size_t n, V = self.model.vocab_size
        cdef fl_request request
        self._check(state, NOTHING)
        ids, logits = array("i", bytes(4 * V)), array("f", bytes(4 * V))
        cdef int32_t[::1] found = ids
        cdef float[::1] kept = logits
        job._fill(&request, 1, 0)
        with nogil:
            fl_logits(self._decoder, state._state)
            n = fl_candidates(self._decoder, &request, &found[0], &kept[0])
        return ids[:n], logits[:n]

    def expand(self, list jobs not None, bint draw=False):
        """What each job, which may write a token, may go on with: list of (ids, log-probabilities), as many as its
        alternatives, the likeliest first, then those it asks for besides. Reads what they have not read, and writes
        nothing. draw: alternatives are drawn without replacement, list of (ids, log-probabilities, keys)."""
        cdef Job job
        cdef Round round
        cdef size_t i
        if not jobs:
            return []
        round = Round(jobs, 1, PY_SSIZE_T_MAX)
        for i in range(round.n):
            job = round.jobs[i]
            if job._state.model is not self.model:
                raise ValueError("the state belongs to another model")
        if draw:
            round.draw()
        else:
            round.ask()
        with nogil:
            fl_expand(self._decoder, round.requests, round.n)
        PyErr_CheckSignals()
        return [round.alternatives_of(i) for i in range(round.n)]

    def extend(self, list beams not None):
        """The states of many `Beams` read a token each; for each of them, of all ways in which its texts may go on the
        best: list of (minus the sum of its total and the token's log-probability, place of the state, token,
        log-probability), best first. For what `expand` does, where nothing looks back."""
        cdef Beams one
        cdef Py_ssize_t i, n = 0
        cdef size_t room = 0
        beams = list(beams)  # the caller may change his while others run
        for one in beams:
            if one is None:
                raise TypeError("expected Beams, found None")
            if one.sampling.model is not self.model:
                raise ValueError("the beams belong to another model")
            for state in one.states:
                self._check(state, NOTHING)
            n += len(one.states)
            room += len(one.states) * one.of_each
        if not n:
            raise ValueError("expected at least one state")
        if len({id(state) for one in beams for state in one.states}) != n:
            raise ValueError("a state is given twice")
        cdef fl_request *requests = <fl_request *>PyMem_Calloc(n, sizeof(fl_request) + 4)
        cdef int32_t *ids = <int32_t *>PyMem_Calloc(room, 8)
        cdef float *logprobs = <float *>(ids + room)
        cdef int32_t *written = <int32_t *>(requests + n)
        cdef fl_request *r = requests
        try:
            if requests == NULL or ids == NULL:
                raise MemoryError
            room = 0
            for one in beams:
                for i in range(<Py_ssize_t>len(one.states)):
                    r.state, r.sampling = (<State>one.states[i])._state, &one.sampling._sampling
                    r.prompt, r.n_prompt, r.max_tokens = &one.tokens[i], 1, 1
                    r.allowed = &one.allowed[0] if one.allowed is not None else NULL
                    r.min_tokens, r.alternatives = one.min_tokens, one.of_each
                    r.alternative_ids, r.alternative_logprobs = ids + room, logprobs + room
                    r.tokens = written + (r - requests)
                    room += one.of_each
                    r += 1
            with nogil:
                fl_expand(self._decoder, requests, n)
            found, r = [], requests
            for one in beams:
                found.append(one.best(r))
                r += <Py_ssize_t>len(one.states)
        finally:
            PyMem_Free(requests)
            PyMem_Free(ids)
        PyErr_CheckSignals()
        return found

    def write(self, list jobs not None, Py_ssize_t limit=0, uint64_t deadline=0, cancelled=None):
        """Goes on with jobs side by side until each is done, or has `limit` tokens more. deadline: nanoseconds on
        `clock`. cancelled: called now and then; if true, jobs that are not done are done."""
        cdef Job job
        cdef Round round
        cdef Py_ssize_t left = limit if limit else PY_SSIZE_T_MAX, chunk = CHUNK, read = 1 if deadline else READ
        active = [job for job in jobs if job.finish is None]
        for job in active:
            if job._state.model is not self.model:
                raise ValueError("the state belongs to another model")
        while active and left > 0:
            ended = "deadline" if deadline and fl_clock() >= deadline else None
            if cancelled is not None and cancelled():
                ended = "cancelled"
            if ended:
                for job in active:
                    job.finish = ended
                break
            alone = [job for job in active if job._processor is not None]
            if alone:
                chunk = 1
                for job in alone:
                    self._process(job)
            together = [job for job in active if job._processor is None]
            if together:
                round = Round(together, chunk if chunk < left else left, read)
                round.run(self._decoder, deadline)
                if not round.reading:
                    chunk = _next(round.chunk, round.ns, SOON_NS, CHUNK)
                elif deadline:
                    read = _next(read, round.ns, AT_ONCE_NS, READ)
            if alone or not round.reading:
                left -= 1 if alone else round.chunk
            PyErr_CheckSignals()
            active = [job for job in active if job.finish is None]

    cdef int _process(self, Job job) except -1:
        """One token of a job whose logits pass through Python."""
        cdef fl_request request
        cdef const float *said
        cdef const float[::1] logits
        cdef const int32_t[::1] unread
        while job._at < job._prompt.shape[0]:  # where it is stays true if a signal ends it
            unread = job._prompt[job._at:job._at + READ]
            with nogil:
                fl_feed(self._decoder, job._state._state, &unread[0], unread.shape[0])
            job._at += unread.shape[0]
            PyErr_CheckSignals()
        if job._max == 0:
            job.finish = "length"
            return 0
        with nogil:
            said = fl_logits(self._decoder, job._state._state)
        logits = job._processor(array("f", (<const char *>said)[:4 * self.model.vocab_size]))
        cdef int32_t token
        cdef float logprob
        job._fill(&request, 1, 0)
        request.n_prompt = 0
        request.tokens, request.logprobs = &token, &logprob if job.logprobs is not None else NULL
        alternatives = bytearray(8 * job._alternatives)
        cdef uint8_t[::1] room = alternatives
        if job._alternatives:
            request.alternative_ids = <int32_t *>&room[0]
            request.alternative_logprobs = <float *>&room[4 * job._alternatives]
        with nogil:
            fl_draw(self._decoder, &logits[0], &request)
        job._take(&request, False)
        return 0


cdef Py_ssize_t _next(Py_ssize_t n, uint64_t ns, uint64_t wanted, Py_ssize_t most) noexcept:
    """How many tokens to do next, if n took so long: at most twice as many."""
    cdef double right = <double>n * <double>wanted / <double>(ns if ns else 1)
    return max(1, min(min(2 * n, most), <Py_ssize_t>right if right < <double>most else most))


def clock():
    """Nanoseconds, for deadlines."""
    return fl_clock()


@cython.final
cdef class Memory:
    """What controls remember of a text: its tokens and mirostat's aim. One thread at a time."""

    cdef fl_memory *_memory
    cdef readonly Model model  # kept alive
    cdef readonly uint32_t window

    def __cinit__(self, Model model not None, uint32_t window=0):
        cdef fl_error error
        self.model, self.window = model, window
        if fl_memory_new(model._model, window, &self._memory, &error) != FL_OK:
            raise _error(&error, None)

    def __dealloc__(self):
        fl_memory_free(self._memory)

    def __len__(self):
        return fl_memory_size(self._memory)

    cdef int _reserve(self, size_t more) except -1:
        cdef fl_error error
        if fl_memory_reserve(self._memory, more, &error) != FL_OK:
            raise _error(&error, None)
        return 0

    def add(self, const int32_t[::1] tokens not None, bint written=False):
        """Adds tokens that were read, or that the model wrote."""
        _check_tokens(self.model, tokens)
        self._reserve(tokens.shape[0])
        if tokens.shape[0]:
            fl_memory_add(self._memory, &tokens[0], tokens.shape[0], written)

    def copy(self):
        """The same memory, of its own."""
        cdef fl_error error
        cdef Memory memory = Memory(self.model, self.window)
        if fl_memory_copy(memory._memory, self._memory, &error) != FL_OK:
            raise _error(&error, None)
        return memory

    def rewind(self, size_t n):
        """Forgets all but the first n tokens."""
        fl_memory_rewind(self._memory, n)

    @property
    def tokens(self):
        """All of them: array of int."""
        cdef size_t n = fl_memory_size(self._memory)
        return array("i", (<const char *>fl_memory_tokens(self._memory))[:4 * n] if n else b"")

    @property
    def written(self):
        """For each whether the model wrote it: bytes of 0 and 1."""
        cdef size_t n = fl_memory_size(self._memory)
        return (<const char *>fl_memory_written(self._memory))[:n] if n else b""

    @property
    def surprises(self):
        """For each what mirostat allowed after it, in bits; NaN before mirostat's first token: array of float."""
        cdef size_t n = fl_memory_size(self._memory)
        return array("f", (<const char *>fl_memory_surprises(self._memory))[:4 * n] if n else b"")

    @surprises.setter
    def surprises(self, const float[::1] bits not None):
        if <size_t>bits.shape[0] != fl_memory_size(self._memory):
            raise ValueError(f"{bits.shape[0]} surprises of {fl_memory_size(self._memory)} tokens")
        fl_memory_set_surprises(self._memory, &bits[0] if bits.shape[0] else NULL)


@cython.final
cdef class Index:
    """Which runs of tokens stand in a corpus, by the bytes of a file, which are kept. Any number of threads may ask."""

    cdef fl_index *_index
    cdef bytes _data  # whose counts are kept, so that nobody may change them

    def __cinit__(self, bytes given not None):
        cdef fl_error error
        cdef const uint8_t[::1] data = given
        cdef const uint8_t *begin = &data[0] if data.shape[0] else NULL
        cdef size_t size = data.shape[0]
        cdef fl_status status
        self._data = given
        with nogil:
            status = fl_index_open(begin, size, &self._index, &error)
        if status != FL_OK:
            raise _error(&error, None)

    def __dealloc__(self):
        fl_index_free(self._index)

    def __len__(self):
        """Tokens of the corpus."""
        return fl_index_tokens(self._index)

    @property
    def vocab_size(self):
        return fl_index_vocab_size(self._index)

    def count(self, const int32_t[::1] tokens not None):
        """How often tokens, one or more, stand there in a row."""
        cdef uint64_t found
        if not tokens.shape[0]:
            raise ValueError("no tokens: expected one at least")
        with nogil:
            found = fl_index_count(self._index, &tokens[0], tokens.shape[0])
        return found

    def longest(self, const int32_t[::1] tokens not None):
        """For each token how many, it and those before it, stand there in a row at most: array of uint32."""
        cdef size_t n = tokens.shape[0]
        lengths = array("I", bytes(4 * n))
        cdef uint32_t[::1] found = lengths
        if n:
            with nogil:
                fl_index_longest(self._index, &tokens[0], n, &found[0])
        return lengths


@cython.final
cdef class Sampling:
    """How a text is drawn: fields of fl_sampling by name, checked and without neutral steps (fastlm.controls)."""

    cdef fl_sampling _sampling
    cdef size_t *_bad_ends
    cdef readonly Model model
    cdef Decoder amateur  # for contrastive decoding; kept alive, as are the arrays
    cdef list _kept

    def __cinit__(self, Model model not None, *, steps=(), float temperature=0,
                  const int32_t[::1] bias_ids=None, const float[::1] biases=None,
                  float repetition_penalty=1, float frequency_penalty=0, float presence_penalty=0,
                  float dry_multiplier=0, float dry_base=1, uint32_t dry_allowed_length=1, uint32_t dry_window=0,
                  const uint8_t[::1] dry_breakers=None, float top_n_sigma=0, uint32_t top_k=0, double top_p=1,
                  float min_p=0, double typical_p=1, float epsilon_cutoff=0, float eta_cutoff=0,
                  float xtc_probability=0, float xtc_threshold=0, float mirostat_tau=0, float mirostat_eta=0,
                  uint32_t no_repeat_ngram_size=0, bad_words=(), Decoder amateur=None, float contrast_alpha=0,
                  float contrast_beta=0, const int32_t[::1] stop not None=NOTHING, const uint8_t[::1] pauses=None,
                  uint32_t stop_repeats=0, Index corpus=None, uint32_t most_copied=0):
        cdef Py_ssize_t i
        cdef size_t end = 0
        cdef fl_sampling *s = &self._sampling
        cdef const int32_t[::1] words
        self.model, self.amateur, self._kept = model, amateur, [bias_ids, biases, dry_breakers, stop, pauses, corpus]
        for i, step in enumerate(steps):
            s.steps[i] = CONTROLS[step]
        s.temperature = temperature
        if bias_ids is not None and bias_ids.shape[0]:
            s.bias_ids, s.biases, s.n_biases = &bias_ids[0], &biases[0], bias_ids.shape[0]
        s.repetition_penalty, s.frequency_penalty = repetition_penalty, frequency_penalty
        s.presence_penalty = presence_penalty
        s.dry_multiplier, s.dry_base, s.dry_allowed_length = dry_multiplier, dry_base, dry_allowed_length
        s.dry_window, s.dry_breakers = dry_window, _flags(dry_breakers, model)
        s.top_n_sigma, s.top_k, s.top_p, s.min_p, s.typical_p = top_n_sigma, top_k, top_p, min_p, typical_p
        s.epsilon_cutoff, s.eta_cutoff = epsilon_cutoff, eta_cutoff
        s.xtc_probability, s.xtc_threshold = xtc_probability, xtc_threshold
        s.mirostat_tau, s.mirostat_eta = mirostat_tau, mirostat_eta
        s.no_repeat_ngram_size, s.stop_repeats = no_repeat_ngram_size, stop_repeats
        s.contrast_alpha, s.contrast_beta = contrast_alpha, contrast_beta
        if corpus is not None:
            if not model.vocab_size <= corpus.vocab_size <= model.vocab_size + 1 or not most_copied:
                raise ValueError("a corpus needs the model's vocabulary, and a number of tokens that may be copied")
            s.corpus, s.most_copied = corpus._index, most_copied
        s.amateur = NULL if amateur is None else amateur._decoder
        s.stop, s.n_stop = &stop[0] if stop.shape[0] else NULL, stop.shape[0]
        s.pauses = _flags(pauses, model)
        if bad_words:
            words = array("i", [token for word in bad_words for token in word])
            self._kept.append(words)
            self._bad_ends = <size_t *>PyMem_Calloc(len(bad_words), sizeof(size_t))
            if self._bad_ends == NULL:
                raise MemoryError
            for i, word in enumerate(bad_words):
                end += len(word)
                self._bad_ends[i] = end
            s.bad_words, s.bad_ends, s.n_bad_words = &words[0], self._bad_ends, len(bad_words)

    def __dealloc__(self):
        PyMem_Free(self._bad_ends)

    @property
    def needs_memory(self):
        """Whether it looks back at the text."""
        cdef fl_sampling *s = &self._sampling
        steps = bytes(s.steps[:FL_CONTROLS])
        back = any(step in steps for step in (FL_PENALTIES, FL_DRY, FL_MIROSTAT))
        longer = s.n_bad_words and s.bad_ends[s.n_bad_words - 1] > s.n_bad_words
        return bool(back or longer or s.no_repeat_ngram_size or s.stop_repeats or s.corpus != NULL)


cdef const uint8_t *_flags(const uint8_t[::1] flags, Model model) except? NULL:
    if flags is None:
        return NULL
    if flags.shape[0] != <Py_ssize_t>model.vocab_size:
        raise ValueError(f"flags of {flags.shape[0]} tokens: expected {model.vocab_size}")
    return &flags[0]


@cython.final
cdef class Job:
    """A text being written: what it goes on from, how, and what has come of it. `Decoder.write` goes on with it.

    guide: what says, token by token, which may come: `allowed()` gives the words of a bit mask or None, `accept(token)`
    the reason why the text is done or None, and `over` says that anything may come from now on. check: called with the job where the text may be done, and with `often` after
    every round, says the same.
    processor: from an array of logits to another. asked: tokens whose log-probabilities `expand` shall give besides.
    """

    cdef State _state, _amateur
    cdef Memory _memory
    cdef Sampling _sampling
    cdef const int32_t[::1] _prompt
    cdef Py_ssize_t _at        # tokens of the prompt that were read
    cdef uint64_t _seed
    cdef uint32_t _index, _alternatives
    cdef Py_ssize_t _min, _max
    cdef const uint32_t[::1] _allowed, _always  # of the next token, and of all
    cdef const int32_t[::1] _asked
    cdef object _guide, _check, _processor
    cdef bint _often
    cdef readonly list tokens
    cdef readonly list logprobs      # None if not asked for
    cdef readonly list alternatives  # of each place: (ids, logprobs); None if not asked for
    cdef public str finish           # None: not done
    cdef readonly object ended_by    # the stop token
    cdef readonly size_t screened    # tokens drawn with a screen, and rows that it could not rule out
    cdef readonly size_t finished
    cdef size_t _computed

    def __cinit__(self, State state not None, const int32_t[::1] prompt not None, Sampling sampling not None,
                  Py_ssize_t max_tokens, *, uint64_t seed=0, uint32_t index=0, Memory memory=None, State amateur=None,
                  Py_ssize_t min_tokens=0, bint logprobs=False, uint32_t alternatives=0,
                  const uint32_t[::1] allowed=None, guide=None, check=None, bint often=False, processor=None,
                  const int32_t[::1] asked not None=NOTHING):
        state_model, vocab_size = state.model, <int32_t>state.model.vocab_size
        _check_tokens(state.model, prompt)
        _check_tokens(state.model, asked)
        if sampling.model is not state_model or (memory is not None and memory.model is not state_model):
            raise ValueError("parts of different models")
        if memory is None and sampling.needs_memory:
            raise ValueError("these controls look back at the text: they need a memory")
        if (amateur is None) != (sampling.amateur is None):
            raise ValueError("contrastive decoding needs a second state, and nothing else does")
        if amateur is not None and amateur.model is not sampling.amateur.model:
            raise ValueError("the second state belongs to another model")
        _check_mask(state_model, allowed)
        if alternatives > <uint32_t>vocab_size:
            raise ValueError(f"alternatives={alternatives}: expected at most {vocab_size}")
        self._state, self._prompt, self._sampling, self._max = state, _copied(prompt), sampling, max_tokens
        self._memory, self._amateur, self._min = memory, amateur, min_tokens
        self._seed, self._index = seed, index
        self._allowed, self._guide, self._check, self._processor = allowed, guide, check, processor
        self._always, self._asked = allowed, _copied(asked)
        self._alternatives, self._often = alternatives, often
        self.tokens, self.logprobs = [], [] if logprobs else None
        self.alternatives = [] if alternatives else None

    cdef void _read_all(self):
        self._at = self._prompt.shape[0]

    @property
    def unread(self):
        """Tokens that its state has not read yet: array of int."""
        return array("i", self._prompt[self._at:])

    cdef int _fill(self, fl_request *request, Py_ssize_t most, Py_ssize_t read) except -1:
        """All but where results go. read: if not 0, no tokens are written, and at most so many of the prompt are read."""
        cdef Py_ssize_t unread = self._prompt.shape[0] - self._at, written = len(self.tokens)
        request.state, request.amateur = self._state._state, NULL
        if self._amateur is not None:
            request.amateur = self._amateur._state
        request.memory = NULL
        if self._memory is not None:
            self._memory._reserve(most)
            request.memory = self._memory._memory
        request.prompt = &self._prompt[self._at] if unread else NULL
        request.n_prompt, request.max_tokens = unread, min(most, self._max - written)
        if read:
            request.n_prompt, request.max_tokens = min(read, max(unread - 1, 0)), 0
        request.sampling, request.seed, request.index = &self._sampling._sampling, self._seed, self._index
        if self._guide is not None and request.max_tokens:
            self._allowed = self._guide.allowed()
            _check_mask(self._state.model, self._allowed)
        request.allowed = &self._allowed[0] if self._allowed is not None else NULL
        request.min_tokens = max(self._min - written, 0)
        request.alternatives = self._alternatives
        request.logprobs, request.alternative_ids, request.alternative_logprobs = NULL, NULL, NULL
        request.n_asked, request.keys = 0, NULL
        request.written, request.finish, request.ended_by = 0, FL_FINISH_LENGTH, -1
        request.screened, request.finished, request.computed = self.screened, self.finished, self._computed
        request.wrong = 0
        return 0

    cdef int _take(self, fl_request *request, bint reading) except -1:
        """What came of a round."""
        cdef size_t i, j, k = self._alternatives
        cdef const int32_t[::1] last
        self._at += request.n_prompt
        self.tokens.extend([request.tokens[i] for i in range(request.written)])
        if self.logprobs is not None:
            self.logprobs.extend([request.logprobs[i] for i in range(request.written)])
        for i in range(request.written if k else 0):
            self.alternatives.append(([request.alternative_ids[i * k + j] for j in range(k)],
                                      [request.alternative_logprobs[i * k + j] for j in range(k)]))
        if request.written:
            last = array("i", [request.tokens[request.written - 1]])
            self._prompt, self._at = last, 0
        self.screened, self.finished, self._computed = request.screened, request.finished, request.computed
        if request.wrong:
            raise RuntimeError(
                f"the model's screen of its output matrix is wrong: {request.wrong} bounds or tokens differ")
        if reading:
            return 0
        if request.finish == FL_FINISH_STOP:
            self.ended_by = request.ended_by
        if self._guide is not None and request.written:
            self.finish = self._guide.accept(last[0])
            if self._guide.over:
                self._allowed, self._guide = self._always, None
        if self.finish is None and request.finish not in (FL_FINISH_LENGTH, FL_FINISH_PAUSE):
            self.finish = _FINISH[request.finish]
        if self.finish is None and (self._often or request.finish == FL_FINISH_PAUSE):
            self.finish = self._check(self)
        if self.finish is None and len(self.tokens) >= self._max:
            self.finish = "length"
        return 0


@cython.final
cdef class Round:
    """Jobs as requests: for `read` tokens of the prompts if some have more, else for up to `chunk` tokens written."""

    cdef list jobs
    cdef fl_request *requests
    cdef size_t n
    cdef int32_t *tokens      # [n][chunk]
    cdef float *logprobs      # [n][chunk]
    cdef void *alternatives   # ids [n][chunk][most], then their log-probabilities
    cdef float *extra         # log-probabilities of tokens that are asked for, or keys
    cdef readonly Py_ssize_t chunk
    cdef readonly bint reading
    cdef readonly uint64_t ns # that it took

    def __cinit__(self, list jobs not None, Py_ssize_t chunk, Py_ssize_t read):
        cdef Job job
        cdef size_t i, most = 0
        self.jobs, self.n = list(jobs), len(jobs)  # the caller may change his while others run
        for job in self.jobs:
            if job is None:
                raise TypeError("expected a Job, found None")
            self.reading |= job._prompt.shape[0] - job._at > read
            most = max(most, job._alternatives)
            if job._guide is not None:
                chunk = 1
        self.chunk = chunk
        cdef size_t places = self.n * <size_t>chunk
        self.requests = <fl_request *>PyMem_Calloc(self.n, sizeof(fl_request))
        self.tokens = <int32_t *>PyMem_Calloc(2 * places, 4)
        if most:
            self.alternatives = PyMem_Calloc(2 * places * most, 4)
        if self.requests == NULL or self.tokens == NULL or (most and self.alternatives == NULL):
            raise MemoryError
        self.logprobs = <float *>(self.tokens + places)
        for i in range(self.n):
            job = self.jobs[i]
            job._fill(&self.requests[i], chunk, read if self.reading else 0)
            self.requests[i].tokens = self.tokens + i * chunk
            if job.logprobs is not None:
                self.requests[i].logprobs = self.logprobs + i * chunk
            if job._alternatives:
                self.requests[i].alternative_ids = <int32_t *>self.alternatives + i * chunk * most
                self.requests[i].alternative_logprobs = <float *>self.alternatives + (places + i * chunk) * most

    def __dealloc__(self):
        PyMem_Free(self.requests)
        PyMem_Free(self.tokens)
        PyMem_Free(self.alternatives)
        PyMem_Free(self.extra)

    cdef int draw(self) except -1:
        """Room for the keys of alternatives that are drawn."""
        cdef size_t i, at = 0, total = 1
        for i in range(self.n):
            total += self.requests[i].alternatives
        self.extra = <float *>PyMem_Calloc(total, 4)
        if self.extra == NULL:
            raise MemoryError
        for i in range(self.n):
            self.requests[i].keys = self.extra + at
            at += self.requests[i].alternatives
        return 0

    cdef int ask(self) except -1:
        """Tokens that jobs ask for besides."""
        cdef Job job
        cdef size_t i, at = 0, total = 0
        for job in self.jobs:
            total += job._asked.shape[0]
        if not total:
            return 0
        self.extra = <float *>PyMem_Calloc(total, 4)
        if self.extra == NULL:
            raise MemoryError
        for i in range(self.n):
            job = self.jobs[i]
            if job._asked.shape[0]:
                self.requests[i].asked, self.requests[i].n_asked = &job._asked[0], job._asked.shape[0]
                self.requests[i].asked_logprobs = self.extra + at
                at += job._asked.shape[0]
        return 0

    cdef tuple alternatives_of(self, size_t i):
        """Of a job that was expanded, which has read its prompt now."""
        cdef fl_request *request = &self.requests[i]
        cdef Job job = self.jobs[i]
        cdef size_t j, k = request.alternatives
        job._read_all()
        while k and request.alternative_ids[k - 1] < 0:
            k -= 1
        ids = [request.alternative_ids[j] for j in range(k)]
        logprobs = [request.alternative_logprobs[j] for j in range(k)]
        if request.keys != NULL:
            return ids, logprobs, [request.keys[j] for j in range(k)]
        for j in range(request.n_asked):
            if request.asked_logprobs[j] > -INFINITY and request.asked[j] not in ids:
                ids.append(request.asked[j])
                logprobs.append(request.asked_logprobs[j])
        return ids, logprobs

    cdef int run(self, fl_decoder *decoder, uint64_t deadline) except -1:
        cdef size_t i
        cdef Job job
        with nogil:
            self.ns = fl_clock()
            fl_generate(decoder, self.requests, self.n, deadline)
            self.ns = fl_clock() - self.ns
        for i in range(self.n):
            job = self.jobs[i]
            job._take(&self.requests[i], self.reading)
        return 0


@cython.final
cdef class Coder:
    """Tokens as bytes and back, by what the model expects after a state (which it reads along). data: to read from."""

    cdef fl_coder *_coder
    cdef Decoder _decoder
    cdef State _state
    cdef bint _escapes

    def __cinit__(self, Decoder decoder not None, State state not None, bint escapes, const uint8_t[::1] data=None):
        cdef fl_error error
        cdef const uint8_t *begin = NULL
        decoder._check(state, NOTHING)
        self._decoder, self._state, self._escapes = decoder, state, escapes
        if data is not None:
            begin = &data[0] if data.shape[0] else <const uint8_t *>&error
        if fl_coder_new(begin, 0 if data is None else data.shape[0], &self._coder, &error) != FL_OK:
            raise _error(&error, None)

    def __dealloc__(self):
        fl_coder_free(self._coder)

    def encode(self, const int32_t[::1] tokens not None):
        """Writes tokens."""
        cdef Py_ssize_t at = 0, n, size = tokens.shape[0]
        self._decoder._check(self._state, tokens)
        while at < size:
            n = min(<Py_ssize_t>READ, size - at)
            with nogil:
                fl_encode(self._decoder._decoder, self._state._state, self._coder, &tokens[at], n, self._escapes)
            PyErr_CheckSignals()
            at += n

    def encode_raw(self, const uint8_t[::1] data not None):
        """Writes bytes that no tokens stand for: an escape, their number, themselves."""
        cdef Py_ssize_t i
        cdef uint32_t number
        fl_encode_escape(self._decoder._decoder, self._state._state, self._coder)
        for i in range(4):
            number = <uint32_t>data.shape[0] >> 8 * i & 255
            fl_encode_bits(self._coder, number, 8)
        for i in range(data.shape[0]):
            fl_encode_bits(self._coder, data[i], 8)

    def finish(self):
        """All that was written: bytes."""
        cdef fl_error error
        cdef const uint8_t *data
        cdef size_t size
        if fl_coder_finish(self._coder, &data, &size, &error) != FL_OK:
            raise _error(&error, None)
        return (<const char *>data)[:size] if size else b""

    def decode(self, Py_ssize_t most):
        """Reads up to so many tokens: (array of them, whether an escape follows)."""
        cdef size_t n
        cdef Py_ssize_t size = min(<Py_ssize_t>CHUNK, most)
        found = array("i", bytes(4 * size))
        cdef int32_t[::1] tokens = found
        with nogil:
            n = fl_decode(self._decoder._decoder, self._state._state, self._coder, &tokens[0], size, self._escapes)
        PyErr_CheckSignals()
        self._check_end()
        return found[:n], <Py_ssize_t>n < size

    def decode_raw(self, Py_ssize_t most):
        """The bytes behind an escape, at most so many. Raises ValueError if there would be more."""
        cdef Py_ssize_t i
        cdef uint32_t size = 0
        for i in range(4):
            size |= fl_decode_bits(self._coder, 8) << 8 * i
        if size > most:
            raise ValueError(f"{size} bytes where at most {most} can be")
        found = bytearray(size)
        cdef uint8_t[::1] room = found
        for i in range(size):
            room[i] = <uint8_t>fl_decode_bits(self._coder, 8)
        self._check_end()
        return bytes(found)

    cdef int _check_end(self) except -1:
        if fl_coder_is_past_end(self._coder):
            raise ValueError("more was read than was written")
        return 0
