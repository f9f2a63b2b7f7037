# SPDX-License-Identifier: Apache-2.0
"""The definitions of tests/controls_reference.py are Hugging Face's: run with `make check-transformers`."""

import numpy as np
import pytest

import controls_reference as definition

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

RESTRICTIONS = {
    "top_k": ("TopKLogitsWarper", lambda r: int(r.integers(1, 60))),
    "top_p": ("TopPLogitsWarper", lambda r: float(r.uniform(0.01, 0.999))),
    "min_p": ("MinPLogitsWarper", lambda r: float(10 ** r.uniform(-4, 0))),
    "typical_p": ("TypicalLogitsWarper", lambda r: float(r.uniform(0.01, 0.999))),
    "epsilon_cutoff": ("EpsilonLogitsWarper", lambda r: float(10 ** r.uniform(-5, -0.5))),
    "eta_cutoff": ("EtaLogitsWarper", lambda r: float(10 ** r.uniform(-5, -0.5))),
}


def theirs(name, z, history, *arguments, **named):
    processor = getattr(transformers, name)(*arguments, **named)
    scores = torch.from_numpy(np.array(z, np.float64))[None]
    return processor(torch.tensor([history], dtype=torch.long), scores)[0].numpy()


@pytest.mark.parametrize("name", RESTRICTIONS)
def test_restrictions(name):
    random = np.random.default_rng(1)
    other, values = RESTRICTIONS[name]
    for round in range(1000):
        z = random.normal(0, random.choice([0.1, 1, 3]), (2, 17, 500)[round % 3])
        value = values(random)
        kept = theirs(other, z, [0], value) > -np.inf
        if name == "typical_p":
            assert definition.is_typical(z, kept, value, 1e-9)
            continue
        wide, narrow = (getattr(definition, name)(z, value, slack) for slack in (1e-6, -1e-6))
        assert not ((narrow & ~kept) | (kept & ~wide)).any(), (value, len(z))


def test_what_looks_back():
    random = np.random.default_rng(2)
    for _ in range(1000):
        size, length = int(random.choice([3, 10, 50])), int(random.integers(4, 40))
        z, history = random.normal(0, 2, size), random.integers(0, size, length).tolist()
        penalty = float(random.uniform(0.5, 2))
        ours = definition.penalise(z, history, [0] * length, repetition=penalty)
        assert np.allclose(theirs("RepetitionPenaltyLogitsProcessor", z, history, penalty), ours)
        n = int(random.integers(1, 5))
        assert np.array_equal(
            theirs("NoRepeatNGramLogitsProcessor", z, history, n), definition.ban_ngrams(z, history, n)
        )
        words = [random.integers(1, size, random.integers(1, 4)).tolist() for _ in range(5)]
        ours = definition.ban_words(z, history, words)
        assert np.array_equal(theirs("NoBadWordsLogitsProcessor", z, history, words, eos_token_id=[0]), ours)
