# SPDX-License-Identifier: Apache-2.0
"""Files that are damaged or made to harm: each is refused with a FormatError that says what, where, expected and
found, or loads and works. tests/c/fuzz_format.c tries many more, without the Python layer."""

import json
import random
import re
import struct
import tracemalloc

import numpy as np
import pytest

import fastlm
from fastlm import _engine

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
NUMBERS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value_of(kind, value):
    if isinstance(value, Raw):
        return value
    if isinstance(kind, tuple):  # (ARRAY, item type)
        items = b"".join(value_of(kind[1], item) for item in value)
        return struct.pack("<IQ", kind[1], len(value)) + items
    return text(value) if kind == STRING else struct.pack("<" + NUMBERS[kind], value)


class Raw(bytes):
    """A value as it shall lie in the file, whatever its type says."""


class File:
    """A GGUF file in the making. ``keys``: name to (type, value); ``tensors``: name to float32 array, whose shape is
    GGUF's reversed. Everything that a test does not change is a valid model of 7 tokens."""

    def __init__(self, tied=False, vocab=7, embedding=4, units=4):
        rows = 3

        def panels(rows, inputs):
            r = np.random.default_rng(1)
            return r.uniform(-1, 1, (-(-rows // 16), inputs, 16)).astype(np.float32)

        self.magic, self.version, self.alignment = b"GGUF", 3, 64
        self.extra_keys = self.extra_tensors = 0  # what the counts say too much
        self.repeated = []  # keys that stand in the file a second time
        self.keys = {
            "general.architecture": (STRING, "lstm"),
            "general.alignment": (U32, 64),
            "lstm.task": (STRING, "lm"),
            "lstm.numerics_version": (U32, 1),
            "lstm.start.state": (STRING, "zero"),
            "lstm.layer.kind": ((ARRAY, STRING), ["embedding", "lstm", "dense"]),
            "lstm.layer.input": ((ARRAY, I32), [-1, 0, 1]),
            "lstm.layer.units": ((ARRAY, U32), [embedding, units, vocab]),
            "lstm.layer.direction": ((ARRAY, STRING), ["forward"] * rows),
            "lstm.layer.scale": ((ARRAY, F32), [0.0] * rows),
            "lstm.layer.layout": ((ARRAY, STRING), ["panels16" if tied else "rows", "panels16", "panels16"]),
            "lstm.layer.tensor": ((ARRAY, STRING), ["output" if tied else "token_embd", "blk.0", "output"]),
        }
        groups = -(-units // 16)
        self.tensors = {
            "token_embd.weight": panels(vocab, embedding)[0, :, :vocab].T.copy(),
            "blk.0.bias": panels(64 * groups, 1)[:, 0],
            "blk.0.x.weight": panels(64 * groups, embedding),
            "blk.0.h.weight": panels(64 * groups, units),
            "output.bias": panels(vocab, 1)[:, 0],
            "output.weight": panels(vocab, units),
        }
        if tied:
            del self.tensors["token_embd.weight"]
        self.types = {}  # tensor name: another type than f32
        self.offsets = {}  # tensor name: another offset
        self.dims = {}  # tensor name: other dimensions, as the file lists them

    def key(self, name, kind, value):
        self.keys[name] = (kind, value)

    def bytes(self):
        keys = [(name, *entry) for name, entry in self.keys.items()] + self.repeated
        counts = len(self.tensors) + self.extra_tensors, len(keys) + self.extra_keys
        head = self.magic + struct.pack("<IQQ", self.version, *counts)
        for name, kind, value in keys:
            head += text(name) + struct.pack("<I", kind[0] if isinstance(kind, tuple) else kind) + value_of(kind, value)
        data = b""
        for name, array in self.tensors.items():
            dims = self.dims.get(name, array.shape[::-1])
            head += text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
            head += struct.pack("<IQ", self.types.get(name, 0), self.offsets.get(name, len(data)))
            data += array.tobytes() + bytes(-array.nbytes % 64)
        return head + bytes(-len(head) % self.alignment) + data


def chars(file, tokens=("<|border|>", "<|unknown|>", *"abcde")):
    file.key("tokenizer.ggml.model", STRING, "chars")
    file.key("tokenizer.ggml.tokens", (ARRAY, STRING), list(tokens))


def words(file, **changes):
    """A Hugging Face WordLevel tokenizer of 7 words, with parts of its JSON changed."""
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate("abcdefg")}, "unk_token": "a"},
    }
    spec["model"].update(changes.pop("model", {}))
    file.key("tokenizer.ggml.model", STRING, "huggingface")
    file.key("tokenizer.huggingface.json", STRING, json.dumps({**spec, **changes}))


def weight(file, name, value):
    file.tensors[name][(0,) * file.tensors[name].ndim] = value


CASES = {}


def case(expected, **options):
    """Registers a change of a valid file that must be refused with these words, … standing for anything."""

    def register(change):
        CASES[change.__name__] = (change, options, expected)
        return change

    return register


# ---- header ------------------------------------------------------------------------------------------


@case("starts with 'GGUF', found 'ggml'")
def magic(f):
    f.magic = b"ggml"


@case("starts with 'GGUF', found '????'")
def magic_of_control_characters(f):
    f.magic = b"\x1b\0\xff\n"


@case("expected GGUF version 3 in little-endian order, found version 2")
def old_version(f):
    f.version = 2


@case("expected GGUF version 3 in little-endian order, found version 50331648")
def big_endian(f):
    f.version = 3 << 24


@case("at most 65536 keys and tensors, found 18446744073709551615")
def absurd_key_count(f):
    f.extra_keys = 2**64 - 1 - len(f.keys)


@case("at most 65536 keys and tensors")
def absurd_tensor_count(f):
    f.extra_tensors = 2**40


@case("at byte")
def one_key_too_many(f):
    f.extra_keys = 1


@case("general.alignment': expected 64, found 0")
def no_alignment(f):
    f.key("general.alignment", U32, 0)


@case("general.alignment': expected type 4 (uint32), found 8")
def alignment_of_text(f):
    f.key("general.alignment", STRING, "64")


# ---- what the model is -------------------------------------------------------------------------------


@case("key 'general.architecture': expected 'lstm', found 'llama'")
def another_architecture(f):
    f.key("general.architecture", STRING, "llama")


@case("key 'general.architecture': expected 'lstm', found none")
def no_architecture(f):
    del f.keys["general.architecture"]


@case("key 'lstm.task': expected 'lm' or 'seq2seq' or 'classifier', found no string")
def task_of_another_type(f):
    f.key("lstm.task", U32, 1)


@case("key 'lstm.task': expected 'lm' or 'seq2seq' or 'classifier', found 'painter'")
def another_task(f):
    f.key("lstm.task", STRING, "painter")


@case("key 'lstm.task': expected 'lm' or 'seq2seq' or 'classifier', found '?[31mlm?'")
def terminal_escapes(f):
    f.key("lstm.task", STRING, "\x1b[31mlm\0")


@case("tensor '?[31m.x.weight': expected, not found")
def terminal_escapes_in_a_name(f):
    f.key("lstm.layer.tensor", (ARRAY, STRING), ["token_embd", "\x1b[31m", "output"])


@case("this engine computes version 1, found 2")
def later_numerics(f):
    f.key("lstm.numerics_version", U32, 2)


@case("key 'lstm.layer.kind': expected 3 to 1024 layers, found 0")
def no_layers(f):
    f.key("lstm.layer.kind", (ARRAY, STRING), [])


@case("key 'lstm.layer.units': expected 3 items, found 4")
def columns_of_different_length(f):
    f.key("lstm.layer.units", (ARRAY, U32), [4, 4, 7, 1])


@case("key 'lstm.layer.units': expected an array of type 4")
def units_of_another_type(f):
    f.key("lstm.layer.units", (ARRAY, F32), [4, 4, 7])


@case("key 'lstm.layer.units', layer 1: expected 1 to 1048576, found 0")
def no_units(f):
    f.key("lstm.layer.units", (ARRAY, U32), [4, 0, 7])


@case("key 'lstm.layer.units', layer 2: expected 1 to 268435456, found 4294967295")
def absurd_vocabulary(f):
    f.key("lstm.layer.units", (ARRAY, U32), [4, 4, 2**32 - 1])


@case("key 'lstm.layer.kind', layer 1: this version computes 'lstm' here, found 'gru'")
def another_cell(f):
    f.key("lstm.layer.kind", (ARRAY, STRING), ["embedding", "gru", "dense"])


@case("key 'lstm.layer.direction', layer 1: this version computes 'forward' here, found 'both'")
def another_direction(f):
    f.key("lstm.layer.direction", (ARRAY, STRING), ["forward", "both", "forward"])


@case("key 'lstm.layer.scale', layer 2: expected 0, found 0.5")
def step_without_whole_numbers(f):
    f.key("lstm.layer.scale", (ARRAY, F32), [0.0, -0.0, 0.5])


@case("key 'lstm.layer.layout', layer 2: this version computes 'panels16' here, found 'rows'")
def another_layout(f):
    f.key("lstm.layer.layout", (ARRAY, STRING), ["rows", "panels16", "rows"])


@case("key 'lstm.layer.input', layer 1: expected 0, found 1")
def layer_that_reads_itself(f):
    f.key("lstm.layer.input", (ARRAY, I32), [-1, 1, 1])


@case("tied embedding of size 4 needs a last layer as wide, found 3 units", tied=True, units=3)
def tied_to_another_width(f):
    pass


@case("key 'tokenizer.ggml.bos_token_id': expected a token below 7, found 7")
def start_beyond_the_vocabulary(f):
    f.key("tokenizer.ggml.bos_token_id", U32, 7)


@case("key 'tokenizer.ggml.eos_token_id': expected type 4 (uint32), found 5")
def negative_end(f):
    f.key("tokenizer.ggml.eos_token_id", I32, -1)


@case("arrays of arrays")
def nested_arrays(f):
    f.key("general.tags", (ARRAY, ARRAY), [])


@case("unknown value type 99")
def unknown_type(f):
    f.key("general.tags", 99, Raw())


# ---- tensors -----------------------------------------------------------------------------------------


@case("tensor 'blk.0.h.weight': expected, not found")
def missing_tensor(f):
    del f.tensors["blk.0.h.weight"]


@case("tensor 'output.weight': expected dimensions 16 x 4 x 1 x 1, found 4 x 16 x 1 x 1")
def transposed_tensor(f):
    f.dims["output.weight"] = (4, 16)


@case("tensor 'output.weight': expected type 0 (f32), 24 (int8) or 30 (bf16), found 1")
def half_precision(f):
    f.types["output.weight"] = 1


# ---- whole numbers -----------------------------------------------------------------------------------


def whole(f, bits=8):
    """The output matrix of 7 rows and 4 inputs in int8 or int4."""
    del f.tensors["output.weight"]
    f.tensors["output.weight"] = np.ones((1, 1, 16, 4), np.int8)
    f.tensors["output.scale"] = np.ones((1, 16), np.float32)
    f.types["output.weight"] = 24
    if bits == 4:
        f.tensors["output.group"] = np.ones((1, 1, 16, 2), np.int8)
        f.types["output.group"] = 24
    f.key("lstm.layer.scale", (ARRAY, F32), [0.0, 0.0, 1 / 127])


@pytest.mark.parametrize("bits", [8, 4])
def test_whole_numbers_are_read(bits):
    f = File()
    whole(f, bits)
    assert len(fastlm.load(f.bytes()).generate([1], max_tokens=3, seed=1).token_ids) == 3


@case("tensor 'output.scale': expected, not found")
def no_scale(f):
    whole(f)
    del f.tensors["output.scale"]


@case("tensor 'output.scale': expected numbers from 0, found -1")
def scale_below_zero(f):
    whole(f)
    f.tensors["output.scale"][0, 3] = -1


@case("tensor 'output.scale': a weight is not a number, infinite or above 2^40")
def scale_not_a_number(f):
    whole(f)
    f.tensors["output.scale"][0, 3] = np.nan


@case("tensor 'output.scale': expected type 0, found 24")
def scale_of_bytes(f):
    whole(f)
    f.tensors["output.scale"] = np.ones((1, 16), np.int8)
    f.types["output.scale"] = 24


@case("tensor 'output.weight': expected weights from -127 to 127, found -128")
def least_byte(f):
    whole(f)
    f.tensors["output.weight"][0, 0, 5, 1] = -128


@case("tensor 'output.weight': expected dimensions 4 x 16 x 1 x 1, found 4 x 16 x 2 x 1")
def too_many_blocks(f):
    whole(f)
    f.tensors["output.weight"] = np.ones((1, 2, 16, 4), np.int8)


@case("tensor 'output.group': expected dimensions 2 x 16 x 1 x 1, found 2 x 16 x 1 x 2")
def too_many_factors(f):
    whole(f, bits=4)
    f.tensors["output.group"] = np.ones((2, 1, 16, 2), np.int8)


@case("tensor 'output.group': expected type 24, found 0")
def factors_of_floats(f):
    whole(f, bits=4)
    f.tensors["output.group"] = np.ones((1, 1, 16, 2), np.float32)
    del f.types["output.group"]


@case("key 'lstm.layer.scale', layer 2: expected 0.00787402, found 0")
def whole_numbers_without_step(f):
    whole(f)
    f.key("lstm.layer.scale", (ARRAY, F32), [0.0, 0.0, 0.0])


@case("key 'lstm.layer.scale', layer 0: expected 0, found 0.00787402")
def embedding_with_a_step(f):
    f.key("lstm.layer.scale", (ARRAY, F32), [1 / 127, 0.0, 0.0])


@case("tensor 'output.weight': a weight is not a number, infinite or above 2^40")
def half_a_number(f):
    f.tensors["output.weight"] = np.full((1, 2, 16, 2), 0x7FC0, np.uint16)
    f.types["output.weight"] = 30


@case("tensor 'output.weight': expected dimensions 2 x 16 x 2 x 1, found 16 x 4 x 1 x 1")
def bf16_in_the_layout_of_f32(f):
    f.tensors["output.weight"] = np.zeros((1, 4, 16), np.uint16)
    f.types["output.weight"] = 30


@case("tensor 'blk.0.x.weight': expected at most 16384 inputs of whole numbers, found 16392", embedding=16392)
def sums_that_could_overflow(f):
    f.tensors["blk.0.x.weight"] = np.ones((4, 16392 // 8, 16, 4), np.int8)
    f.tensors["blk.0.x.group"] = np.ones((1,), np.int8)
    f.types |= {"blk.0.x.weight": 24, "blk.0.x.group": 24}


# ---- tensors, further --------------------------------------------------------------------------------


@case("tensor 'output.bias': expected 1 to 4 dimensions, found 5")
def five_dimensions(f):
    f.dims["output.bias"] = (16, 1, 1, 1, 1)


@case("tensor 'output.bias': dimension 1 is 9223372036854775808")
def dimensions_that_overflow(f):
    f.dims["output.bias"] = (2, 2**63)


@case("tensor 'output.bias': dimension 0 is 0")
def empty_tensor(f):
    f.dims["output.bias"] = (0, 1)


@case("tensor 'output.bias': expected 64 bytes at … the end of the file")
def offset_behind_the_end(f):
    f.offsets["output.bias"] = 2**40


@case("tensor 'output.bias': expected 64 bytes at … the end of the file")
def offset_that_overflows(f):
    f.offsets["output.bias"] = 2**64 - 64


@case("tensor 'output.bias': expected an offset that is a multiple of 64")
def odd_offset(f):
    f.offsets["output.bias"] = 4


@case("tensors 'blk.0.bias' and 'output.bias' overlap")
def overlapping_tensors(f):
    f.offsets["output.bias"] = f.tensors["token_embd.weight"].nbytes + 16


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**40 * 1.0000002, -3e38])
@pytest.mark.parametrize("name", list(File().tensors))
def test_weights_that_are_not_finite_or_too_large_are_refused(name, value):
    f = File()
    weight(f, name, value)
    refused(f.bytes(), f"tensor '{name}': a weight is not a number, infinite or above 2^40")


def test_the_largest_and_smallest_weights_work():
    f = File()
    for n, name in enumerate(f.tensors):
        weight(f, name, [2.0**40, -(2.0**40), 1e-45, -0.0][n % 4])
    lm = fastlm.load(f.bytes())
    assert np.isfinite(lm.generate([1, 2], max_tokens=10, logprobs=True, temperature=0).logprobs).all()


# ---- the Python layer: text, tokenizers, recommendations -----------------------------------------------


@case("a key at byte … expected UTF-8 text, found byte 0xff")
def key_that_is_no_text(f):
    f.keys[b"general.\xff"] = (U32, 1)


@case("key 'general.name' at byte … expected UTF-8 text, found byte 0xff")
def value_that_is_no_text(f):
    f.key("general.name", STRING, b"caf\xff")


@case("tokenizer.ggml.model: expected chars, bytes or huggingface, found 'gpt2'")
def unknown_tokenizer(f):
    f.key("tokenizer.ggml.model", STRING, "gpt2")


@case("tokenizer.ggml.model: expected chars, bytes or huggingface, found 7")
def tokenizer_of_another_type(f):
    f.key("tokenizer.ggml.model", U32, 7)


@case("tokenizer.ggml.tokens: expected an array of text, found None")
def characters_without_tokens(f):
    f.key("tokenizer.ggml.model", STRING, "chars")


@case("tokenizer.ggml.tokens: expected an array of text, found 7")
def characters_that_are_a_number(f):
    chars(f)
    f.key("tokenizer.ggml.tokens", U32, 7)


@case("tokenizer.ggml.tokens: expected an array of text, found 'abcdefg'")
def characters_that_are_one_text(f):
    chars(f)
    f.key("tokenizer.ggml.tokens", STRING, "abcdefg")


@case("tokenizer.ggml.tokens: expected an array of text, found array('I', [0, 1, 2")
def characters_that_are_numbers(f):
    chars(f)
    f.key("tokenizer.ggml.tokens", (ARRAY, U32), range(7))


@case("two special tokens, then single characters, each once")
def characters_of_two(f):
    chars(f, ["<|border|>", "<|unknown|>", "a", "bc"])


@case("two special tokens, then single characters, each once")
def characters_twice(f):
    chars(f, ["<|border|>", "<|unknown|>", "a", "a"])


@case("two special tokens, then single characters, each once")
def characters_without_specials(f):
    chars(f, ["<|border|>"])


@case("the tokenizer has 8 tokens, but the output layer only 7")
def more_characters_than_outputs(f):
    chars(f, ["<|border|>", "<|unknown|>", *"abcdef"])


@case("the tokenizer has 257 tokens, but the output layer only 7")
def bytes_for_a_small_vocabulary(f):
    f.key("tokenizer.ggml.model", STRING, "bytes")


@case("lstm.text.documents: expected one of file, blank-line, line, found 'page'")
def unknown_documents(f):
    chars(f)
    f.key("lstm.text.documents", STRING, "page")


@case("lstm.text.documents: expected one of file, blank-line, line, found ['line']")
def documents_of_another_type(f):
    chars(f)
    f.key("lstm.text.documents", (ARRAY, STRING), ["line"])


@case("tokenizer.huggingface.json: expected the tokenizer's JSON text, found nothing")
def no_json(f):
    f.key("tokenizer.ggml.model", STRING, "huggingface")


@case("not a tokenizer that the 'tokenizers' package can read")
def broken_json(f):
    words(f)
    f.key("tokenizer.huggingface.json", STRING, '{"model": ')


@case("not a tokenizer that the 'tokenizers' package can read")
def deep_json(f):
    words(f)
    f.key("tokenizer.huggingface.json", STRING, "[" * 100_000)


@case("not a tokenizer that the 'tokenizers' package can read")
def json_of_something_else(f):
    words(f)
    f.key("tokenizer.huggingface.json", STRING, "[1, 2]")


@case("not a tokenizer that the 'tokenizers' package can read")
def unknown_tokenizer_model(f):
    words(f, model={"type": "Magic"})


@case("not a tokenizer that the 'tokenizers' package can read")
def unigram_without_its_unknown(f):
    words(f, model={"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 5})


@case("not a tokenizer that the 'tokenizers' package can read")
def bpe_that_makes_the_library_panic(f):
    merges = {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "continuing_subword_prefix": "12345678"}
    words(f, model={"type": "BPE", "unk_token": None, **merges})


@case("the tokenizer has 4000000001 tokens, but the output layer only 7")
def word_ids_beyond_the_outputs(f):
    words(f, model={"vocab": {"a": 4_000_000_000}})


@case("keys 'general.sampling.*': temperature=-1.0: expected 0 to 1000")
def negative_temperature(f):
    f.key("general.sampling.temp", F32, -1.0)


@case("keys 'general.sampling.*': temperature=nan")
def temperature_that_is_no_number(f):
    f.key("general.sampling.temp", F32, float("nan"))


@case("keys 'general.sampling.*': temperature='hot': expected a number, found str")
def temperature_of_text(f):
    f.key("general.sampling.temp", STRING, "hot")


@case("keys 'general.sampling.*': top_k=-5: expected 0 to")
def negative_top_k(f):
    f.key("general.sampling.top_k", I32, -5)


@case("keys 'general.sampling.*': top_k=4.5: expected a whole number")
def fractional_top_k(f):
    f.key("general.sampling.top_k", F32, 4.5)


@case("keys 'general.sampling.*': top_p=0")
def zero_top_p(f):
    f.key("general.sampling.top_p", F32, 0)


@case("keys 'general.sampling.*': top_p=array('f', [0.5, 0.5]): expected a number, found array")
def top_p_of_another_type(f):
    f.key("general.sampling.top_p", (ARRAY, F32), [0.5, 0.5])


# ---- the tests ---------------------------------------------------------------------------------------


def refused(data, expected, path=None):
    """As bytes and, if there is a path, as a file: FormatError with these words, and the path."""
    pattern = ".*".join(re.escape(part) for part in expected.split("…"))
    with pytest.raises(fastlm.FormatError, match=pattern) as e:
        fastlm.load(data)
    assert str(e.value).isprintable()
    if path is None:
        return
    path.write_bytes(data)
    with pytest.raises(fastlm.FormatError) as from_file:
        fastlm.load(path)
    assert str(from_file.value) == f"{path}: {e.value}"


@pytest.mark.parametrize("name", CASES)
def test_hostile_file_is_refused_with_a_message_that_helps(name, tmp_path):
    change, options, expected = CASES[name]
    f = File(**options)
    change(f)
    refused(f.bytes(), expected, tmp_path / "hostile.gguf")


@pytest.mark.parametrize("tied", [False, True])
def test_the_file_that_they_start_from_is_valid(tied):
    f = File(tied=tied)
    chars(f)
    lm = fastlm.load(f.bytes())
    assert len(lm.generate("ab", max_tokens=5, seed=1).token_ids) <= 5
    with pytest.raises(fastlm.FormatError, match="no test vector"):
        lm.check()


def test_every_truncation_is_refused():
    f = File()
    chars(f)
    data = f.bytes()
    for size in [*range(0, 1500, 7), *range(1500, len(data), 101), len(data) - 1]:
        with pytest.raises(fastlm.FormatError):
            fastlm.load(data[:size])


def test_damaged_files_are_refused_or_work(tmp_path):
    """Random bits of the header: whatever the Python layer makes of it, the only error is FormatError."""
    r = random.Random(7)
    f = File()
    chars(f)
    f.key("general.sampling.temp", F32, 0.8)
    f.key("general.name", STRING, "damaged")
    data, end, loaded = f.bytes(), f.bytes().index(b"token_embd.weight"), 0
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(r.randint(1, 3)):
            damaged[r.randrange(end)] ^= 1 << r.randrange(8)
        try:
            lm = fastlm.load(bytes(damaged))
        except fastlm.FormatError:
            continue
        loaded += 1
        repr(lm.info)
        lm.generate([1], max_tokens=2, seed=1)
        if lm.tokenizer is not None:
            lm.decode(list(range(lm.vocab_size)))
    assert loaded > 50


def test_text_is_utf8_as_python_knows_it():
    """Every first byte, with what may and may not follow: surrogates, overlong forms, beyond U+10FFFF, cut off."""
    edges = [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF]
    tails = [b"", b"a", b"\x80", b"\xbf\xbf", b"\x80\x7f", b"\x80\x80\x80", b"\xc0\x80"]
    f = File()
    f.key("x", STRING, b"########")
    data = f.bytes()
    for odd in (bytes([first, second]) + tail for first in range(0x80, 0x100) for second in edges for tail in tails):
        for value in (odd.rjust(8, b"a"), odd.ljust(8, b"a")):
            try:
                value.decode()
                valid = True
            except UnicodeDecodeError:
                valid = False
            try:
                _engine.Model(None, data.replace(b"########", value), None, 0)
                loads = True
            except fastlm.FormatError:
                loads = False
            assert loads == valid, value


def test_unknown_keys_and_tensors_are_let_be():
    f = File()
    for kind in NUMBERS:
        f.key(f"x.{kind}", kind, 1)
        f.key(f"x.array.{kind}", (ARRAY, kind), [1, 0, 1])
    f.key("x.text", STRING, "\0ä" * 100)
    f.key("x.texts", (ARRAY, STRING), ["", "a", "ä"])
    f.key("x.nothing", (ARRAY, STRING), [])
    f.tensors["x"] = np.ones((3, 5), np.float32)
    lm = fastlm.load(f.bytes() + b"junk behind")
    assert lm.metadata["x.text"] == "\0ä" * 100
    assert list(lm.metadata["x.texts"]) == ["", "a", "ä"]
    assert list(lm.metadata[f"x.array.{F64}"]) == [1.0, 0.0, 1.0]


def test_of_a_repeated_key_the_first_counts_everywhere():
    f = File()
    f.key("general.name", STRING, "one")
    f.repeated = [("general.name", STRING, "two"), ("lstm.task", STRING, "other"), ("lstm.task", U32, 1)]
    lm = fastlm.load(f.bytes())
    assert lm.metadata["general.name"] == "one"
    assert lm.info["task"] == "lm"


def test_tokens_beyond_the_tokenizer_are_no_text():
    """The output layer may be larger than the tokenizer (padded vocabularies): what it says there is empty."""
    f = File()
    chars(f, ["<|border|>", "<|unknown|>", "a"])
    lm = fastlm.load(f.bytes())
    assert lm.decode([2, 3, 6, 2]) == "aa"
    assert lm.generate("a", max_tokens=50, seed=1).usage["completion_tokens"] <= 50
    words(f, model={"vocab": {"a": 0, "b": 1}})
    lm = fastlm.load(f.bytes())
    assert "a" in lm.decode([0, 5, 6])


@pytest.mark.parametrize("kind", [U8, F32])
def test_large_arrays_take_no_more_memory_than_allowed(kind):
    """At most twice the file and 64 MB. What the core takes is counted in tests/c/fuzz_format.c."""
    size = 12 * 10**6
    f = File()
    f.key("x", (ARRAY, kind), Raw(struct.pack("<IQ", kind, size // struct.calcsize(NUMBERS[kind])) + bytes(size)))
    data = f.bytes()
    tracemalloc.start()
    assert len(fastlm.load(data).metadata["x"]) > 10**6
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * len(data) + 64 * 2**20


def test_engine_refuses_what_python_would_not_pass():
    with pytest.raises(fastlm.FormatError, match="found no bytes"):
        _engine.Model(None, memoryview(b""), None, 0)
    with pytest.raises(fastlm.FormatError, match="found no bytes"):
        fastlm.load(memoryview(b""))
