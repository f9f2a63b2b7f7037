# SPDX-License-Identifier: Apache-2.0
"""Sequence-to-sequence models: the engine against float64, and the same bits however the work is cut."""

import re
from array import array
from pathlib import Path

import numpy as np
import pytest

import fastlm
from conftest import damaged_files
from fastlm import _engine, format
from fastlm.cli import main
from fastlm.seq2seq import names_in, stands_in
from fastlm.tokenizer import CharTokenizer, train_bpe
from fastlm.weights import Weights
from reference import log_softmax, seq2seq_logits

V, SOURCES = 50, 9


def weights_of(seed=0, **shape):
    """Random arrays: ``attention`` None, "dot", "general" or "additive"."""
    s = {
        "V": V,
        "source": 0,
        "E": 12,
        "H": 20,
        "D": 20,
        "A": 24,
        "encoder": 1,
        "decoder": 1,
        "attention": None,
        "bidirectional": False,
        "feed": False,
        "copy": False,
        "bridge": True,
        "tied": False,
    }
    assert shape.keys() <= s.keys()
    s |= shape
    r = np.random.default_rng(seed)

    def uniform(*size, limit=0.6):
        return r.uniform(-limit, limit, size).astype(np.float32)

    def cell(name, inputs, units):
        return {
            f"{name}.kernel": uniform(inputs, 4 * units),
            f"{name}.recurrent_kernel": uniform(units, 4 * units, limit=0.3),
            f"{name}.bias": uniform(4 * units),
        }

    H, A = s["H"], s["A"]
    found = {"embedding": uniform(s["V"], s["E"])}
    inputs = s["E"]
    if s["source"]:
        inputs += 1
        found["source.embedding"] = uniform(s["source"], inputs)
    for n in range(s["encoder"]):
        found |= cell(f"encoder.{n}", inputs, s["D"])
        if s["bidirectional"]:
            found |= cell(f"encoder.{n}.reverse", inputs, s["D"])
        inputs = s["D"] * (1 + s["bidirectional"])
    width, inputs = inputs, s["E"]
    for n in range(s["decoder"]):
        found |= cell(f"lstm.{n}", inputs, H)
        inputs = H
        for part in "hc" if s["bridge"] else "":
            found[f"bridge.{n}.{part}.kernel"] = uniform(2 * width, H, limit=0.3)
            found[f"bridge.{n}.{part}.bias"] = uniform(H)
    if s["attention"]:
        inputs = A
        found |= {
            f"attention.{name}": uniform(*size)
            for name, size in {"context": (width, A), "hidden": (H, A), "bias": (A,)}.items()
        }
        if s["attention"] == "general":
            found["attention.key"] = uniform(width, H)
        if s["attention"] == "additive":
            found |= {"attention.key": uniform(width, A), "attention.query.kernel": uniform(H, A)}
            found |= {"attention.query.bias": uniform(A), "attention.score": uniform(A)}
        if s["feed"]:
            found["attention.feed"] = uniform(A, 4 * H)
        if s["copy"]:
            found |= {"attention.copy.kernel": uniform(A, 1, limit=2), "attention.copy.bias": uniform(1)}
    if not s["tied"]:
        found["output.kernel"] = uniform(inputs, s["V"])
    return found | {"output.bias": uniform(s["V"])}


def random_shape(seed):
    r = np.random.default_rng(seed)
    kind = ["dot", "general", "additive", None][seed % 4]
    shape = {
        "E": int(r.integers(1, 40)),
        "H": int(r.integers(1, 40)),
        "D": int(r.integers(1, 40)),
        "A": int(r.integers(1, 70)),
        "encoder": int(r.integers(1, 4)),
        "decoder": int(r.integers(1, 4)),
        "bidirectional": bool(r.integers(2)),
        "source": int(r.integers(2)) * 33,
        "attention": kind,
        "feed": kind is not None and bool(r.integers(2)),
        "copy": kind is not None and seed % 8 < 4,
    }
    if kind == "dot":
        shape["H"] = shape["D"] * (1 + shape["bidirectional"])
    if r.integers(2):
        shape |= {"tied": True, "A" if kind else "H": shape["E"]}
        if kind == "dot" and shape["H"] != shape["D"] * (1 + shape["bidirectional"]):
            shape["attention"] = "general"
    return shape


SHAPES = [
    {},
    {"bridge": False},
    {"bidirectional": True, "H": 40, "bridge": False},
    {"attention": "additive", "bidirectional": True, "decoder": 2, "H": 33, "D": 17, "A": 40, "feed": True},
    *(random_shape(seed) for seed in range(20)),
]


def texts(weights, seed=5):
    r = np.random.default_rng(seed)
    of_source = len(weights.get("source.embedding", weights["embedding"]))
    sources = [array("i", r.integers(0, of_source, r.integers(1, 70)).tolist()) for _ in range(SOURCES)]
    return sources, array("i", r.integers(0, V, 13).tolist())


@pytest.fixture(scope="module", params=range(len(SHAPES)))
def case(request, tmp_path_factory):
    weights = weights_of(seed=request.param, **SHAPES[request.param])
    path = str(tmp_path_factory.mktemp("seq2seq") / "m.gguf")
    format.write(path, Weights.from_dict(weights), {})
    return weights, path


def test_it_computes_what_float64_does(case):
    weights, path = case
    decoder = _engine.Decoder(model := _engine.Model(path, None, None, 0))
    sources, target = texts(weights)
    for source, read in zip(sources, decoder.read_sources(sources), strict=True):
        logits, attention = seq2seq_logits(weights, source, target)
        expected = log_softmax(logits)
        found = decoder.score(_engine.State(model, read), target)
        assert np.abs(np.array(found)[1:] - expected[np.arange(12), target[1:]]).max() < 1e-4
        state = _engine.State(model, read)
        decoder.feed(state, target)
        assert np.abs(np.array(decoder.logprobs(state)) - expected[-1]).max() < 1e-4
        if attention is not None:
            looked = np.array(decoder.align(_engine.State(model, read), target)).reshape(len(target), -1)
            assert np.abs(looked - attention).max() < 1e-4


def test_a_file_gives_back_its_weights(case):
    weights, path = case
    found = format.unpack(path).to_dict()
    expected = Weights.from_dict(weights).to_dict()
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], array) for name, array in expected.items())


def test_bits_do_not_depend_on_company_level_or_threads(case):
    weights, path = case
    sources, target = texts(weights)
    expected = None
    for isa, supported in _engine.isa_levels():
        for threads in (1, 2) if supported else ():
            model = _engine.Model(path, None, isa, 0, threads)
            decoder = _engine.Decoder(model)
            together = decoder.read_sources(sources)
            alone = [decoder.read_sources([source])[0] for source in sources]
            scores = [bytes(decoder.score(_engine.State(model, one), target)) for one in together]
            assert scores == [bytes(decoder.score(_engine.State(model, one), target)) for one in alone]
            states = [_engine.State(model, one) for one in together]
            side_by_side = np.array(decoder.advance(states, array("i", [3] * SOURCES))).reshape(SOURCES, -1)
            for one, row in zip(alone, side_by_side, strict=True):
                state = _engine.State(model, one)
                assert np.array_equal(np.array(decoder.advance([state], array("i", [3]))), row)
            expected = expected or scores
            assert scores == expected, (isa, threads)


# ---- a model of texts ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    tokenizer = CharTokenizer.train(["abcdefghijklmnopqrstuvwxyz .,ABCDEFGHIJKLMNOPQRSTU"])
    weights = weights_of(seed=1, V=tokenizer.vocab_size, attention="general", bidirectional=True, feed=True)
    path = tmp_path_factory.mktemp("texts") / "m.gguf"
    report = fastlm.export(weights, path, tokenizer=tokenizer)
    assert report.max_error < 1e-5
    return path


def test_generate_takes_a_source(model_path):
    lm = fastlm.load(model_path)
    assert lm.info["task"] == "seq2seq"
    assert lm.check()[0] < 1e-5
    first = lm.generate("a small house", max_tokens=20, temperature=0.0)
    both = lm.generate(["a small house", "another."], max_tokens=20, temperature=0.0)
    assert both[0].text == first.text != both[1].text
    assert "".join(lm.stream("a small house", max_tokens=20, temperature=0.0)) == first.text
    assert first.usage["prompt_tokens"] == len("a small house") + 1  # and its end
    assert lm.generate(lm.encode_source("a small house"), max_tokens=20, temperature=0.0).text == first.text
    beams = lm.generate("a small house", max_tokens=20, num_beams=4, length_penalty=0.0)
    tokens = [lm.bos, *first.token_ids]
    assert (
        beams.score
        >= lm.score(tokens, lm.encode_source("a small house")).total
        - lm.score(tokens[:1], lm.encode_source("a small house")).total
        - 1e-4
    )


def test_texts_and_sources_begin_with_words_as_they_are_inside(tmp_path):
    known = train_bpe(["reads images and writes images\n"] * 3, 290, "line", lead=True)
    weights = weights_of(seed=1, V=known.vocab_size, attention="general", bidirectional=True)
    fastlm.export(weights, tmp_path / "m.gguf", tokenizer=known)
    lm = fastlm.load(tmp_path / "m.gguf")
    assert lm.encode_source("images")[:-1] == known.encode_inside(" images")
    for options in ({"seed": 1}, {"num_beams": 4}, {"num_beams": 4, "mbr": True}):
        found = lm.generate("reads images", max_tokens=20, regex="[a-z]{1,5} images", **options)
        assert re.fullmatch("[a-z]{1,5} images", found.text)
    beams = lm.generate("reads images", max_tokens=9, num_beams=4, must_include=["images"])
    assert "images" in beams.text
    assert lm.score("writes images", "reads").token_ids == [*known.encode("writes images"), known.eos]


def test_attention_is_reported(model_path):
    lm = fastlm.load(model_path)
    for options in ({"temperature": 0.0}, {"num_beams": 3}):
        found = lm.generate("a small house", max_tokens=8, attention=True, **options)
        assert found.attention.shape == (len(found.token_ids), 14)
        assert found.attention.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert lm.generate("a", max_tokens=3).attention is None


def test_unknown_tokens_become_source_words(model_path):
    lm = fastlm.load(model_path)
    found = lm.generate("xyz", max_tokens=5, allowed_token_ids=[1], replace_unknown=True, attention=True)
    assert found.token_ids == [1] * 5
    assert found.text == "".join("xyz"[min(int(row.argmax()), 2)] for row in found.attention)


def test_scores_are_of_a_text_given_its_source(model_path):
    lm = fastlm.load(model_path)
    score = lm.score("cold", "warm")
    assert len(score.logprobs) == 5
    expected, _ = seq2seq_logits(
        format.unpack(model_path).to_dict(), lm.encode_source("warm"), [lm.bos, *lm.encode("cold")]
    )
    assert score.total == pytest.approx(log_softmax(expected)[np.arange(5), score.token_ids].sum(), abs=1e-4)
    assert [one.total for one in lm.score(["cold", "a"], ["warm", "b"])] == [score.total, lm.score("a", "b").total]


def test_what_it_cannot_do_is_said(model_path):
    lm = fastlm.load(model_path)
    with pytest.raises(ValueError, match="the source is empty"):
        lm.generate("")
    with pytest.raises(ValueError, match="the source is empty"):
        lm.generate([])
    with pytest.raises(ValueError, match=r"prompt 1 of the list: the source is empty"):
        lm.generate(["a", ""])
    with pytest.raises(ValueError, match=r"a source of 100001 tokens: expected at most 16384"):
        lm.generate("a" * 100_000)
    with pytest.raises(ValueError, match=r"source token 77 at place 1: expected 0 to \d+"):
        lm.generate([1, 77])
    for name in ("echo", "prompt_logprobs", "token_healing"):
        with pytest.raises(ValueError, match=f"{name}: .*leave it out"):
            lm.generate("a", **{name: True})
    for call in (lm.suggest, lm.state, lm.session, lm.compress):
        with pytest.raises(ValueError, match="generate takes"):
            call("a")
    for call in (lm.stream, lm.next_tokens):
        with pytest.raises(ValueError, match="attention"):
            call("a", attention=True)
    with pytest.raises(ValueError, match="replace_unknown and stop"):
        lm.generate("a", replace_unknown=True, stop="b")
    with pytest.raises(ValueError, match="expected the source"):
        lm.score("a")
    with pytest.raises(ValueError, match="no classifier"):
        lm.classify("a")
    with pytest.raises(ValueError, match="attention: a language model has no source"):
        fastlm.load("stories").generate("a", attention=True)


# ---- damaged files ---------------------------------------------------------------------------------------


def numbers_of(data):
    """Where a file's 32- and 64-bit numbers of structure may lie: all of its header, byte by byte."""
    return range(8, data.index(b"attn.context.weight") + 400)


def try_file(data):
    """It is refused as a bad format, or everything works."""
    try:
        model = _engine.Model(None, data, None, 1 << 16)
    except fastlm.FormatError as e:
        return str(e)
    if not model.source_vocab_size:
        return "a language model"
    decoder = _engine.Decoder(model)
    for source in decoder.read_sources([array("i", [0] * n) for n in (1, 17, 40)]):
        state = _engine.State(model, source)
        decoder.feed(state, array("i", [0, 0]))
        assert len(decoder.logprobs(state)) == model.vocab_size
    return "works"


@pytest.mark.parametrize("attention", ["general", "additive"])
def test_damaged_files_are_refused_or_work(attention, tmp_path):
    weights = weights_of(
        seed=3, V=20, source=9, bidirectional=True, encoder=2, decoder=2, attention=attention, feed=True
    )
    format.write(tmp_path / "m.gguf", Weights.from_dict(weights), {})
    data = (tmp_path / "m.gguf").read_bytes()
    assert try_file(data) == "works"
    found = {try_file(damaged)[:20] for damaged in damaged_files(data, numbers_of(data), 1500)}
    assert "works" in found
    assert len(found) > 10


def changed(tmp_path, change):
    """What is said of a file whose layer table was changed."""
    weights = Weights.from_dict(weights_of(attention="general", bidirectional=True, feed=True))
    table = format.layer_table

    def other(*arguments):
        columns = table(*arguments)
        change(columns)
        return columns

    path = str(tmp_path / "changed.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(format, "layer_table", other)
        format.write(path, weights, {})
    with pytest.raises(fastlm.FormatError) as e:
        _engine.Model(path, None, None, 0)
    return str(e.value)


def test_what_is_wrong_with_a_layer_table_is_said(tmp_path):
    def put(column, row, value):
        return lambda columns: columns[column].__setitem__(row, value)

    def drop(row):
        return lambda columns: [values.pop(row) for values in columns.values()]

    def all_of_the_source(columns):
        for values in columns.values():
            del values[4:]
        columns["kind"][1:] = ["lstm"] * 3

    for change, message in (
        (put("direction", 1, "backward"), "layer 1: this version computes 'forward' here, found 'backward'"),
        (put("direction", 3, "bidirectional"), "layer 3: this version computes 'forward' here"),
        (put("input", 0, -1), "key 'lstm.layer.input', layer 0: expected -2, found -1"),
        (put("input", 2, 1), "key 'lstm.layer.input', layer 2: expected -1, found 1"),
        (put("kind", 4, "attention.loud"), "this version computes 'attention.dot' here, found 'attention.loud'"),
        (put("units", 1, 21), "expected"),
        (put("units", 4, 25), "expected"),
        (put("tensor", 4, "nothing"), "attention.dot without a key matrix"),
        (all_of_the_source, "expected the text's layers behind those of the source, found none"),
        (drop(1), "layer 1: this version computes 'lstm' here, found 'embedding'"),
        (drop(2), "this version computes 'lstm' here"),
        (drop(5), "this version computes"),
    ):
        assert message in changed(tmp_path, change), message


# ---- fewer bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "most"), [("bf16", 0.03), ("int8", 0.2), ("int4", 2.5)])
def test_rounded_models_compute_what_their_weights_say(dtype, most, tmp_path):
    weights = weights_of(
        seed=4,
        V=60,
        H=40,
        D=24,
        source=33,
        encoder=2,
        decoder=2,
        bidirectional=True,
        A=48,
        attention="additive",
        feed=True,
    )
    fastlm.export(weights, tmp_path / "f32.gguf", bos=0)
    report = fastlm.quantize(tmp_path / "f32.gguf", tmp_path / "m.gguf", dtype=dtype)
    assert {matrix.name for matrix in report.matrices} >= {"source_embd", "enc.1.reverse.h", "attn.key", "blk.0.feed"}
    assert fastlm.load(tmp_path / "m.gguf").check()[0] < 1e-5  # its own numbers
    rounded = format.unpack(tmp_path / "m.gguf").to_dict()
    sources, target = texts(weights)
    expected = None
    for isa, supported in _engine.isa_levels():
        for threads in (1, 2) if supported else ():
            decoder = _engine.Decoder(model := _engine.Model(str(tmp_path / "m.gguf"), None, isa, 0, threads))
            read = decoder.read_sources(sources)
            found = [decoder.score(_engine.State(model, one), target) for one in read]
            alone = [decoder.score(_engine.State(model, decoder.read_sources([one])[0]), target) for one in sources]
            assert found == alone
            expected = expected or found
            assert found == expected, (isa, threads)
    for source, logprobs in zip(sources, expected, strict=True):
        exact = log_softmax(seq2seq_logits(rounded, source, target)[0])[np.arange(12), target[1:]]
        assert np.abs(np.array(logprobs)[1:] - exact).max() < most  # inputs of whole numbers are rounded, too


@pytest.fixture(scope="module")
def many_words(tmp_path_factory):
    """A model of thousands of tokens, and pairs of texts of its own."""
    tokenizer = CharTokenizer.train(["".join(map(chr, range(0x4E00, 0x4E00 + 3000)))])
    weights = weights_of(seed=3, V=tokenizer.vocab_size, attention="general", bidirectional=True, A=64)
    weights["output.kernel"] = (weights["output.kernel"] * 4).astype(np.float32)
    path = tmp_path_factory.mktemp("words") / "m.gguf"
    fastlm.export(weights, path, tokenizer=tokenizer)
    lm, r = fastlm.load(path), np.random.default_rng(0)
    sources = ["".join(map(chr, r.integers(0x4E00, 0x4E00 + 3000, 12))) for _ in range(80)]
    return path, [(source, str(lm.generate(source, max_tokens=20, seed=n))) for n, source in enumerate(sources)]


def test_a_screen_changes_no_text(many_words, tmp_path):
    path, pairs = many_words
    report = fastlm.quantize(path, tmp_path / "s.gguf", dtype="f32", screen=True, text=pairs)
    assert report.screen is not None
    assert report.loss.tokens == sum(len(text) + 1 for _, text in pairs)
    assert report.loss.percent == 0
    plain, screened = fastlm.load(path), fastlm.load(tmp_path / "s.gguf", screening="always")
    assert screened.info["screened"]
    sources = [source for source, _ in pairs[:9]]
    for options in ({"temperature": 0}, {"seed": 1}):
        found = screened.generate(sources, max_tokens=15, **options)
        assert [one.token_ids for one in found] == [
            one.token_ids for one in plain.generate(sources, max_tokens=15, **options)
        ]
        assert all(one.timings["screened_tokens"] > 0 for one in found)


def test_pairs_tell_what_rounding_costs(many_words, tmp_path, capsys):
    path, pairs = many_words
    report = fastlm.quantize(path, tmp_path / "q.gguf", dtype="int4", text=pairs)
    texts, sources = [text for _, text in pairs], [source for source, _ in pairs]
    for model, found in ((path, report.loss.perplexity_before), (tmp_path / "q.gguf", report.loss.perplexity)):
        logprobs = [logprob for one in fastlm.load(model).score(texts, sources) for logprob in one.logprobs]
        assert found == pytest.approx(np.exp(-np.mean(logprobs)))
    (tmp_path / "pairs.tsv").write_text("".join(f"{source}\t{text}\n" for source, text in pairs if text.strip()))
    assert main(["quantize", str(path), str(tmp_path / "c.gguf"), "--text", str(tmp_path / "pairs.tsv")]) == 0
    assert "perplexity" in capsys.readouterr().out


def test_what_quantize_cannot_do_is_said(model_path, many_words, tmp_path):
    copying = tmp_path / "copying.gguf"
    tokenizer = CharTokenizer.train(["abc"])
    fastlm.export(weights_of(V=tokenizer.vocab_size, attention="dot", copy=True), copying, tokenizer=tokenizer)
    pairs = [("ab", "c" * 20)] * 100
    for model, options, message in (
        (model_path, {"text": "abc"}, "expected sources and their texts, as a list of pairs"),
        ("stories", {"text": pairs}, "expected a text, not pairs"),
        (model_path, {"screen": True}, "needs sources and their texts"),
        (copying, {"screen": True, "text": pairs}, "a model that copies needs the probability of every token"),
        (model_path, {"dtype": "auto", "text": pairs}, "dtype='auto' is for language models"),
        (model_path, {"text": pairs[:3]}, "the text is 63 tokens long"),
    ):
        with pytest.raises(ValueError, match=message):
            fastlm.quantize(model, tmp_path / "m.gguf", **options)
    assert not (tmp_path / "m.gguf").exists()


def test_coverage_puts_texts_in_order(tmp_path):
    weights = weights_of(seed=7, attention="general", bidirectional=True)
    fastlm.export(weights, tmp_path / "m.gguf", bos=0, eos=0)
    lm, source = fastlm.load(tmp_path / "m.gguf"), list(range(1, 18))
    plain = lm.generate(source, max_tokens=12, num_beams=6, n=6, attention=True)
    found = lm.generate(source, max_tokens=12, num_beams=6, n=6, coverage_penalty=0.7, attention=True)
    assert {tuple(one.token_ids) for one in plain} == {tuple(one.token_ids) for one in found}
    scores = {tuple(one.token_ids): one.score for one in plain}
    for one in found:
        _, looked = seq2seq_logits(weights, source, [0, *one.token_ids, 0])
        rows = looked[: len(one.token_ids) + (one.finish_reason == "stop")]
        expected = scores[tuple(one.token_ids)] + 0.7 * np.log(np.minimum(rows.sum(0), 1)).sum()
        assert one.score == pytest.approx(expected, abs=1e-3)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert found[0].score == lm.generate(source, max_tokens=12, num_beams=6, coverage_penalty=0.7).score
    with pytest.raises(ValueError, match="num_beams"):
        lm.generate(source, coverage_penalty=0.7)
    with pytest.raises(ValueError, match="coverage_penalty: a language model has no source"):
        fastlm.load("stories").generate("a", num_beams=2, coverage_penalty=0.7)


# ---- copies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["general", "additive"])
def test_copying_models_write_what_their_log_probabilities_say(attention, tmp_path):
    """One text alone, several side by side, beams, and a text scored at once go different ways in the engine."""
    weights = weights_of(seed=7, attention=attention, copy=True, bidirectional=True, feed=attention == "general")
    fastlm.export(weights, tmp_path / "m.gguf", bos=0)
    lm = fastlm.load(tmp_path / "m.gguf")
    sources, _ = texts(weights)
    alone = [lm.generate(list(source), max_tokens=20, temperature=0.0) for source in sources]
    assert [one.token_ids for one in lm.generate([list(s) for s in sources], max_tokens=20, temperature=0.0)] == [
        one.token_ids for one in alone
    ]
    for source, one in zip(sources, alone, strict=True):
        logits, _ = seq2seq_logits(weights, source, [0, *one.token_ids[:-1]])
        assert [int(row.argmax()) for row in logits] == one.token_ids
        scored = lm.score([0, *one.token_ids], list(source))
        expected = log_softmax(logits)[np.arange(len(one.token_ids)), one.token_ids]
        assert np.abs(np.array(scored.logprobs[1:]) - expected).max() < 1e-4
        beam = lm.generate(list(source), max_tokens=5, num_beams=3, logprobs=True)
        assert beam.logprobs == pytest.approx(lm.score([0, *beam.token_ids], list(source)).logprobs[1:], abs=1e-5)
    drawn = lm.generate(list(sources[0]), max_tokens=20, temperature=1.0, seed=3)
    assert drawn.token_ids == lm.generate([list(sources[0])] * 2, max_tokens=20, temperature=1.0, seed=3)[0].token_ids
    assert set(alone[0].token_ids) & set(sources[0])
    with pytest.raises(ValueError, match=r"attention\.copy: a source's tokens are copied, but there are 70"):
        fastlm.export(weights_of(attention=attention, copy=True, source=70), tmp_path / "x.gguf", bos=0)


# ---- names -----------------------------------------------------------------------------------------------


def test_names_are_told_from_words():
    source = "The GNOME desktop runs /usr/bin/gtk3-demo on Linux 2.6. It needs X11 (see README.txt), not e-mail. A b."
    assert names_in(source) == {"GNOME", "/usr/bin/gtk3-demo", "Linux", "2.6", "X11", "README.txt"}
    assert stands_in("X11", "ein X11-Programm")
    assert not stands_in("X11", "ein X112")
    assert stands_in("C++", "in C++.")


def test_texts_with_the_names_of_the_source_come_first():
    lm = fastlm.load(Path(__file__).parent.parent / "models" / "babi.gguf")
    source = "Who gave the milk? Mary gave the milk to Fred. Who gave the milk?"
    plain = lm.generate(source, num_beams=12, n=12, max_tokens=6)
    found = lm.generate(source, num_beams=12, n=12, max_tokens=6, keep_names=True)

    def lost(text):
        return sum(not stands_in(name, str(text)) for name in ("Fred",))

    assert [lost(one) for one in plain] != sorted(lost(one) for one in plain)
    assert [str(one) for one in found] == [str(one) for one in sorted(plain, key=lost)]
    alike = lm.generate(source, num_beams=12, n=12, max_tokens=6, mbr=True)
    both = lm.generate(source, num_beams=12, n=12, max_tokens=6, mbr=True, keep_names=True)
    assert [str(one) for one in alike] != [str(one) for one in plain]
    assert [str(one) for one in both] == [str(one) for one in sorted(alike, key=lost)]
    with pytest.raises(ValueError, match="num_beams"):
        lm.generate(source, keep_names=True)
    with pytest.raises(ValueError, match="expected the source as a text"):
        lm.generate(lm.encode_source(source), num_beams=2, keep_names=True)
    with pytest.raises(ValueError, match="keep_names: a language model has no source"):
        fastlm.load("stories").generate("a", num_beams=2, keep_names=True)
