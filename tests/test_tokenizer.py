# SPDX-License-Identifier: Apache-2.0
"""Text to ids and back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlm import tokenizer
from fastlm.tokenizer import ByteTokenizer, CharTokenizer, HuggingFaceTokenizer, split_documents

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
    "chars": lambda: CharTokenizer.train(SAMPLE, "blank-line"),
    "bpe": lambda: tokenizer.train_bpe([SAMPLE], 300, "blank-line"),
    "words": lambda: tokenizer.train_words(SAMPLE.split("\n"), 20),
    "unigram": unigram,
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]()


def test_fields_give_the_same_tokenizer_back(kind):
    again = tokenizer.from_fields(kind.fields())
    assert type(again) is type(kind)
    for name in ("kind", "vocab_size", "bos", "eos", "unknown", "documents"):
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


def test_characters_replace_what_they_lack():
    chars = CharTokenizer.train("abc", min_count=1)
    assert chars.vocab_size == 5
    assert chars.encode("ab☃c") == [2, 3, 1, 4]
    assert chars.decode([2, 3, 1, 4]) == "ab\ufffdc"
    assert chars.unknown == 1
    assert CharTokenizer.train("aab", min_count=2).encode("ab") == [2, 1]


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
    assert ByteTokenizer("line").encode_documents("a\n\nbc\n") == [97, 256, 98, 99, 256]
    assert ByteTokenizer("blank-line").encode_documents("a\r\n\r\nb") == [97, 256, 98, 256]


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
