# SPDX-License-Identifier: Apache-2.0
"""The index of a corpus against brute force, files that are none, and texts that copy nothing."""

import random
import struct
import time

import numpy as np
import pytest

import fastlm
from conftest import damaged_files, random_weights
from fastlm import build_index, load_index
from fastlm.cli import main
from fastlm.goals import Exclude, Include, Novel, check
from fastlm.goals.conflicts import Verdict
from fastlm.novelty import MOST_COPIED, Copy, _blocks, _transformed
from fastlm.tokenizer import HuggingFaceTokenizer

pytest.importorskip("pydivsufsort")

PROMPT = "Once upon a time there was a fox who"


@pytest.fixture(scope="module")
def stories():
    return fastlm.load("stories")


@pytest.fixture(scope="module")
def corpus(stories):
    """What the model writes at a low temperature: it will say much of it again."""
    texts = stories.generate([PROMPT, "The bear", "He said", "In winter"] * 8, temperature=0.4, max_tokens=60, seed=1)
    return [text.text.replace("\n", " ").strip() for text in texts]


@pytest.fixture(scope="module")
def index(stories, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    (folder / "corpus.txt").write_text("\n".join(corpus))
    return build_index(folder / "corpus.txt", stories, folder / "corpus.flnx", documents="line")


def runs(documents, tokens):
    """How often tokens stand in the documents: brute force."""
    n = len(tokens)
    return sum(document[at : at + n] == tokens for document in documents for at in range(len(document) - n + 1))


def test_counts_are_those_of_brute_force(stories, corpus, index):
    """10,000 spans: of the corpus, changed a little, and of anything."""
    documents, r = [stories.encode(text) for text in corpus], random.Random(0)
    known = {}
    for document in documents:
        for at in range(len(document)):
            for n in range(1, 9):
                key = tuple(document[at : at + n])
                if len(key) == n:
                    known[key] = known.get(key, 0) + 1
    for _ in range(10_000):
        document = r.choice(documents)
        at, n = r.randrange(len(document)), r.randint(1, 8)
        span = document[at : at + n]
        if r.random() < 0.5:
            span[r.randrange(len(span))] = r.choice(r.choice(documents)) if r.random() < 0.7 else r.randrange(2048)
        assert index.count(span) == known.get(tuple(span), 0)
    assert index.count(documents[0][-2:] + documents[1][:2]) == runs(documents, documents[0][-2:] + documents[1][:2])
    assert index.tokens == sum(len(document) + 1 for document in documents)


@pytest.mark.parametrize("block", [2 * MOST_COPIED, 2 * MOST_COPIED + 64, 1 << 20])
@pytest.mark.parametrize("values", [1, 2, 5, 257])
def test_longest_runs_are_those_of_brute_force(byte_model, tmp_path, values, block):
    """Also of few tokens, of one alone, and where blocks meet."""
    model, r = fastlm.load(byte_model), np.random.default_rng(values)
    data = r.integers(1, min(values, 100) + 1, 5000).astype(np.uint8)
    text = bytes(data).decode("latin-1").replace("\n", "x").replace("\r", "y")
    (tmp_path / "a.txt").write_text(text)
    index = build_index(tmp_path / "a.txt", model, tmp_path / "a.flnx", block=block)
    tokens = model.encode(text)
    query = [*tokens[1990:2100], *r.integers(1, 100, 20).tolist(), *tokens[4000:4050], 256, -1, *tokens[:9]]
    words = bytes(t for t in tokens)
    expected, begin = [], 0
    for at in range(len(query)):
        while begin <= at and (
            not all(0 <= t < 256 for t in query[begin : at + 1]) or bytes(query[begin : at + 1]) not in words
        ):
            begin += 1
        expected.append(at + 1 - begin)
    assert index.longest(query).tolist() == expected
    assert index.longest([]).tolist() == []
    assert index.tokens == len(tokens) + 1


def test_documents_are_apart_without_a_token_between_them(tmp_path):
    library = pytest.importorskip("tokenizers")
    known = library.Tokenizer(library.models.WordLevel({c: n for n, c in enumerate("abcdefz ")}, unk_token="z"))
    known.pre_tokenizer = library.pre_tokenizers.Split("", "isolated")
    tokenizer = HuggingFaceTokenizer(known.to_str())
    fastlm.export(random_weights(tokenizer.vocab_size, 8, (16,)), tmp_path / "m.gguf", tokenizer=tokenizer)
    model = fastlm.load(tmp_path / "m.gguf")
    assert model.eos is None
    assert model.bos is None
    (tmp_path / "a.txt").write_text("abc\ndef")
    index = build_index(tmp_path / "a.txt", model, tmp_path / "a.flnx", documents="line")
    assert index.longest(model.encode("abcdef")).tolist() == [1, 2, 3, 1, 2, 3]
    text = model.generate("zz", max_copied=1, corpus=index, max_tokens=50, seed=1)
    assert index.longest(text.token_ids).max() <= 1


def test_long_repetitive_texts_do_not_take_long(byte_model, tmp_path):
    """Each token behind a run that is longer than any in the corpus begins a new one."""
    model = fastlm.load(byte_model)
    (tmp_path / "a.txt").write_text("ab" * 400)
    index = build_index(tmp_path / "a.txt", model, tmp_path / "a.flnx")
    begin = time.perf_counter()
    assert index.longest(model.encode("ab" * 10_000)).tolist() == [*range(1, 801), *[799, 800] * 9600]
    assert time.perf_counter() - begin < 30


def test_the_transform_is_that_of_the_definition():
    r = np.random.default_rng(0)
    for n in (1, 2, 7, 50):
        tokens = r.integers(0, 3, n).astype(np.int32)
        rows = sorted([*tokens[at:].tolist(), -1, *tokens[:at].tolist()] for at in range(n + 1))
        last = [row[-1] for row in rows]
        transform, sentinel = _transformed(tokens, 3)
        assert sentinel == last.index(-1)
        assert transform.tolist() == [token for token in last if token >= 0]


def test_blocks_overlap():
    parts = [np.arange(at, at + 700, dtype=np.int32) for at in range(0, 7000, 700)]
    found = list(_blocks(iter(parts), 2500))
    assert [(block[0], block[-1]) for block in found] == [(0, 2499), (1500, 3999), (3000, 5499), (4500, 6999)]


def test_copies_are_found(stories, corpus, index):
    tokens = stories.encode(corpus[0])
    text = [5, 6, *tokens[3:15], 9, *tokens[20:25]]
    found = index.copies(text, 5)
    assert found[0] == Copy(2, 12)
    assert found[1] == Copy(15, 5)
    assert index.copies([1, 2, 3], 50) == []
    with pytest.raises(ValueError, match="least=0: expected a whole number"):
        index.copies(text, 0)


# ---- files ---------------------------------------------------------------------------------------------


def test_damaged_files_are_refused_or_answer(stories, corpus, tmp_path):
    """Whatever a file's bits are: an error, or an index that answers something."""
    (tmp_path / "c.txt").write_text("\n".join(corpus))
    build_index(tmp_path / "c.txt", stories, tmp_path / "c.flnx", documents="line")
    data, refused = (tmp_path / "c.flnx").read_bytes(), 0
    for n, damaged in enumerate(damaged_files(data, range(len(data)), 200)):
        path = tmp_path / f"{n}.flnx"
        path.write_bytes(damaged)
        try:
            found = load_index(path)
        except fastlm.FormatError:
            refused += 1
        else:
            found.longest(stories.encode(corpus[1]))
            found.count([1, 2, 3])
    assert refused > 5
    for cut in (0, 3, 63, 64, 79, 200, len(data) - 1):
        (tmp_path / "cut.flnx").write_bytes(data[:cut])
        with pytest.raises(fastlm.FormatError, match=r"cut\.flnx"):
            load_index(tmp_path / "cut.flnx")
    for at, value in (
        (8, 0),
        (8, 1 << 26),
        (8, 1 << 40),
        (16, 1 << 60),
        (64, 0),
        (64, 1 << 62),
        (64, 1 << 31),
        (72, 1 << 50),
    ):
        changed = bytearray(data)
        changed[at : at + 8] = struct.pack("<Q", value)
        (tmp_path / "bad.flnx").write_bytes(changed)
        with pytest.raises(fastlm.FormatError, match=r"bad\.flnx"):
            load_index(tmp_path / "bad.flnx")


def test_indexes_are_small(stories, corpus, tmp_path):
    (tmp_path / "c.txt").write_text("\n".join(corpus * 20))
    index = build_index(tmp_path / "c.txt", stories, tmp_path / "c.flnx")
    assert index.bytes < 1.5 * index.tokens


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "no text found"),
        ("abc", {"block": 5}, "block=5: expected"),
        ("abc", {"documents": "page"}, "documents='page'"),
    ],
)
def test_what_cannot_be_indexed(stories, tmp_path, text, options, message):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        build_index(tmp_path / "a.txt", stories, tmp_path / "a.flnx", **options)
    assert not (tmp_path / "a.flnx").exists()
    with pytest.raises(OSError, match=r"none\.txt"):
        build_index(tmp_path / "none.txt", stories, tmp_path / "a.flnx")


# ---- texts that copy nothing ---------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 4])
def test_no_more_is_copied(stories, index, most):
    options = {"temperature": 0.4, "max_tokens": 60, "seed": 1}
    plain = stories.generate([PROMPT, "The bear"], **options)
    assert max(index.longest(text.token_ids).max() for text in plain) > 8
    for ways in (options, options | {"temperature": 0}, {"num_beams": 3, "max_tokens": 40}):
        found = stories.generate([PROMPT, "The bear"], max_copied=most, corpus=index, **ways)
        for text in found:
            assert index.longest(text.token_ids).max() <= most
            assert len(text.token_ids) > 5
    session = stories.session(max_copied=most, corpus=index, **options).feed(PROMPT)
    parts = [session.generate(20) for _ in range(3)]
    tokens = [token for part in parts for token in part.token_ids]
    assert tokens == stories.generate(PROMPT, max_copied=most, corpus=index, **options).token_ids


def test_what_is_novel_is_a_goal(stories, index):
    goals = [Novel(3, index), Exclude("zebra")]
    assert check(goals, stories) == Verdict(None, "whether the model can do without copies shows while writing")
    text = stories.generate(PROMPT, goals=goals, temperature=0.4, seed=1, max_tokens=40)
    assert text.satisfied
    assert text.goals[0].achieved == index.longest(text.token_ids).max() <= 3
    assert str(text.goals[0]) == "copy at most 3 tokens in a row: met"
    plain = []
    for goal in (Novel(1, index), Exclude("zebra")):  # the price of both is told by the same texts without goals
        one = stories.generate(PROMPT, goals=[goal], temperature=0.4, seed=1, max_tokens=40, logprobs=True)
        plain.append(one.goals[0].price + np.mean(one.logprobs))
    assert plain[0] == pytest.approx(plain[1])
    with_word = stories.generate(PROMPT, goals=[Novel(6, index), Include("sea")], seed=1, max_tokens=30)
    assert with_word.goals[0].satisfied == (index.longest(with_word.token_ids).max() <= 6)


def test_options_that_do_not_fit_are_refused(stories, index, lm):
    for options, message in (
        ({"max_copied": 3}, "max_copied=3 does nothing without corpus"),
        ({"corpus": index}, "does nothing without max_copied"),
        ({"max_copied": 0, "corpus": index}, "max_copied=0"),
        ({"max_copied": 3, "corpus": "a.flnx"}, "expected an index, as fastlm.load_index gives"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            stories.generate(PROMPT, **options)
    with pytest.raises(ValueError, match="the index is of another tokenizer"):
        lm.generate("abc", max_copied=3, corpus=index)
    with pytest.raises(TypeError, match="Novel: corpus="):
        Novel(3, "a.flnx")
    with pytest.raises(ValueError, match="a session with corpus cannot be stored"):
        bytes(stories.session(max_copied=3, corpus=index).feed("a"))


def test_the_command_writes_an_index(tmp_path, capsys, corpus):
    (tmp_path / "a.txt").write_text("\n".join(corpus))
    assert main(["index", str(tmp_path / "a.txt"), "-o", str(tmp_path / "a.flnx"), "--documents", "line"]) == 0
    assert "tokens" in capsys.readouterr().out
    command = ["generate", PROMPT, "--no-echo", "--seed", "1", "--temperature", "0.4", "--max-tokens", "30"]
    assert main([*command, "--max-copied", "2", "--corpus", str(tmp_path / "a.flnx")]) == 0
    guarded = capsys.readouterr().out
    assert main(command) == 0
    assert capsys.readouterr().out != guarded
