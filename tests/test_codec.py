# SPDX-License-Identifier: Apache-2.0
"""Compressed texts come back byte for byte, take what the model's entropy says, and are never wrong."""

import math
import random
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastlm
from conftest import LEVELS, random_weights
from fastlm.cli import main
from fastlm.tokenizer import ByteTokenizer, CharTokenizer, train_bpe, train_words

TEXT = "Once upon a time there was a little rabbit, who lived in a wood: with his mother. "


@pytest.fixture(scope="module", params=["chars", "bytes", "bpe"])
def path(request, tmp_path_factory):
    known = {
        "chars": lambda: CharTokenizer.train([TEXT]),
        "bytes": ByteTokenizer,
        "bpe": lambda: train_bpe([TEXT * 20], 300),
    }[request.param]()
    path = tmp_path_factory.mktemp("codec") / "m.gguf"
    fastlm.export(random_weights(known.vocab_size, 8, (12,), seed=3), path, tokenizer=known)
    return str(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=300), st.text(max_size=200).map(lambda s: s.encode("utf-8", "surrogatepass"))))
def test_any_bytes_come_back(path, data):
    model = fastlm.load(path)
    assert model.decompress(model.compress(data)) == data


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 300, bytes(range(256)) * 3, "né☃".encode() * 9, b"\r\n\r\n"])
def test_hard_bytes_come_back(path, data):
    model = fastlm.load(path)
    assert model.decompress(model.compress(data)) == data


def test_every_level_reads_what_another_has_written(path):
    text = TEXT * 8
    packed = {fastlm.load(path, isa=isa, threads=1 + n % 2).compress(text) for n, isa in enumerate(LEVELS)}
    assert len(packed) == 1
    for n, isa in enumerate(LEVELS):
        assert fastlm.load(path, isa=isa, threads=2 - n % 2).decompress(*packed) == text.encode()


def test_the_size_is_the_entropy():
    model = fastlm.load("stories")
    text = " ".join(model.generate("", max_tokens=2000, seed=seed).text for seed in range(3))
    bits = -model.score(text).total / math.log(2)
    size = len(model.compress(text))
    assert bits / 8 < size < bits / 8 * 1.001 + 16
    assert size < 0.3 * len(text.encode())


def test_damage_is_seen(path):
    model, r = fastlm.load(path), random.Random(1)
    packed = model.compress(TEXT * 2 + "é")
    for _ in range(300):
        damaged = bytearray(packed)
        damaged[r.randrange(len(packed))] ^= 1 << r.randrange(8)
        with pytest.raises(ValueError, match=r"damaged|compressed"):
            model.decompress(bytes(damaged))
    for size in range(len(packed)):
        with pytest.raises(ValueError, match=r"damaged|no compressed text"):
            model.decompress(packed[:size])
    for _ in range(200):
        with pytest.raises(ValueError, match=r"damaged|compressed"):
            model.decompress(packed[:12] + r.randbytes(r.randrange(200)))


def test_few_bytes_never_ask_for_much(path):
    """A length of raw bytes that the code cannot hold is refused before there is room for it."""
    model = fastlm.load(path)
    head = bytearray(model.compress(b"\xff\xfe" * 9))[:12]
    size = b"\xff" * 8 + b"\x01"
    for code in [b"\0" * 16, b"\xff" * 16, *(random.Random(seed).randbytes(16) for seed in range(200))]:
        tracemalloc.start()
        with pytest.raises(ValueError, match="damaged"):
            model.decompress(bytes(head) + size + code)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**22


def test_another_model_is_refused(path, tmp_path):
    packed = fastlm.load(path).compress(TEXT)
    with pytest.raises(ValueError, match="compressed with another model"):
        fastlm.load("stories").decompress(packed)
    known = train_words([TEXT], 20)
    fastlm.export(random_weights(known.vocab_size, 6, (10,)), tmp_path / "m.gguf", tokenizer=known)
    with pytest.raises(ValueError, match="joins its tokens with spaces"):
        fastlm.load(tmp_path / "m.gguf").compress("a")
    with pytest.raises(TypeError, match="expected text or bytes, found int"):
        fastlm.load(path).compress(5)


def test_the_command(path, tmp_path, capfdbinary):
    (tmp_path / "in").write_bytes(TEXT.encode() + b"\xff\0")
    assert main(["compress", str(tmp_path / "in"), str(tmp_path / "packed"), "--model", path, "--threads", "2"]) == 0
    assert main(["decompress", str(tmp_path / "packed"), str(tmp_path / "out"), "--model", path]) == 0
    assert (tmp_path / "out").read_bytes() == TEXT.encode() + b"\xff\0"
    capfdbinary.readouterr()
    assert main(["decompress", str(tmp_path / "in"), str(tmp_path / "none"), "--model", path]) == 1
    assert b"no compressed text" in capfdbinary.readouterr().err
    assert not (tmp_path / "none").exists()
