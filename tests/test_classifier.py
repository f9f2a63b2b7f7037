# SPDX-License-Identifier: Apache-2.0
"""Classifiers: the engine against float64 and Keras, the same bits however the work is cut, and what users see."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import io
from array import array

import numpy as np
import pytest

import fastlm
from conftest import LEVELS, damaged_files
from fastlm import _engine, format
from fastlm.cli import main
from fastlm.tokenizer import CharTokenizer, train_bpe
from fastlm.weights import POOLINGS, ClassifierWeights
from reference import classifier_logits, log_softmax

V = 40


def weights_of(pooling="last", seed=0, E=12, units=(20,), both=False, labels=3, A=21, scale=0.6):
    r = np.random.default_rng(seed)

    def uniform(*size, limit=scale):
        return r.uniform(-limit, limit, size).astype(np.float32)

    found, inputs = {"embedding": uniform(V, E)}, E
    for n, H in enumerate(units):
        here = both if isinstance(both, bool) else both[n]
        for name in (f"lstm.{n}", f"lstm.{n}.reverse")[: 1 + here]:
            found |= {
                f"{name}.kernel": uniform(inputs, 4 * H),
                f"{name}.recurrent_kernel": uniform(H, 4 * H, limit=0.3),
                f"{name}.bias": uniform(4 * H),
            }
        inputs = H * (1 + here)
    if pooling == "attention":
        found |= {"pooling.key.kernel": uniform(inputs, A), "pooling.key.bias": uniform(A), "pooling.score": uniform(A)}
    rows = 3 * inputs if pooling == "concat" else inputs
    return found | {"output.kernel": uniform(rows, labels, limit=3), "output.bias": uniform(labels)}


def random_shape(seed):
    r = np.random.default_rng(seed)
    return {
        "pooling": POOLINGS[seed % 5],
        "seed": seed,
        "E": int(r.integers(1, 40)),
        "units": tuple(int(n) for n in r.integers(1, 70, r.integers(1, 4))),
        "both": bool(seed // 5 % 2),
        "labels": int(r.choice([1, 2, 5, 16, 17, 100])),
        "A": int(r.integers(1, 50)),
    }


def texts_of(count=70, seed=3, most=60):
    r = np.random.default_rng(seed)
    return [array("i", r.integers(0, V, r.integers(1, most)).tolist()) for _ in range(count)]


def write(path, weights, pooling):
    format.write(path, ClassifierWeights.from_dict(weights, pooling), {})
    return str(path)


MIXED = [
    {"pooling": "attention", "units": (20, 9), "both": (False, True)},
    {"pooling": "concat", "units": (7, 20), "both": (True, False)},
]


@pytest.fixture(scope="module", params=range(22))
def case(request, tmp_path_factory):
    shape = random_shape(request.param) if request.param < 20 else MIXED[request.param - 20]
    weights = weights_of(**shape)
    return weights, shape, write(tmp_path_factory.mktemp("classifier") / "m.gguf", weights, shape["pooling"])


def judged(decoder, texts, states=None):
    return np.array(decoder.classify(texts, states), np.float32).reshape(len(texts), -1)


def test_it_computes_what_float64_does(case):
    weights, shape, path = case
    decoder = _engine.Decoder(_engine.Model(path, None, None, 0))
    texts = texts_of()
    expected = [log_softmax(classifier_logits(weights, shape["pooling"], text)) for text in texts]
    assert np.abs(judged(decoder, texts) - expected).max() < 1e-4


def test_bits_do_not_depend_on_company_level_or_threads(case):
    _, _, path = case
    texts = texts_of()
    expected = judged(_engine.Decoder(_engine.Model(path, None, "scalar", 0)), texts).tobytes()
    for level in LEVELS:
        for threads in (1, 2):
            decoder = _engine.Decoder(_engine.Model(path, None, level, 0, threads))
            assert judged(decoder, texts).tobytes() == expected
            assert np.concatenate([judged(decoder, [text]) for text in texts]).tobytes() == expected
            assert judged(decoder, texts[::-1])[::-1].tobytes() == expected


def test_a_text_that_grows_is_judged_as_the_whole(case):
    _, shape, path = case
    model = _engine.Model(path, None, None, 0)
    if shape["both"]:
        assert model.bidirectional
        with pytest.raises(ValueError, match="reads forwards"):
            _engine.Judged(model)
        return
    decoder, r = _engine.Decoder(model), np.random.default_rng(0)
    texts = texts_of(9)
    expected = judged(decoder, texts)
    states = [_engine.Judged(model) for _ in texts]
    left, found = dict(enumerate(texts)), np.zeros_like(expected)
    while left:  # pieces of other lengths, each time in another company
        sizes = {n: int(r.integers(1, 7)) for n in left}
        rows = judged(decoder, [left[n][: sizes[n]] for n in left], [states[n] for n in left])
        for n, row in zip(left, rows, strict=True):
            found[n] = row
        left = {n: left[n][sizes[n] :] for n in left if len(left[n]) > sizes[n]}
    assert found.tobytes() == expected.tobytes()
    assert [state.position for state in states] == [len(text) for text in texts]
    copy = states[0].copy()
    judged(decoder, [array("i", [1])], [states[0]])
    assert copy.position == len(texts[0])


def test_a_file_gives_back_its_weights(case):
    weights, shape, path = case
    found = format.unpack(path).to_dict()
    expected = ClassifierWeights.from_dict(weights, shape["pooling"]).to_dict()
    assert found.keys() == expected.keys()
    for name, array_ in expected.items():
        cut = tuple(slice(n) for n in array_.shape)  # attention's units are filled up
        assert np.array_equal(found[name][cut], array_)


# ---- rounded ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
def test_rounded_models_stay_near_and_give_the_same_bits(pooling, tmp_path):
    weights = weights_of(pooling, both=pooling == "mean", units=(33, 20))
    fastlm.export(weights, tmp_path / "m.gguf", labels=["a", "b", "c"], pooling=pooling)
    texts = texts_of(30)
    exact = judged(_engine.Decoder(_engine.Model(str(tmp_path / "m.gguf"), None, None, 0)), texts)
    for dtype, most in (("bf16", 0.03), ("int8", 0.3), ("int4", 3)):
        path = str(tmp_path / f"{dtype}.gguf")
        report = fastlm.quantize(tmp_path / "m.gguf", path, dtype=dtype)
        assert report.max_error < most
        assert format.unpack_rounded(path)[1]["output"].dtype == ("bf16" if dtype == "bf16" else "f32")
        largest, tolerance = fastlm.load(path).check()
        assert largest <= tolerance
        rows = [judged(_engine.Decoder(_engine.Model(path, None, level, 0)), texts) for level in LEVELS]
        assert all(row.tobytes() == rows[0].tobytes() for row in rows)
        assert np.abs(rows[0] - exact).max() < most
        alone = [judged(_engine.Decoder(_engine.Model(path, None, None, 0)), [text]) for text in texts[:5]]
        assert np.concatenate(alone).tobytes() == rows[0][:5].tobytes()
    with pytest.raises(ValueError, match="stays in f32 or bf16"):
        fastlm.quantize(tmp_path / "m.gguf", tmp_path / "x.gguf", dtype="output=int8")
    with pytest.raises(ValueError, match="this is a classifier, and text is for models that write"):
        fastlm.quantize(tmp_path / "m.gguf", tmp_path / "x.gguf", text=[1] * 2000)
    assert not (tmp_path / "x.gguf").exists()


# ---- Keras -----------------------------------------------------------------------------------------------


def keras_model(number):
    keras = pytest.importorskip("keras", exc_type=ImportError)
    layers, r = keras.layers, np.random.default_rng(number)
    keras.utils.set_random_seed(number)
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(V, int(r.integers(2, 30)), embeddings_initializer="random_normal")(tokens)
    x = layers.SpatialDropout1D(0.2)(x)
    pooling, depth = ("last", "mean", "max")[number % 3], int(r.integers(1, 4))
    for n in range(depth):
        whole = n + 1 < depth or pooling != "last"
        lstm = layers.LSTM(int(r.integers(1, 40)), return_sequences=whole, bias_initializer="random_normal")
        x = (layers.Bidirectional(lstm) if number % 2 else lstm)(x)
    if pooling == "mean":
        x = layers.GlobalAveragePooling1D()(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling1D()(x)
    x = layers.Dropout(0.5)(x)
    labels = (1, 2, 7)[number // 3 % 3]
    activation = ("sigmoid" if labels == 1 else "softmax") if number % 4 else None
    return keras.Model(tokens, layers.Dense(labels, activation, bias_initializer="random_normal")(x)), labels


@pytest.mark.parametrize("number", range(20))
def test_random_architecture_equals_keras(number, tmp_path):
    model, outputs = keras_model(number)
    labels = [f"label {n}" for n in range(max(outputs, 2))]
    report = fastlm.export(model, tmp_path / "m.gguf", labels=labels)
    assert report.max_error < 1e-4
    judge = fastlm.load(tmp_path / "m.gguf")
    assert judge.labels == tuple(labels)
    for text in texts_of(2):
        said = np.asarray(model(np.array([text])), np.float64)[0]
        if outputs == 1:
            share = said[0] if number % 4 else 1 / (1 + np.exp(-said[0]))
            said = np.array([1 - share, share])
        elif not number % 4:
            said = np.exp(log_softmax(said))
        assert np.abs(np.array(list(judge.classify(list(text)).values())) - said).max() < 1e-5


def test_logits_that_look_like_probabilities_are_logits(tmp_path):
    keras = pytest.importorskip("keras", exc_type=ImportError)
    tokens, dense = keras.Input((None,), dtype="int32"), keras.layers.Dense(2, "softmax")
    model = keras.Model(tokens, dense(keras.layers.LSTM(8)(keras.layers.Embedding(30, 8)(tokens))))
    dense.set_weights([np.zeros((8, 2)), np.array([0.3, 0.7])])
    assert fastlm.export(model, tmp_path / "m.gguf", labels=["a", "b"]).max_error < 1e-5


@pytest.mark.parametrize(("outputs", "activation"), [(1, "sigmoid"), (2, "softmax")])
def test_a_certain_model_of_keras_is_exported(outputs, activation, tmp_path):
    """Its probability of the other label is too small for 32 bits beside 1."""
    keras = pytest.importorskip("keras", exc_type=ImportError)
    layers = keras.layers
    tokens = keras.Input((None,), dtype="int32")
    x = layers.LSTM(8)(layers.Embedding(30, 8)(tokens))
    dense = layers.Dense(outputs, activation)
    model = keras.Model(tokens, dense(x))
    dense.set_weights([np.zeros((8, outputs)), np.array([60.0, -60.0][:outputs])])
    fastlm.export(model, tmp_path / "m.gguf", labels=["a", "b"])
    sure = fastlm.load(tmp_path / "m.gguf").classify([1, 2, 3])
    assert min(sure.logprobs) == pytest.approx(-60 * outputs, rel=1e-4)
    assert dense.get_config()["activation"] == activation  # the model is as it was


def test_what_cannot_be_exported_is_said(tmp_path):
    path, weights = tmp_path / "m.gguf", weights_of()
    labels = ["a", "b", "c"]

    def wrong(match, model=weights, error=ValueError, **options):
        with pytest.raises(error, match=match):
            fastlm.export(model, path, **{"labels": labels, **options})
        assert not path.exists()

    wrong("expected 3 texts", labels=["a", "b"])
    wrong("no two of them alike", labels=["a", "a", "b"])
    wrong("expected several texts", labels="abc", error=TypeError)
    wrong(r"label 'a\\tb': expected a text that can be shown", labels=["a\tb", "c", "d"])
    wrong("expected last, mean", pooling="sum")
    wrong("array 'pooling.score' is missing", pooling="attention")
    wrong("a classifier has none", sampling={"temperature": 1.0})
    wrong("a classifier has none", source_tokenizer="bytes")
    wrong("unknown array 'x'", model=weights | {"x": np.zeros(3)})
    wrong("its two directions", model=weights | {
        "lstm.0.reverse.kernel": np.zeros((12, 16)), "lstm.0.reverse.recurrent_kernel": np.zeros((4, 16)),
    })  # fmt: skip
    wrong("for a classifier", labels=None, pooling="mean")
    model, _ = keras_model(6)
    with pytest.raises(ValueError, match="of a classifier give the labels"):
        fastlm.export(model, path)


# ---- what users see ----------------------------------------------------------------------------------------

TEXT = "a good film, good fun. a bad film, no fun."


@pytest.fixture(scope="module", params=[False, True])
def judge(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("judge") / "m.gguf"
    tokenizer = CharTokenizer.train([TEXT])
    weights = weights_of("attention", both=request.param)
    fastlm.export(weights, path, labels=["bad", "fair", "good"], pooling="attention", tokenizer=tokenizer)
    return fastlm.load(path)


def test_classify(judge):
    one = judge.classify("a good film")
    assert list(one) == ["bad", "fair", "good"]
    assert sum(one.values()) == pytest.approx(1)
    assert one.probability == max(one.values())
    assert str(one) == one.label
    assert repr(one).startswith("<fastlm.Classification 'bad': 0.")
    several = judge.classify(["a good film", "no fun"])
    assert several[0].logprobs == one.logprobs
    assert [found.label for found in judge.classify(["a good film"] * 600)] == [one.label] * 600
    ids = [judge.bos, *judge.encode("a good film")]
    assert judge.classify(ids).logprobs == one.logprobs
    assert judge.info["task"] == "classifier"
    assert judge.info["labels"] == 3
    assert judge.info["units"] == [20]
    assert repr(judge).startswith("<fastlm.Classifier")
    largest, tolerance = judge.check()
    assert largest <= tolerance


def test_words_are_explained(judge):
    text = "a good film,  no fun"
    whole = judge.classify(text, explain=True)
    assert whole.logprobs == judge.classify(text).logprobs
    assert [text[word.begin : word.end] for word in whole.words] == [word.word for word in whole.words] == text.split()
    without = judge.classify("a good film, fun")
    expected = whole.logprobs[judge.labels.index(whole.label)] - without.logprobs[judge.labels.index(whole.label)]
    assert whole.words[3].effect == expected
    assert judge.classify("good", explain=True).words == ()
    with pytest.raises(ValueError, match="expected a text, found token ids"):
        judge.classify([1, 2], explain=True)


def test_a_growing_text(judge):
    if judge.bidirectional:
        with pytest.raises(ValueError, match="call classify with the whole text"):
            judge.state()
        return
    state = judge.state()
    assert state.position == (judge.bos is not None)
    state.feed("a good ").feed("").feed("film")
    assert state.classify().logprobs == judge.classify("a good film").logprobs
    other = state.copy()
    other.feed(", no fun")
    assert state.classify().logprobs == judge.classify("a good film").logprobs
    assert other.classify().logprobs == judge.classify("a good film, no fun").logprobs
    for start in (False, True):  # a mere start is no text
        with pytest.raises(ValueError, match="nothing was read"):
            judge.state(start=start).classify()
    with pytest.raises(ValueError, match="not kept as bytes"):
        judge.state(b"x")


def test_long_texts(judge):
    text = "a good film, " * 4000
    if judge.bidirectional:
        with pytest.raises(ValueError, match="at most 16384; cut it into parts"):
            judge.classify(text)
        return
    state = judge.state()
    for _ in range(4000):
        state.feed("a good film, ")
    assert judge.classify(["fun", text])[1].logprobs == state.classify().logprobs


def test_the_command_says_which_line_it_cannot_read(judge, tmp_path, monkeypatch, capsys):
    if not judge.bidirectional:
        pytest.skip("reads texts of any length")
    path = tmp_path / "m.gguf"
    weights = weights_of("attention", both=True)
    fastlm.export(weights, path, labels=["bad", "fair", "good"], pooling="attention", tokenizer=judge.tokenizer)
    lines = ["a good film\n"] * 69 + ["fun" * 6000 + "\n", "no fun\n"]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(lines)))
    assert main(["classify", "--model", str(path)]) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 69
    assert "line 70: a text of 1800" in said.err
    assert main(["classify", "--model", str(path), "fun", ""]) == 1
    assert "text 2: the text is empty" in capsys.readouterr().err


def test_what_it_cannot_do_is_said(judge):
    for call in (judge.generate, judge.stream, judge.suggest, judge.score, judge.session, judge.next_tokens):
        with pytest.raises(ValueError, match="gives labels to texts, which classify does"):
            call("a")
    for text in ("", []):
        with pytest.raises(ValueError, match="nothing to judge"):
            judge.classify(text)
    with pytest.raises(ValueError, match="prompt 1 of the list"):
        judge.classify(["a", ""])
    with pytest.raises(ValueError, match="token 40 at place 1"):
        judge.classify([1, 40])
    with pytest.raises(TypeError, match="explain"):
        judge.classify("a", explain=1)
    with pytest.raises(ValueError, match="this model is no classifier"):
        fastlm.load("stories").classify("a")
    with pytest.raises(ValueError, match="a classifier writes no text"):
        _engine.State(judge._engine)


# ---- damaged files -----------------------------------------------------------------------------------------


def try_file(data):
    """It is refused as a bad format, or works."""
    try:
        model = _engine.Model(None, data, None, 1 << 16)
    except fastlm.FormatError as e:
        return str(e)
    if not model.labels:
        return "another model"
    decoder = _engine.Decoder(model)
    found = decoder.classify([array("i", [0] * n) for n in (1, 17, 40)])
    assert len(found) == 3 * model.labels
    if not model.bidirectional:
        decoder.classify([array("i", [0])], [_engine.Judged(model)])
    return "works"


@pytest.mark.parametrize("pooling", POOLINGS)
def test_damaged_files_are_refused_or_work(pooling, tmp_path):
    both = pooling in ("attention", "last")
    write(tmp_path / "m.gguf", weights_of(pooling, units=(20, 9), both=both), pooling)
    data = (tmp_path / "m.gguf").read_bytes()
    assert try_file(data) == "works"
    places = range(8, data.index(b"output.weight") + 400)
    found = {try_file(damaged)[:20] for damaged in damaged_files(data, places, 1000)}
    assert "works" in found
    assert len(found) > 10


def test_what_is_wrong_with_a_layer_table_is_said(tmp_path):
    weights, table = ClassifierWeights.from_dict(weights_of("attention"), "attention"), format.layer_table

    def changed(column, row, value):
        def other(*arguments):
            columns = table(*arguments)
            columns[column][row] = value
            return columns

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(format, "layer_table", other)
            format.write(str(tmp_path / "m.gguf"), weights, {})
        with pytest.raises(fastlm.FormatError) as e:
            _engine.Model(str(tmp_path / "m.gguf"), None, None, 0)
        return str(e.value)

    assert "layer 2: expected pooling.last, .mean, .max, .attention or .concat, found 'pooling.sum'" in changed(
        "kind", 2, "pooling.sum"
    )
    assert "layer 2: expected 20, found 21" in changed("units", 2, 21)
    assert "layer 2: expected 60, found 20" in changed("kind", 2, "pooling.concat")
    assert "layer 2: expected 1, found 0" in changed("input", 2, 0)
    assert "layer 0: expected -1, found -2" in changed("input", 0, -2)
    assert "layer 3: expected 1 to 65536, found 0" in changed("units", 3, 0)
    assert "layer 1: this version computes 'lstm' here" in changed("kind", 1, "gru")
    assert "layer 3: expected 0, found 1" in changed("scale", 3, 1.0)


def test_labels_of_a_file_are_checked(tmp_path):
    weights = ClassifierWeights.from_dict(weights_of(), "last")
    for labels in (["a", "b"], ["a", "a", "b"], "abc"):
        format.write(str(tmp_path / "m.gguf"), weights, {"lstm.classifier.labels": labels})
        with pytest.raises(fastlm.FormatError, match=r"lstm\.classifier\.labels.*expected 3 texts"):
            fastlm.load(tmp_path / "m.gguf")
    format.write(str(tmp_path / "m.gguf"), weights, {"lstm.classifier.labels": ["a", "\x1b[31mb", "c"]})
    with pytest.raises(fastlm.FormatError, match="cannot be shown on a line"):
        fastlm.load(tmp_path / "m.gguf")
    format.write(str(tmp_path / "m.gguf"), weights, {})
    assert fastlm.load(tmp_path / "m.gguf").labels == ("0", "1", "2")


def test_a_tokenizer_of_its_own_is_read(tmp_path):
    tokenizer = train_bpe([TEXT], 300)
    weights = weights_of() | {"embedding": np.ones((tokenizer.vocab_size, 12), np.float32)}
    fastlm.export(weights, tmp_path / "m.gguf", labels=["a", "b", "c"], tokenizer=tokenizer)
    judge = fastlm.load(tmp_path / "m.gguf")
    ids = [tokenizer.bos, *tokenizer.encode(TEXT)]
    assert (
        np.abs(np.array(judge.classify(TEXT).logprobs) - log_softmax(classifier_logits(weights, "last", ids))).max()
        < 1e-4
    )
