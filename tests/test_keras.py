# SPDX-License-Identifier: Apache-2.0
"""The engine against Keras, and export of what users build with Keras."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import pytest

keras = pytest.importorskip("keras", exc_type=ImportError)

from keras import layers

import fastlm
from conftest import LEVELS, Reader
from fastlm.training import TiedDense
from reference import log_softmax
from test_engine import logits_after_each

ARCHITECTURES = range(20)


def architecture(number):
    """1 to 4 layers of 1 to 700 units, odd sizes, tied or not, with biases or without."""
    r = np.random.default_rng(1000 + number)
    units = [int(u) for u in np.exp(r.uniform(0, np.log(700), r.integers(1, 5))).round()]
    if number % 5 == 0:
        units[0] = int(r.integers(400, 701))
    tied = number % 3 == 0
    return {
        "units": units,
        "tied": tied,
        "embedding": units[-1] if tied else int(r.integers(1, 300)),
        "vocab": int(r.integers(2, 1200)),
        "bias": number % 4 != 1,
        "seed": number,
    }


def keras_model(units, tied, embedding, vocab, bias, seed):
    keras.utils.set_random_seed(seed)
    tokens = keras.Input((None,), dtype="int32")
    embed = layers.Embedding(vocab, embedding, embeddings_initializer=keras.initializers.RandomUniform(-1, 1, seed))
    x = layers.Dropout(0.5)(embed(tokens))
    for n, h in enumerate(units):
        x = layers.LSTM(h, return_sequences=True, use_bias=bias, bias_initializer="random_normal", name=f"lstm_{n}")(x)
    head = TiedDense(embed) if tied else layers.Dense(vocab, use_bias=bias, bias_initializer="random_normal")
    model = keras.Model(tokens, head(x))
    for weight in model.weights:  # sharper than the initial weights, so that steps matter
        if "kernel" in weight.path and "recurrent" not in weight.path:
            weight.assign(weight * 1.5)
    return model


@pytest.mark.parametrize("number", ARCHITECTURES)
def test_random_architecture_equals_keras_and_every_level(tmp_path, number):
    shape = architecture(number)
    model = keras_model(**shape)
    report = fastlm.export(model, tmp_path / "m.gguf")
    assert report.max_error < 1e-4
    lm = fastlm.load(tmp_path / "m.gguf")
    greedy = lm.generate([0], max_tokens=200, temperature=0.0).token_ids
    tokens = [0, *greedy]
    keras_logits = np.asarray(model(np.array([tokens])), np.float64)[0]
    rows = logits_after_each(lm, tokens)
    np.testing.assert_allclose(log_softmax(rows.astype(np.float64)), log_softmax(keras_logits), atol=1e-4)
    best_two = np.sort(keras_logits, -1)[:, -2:]
    clear = best_two[:-1, 1] - best_two[:-1, 0] > 1e-4
    assert (keras_logits[:-1].argmax(-1) == greedy)[clear].all()
    for isa in LEVELS:
        steps = 24 if isa == "scalar" else len(tokens)  # without vectors a step is fifty times as long
        again = logits_after_each(fastlm.load(tmp_path / "m.gguf", isa=isa), tokens[:steps])
        assert again.tobytes() == rows[:steps].tobytes(), isa


# ---- the ways to build a model -------------------------------------------------------------------------

V = 30


def stack(*extra, embedding=None, head=None):
    model = keras.Sequential(
        [
            embedding or layers.Embedding(V, 8),
            *(extra or (layers.LSTM(9, return_sequences=True),)),
            head or layers.Dense(V),
        ]
    )
    model(np.zeros((1, 4), np.int32))
    return model


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.embed = layers.Embedding(V, 8)
        self.first = layers.LSTM(9, return_sequences=True)
        self.drop = layers.Dropout(0.3)
        self.second = layers.LSTM(7, return_sequences=True)
        self.head = layers.Dense(V)

    def call(self, tokens):
        return self.head(self.second(self.drop(self.first(self.embed(tokens)))))


def functional(shape, batch_size=None, stateful=False, sequences=True):
    tokens = keras.Input(shape, batch_size, dtype="int32")
    x = layers.LSTM(9, return_sequences=sequences, stateful=stateful)(layers.Embedding(V, 8)(tokens))
    return keras.Model(tokens, layers.Dense(V)(x))


class SoftmaxInside(Subclassed):
    def call(self, tokens):
        return keras.ops.softmax(super().call(tokens))


class Masked(Subclassed):
    def call(self, tokens):
        x = self.embed(tokens) * keras.ops.cast(tokens != 0, "float32")[..., None]
        return self.head(self.second(self.first(x)))


def masked_by_hand():
    tokens = keras.Input((None,), dtype="int32")
    x = layers.LSTM(9, return_sequences=True)(layers.Embedding(V, 8)(tokens), mask=keras.ops.not_equal(tokens, 0))
    return keras.Model(tokens, layers.Dense(V)(x))


def residual():
    tokens = keras.Input((None,), dtype="int32")
    x = layers.LSTM(9, return_sequences=True)(layers.Embedding(V, 8)(tokens))
    y = layers.LSTM(9, return_sequences=True)(x)
    adding = keras.Model(tokens, layers.Dense(V)(x + y))
    return adding


def called(model):
    model(np.zeros((1, 4), np.int32))
    return model


GOOD = {
    "sequential": stack,
    "softmax": lambda: stack(head=layers.Dense(V, activation="softmax")),
    "softmax layer": lambda: keras.Sequential([*stack().layers, layers.Softmax()]),
    "activation layer": lambda: keras.Sequential([*stack().layers, layers.Activation("softmax")]),
    "time distributed": lambda: stack(head=layers.TimeDistributed(layers.Dense(V))),
    "last step only": lambda: stack(layers.LSTM(9)),
    "stateful": lambda: stack(layers.LSTM(9, return_sequences=True, stateful=True)),
    "dropouts": lambda: stack(
        layers.SpatialDropout1D(0.2),
        layers.LSTM(9, return_sequences=True, dropout=0.5, recurrent_dropout=0.5),
        layers.GaussianNoise(1.0),
    ),
    "unrolled": lambda: keras.Sequential([keras.Input((None,), batch_size=1, dtype="int32"), *stack().layers]),
    "linear layer": lambda: keras.Sequential([*stack().layers, layers.Activation("linear")]),
    "wrapped dropout": lambda: stack(layers.TimeDistributed(layers.Dropout(0.5)), lstm()),
    "short": lambda: functional((7,)),
    "long": lambda: functional((100,)),
    "batch": lambda: functional((None,), batch_size=3, stateful=True),
    "last of any": lambda: functional((None,), sequences=False),
    "softmax inside": lambda: called(SoftmaxInside()),
    "subclassed": lambda: called(Subclassed()),
}


@pytest.mark.parametrize("name", GOOD)
def test_ways_to_build_a_model(tmp_path, name):
    model = GOOD[name]()
    report = fastlm.export(model, tmp_path / "m.gguf")
    assert report.max_error < 1e-5
    largest, tolerance = fastlm.load(tmp_path / "m.gguf").check()
    assert largest <= tolerance


@pytest.mark.parametrize("tied", [False, True])
def test_a_keras_file_exports(tmp_path, tied):
    model = keras_model([6, 5], tied, 5, V, True, 1)
    model.save(tmp_path / "m.keras")
    fastlm.export(tmp_path / "m.keras", tmp_path / "m.gguf")
    fastlm.export(model, tmp_path / "n.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "n.gguf").read_bytes()
    assert fastlm.load(tmp_path / "m.gguf").info["tied"] == tied


def lstm(**options):
    return layers.LSTM(9, return_sequences=True, name="odd", **options)


BAD = {
    "gru": (lambda: stack(layers.GRU(9, return_sequences=True, name="odd")), "layer 'odd' is a GRU: expected LSTM"),
    "simple": (lambda: stack(layers.SimpleRNN(9, return_sequences=True, name="odd")), "layer 'odd' is a SimpleRNN"),
    "relu": (
        lambda: stack(lstm(activation="relu")),
        "layer 'odd': activation='relu', but the engine computes only 'tanh'",
    ),
    "hard sigmoid": (lambda: stack(lstm(recurrent_activation="hard_sigmoid")), "layer 'odd': recurrent_activation="),
    "backwards": (lambda: stack(lstm(go_backwards=True)), "layer 'odd': go_backwards=True"),
    "both ways": (lambda: stack(layers.Bidirectional(lstm(), name="both")), "layer 'both' is a Bidirectional"),
    "masking": (
        lambda: stack(embedding=layers.Embedding(V, 8, mask_zero=True, name="odd")),
        "layer 'odd': mask_zero=True",
    ),
    "normalised": (
        lambda: stack(lstm(), layers.LayerNormalization(name="norm")),
        "layer 'norm' is a LayerNormalization",
    ),
    "two heads": (lambda: stack(lstm(), layers.Dense(5, name="middle")), "layer 'middle' is a Dense: expected LSTM"),
    "tanh head": (lambda: stack(head=layers.Dense(V, activation="tanh", name="odd")), "layer 'odd': activation='tanh'"),
    "no embedding": (
        lambda: keras.Sequential(
            [
                keras.Input((None, 3)),
                layers.LSTM(4, return_sequences=True),
                layers.LSTM(4, return_sequences=True),
                layers.Dense(V),
            ]
        ),
        "is a LSTM: expected Embedding here",
    ),
    "few layers": (lambda: keras.Sequential([layers.Embedding(V, 8)]), "expected Embedding, LSTM and Dense layers"),
    "unbuilt": (lambda: keras.Sequential([layers.Embedding(V, 8), lstm(), layers.Dense(V)]), "no weights yet"),
    "residual": (residual, "does more than its Embedding, LSTM and Dense layers in turn"),
    "narrow head": (
        lambda: stack(head=layers.Dense(V - 1, name="odd")),
        "layer 'odd' predicts 29 tokens, but layer 'embedding",
    ),
    "half precision": (lambda: stack(lstm(dtype="mixed_bfloat16")), "'odd' computes in bfloat16: expected float32"),
    "masked": (lambda: called(Masked()), "for instance masks tokens"),
    "masked by hand": (masked_by_hand, "for instance masks tokens"),
    "last of seven": (lambda: functional((7,), sequences=False), "predicts only after exactly 7 tokens"),
    "no model": (lambda: 5, "expected Embedding, LSTM and Dense layers, found 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_the_engine_does_not_compute_is_refused_by_name(tmp_path, name):
    make, message = BAD[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        fastlm.export(make(), tmp_path / "m.gguf")
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("m.h5", ValueError, "expected a .keras file"),
        ("none.keras", FileNotFoundError, "no such file"),
        ("text.keras", ValueError, "not a .keras file, which model.save"),
    ],
)
def test_bad_keras_files_are_named(tmp_path, name, error, message):
    (tmp_path / "text.keras").write_text("no zip")
    with pytest.raises(error, match=message):
        fastlm.export(tmp_path / name, tmp_path / "m.gguf")


def test_logits_agree_after_export(tmp_path):
    """A user's own loop over the engine's logits sees what Keras sees."""
    model = stack()
    fastlm.export(model, tmp_path / "m.gguf", bos=0)
    reader = Reader(fastlm.load(tmp_path / "m.gguf"))
    tokens = np.arange(20, dtype=np.int32)
    reader.feed(tokens)
    np.testing.assert_allclose(reader.logits(), np.asarray(model(tokens[None]))[0, -1], atol=1e-5)


# ---- a source and a text ---------------------------------------------------------------------------------


def seq2seq_model(encoders, decoders, both=False, shared=False, turned=False, softmax=False):
    keras.utils.set_random_seed(encoders + 10 * decoders)
    source, text = (keras.Input((None,), dtype="int32") for _ in range(2))
    embed = layers.Embedding(30, 9, embeddings_initializer="random_normal")
    x = (embed if shared else layers.Embedding(20, 9, embeddings_initializer="random_normal"))(source)
    units, states = 12, []
    for n in range(encoders):
        lstm = layers.LSTM(units, return_state=True, return_sequences=n + 1 < encoders or n % 2 == 0)
        if both:
            x, forward_h, forward_c, backward_h, backward_c = layers.Bidirectional(lstm)(x)
            h, c = layers.Concatenate()([forward_h, backward_h]), layers.Concatenate()([forward_c, backward_c])
        else:
            x, h, c = lstm(x)
        states.append([h, c])
    y = layers.Dropout(0.1)(embed(text))
    for n in range(decoders):
        begin = states[min(n, encoders - 1)]
        y = layers.LSTM(units * (1 + both), return_sequences=True)(y, initial_state=begin)
    output = layers.Dense(30, "softmax" if softmax else None, bias_initializer="random_normal")(y)
    return keras.Model([text, source] if turned else [source, text], output)


@pytest.mark.parametrize(
    "shape",
    [
        {"encoders": 1, "decoders": 1},
        {"encoders": 2, "decoders": 2, "softmax": True},
        {"encoders": 1, "decoders": 3, "both": True},
        {"encoders": 3, "decoders": 1, "both": True, "shared": True, "turned": True},
        {"encoders": 1, "decoders": 2, "shared": True},
    ],
)
def test_a_plain_sequence_to_sequence_model_is_exported(shape, tmp_path):
    model = seq2seq_model(**shape)
    source, text = [5, 1, 7, 3], [2, 9, 4]
    if shape["encoders"] > shape["decoders"]:  # the text begins with the states of the first layer
        assert fastlm.export(model, tmp_path / "m.gguf", bos=0).max_error < 1e-4
    report = fastlm.export(model, tmp_path / "m.gguf", bos=0)
    assert report.max_error < 1e-4
    lm = fastlm.load(tmp_path / "m.gguf")
    given = [np.array([text]), np.array([source])] if shape.get("turned") else [np.array([source]), np.array([text])]
    said = np.asarray(model(given), np.float64)[0]
    rows = np.log(said) if shape.get("softmax") else log_softmax(said)
    assert np.abs(np.array(lm.score(text, source).logprobs[1:]) - rows[[0, 1], text[1:]]).max() < 1e-4


def test_what_cannot_be_exported_of_two_inputs_is_said(tmp_path):
    source, text = (keras.Input((None,), dtype="int32") for _ in range(2))
    x, h, c = layers.LSTM(8, return_state=True, return_sequences=True)(layers.Embedding(9, 4)(source))
    y = layers.LSTM(8, return_sequences=True)(layers.Embedding(9, 4)(text), initial_state=[h, c])
    attended = layers.Attention()([y, x])
    with pytest.raises(ValueError, match=r"is a Attention: .* of one with attention give the arrays"):
        fastlm.export(keras.Model([source, text], layers.Dense(9)(attended)), tmp_path / "m.gguf", bos=0)
    alone = layers.LSTM(8, return_sequences=True)(layers.Embedding(9, 4)(text))
    both = layers.Concatenate()([alone, x])
    with pytest.raises(ValueError, match="others that begin with their states"):
        fastlm.export(keras.Model([source, text], layers.Dense(9)(both)), tmp_path / "m.gguf", bos=0)
    with pytest.raises(ValueError, match="bos: expected the token"):
        fastlm.export(seq2seq_model(1, 1), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
