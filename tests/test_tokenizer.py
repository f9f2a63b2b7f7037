# SPDX-License-Identifier: Apache-2.0
"""Text to ids and back."""

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlm import tokenizer
from fastlm.tokenizer import (
    ByteTokenizer,
    CharTokenizer,
    HuggingFaceTokenizer,
    count_characters,
    read_text,
    split_documents,
)

SAMPLE = "Once upon a time there was a rabbit.\nHe lived in a hole.\n\nThe end of the tale, said the rabbit.\n"
UNICODE = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


def unigram():
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = [("<unk>", 0.0), *((c, -3.0) for c in "abcdehilnoprstuw,."), ("▁", -2.0), ("▁the", -2.5)]
    library = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    from tokenizers import decoders

    library.decoder = decoders.Metaspace()
    return HuggingFaceTokenizer(library.to_str())


KINDS = {
    "bytes": lambda: ByteTokenizer("line"),
    "chars": lambda: CharTokenizer.train([SAMPLE], "blank-line"),
    "bpe": lambda: tokenizer.train_bpe([SAMPLE], 300, "blank-line"),
    "led bpe": lambda: tokenizer.train_bpe([SAMPLE], 300, "blank-line", lead=True),
    "words": lambda: tokenizer.train_words(SAMPLE.split("\n"), 20),
    "unigram": unigram,
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]()


def test_fields_give_the_same_tokenizer_back(kind):
    again = tokenizer.from_fields(kind.fields())
    assert type(again) is type(kind)
    for name in ("kind", "vocab_size", "bos", "eos", "unknown", "documents", "lead"):
        assert getattr(again, name) == getattr(kind, name), name
    assert again.encode(SAMPLE) == kind.encode(SAMPLE)


def test_ids_are_in_the_vocabulary(kind):
    assert all(0 <= t < kind.vocab_size for t in kind.encode(SAMPLE + "Ünknown ☃ §§"))


def test_stream_gives_what_decode_gives(kind):
    ids = kind.encode(SAMPLE)
    stream = kind.stream(ids[:5])
    assert "".join([stream.push(t) for t in ids[5:]] + [stream.finish()]) == kind.decode(ids[5:], context=ids[:5])
    assert kind.decode(ids[:5]) + kind.decode(ids[5:], context=ids[:5]) == kind.decode(ids)


@pytest.mark.parametrize("name", ["bytes", "bpe"])
@settings(max_examples=200, deadline=None)
@given(text=UNICODE)
def test_any_unicode_text_comes_back(name, text):
    kind = CACHE.setdefault(name, KINDS[name]())
    assert kind.decode(kind.encode(text)) == text
    assert kind.decode(kind.encode("<|border|>" + text)) == "<|border|>" + text  # a special's name is only text


CACHE = {}


@pytest.mark.parametrize("name", ["bytes", "bpe"])
@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=30))
def test_any_bytes_decode_as_utf8_with_replacement(name, data):
    kind = CACHE.setdefault(name, KINDS[name]())
    ids = list(data)
    if name == "bpe":
        ids = [
            kind._library.token_to_id(next(c for c, b in tokenizer._byte_level_table().items() if b == n)) for n in data
        ]
    assert kind.decode(ids) == data.decode("utf-8", "replace")


@settings(max_examples=200, deadline=None)
@given(text=UNICODE)
def test_the_lead_is_no_part_of_a_text(text):
    kind = CACHE.setdefault("led bpe", KINDS["led bpe"]())
    assert kind.decode(kind.encode(text)) == text.removeprefix(" ")
    assert b"".join(kind.pieces[t] for t in kind.encode_inside(text)) == text.encode()
    if text[:1] not in ("", " "):
        spans = kind.spans(text)
        assert len(spans) == len(kind.encode(text))
        assert (spans[0][0], spans[-1][1]) == (0, len(text))
        assert all(begin <= end for begin, end in spans)


def test_a_word_is_the_same_tokens_everywhere_behind_a_lead():
    led, plain = KINDS["led bpe"](), KINDS["bpe"]()
    assert led.encode("rabbit") == led.encode_inside(" rabbit") == led.encode(" rabbit") != led.encode_inside("rabbit")
    assert plain.encode("rabbit") == plain.encode_inside("rabbit") != plain.encode(" rabbit")
    assert led.encode("the rabbit")[-len(led.encode("rabbit")) :] == led.encode("rabbit")
    assert led.encode("") == []
    assert led.decode(led.encode("rabbit"), context=[led.bos]) == "rabbit"
    assert led.decode(led.encode("rabbit"), context=led.encode("the")) == " rabbit"
    assert [led.lead_behind(context) for context in ([], [led.bos], [led.bos, 5])] == [" ", " ", ""]
    assert led.encode_documents(["rabbit", "rabbit"]) == [*led.encode("rabbit"), led.eos] * 2


def test_characters_replace_what_they_lack():
    chars = CharTokenizer.train(["ab", "ca"])
    assert chars.vocab_size == 5
    assert chars.encode("ab☃c") == [2, 3, 1, 4]
    assert chars.decode([2, 3, 1, 4]) == "ab\ufffdc"
    assert chars.unknown == 1


def test_words_replace_what_they_lack():
    words = tokenizer.train_words(["the cat sat", "the dog sat"], 5)
    assert words.decode(words.encode("the zebra sat")) == "the <unk> sat"
    assert words.encode("zebra") == [words.unknown]
    cat = words.encode("the cat")
    assert words.decode(cat[1:], context=cat[:1]) == " cat"  # reads on after the prompt


def test_unigram_replaces_what_it_lacks():
    kind = unigram()
    assert kind.unknown == 0
    assert 0 in kind.encode("the Zebra")
    assert kind.decode(kind.encode("the rabbit")) == "the rabbit"


def test_borders_are_no_text():
    for kind in (KINDS["bytes"](), KINDS["chars"](), KINDS["bpe"](), KINDS["words"]()):
        ids = kind.encode("the rabbit")
        assert kind.decode([kind.bos, *ids, kind.eos]) == kind.decode(ids)


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", ["a\nb\n\n\nc\n"]),
        ("line", ["a", "b", "c"]),
        ("blank-line", ["a\nb", "c"]),
    ],
)
def test_documents(documents, expected):
    assert list(split_documents("a\nb\n\n\nc\n", documents)) == expected
    assert list(split_documents("", documents)) == []


def test_encode_documents_ends_each():
    assert ByteTokenizer().encode_documents(["a", "bc"]) == [97, 256, 98, 99, 256]
    assert list(split_documents("a\r\n\r\nb", "blank-line")) == ["a", "b"]


def test_line_ends_between_documents_are_characters():
    assert count_characters(["a\nb", "c"], "blank-line") == len("a\nb\n\nc\n\n")
    assert count_characters(["ab", "c"], "line") == len("ab\nc\n")
    assert count_characters(["ab\n"], "file") == 3


def test_truncation_and_padding_of_the_library_are_off():
    from tokenizers import Tokenizer

    library = Tokenizer.from_str(KINDS["bpe"]()._source)
    library.enable_truncation(3)
    library.enable_padding(length=50)
    kind = HuggingFaceTokenizer(library.to_str())
    assert kind.decode(kind.encode(SAMPLE)) == SAMPLE
    assert kind.encode("x") == KINDS["bpe"]().encode("x")


def test_special_words_in_a_text_are_unknown_words():
    words = tokenizer.train_words(["the cat sat"], 5)
    assert words.encode("the <eos> sat") == words.encode("the zebra sat")


@pytest.mark.parametrize("kind", ["bytes", "chars", "bpe"])
def test_file_decides_what_starts_and_ends_a_text(kind):
    fields = {**KINDS[kind]().fields(), "tokenizer.ggml.bos_token_id": 5}
    del fields["tokenizer.ggml.eos_token_id"]
    found = tokenizer.from_fields(fields)
    assert (found.bos, found.eos) == (5, None)
    assert found.decode([5]) == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x1f\x8bxx", "damaged"),
        (gzip.compress(b"text", mtime=0)[:-6], "damaged"),
        (b"Gr\xfc", "byte 0xfc at offset 2"),
    ],
)
def test_bad_text_files_are_named(tmp_path, data, message):
    (tmp_path / "t.txt").write_bytes(data)
    with pytest.raises(ValueError, match=rf"t\.txt: .*{message}"):
        read_text(tmp_path / "t.txt")


def test_text_files_may_be_gzip_and_have_a_mark(tmp_path):
    (tmp_path / "t").write_bytes(gzip.compress("\ufeffä".encode()))
    assert read_text(tmp_path / "t") == "ä"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: list(split_documents("", "page")), "documents='page': expected one of file, blank-line, line"),
        (lambda: CharTokenizer(["<a>", "<b>", "xy"]), "single characters"),
        (lambda: CharTokenizer(["<a>", "<b>", "x", "x"]), "each once"),
        (lambda: HuggingFaceTokenizer("{}"), "not a tokenizer"),
        (lambda: HuggingFaceTokenizer("no json"), "not a tokenizer"),
        (lambda: HuggingFaceTokenizer(KINDS["bpe"]()._source, bos="<s>"), "'<s>' is not a token"),
        (lambda: tokenizer.train_bpe(["a"], 200), "vocab_size=200: byte-level BPE needs at least 257"),
        (lambda: ByteTokenizer().encode("a\udc80"), "not valid Unicode: '\\udc80' at character 1"),
        (lambda: KINDS["bpe"]().encode("a\udc80"), "not valid Unicode"),
        (lambda: tokenizer.from_fields({"tokenizer.ggml.model": "gpt2"}), "chars, bytes or huggingface, found 'gpt2'"),
        (lambda: tokenizer.from_fields({"lstm.text.documents": 3}), "lstm.text.documents"),
    ],
)
def test_bad_input_says_what_would_be_right(make, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make()
    assert message in str(caught.value)


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ImportError, match="pip install tokenizers"):
        HuggingFaceTokenizer("{}")
