# SPDX-License-Identifier: Apache-2.0
"""Training on pairs: batches, the network against float64, and a model that learns to turn words round."""

import random
from dataclasses import asdict

import numpy as np
import pytest

import fastlm

tf = pytest.importorskip("tensorflow")

from fastlm.pairs import read_pairs  # noqa: E402
from fastlm.tokenizer import CharTokenizer, train_bpe  # noqa: E402
from fastlm.training import train_pairs  # noqa: E402
from fastlm.training.options import resolve_pairs  # noqa: E402
from fastlm.training.pairs import Batches, Pairs, Splits  # noqa: E402
from fastlm.training.seq2seq import Seq2SeqNetwork, Shape  # noqa: E402
from fastlm.training.writing import WritingTask  # noqa: E402
from reference import log_softmax, seq2seq_logits  # noqa: E402


def words(count, seed=0):
    r = random.Random(seed)
    return ["".join(r.choices("abcdefgh", k=r.randint(1, 5))) for _ in range(count)]


def pairs_of(texts):
    tokenizer = CharTokenizer.train(["abcdefgh"])
    return Pairs.of([(text, text[::-1]) for text in texts], tokenizer, tokenizer)


# ---- data ----------------------------------------------------------------------------------------------


def test_pairs_are_read_from_columns(tmp_path):
    (tmp_path / "a.tsv").write_text("one\ttwo\tthree\n vier \tfünf\n", encoding="utf-8")
    assert read_pairs(tmp_path / "a.tsv") == [("one", "two"), ("vier", "fünf")]
    with pytest.raises(ValueError, match=r"a\.tsv, line 2: expected at least 3 columns .* found 2"):
        read_pairs(tmp_path / "a.tsv", (2, 0))
    with pytest.raises(ValueError, match="none before the first"):
        read_pairs(tmp_path / "a.tsv", (-1, 0))
    (tmp_path / "b.tsv").write_text("a\tb\nc\t \n")
    with pytest.raises(ValueError, match=r"b\.tsv, line 2: the text is empty"):
        read_pairs(tmp_path / "b.tsv")
    (tmp_path / "c.tsv").write_text("")
    with pytest.raises(ValueError, match="no pairs found"):
        read_pairs(tmp_path / "c.tsv")


def test_tokens_fall_apart_into_what_was_merged_alike_in_source_and_text():
    tokenizer = train_bpe(["the weather, the feather and the leather"] * 9, 300, "line")
    rows = [("the leather and the weather", "the weather"), ("the feather", "feather")] * 50
    pairs = Pairs.of(rows, tokenizer, tokenizer)
    splits, seen = Splits(0.3, tokenizer, tokenizer), set()
    for seed, (before, after) in enumerate(rows):
        source, text = splits(pairs.sources[seed], pairs.texts[seed], np.random.default_rng(seed))
        assert tokenizer.decode(source.tolist()) == before
        assert tokenizer.decode(text.tolist()) == after
        whole = set(tokenizer.encode(after)) - set(text.tolist())
        assert not whole & set(source.tolist())  # what fell apart in the text did so in the source
        seen.add(tuple(source.tolist()))
    assert len(seen) > 20
    alone = Splits(0.999999, tokenizer, tokenizer)(pairs.sources[0], pairs.texts[0], np.random.default_rng(0))[1]
    assert len(alone) == len("the weather")  # bytes


def test_an_epoch_splits_otherwise_than_the_one_before_and_as_when_it_is_read_again():
    tokenizer = train_bpe(["the weather, the feather and the leather"] * 9, 300, "line")
    pairs = Pairs.of([(f"the {w} weather", w) for w in words(60)], tokenizer, tokenizer)
    batches = Batches(pairs, 200, 1, Splits(0.2, tokenizer, tokenizer))
    stream = batches.from_step(0)
    read = [next(stream) for _ in range(2 * batches.per_epoch)]
    at = batches.per_epoch + 2
    for one, again in zip(read[at], next(batches.from_step(at)), strict=True):
        np.testing.assert_array_equal(one, again)
    epochs = read[: batches.per_epoch], read[batches.per_epoch :]
    lengths = [sorted(np.concatenate([batch[1] for batch in epoch])) for epoch in epochs]
    assert lengths[0] != lengths[1]
    assert len(lengths[0]) == len(lengths[1]) == 60


@pytest.mark.parametrize("seed", [None, 3])
def test_every_pair_is_in_one_batch_of_an_epoch(seed):
    texts = words(500)
    batches = Batches(pairs_of(texts), 300, seed)
    stream = batches.from_step(0)
    found = []
    for _ in range(batches.per_epoch):
        sources, lengths, inputs, targets = next(stream)
        assert sources.shape[1] == 1 or (len(sources) + len(inputs)) * sources.shape[1] <= 300
        for source, length, read, target in zip(sources.T, lengths, inputs.T, targets.T, strict=True):
            text = source[len(source) - length :]
            assert text[-1] == read[0] == 0  # ends and begins with the border
            said = target[target >= 0]
            assert (said[:-1] == text[:-1][::-1]).all()
            assert said[-1] == 0
            assert (read[1 : len(said)] == said[:-1]).all()
            found.append(tuple(text))
    tokenizer = CharTokenizer.train(["abcdefgh"])
    assert sorted(found) == sorted((*tokenizer.encode(text), 0) for text in texts)


def test_batches_are_a_function_of_the_step():
    batches = Batches(pairs_of(words(200)), 200, 5)
    whole = [batch for batch, _ in zip(batches.from_step(0), range(3 * batches.per_epoch), strict=False)]
    for first in (1, batches.per_epoch, batches.per_epoch + 2):
        for one, other in zip(whole[first:], batches.from_step(first), strict=False):
            assert all(np.array_equal(*parts) for parts in zip(one, other, strict=True))
    epochs = [whole[n * batches.per_epoch : (n + 1) * batches.per_epoch] for n in range(2)]
    assert not all(np.array_equal(a[0], b[0]) for a, b in zip(*epochs, strict=True))


# ---- the network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", [None, "dot", "general", "additive"])
@pytest.mark.parametrize("feeding", [False, True])
@pytest.mark.parametrize("copying", [False, True])
def test_padded_batches_compute_what_each_pair_alone_does(attention, feeding, copying):
    if (feeding or copying) and attention is None:
        pytest.skip("nothing to feed or to copy")
    shape = Shape(
        source_vocab=None if feeding else 9,
        vocab=11,
        embedding=6,
        encoder=(5, 4),
        decoder=(8, 8),
        bidirectional=True,
        attention=attention,
        attention_units=7,
        input_feeding=feeding,
        tied=False,
        copying=copying,
    )
    network = Seq2SeqNetwork(shape, dropout=0.5, seed=1)
    r = np.random.default_rng(0)
    for variable in network.variables:
        variable.assign(r.uniform(-0.7, 0.7, variable.shape).astype(np.float32))
    arrays = network.weights.arrays()
    lengths = np.array([7, 1, 4], np.int32)
    sources, inputs = r.integers(0, 9, (8, 3)).astype(np.int32), r.integers(0, 11, (5, 3)).astype(np.int32)
    logits, copies = network(tf.constant(sources), tf.constant(lengths), tf.constant(inputs))
    assert (copies is not None) == copying
    rows = log_softmax(np.array(logits, np.float64)).reshape(5, 3, 11)
    for token in range(11) if copying else ():
        each = copies.logprobs(tf.constant(rows[:, :, token].reshape(-1), tf.float32), tf.fill([5, 3], token))
        rows[:, :, token] = np.array(each).reshape(5, 3)
    for j, length in enumerate(lengths):
        expected, _ = seq2seq_logits(arrays, sources[8 - length :, j], inputs[:, j])
        assert np.abs(rows[:, j] - log_softmax(expected)).max() < 1e-5


@pytest.mark.parametrize("attention", ["general", "additive"])
@pytest.mark.parametrize("feeding", [False, True])
def test_gradients_are_those_of_the_loss(attention, feeding):
    """Against differences, in one random direction of all weights."""
    shape = Shape(
        source_vocab=9,
        vocab=11,
        embedding=6,
        encoder=(5,),
        decoder=(8, 8),
        bidirectional=True,
        attention=attention,
        attention_units=7,
        input_feeding=feeding,
        tied=False,
        copying=True,
    )
    network, r = Seq2SeqNetwork(shape, dropout=0.0, seed=1), np.random.default_rng(0)
    sources, inputs = r.integers(0, 9, (6, 3)).astype(np.int32), r.integers(0, 11, (5, 3)).astype(np.int32)

    def loss():
        logits, copies = network(tf.constant(sources), tf.constant([6, 2, 4]), tf.constant(inputs))
        first = tf.nn.log_softmax(logits)[:, 0]
        return tf.reduce_mean(tf.square(logits - 0.3)) - tf.reduce_mean(
            copies.logprobs(first, tf.zeros([5, 3], tf.int32))
        )

    with tf.GradientTape() as tape:
        value = tf.function(loss)()
    gradients = [np.array(tf.convert_to_tensor(g)) for g in tape.gradient(value, network.variables)]
    steps = [r.normal(size=g.shape).astype(np.float32) for g in gradients]
    values = []
    for sign in (1, -1):
        for variable, step in zip(network.variables, steps, strict=True):
            variable.assign_add(sign * 1e-2 * step)
        values.append(float(loss()))
        for variable, step in zip(network.variables, steps, strict=True):
            variable.assign_sub(sign * 1e-2 * step)
    expected = sum(float((g * step).sum()) for g, step in zip(gradients, steps, strict=True))
    assert (values[0] - values[1]) / 2e-2 == pytest.approx(expected, rel=0.02, abs=1e-3)


# ---- a run -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "turned.tsv"
    path.write_text("".join(f"{text}\t{text[::-1]}\n" for text in words(3000)), encoding="utf-8")
    return path


SMALL = {
    "task": "translate",
    "vocab_size": 257,
    "shared_vocabulary": True,
    "embedding": 64,
    "encoder_units": 64,
    "units": 128,
    "attention_units": 64,
    "dropout": 0.0,
    "label_smoothing": 0.0,
    "learning_rate": 3e-3,
    "batch_tokens": 600,
    "progress": False,
}


def test_a_model_learns_to_turn_words_round(data, tmp_path):
    report = train_pairs(data, tmp_path / "m.gguf", epochs=15, **SMALL)
    lm = fastlm.load(report.output)
    asked = words(100, seed=9)
    answers = lm.generate(asked, max_tokens=30)
    assert sum(str(a) == one[::-1] for a, one in zip(answers, asked, strict=True)) >= 80
    assert all(a.finish_reason == "stop" for a in answers)
    score = lm.score([one[::-1] for one in asked], asked)
    assert sum(s.total for s in score) / sum(len(s.logprobs) for s in score) > -0.5


def test_a_run_is_resumed_where_it_was(data, tmp_path):
    whole = train_pairs(data, tmp_path / "a.gguf", epochs=2, **SMALL)

    def interrupt(progress):
        if progress.step == whole.steps // 3:
            import signal

            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="--resume"):
        train_pairs(data, tmp_path / "b.gguf", epochs=2, **{**SMALL, "progress": interrupt})
    resumed = train_pairs(data, tmp_path / "b.gguf", resume=True, **{**SMALL, "progress": False})
    assert resumed.steps == whole.steps
    assert resumed.valid_perplexity == pytest.approx(whole.valid_perplexity, rel=1e-4)


def test_options_that_do_not_fit_are_refused(data, tmp_path):
    for options, message in (
        ({"task": "sing"}, "expected one of translate"),
        ({"attention": "loud"}, "expected dot, general, additive or none"),
        ({"attention": "none", "input_feeding": True, "tied": False}, "nothing to feed"),
        ({"attention": "none", "tied": False}, "attention_units: without attention there are none"),
        ({"attention": "dot", "units": 10}, "as wide as"),
        ({"embedding": 63}, "tied weights need"),
        ({"units": []}, "units: expected at least one layer"),
    ):
        with pytest.raises(ValueError, match=message):
            train_pairs(data, tmp_path / "m.gguf", **{**SMALL, **options})
    with pytest.raises(TypeError, match="hidden: no option of task='translate'"):
        train_pairs(data, tmp_path / "m.gguf", hidden=3, **SMALL)


def test_tokenizers_of_source_and_text_may_differ(data, tmp_path):
    report = train_pairs(data, tmp_path / "m.gguf", epochs=1, **{**SMALL, "shared_vocabulary": False})
    lm = fastlm.load(report.output)
    assert lm.source_tokenizer is not lm.tokenizer
    assert lm.encode_source("abc")[-1] == lm.source_tokenizer.eos
    assert train_bpe(["abc"], 260).vocab_size


@pytest.mark.parametrize("shared", [True, False])
def test_first_words_may_be_those_inside_a_text(data, tmp_path, shared):
    once = {**SMALL, "epochs": 1, "shared_vocabulary": shared}
    path = tmp_path / "m.gguf"
    train_pairs(data, path, prefix_space=True, **once)
    model = fastlm.load(path)
    assert (model.tokenizer.lead, model.source_tokenizer.lead) == (" ", " ")
    assert model.encode_source("abc")[:-1] == model.source_tokenizer.encode_inside(" abc")
    assert not model.generate("abc", max_tokens=9, temperature=0).text.startswith(" ")
    assert [resolve_pairs(task, {}).prefix_space for task in ("translate", "summarize", "answer")] == [
        False,
        True,
        False,
    ]


SHORT = {"embedding": 8, "encoder_units": 8, "units": 16, "attention_units": 8, "batch_tokens": 900}


def test_words_that_it_has_never_seen_are_copied(tmp_path):
    """The text is a name out of the source; most names of the test are new."""
    r = random.Random(0)

    def lines(count):
        for _ in range(count):
            name = "".join(r.choices("abcdefghijklmnopqrst", k=4))
            others = r.choices(["the", "old", "man", "saw", "a", "dog", "and", "went"], k=r.randint(2, 5))
            at = r.randint(0, len(others))
            yield " ".join([*others[:at], "named", name, *others[at:]]), name

    (tmp_path / "t.tsv").write_text("".join(f"{source}\t{text}\n" for source, text in lines(2000)))
    options = {**SMALL, "task": "summarize", "vocab_size": 300, "epochs": 10}
    train_pairs(tmp_path / "t.tsv", tmp_path / "m.gguf", **options)
    lm, held = fastlm.load(tmp_path / "m.gguf"), list(lines(50))
    written = lm.generate([source for source, _ in held])
    assert sum(str(one) == text for one, (_, text) in zip(written, held, strict=True)) >= 30  # without copying: 0
    with pytest.raises(ValueError, match="copying: needs attention"):
        train_pairs(tmp_path / "t.tsv", tmp_path / "x.gguf", **{**options, "copying": True, "shared_vocabulary": False})


def test_guesses_take_the_place_of_some_words():
    tokenizer = CharTokenizer.train(["abcdefgh"])
    options = resolve_pairs("translate", {**SHORT, "scheduled_sampling": 0.5})
    pairs = Pairs.of([(text, text[::-1]) for text in words(60)], tokenizer, tokenizer)
    task = WritingTask(options, tokenizer, tokenizer, pairs, pairs)
    sources, lengths, inputs, _ = (tf.constant(part) for part in next(iter(task.from_step(0))))

    def changed(step):
        found = np.array(task._with_guesses(sources, lengths, inputs, tf.constant([0, step], tf.int64)))
        assert (found[0] == np.array(inputs)[0]).all()  # the start stays
        return np.mean(found[1:] != np.array(inputs)[1:])

    assert changed(0) == 0
    half, whole = changed(int(2.5 * task.per_epoch)), changed(10 * task.per_epoch)
    assert 0.1 < half < 0.35
    assert 0.3 < whole < 0.6
    copying = WritingTask(
        resolve_pairs("summarize", {**SHORT, "scheduled_sampling": 0.5}), tokenizer, tokenizer, pairs, pairs
    )
    guessed = np.array(copying._with_guesses(sources, lengths, inputs, tf.constant([0, 10**6], tf.int64)))
    for read, source, guess in zip(np.array(inputs).T, np.array(sources).T, guessed.T, strict=True):
        assert {*guess[guess != read]} <= {*source} | {*range(tokenizer.vocab_size)}
    assert np.isfinite(float(task.loss((sources, lengths, inputs, inputs), tf.constant([0, 99], tf.int64))[0]))


def test_tokens_fall_apart_in_training_and_nowhere_else():
    tokenizer = train_bpe([" ".join(words(200))], 300)
    pairs = Pairs.of(
        [(f"{one} {two}", f"{two} {one}") for one, two in zip(words(60), words(60), strict=True)], tokenizer, tokenizer
    )
    whole, apart = (
        WritingTask(resolve_pairs("summarize", {**SHORT, "bpe_dropout": share}), tokenizer, tokenizer, pairs, pairs)
        for share in (0.0, 0.3)
    )
    drawn = [
        sum(int(batch[1].sum()) for batch, _ in zip(task.from_step(0), range(8), strict=False))
        for task in (whole, apart)
    ]
    assert drawn[1] > 1.1 * drawn[0]
    assert whole.evaluate() == apart.evaluate()


def test_a_preset_copies_where_it_can():
    assert resolve_pairs("answer", {}).copying
    assert not resolve_pairs("answer", {"shared_vocabulary": False}).copying
    with pytest.raises(ValueError, match="copying: needs attention"):
        resolve_pairs("answer", {"shared_vocabulary": False, "copying": True})


def test_options_of_a_run_that_is_continued():
    for given in ({"attention": "none", "tied": False}, {"attention": "dot", "units": 512, "copying": False}):
        first = resolve_pairs("translate", given)
        assert resolve_pairs("translate", {}, asdict(first)) == first
