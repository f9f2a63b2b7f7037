# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

import fastlm
from fastlm import _engine
from fastlm.tokenizer import ByteTokenizer

LEVELS = [name for name, supported in _engine.isa_levels() if supported]


def random_weights(vocab=50, embedding=12, units=(20,), tied=False, bias=True, seed=0, scale=1.0):
    """Arrays for `fastlm.export`, drawn so that gates neither vanish nor saturate."""
    r = np.random.default_rng(seed)

    def u(*shape, a):
        return r.uniform(-a, a, shape).astype(np.float32)

    weights = {"embedding": u(vocab, embedding, a=1.0)}
    inputs = embedding
    for n, h in enumerate(units):
        weights[f"lstm.{n}.kernel"] = u(inputs, 4 * h, a=scale / np.sqrt(inputs))
        weights[f"lstm.{n}.recurrent_kernel"] = u(h, 4 * h, a=scale / np.sqrt(h))
        if bias:
            weights[f"lstm.{n}.bias"] = u(4 * h, a=0.5)
        inputs = h
    if not tied:
        weights["output.kernel"] = u(inputs, vocab, a=3 / np.sqrt(inputs))
    if bias:
        weights["output.bias"] = u(vocab, a=0.5)
    return weights


def damaged_files(data, places, count):
    """A model file with numbers at some of these places overwritten, so many times; and cut off, a hundred times."""
    r = np.random.default_rng(0)
    for _ in range(count):
        damaged = bytearray(data)
        for _ in range(r.integers(1, 3)):
            at, size = int(r.integers(places.start, places.stop)), int(r.choice([1, 4, 8]))
            value = int(r.choice([0, 1, 2, 15, 16, 17, 255, 2**31 - 1, 2**32 - 1, 2**63]))
            damaged[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
        yield bytes(damaged)
    for cut in r.integers(0, len(data), 100):
        yield data[:cut]


class Reader:
    """The engine below `Model`: one sequence's state, and room to compute in."""

    def __init__(self, model, state=None):
        self.decoder = _engine.Decoder(model._engine)
        self.state = state or _engine.State(model._engine)

    @property
    def position(self):
        return self.state.position

    def feed(self, tokens):
        self.decoder.feed(self.state, tokens)

    def logits(self):
        return self.decoder.logits(self.state)

    def score(self, tokens):
        return self.decoder.score(self.state, tokens)


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory):
    """Path of a small random model over bytes: any token sequence may come out, also broken UTF-8."""
    path = tmp_path_factory.mktemp("models") / "bytes.gguf"
    fastlm.export(random_weights(257, 16, (24, 18)), path, tokenizer=ByteTokenizer(), metadata={"name": "noise"})
    return str(path)


@pytest.fixture
def lm(byte_model):
    return fastlm.load(byte_model)
