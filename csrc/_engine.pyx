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
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from capi cimport *


class FormatError(ValueError):
    """The file is not a model that this version can run; the message says what, where, expected and found."""

    __module__ = "fastlm"


cdef extern from *:
    """
    /* Tokens between two looks at pending signals (Ctrl-C): a tenth of a second for a large model. */
    enum { CHUNK = 32 };
    /* A Python string takes several times what it takes in the file: no more of them than any vocabulary has. */
    enum { MOST_STRINGS = 1 << 20 };
    """
    const int CHUNK
    const int MOST_STRINGS


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

    def __cinit__(self, str path, const uint8_t[::1] data, str isa, size_t row_cache_bytes):
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
        """All tensors of the file: list of (name, shape as numpy orders it, offset in the file, bytes)."""
        cdef fl_tensor tensor
        found = []
        for i in range(fl_model_tensor_count(self._model)):
            fl_model_tensor(self._model, i, &tensor)
            name = tensor.name[:tensor.name_size].decode()
            shape = tuple(tensor.dims[j] for j in reversed(range(tensor.n_dims)))
            found.append((name, shape, tensor.offset, tensor.size))
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
cdef class Session:
    """A state of the network and the room to decode from it. One thread at a time."""

    cdef fl_session *_session
    cdef readonly Model model  # kept alive

    def __cinit__(self, Model model not None):
        cdef fl_error error
        self.model = model
        if fl_session_new(model._model, &self._session, &error) != FL_OK:
            raise _error(&error, None)

    def __dealloc__(self):
        fl_session_free(self._session)

    @property
    def position(self):
        return fl_session_position(self._session)

    def reset(self):
        fl_session_reset(self._session)

    def copy_from(self, Session other not None):
        """Takes over the state of another session of the same model."""
        if other.model is not self.model:
            raise ValueError("the other session belongs to another model")
        fl_session_copy(self._session, other._session)

    cdef int _check(self, const int32_t[::1] tokens) except -1:
        cdef Py_ssize_t i
        cdef int32_t vocab_size = <int32_t>self.model.vocab_size
        for i in range(tokens.shape[0]):
            if tokens[i] < 0 or tokens[i] >= vocab_size:
                raise ValueError(f"token {tokens[i]} at place {i}: expected 0 to {vocab_size - 1}")
        return 0

    cdef int _feed(self, const int32_t[::1] tokens) except -1:
        cdef Py_ssize_t at = 0, n, size = tokens.shape[0]
        while at < size:
            n = min(<Py_ssize_t>CHUNK, size - at)
            with nogil:
                fl_feed(self._session, &tokens[at], n)
            PyErr_CheckSignals()
            at += n
        return 0

    def feed(self, const int32_t[::1] tokens not None):
        """Reads tokens."""
        self._check(tokens)
        self._feed(tokens)

    def logits(self):
        """Logits of the next token: array of V floats (a copy)."""
        cdef const float *logits
        with nogil:
            logits = fl_logits(self._session)
        return array("f", (<const char *>logits)[:4 * self.model.vocab_size])

    def score(self, const int32_t[::1] tokens not None):
        """Reads tokens; the natural log-probability of each given what was read before: array of floats."""
        cdef Py_ssize_t at = 0, n, size = tokens.shape[0]
        self._check(tokens)
        found = array("f", bytes(4 * size))
        cdef float[::1] logprobs = found
        while at < size:
            n = min(<Py_ssize_t>CHUNK, size - at)
            with nogil:
                fl_score(self._session, &tokens[at], n, &logprobs[at])
            PyErr_CheckSignals()
            at += n
        return found

    def generate(self, const int32_t[::1] prompt not None, Py_ssize_t max_tokens, float temperature, uint32_t top_k,
                 double top_p, uint64_t seed, uint32_t index, const int32_t[::1] stop not None, bint logprobs):
        """Reads the prompt, then draws up to max_tokens: (tokens, log-probabilities or None, stopped).
        The last token drawn has not been read."""
        cdef fl_sampling sampling
        cdef fl_finish finish = FL_FINISH_LENGTH
        cdef int32_t drawn[CHUNK]
        cdef float scores[CHUNK]
        cdef int32_t last = 0
        cdef const int32_t *stop_tokens = &stop[0] if stop.shape[0] else NULL
        cdef size_t n, n_last = 0, n_stop = stop.shape[0], wanted
        sampling.temperature, sampling.top_k, sampling.top_p = temperature, top_k, top_p
        sampling.seed, sampling.index = seed, index
        self._check(prompt)
        self._feed(prompt)
        tokens = []
        found = [] if logprobs else None
        while len(tokens) < max_tokens and finish == FL_FINISH_LENGTH:
            wanted = min(<Py_ssize_t>CHUNK, max_tokens - len(tokens))
            with nogil:
                n = fl_generate(self._session, &last, n_last, &sampling, stop_tokens, n_stop, wanted, drawn,
                                scores if logprobs else NULL, &finish)
            tokens.extend([drawn[i] for i in range(n)])
            if logprobs:
                found.extend([scores[i] for i in range(n)])
            if n:
                last, n_last = drawn[n - 1], 1
            PyErr_CheckSignals()
        return tokens, found, finish == FL_FINISH_STOP
