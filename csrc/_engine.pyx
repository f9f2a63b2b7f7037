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
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from capi cimport *


class FormatError(ValueError):
    """The file is not a model that this version can run; the message says what, where, expected and found."""

    __module__ = "fastlm"


cdef extern from *:
    """
    /* Tokens between two looks at pending signals (Ctrl-C): a tenth of a second for a large model; a prompt is read
     * faster than a text is written. */
    enum { CHUNK = 32, READ = 128 };
    /* A Python string takes several times what it takes in the file: no more of them than any vocabulary has. */
    enum { MOST_STRINGS = 1 << 20 };
    """
    const int CHUNK
    const int READ
    const int MOST_STRINGS


cdef const int32_t[::1] NOTHING = array("i", [])


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

    def __cinit__(self, str path, const uint8_t[::1] data, str isa, size_t row_cache_bytes, uint32_t threads=0):
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


@cython.final
cdef class State:
    """A sequence's past. One thread at a time."""

    cdef fl_state *_state
    cdef readonly Model model  # kept alive

    def __cinit__(self, Model model not None):
        cdef fl_error error
        self.model = model
        if fl_state_new(model._model, &self._state, &error) != FL_OK:
            raise _error(&error, None)

    def __dealloc__(self):
        fl_state_free(self._state)

    @property
    def position(self):
        return fl_state_position(self._state)

    def reset(self):
        fl_state_reset(self._state)

    def copy(self):
        """The same past, in a state of its own."""
        cdef State state = State(self.model)
        fl_state_copy(state._state, self._state)
        return state


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
        cdef Py_ssize_t i
        cdef int32_t vocab_size = <int32_t>self.model.vocab_size
        if state.model is not self.model:
            raise ValueError("the state belongs to another model")
        for i in range(tokens.shape[0]):
            if tokens[i] < 0 or tokens[i] >= vocab_size:
                raise ValueError(f"token {tokens[i]} at place {i}: expected 0 to {vocab_size - 1}")
        return 0

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

    def logits(self, State state not None):
        """Logits of the next token: array of V floats (a copy)."""
        cdef const float *logits
        self._check(state, NOTHING)
        with nogil:
            logits = fl_logits(self._decoder, state._state)
        return array("f", (<const char *>logits)[:4 * self.model.vocab_size])

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

    def generate(self, list states not None, list prompts not None, list indices not None, Py_ssize_t max_tokens,
                 float temperature, uint32_t top_k, double top_p, uint64_t seed, const int32_t[::1] stop not None,
                 bint logprobs):
        """Writes on from the states, side by side, after reading a prompt each: a list of (tokens, log-probabilities
        or None, stopped). The last token written has not been read."""
        cdef Py_ssize_t i, n = len(states)
        cdef Writer writer = Writer(n, logprobs)
        cdef fl_sampling sampling
        cdef const int32_t[::1] prompt
        sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed = temperature, top_k, top_p, seed
        for i in range(n):
            prompt = prompts[i]
            self._check(states[i], prompt)
            sampling.index = indices[i]
            writer.requests[i].state = (<State>states[i])._state
            writer.requests[i].sampling = sampling
            writer.requests[i].stop, writer.requests[i].n_stop = &stop[0] if stop.shape[0] else NULL, stop.shape[0]
            writer.requests[i].prompt = &prompt[0] if prompt.shape[0] else NULL
            writer.unread[i] = prompt.shape[0]
        while writer.begin_round(max_tokens):
            with nogil:
                fl_generate(self._decoder, writer.requests, writer.active)
            writer.end_round(max_tokens)
            PyErr_CheckSignals()
        return writer.results


@cython.final
cdef class Writer:
    """Requests in rounds, between which signals are seen: of READ tokens of the prompts, then of CHUNK tokens written.
    Those that are not done stand in front."""

    cdef fl_request *requests
    cdef size_t active
    cdef Py_ssize_t *unread   # tokens of each prompt
    cdef Py_ssize_t *place    # among the results
    cdef int32_t *tokens      # [n][CHUNK]: written in this round
    cdef int32_t *last        # written in the round before
    cdef float *logprobs      # [n][CHUNK]
    cdef bint reading
    cdef list results

    def __cinit__(self, Py_ssize_t n, bint logprobs):
        cdef Py_ssize_t i
        self.requests = <fl_request *>PyMem_Calloc(n, sizeof(fl_request))
        self.unread = <Py_ssize_t *>PyMem_Calloc(n, sizeof(Py_ssize_t))
        self.place = <Py_ssize_t *>PyMem_Calloc(n, sizeof(Py_ssize_t))
        self.tokens = <int32_t *>PyMem_Calloc(n, CHUNK * sizeof(int32_t))
        self.last = <int32_t *>PyMem_Calloc(n, sizeof(int32_t))
        self.logprobs = <float *>PyMem_Calloc(n, CHUNK * sizeof(float))
        if not (self.requests and self.unread and self.place and self.tokens and self.last and self.logprobs):
            raise MemoryError
        self.results = [([], [] if logprobs else None, False) for i in range(n)]
        self.active = n
        for i in range(n):
            self.place[i] = i

    def __dealloc__(self):
        PyMem_Free(self.requests)
        PyMem_Free(self.unread)
        PyMem_Free(self.place)
        PyMem_Free(self.tokens)
        PyMem_Free(self.last)
        PyMem_Free(self.logprobs)

    cdef bint begin_round(self, Py_ssize_t max_tokens):
        cdef size_t i
        cdef fl_request *request
        self.reading = False
        for i in range(self.active):
            self.reading |= self.unread[i] > READ
        for i in range(self.active):
            request = &self.requests[i]
            tokens, logprobs, _ = self.results[self.place[i]]
            request.tokens = &self.tokens[i * CHUNK]
            request.logprobs = NULL if logprobs is None else &self.logprobs[i * CHUNK]
            request.n_prompt, request.max_tokens = self.unread[i], min(<Py_ssize_t>CHUNK, max_tokens - len(tokens))
            if self.reading:
                request.n_prompt, request.max_tokens = min(<Py_ssize_t>READ, max(self.unread[i] - 1, 0)), 0
        return self.active > 0

    cdef int end_round(self, Py_ssize_t max_tokens) except -1:
        cdef size_t i, j, kept = 0
        cdef fl_request *request
        for i in range(self.active):
            request = &self.requests[i]
            tokens, logprobs, _ = self.results[self.place[i]]
            tokens.extend([request.tokens[j] for j in range(request.written)])
            if logprobs is not None:
                logprobs.extend([request.logprobs[j] for j in range(request.written)])
            if request.finish == FL_FINISH_STOP:
                self.results[self.place[i]] = (tokens, logprobs, True)
            elif self.reading or len(tokens) < max_tokens:
                self._keep(i, kept)
                kept += 1
        self.active = kept
        return 0

    cdef void _keep(self, size_t i, size_t kept) noexcept:
        cdef fl_request request = self.requests[i]
        self.unread[kept] = self.unread[i] - request.n_prompt
        self.place[kept] = self.place[i]
        if request.written:
            self.last[kept] = request.tokens[request.written - 1]
            request.prompt, self.unread[kept] = &self.last[kept], 1
        elif request.prompt != NULL:
            request.prompt += request.n_prompt
        self.requests[kept] = request
