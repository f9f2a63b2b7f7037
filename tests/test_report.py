# SPDX-License-Identifier: Apache-2.0
"""What the report says of models whose faults are known."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import fastlm
from conftest import random_weights
from fastlm import format
from fastlm.cli import main
from fastlm.goals import Experts, Specific
from fastlm.report import exposure, fitting, memorisation, read_curve, report, verdicts
from fastlm.report import statistics as figures
from fastlm.report.divergence import likeness
from fastlm.report.memorisation import Exposure, copies, seen
from fastlm.report.passages import Sizes, decoded, passages, surprises, written
from fastlm.report.prediction import Calibration, Domain, auc, gap, resampled
from fastlm.report.statistics import wildness
from fastlm.tokenizer import ByteTokenizer

pytest.importorskip("sklearn")
pytest.importorskip("pydivsufsort")
pytest.importorskip("matplotlib")

SIZES = Sizes()
PROMPT, LENGTH = SIZES.prompt, SIZES.text


@pytest.fixture(scope="module")
def stories():
    return fastlm.load("stories")


@pytest.fixture(scope="module")
def texts(stories, tmp_path_factory):
    """Two files that the model itself wrote, as wild as it is: what it says of them is known."""
    folder = tmp_path_factory.mktemp("texts")
    for name, seed in (("train.txt", 1), ("valid.txt", 2)):
        options = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 700, "min_tokens": 700, "seed": seed}
        found = stories.generate("Once", n=40, **options)
        (folder / name).write_text("\n\n".join(text.text for text in found), "utf-8")
    return folder


@pytest.fixture(scope="module")
def found(stories, texts):
    return report(stories, texts / "valid.txt", texts / "train.txt", temperature=1.0, fitted=False)


# ---- passages ------------------------------------------------------------------------------------------


def test_passages_are_pieces_of_the_text(stories, texts, tmp_path):
    every = passages(stories, texts / "valid.txt", SIZES, 10_000, 0, "valid")
    tokens = stories.encode((texts / "valid.txt").read_text("utf-8").split("\n\n")[0])
    assert list(every[0].tokens) == tokens[: PROMPT + LENGTH]
    assert list(every[1].tokens) == tokens[PROMPT + LENGTH : 2 * (PROMPT + LENGTH)]
    some = passages(stories, texts / "valid.txt", SIZES, 30, 0, "valid")
    assert len(some) == 30
    assert (
        some
        == passages(stories, texts / "valid.txt", SIZES, 30, 0, "valid")
        != passages(stories, texts / "valid.txt", SIZES, 30, 1, "valid")
    )
    places = [every.index(one) for one in some]
    assert places == sorted(places)
    (tmp_path / "short.txt").write_text("A fox.\n\nA bear.")
    with pytest.raises(ValueError, match=r"valid: .*short\.txt: 0 passages of 160 tokens: expected 24 at least"):
        passages(stories, tmp_path / "short.txt", SIZES, 30, 0, "valid")


def test_short_documents_are_joined(stories, tmp_path):
    (tmp_path / "lines.txt").write_text("A fox ran.\n" * 2000)
    found = passages(stories, tmp_path / "lines.txt", SIZES, 30, 0, "valid", documents="line")
    assert decoded(stories, found[0]).count("\nA fox ran.\n") > 5
    assert stories.eos in found[0].tokens


def test_surprises_are_those_of_the_score(stories, texts):
    some = passages(stories, texts / "valid.txt", SIZES, 3000, 0, "valid")[:3]
    expected = [stories.score([stories.bos, *one.tokens]).logprobs[-LENGTH:] for one in some]
    np.testing.assert_allclose(surprises(stories, some), -np.array(expected))


def test_texts_are_as_long_as_people_wrote(stories, texts):
    some = passages(stories, texts / "valid.txt", SIZES, 30, 0, "valid")[:4]
    found = written(stories, some, 3, temperature=1.0)
    assert [one.prompt for one in found] == [one.prompt for one in some]
    assert {len(one.text) for one in found} == {LENGTH}
    assert found == written(stories, some, 3, temperature=1.0)
    assert len({tuple(one.text) for one in found}) == 4


# ---- figures -------------------------------------------------------------------------------------------


def test_figures_are_those_of_their_definitions():
    texts = ["a b c d. a b c d.", "a b. e f."]
    words = [text.replace(".", "").split() for text in texts]
    named = {one.name: one.of(texts, words) for one in figures.statistics({"a", "b", "x", "y"}, {"a", "b", "c"})}
    shares = np.array([3, 3, 2, 2, 1, 1]) / 12
    assert named["entropy"] == pytest.approx(-(shares * np.log2(shares)).sum())
    assert named["distinct pairs"] == 6 / 10
    assert named["loops"] == 1 / 6
    assert named["frequent sentences"] == 1
    assert named["coverage"] == 0.5
    assert named["rare words"] == 4 / 12
    assert figures.self_bleu(["x"] * 2, [["a", "b", "c", "d"]] * 2) == pytest.approx(100)
    assert figures.self_bleu(["x"] * 2, [["a", "b", "c", "d"], ["e", "f", "g", "h"]]) < 30
    ranks = [[f"w{n}"] * max(1, round(1000 / n)) for n in range(1, 200)]
    assert figures.zipf([], ranks) == pytest.approx(-1, abs=0.02)


def test_memorised_passages_are_told_apart():
    random = np.random.default_rng(0)
    valid, train = random.normal(3, 1, (300, LENGTH)), random.normal(2.9, 1, (300, LENGTH))
    found = gap(train, valid, 0)
    assert found.gap.low < 0.1 < found.gap.high
    assert found.membership.low <= found.membership.value <= found.membership.high
    pairs = (train.mean(1)[:, None] < valid.mean(1)).mean()
    assert found.membership.value == pytest.approx(pairs)
    assert auc(np.array([1.0, 2.0]), np.array([1.0, 0.0])) == 7 / 8


def test_neighbours_are_drawn_together():
    places = resampled(np.random.default_rng(0), 100)
    assert len(places) == 100
    assert 0 <= places.min() <= places.max() < 100
    assert (np.diff(places) == 1).mean() >= 0.8
    assert resampled(np.random.default_rng(0), 2).tolist() in ([0, 0], [0, 1], [1, 0], [1, 1])


def test_a_few_texts_that_are_copied_are_found(stories, texts, tmp_path):
    """Eleven of 99 begin with 20 tokens of the training text, which the mean forgives."""
    index = fastlm.build_index(texts / "train.txt", stories, tmp_path / "t.flnx")
    trained = passages(stories, texts / "train.txt", SIZES, 40, 0, "train")
    human = passages(stories, texts / "valid.txt", SIZES, 1000, 0, "valid")
    own = written(stories, human[:99], 3, temperature=1.0, top_p=1.0)
    some = list(own)
    for n in range(0, 99, 9):
        some[n] = replace(own[n], text=trained[n // 9].text[:20] + own[n].text[20:])
    found = copies(stories, index, some, human[:99], human, 0)
    assert found.verbatim.value == pytest.approx(0.11, abs=0.03)
    assert 20 <= found.longest[0].tokens <= 24
    assert found.excess.low < verdicts.COPIES
    said = verdicts.copying(found, LENGTH)
    assert said.level == "some"
    assert f"--max-copied {found.human_curve.index(next(x for x in found.human_curve if x < 0.01)) + 1}" in str(said)
    assert verdicts.copying(copies(stories, index, own, human[:99], human, 0), LENGTH).level == "good"


def test_opposite_faults_do_not_cancel():
    one = figures.Comparison("a", "", 1, 6.0, 1.0, 1.0)
    two = replace(one, name="b", value=-4.0)
    assert wildness([one, two]) == 0
    assert figures.misfit([one, two]) == 5
    assert verdicts.variety([one, two], {}, None).level == "some"
    assert verdicts.variety([one, one], {}, None).level == "bad"
    assert verdicts.variety([replace(one, value=1.5), replace(two, value=0.5)], {}, None).level == "good"


def test_secrets_of_few_digits_tell_nothing():
    short, long = (Exposure("12", 3.3, 6.6), Exposure("4821 9134", 26.0, 26.6))
    assert verdicts.secrets([short]).level == "some"
    assert verdicts.secrets([short]).answer.startswith("It knows none of the secrets that can be told, which are 0")
    assert verdicts.secrets([short, long]).answer.startswith("It knows 1 of 2 secrets")
    assert verdicts.secrets([replace(long, exposure=12.0)]).level == "good"


def test_each_verdict_can_be_good_and_bad():
    random = np.random.default_rng(0)

    def surprising(mean):
        return random.normal(mean, 0.3, (900, 1)) + random.normal(0, 1, (900, LENGTH))

    valid = surprising(3.0)
    found = [verdicts.overfitting(gap(surprising(mean), valid, 0), [32, 16]) for mean in (3.0, 2.83, 2.4)]
    assert [one.level for one in found] == ["good", "some", "bad"]
    said = found[2]
    assert any("--units 16 16" in remedy for remedy in said.remedies)
    other = verdicts.overfitting(gap(surprising(3.4), valid, 0), [32, 16])
    assert other.level == "some"
    assert other.answer.startswith("That cannot be said, since the two texts are of different kinds")
    assert other.remedies == ["Validation text of the same kind: hold out some documents of the training text."]
    alike = np.full((30, LENGTH), 2.0)
    assert verdicts.overfitting(gap(alike, alike, 0), [16]).level == "good"
    sure = Calibration(0.02, [], [], 1.0, 3.0, 3.0)
    errors = [verdicts.sureness(replace(sure, error=error)).level for error in (0.02, 0.08, 0.2)]
    assert errors == ["good", "some", "bad"]
    assert "too sure" in verdicts.sureness(replace(sure, error=0.2, temperature=1.4)).answer
    domain = Domain("a/b.txt", 30, 3.0, 1.0, 0.6, 0.1)
    assert verdicts.foreign([domain]).level == "good"
    other = verdicts.foreign([domain, replace(domain, file="a/c.txt", foreign=0.9)])
    assert other.level == "some"
    assert other.answer.startswith("c.txt: not the kind of text")


def test_digits_that_a_model_does_not_know_are_no_secret(byte_model, monkeypatch):
    lm = fastlm.load(byte_model)
    same = [type("Score", (), {"total": -1.0})] * 2001
    monkeypatch.setattr(memorisation, "score_each", lambda model, texts: same[: len(list(texts))])
    for secret in ("n 123", "n 123456"):
        assert exposure(lm, secret).exposure == pytest.approx(1, abs=0.01)


def test_short_documents_are_found_in_the_training_text(stories, texts, tmp_path):
    """A row of tokens ends where a document does: documents are shorter than what is the same otherwise."""
    sentences = [s.strip() for s in (texts / "train.txt").read_text("utf-8").replace("\n", " ").split(".") if s.strip()]
    (tmp_path / "lines.txt").write_text(".\n".join(sentences), "utf-8")
    index = fastlm.build_index(tmp_path / "lines.txt", stories, tmp_path / "l.flnx", documents="line")
    some = passages(stories, tmp_path / "lines.txt", SIZES, 100, 0, "valid", documents="line")
    assert seen(index, some, SIZES.same).mean() > 0.95
    others = passages(stories, texts / "valid.txt", SIZES, 100, 0, "valid")
    assert seen(index, others, SIZES.same).mean() < 0.05


def test_files_are_read_once(stories, texts, tmp_path):
    every = passages(stories, texts / "valid.txt", SIZES, 1000, 0, "valid")
    assert passages(stories, [texts / "valid.txt", str(texts / "valid.txt")], SIZES, 1000, 0, "valid") == every
    with pytest.raises(ValueError, match="is validation text, too"):
        report(stories, texts / "valid.txt", also=texts / "valid.txt")
    (tmp_path / "marks.txt").write_text("... !!! ??? " * 4000)
    with pytest.raises(ValueError, match="no words"):
        report(stories, tmp_path / "marks.txt", fitted=False)


def test_the_command_takes_all(stories, texts, tmp_path, capsys):
    (tmp_path / "secrets.txt").write_text("He is 12 years.\nThe box is 482913.\n")
    rows = [{"epoch": n, "train": 2 - n, "valid": 3 - n} for n in (0, 1)]
    (tmp_path / "curve.jsonl").write_text("\n".join(map(json.dumps, rows)))
    other = "".join(f"def f{n}(x): return x[{n}] * {n % 7}\n" for n in range(4000))
    (tmp_path / "code.txt").write_text(other)
    index = str(tmp_path / "t.flnx")
    assert main(["index", str(texts / "train.txt"), "--model", "stories", "-o", index]) == 0
    command = [
        "report",
        "stories",
        "--valid",
        str(texts / "valid.txt"),
        "--train",
        str(texts / "train.txt"),
        "--no-fit",
    ]
    also = ["--also", str(tmp_path / "code.txt"), "--canaries", str(tmp_path / "secrets.txt"), "--index", index]
    assert main([*command, *also, "--curve", str(tmp_path / "curve.jsonl"), "-o", str(tmp_path / "r")]) == 0
    said = capsys.readouterr().out
    assert "code.txt: not the kind of text that it knows" in said
    assert "It knows none of the secrets that can be told, which are 1: 3 digits are needed" in said
    page = (tmp_path / "r" / "index.html").read_text("utf-8")
    assert "epochs" in page or "nats a token" in page
    (tmp_path / "none.txt").write_text("\n")
    assert main([*command, "--canaries", str(tmp_path / "none.txt"), "-o", str(tmp_path / "q")]) == 1
    assert "none.txt has no line" in capsys.readouterr().err


def test_characters_are_read_four_at_a_time(texts, byte_model):
    assert Sizes.of(fastlm.load(byte_model), [str(texts / "valid.txt")]) == Sizes(128, 512, 256)
    assert Sizes.of(fastlm.load("stories"), [str(texts / "valid.txt")]) == SIZES


def test_likeness_is_that_of_clusters():
    random = np.random.default_rng(0)
    one, same, other = (random.normal(at, 1, (100, 8)).astype(np.float32) for at in (0, 0, 3))
    assert likeness(one, same) > 0.8
    assert likeness(one, other) < 0.1


def test_secrets_that_were_never_seen_are_not_known(stories):
    found = exposure(stories, "The number is 4821.")
    assert found.most == pytest.approx(math.log2(10_000))
    assert found.exposure < 8
    # The likeliest of all digits is as exposed as it can be.
    texts = [f"He is {n}." for n in range(10)]
    scores = [stories.score(text).total for text in texts]
    best, worst = (texts[int(np.argmax(sign * np.array(scores)))] for sign in (1, -1))
    assert exposure(stories, best).exposure == pytest.approx(math.log2(10), abs=0.4)
    assert exposure(stories, worst).exposure == 0
    with pytest.raises(ValueError, match="expected digits"):
        exposure(stories, "no secret")


# ---- the whole -----------------------------------------------------------------------------------------


def test_what_a_model_wrote_itself_has_no_fault(found):
    levels = {verdict.question: verdict.level for verdict in found.verdicts}
    assert levels == {
        "Does it overfit?": "good",
        "Does it copy its training text?": "good",
        "Are its texts too generic, or too wild?": "good",
        "Does it know what it knows?": "good",
    }
    assert abs(found.gap.gap.value) < 0.1
    assert 0.85 < found.calibration.temperature < 1.15
    assert found.warnings == []


def test_colder_is_more_generic(stories, texts, found):
    """From too generic to too wild, in order."""
    scores = [
        wildness(report(stories, texts / "valid.txt", temperature=t, fitted=False).figures) for t in (0.3, 0.7, 1.5)
    ]
    assert scores[0] < scores[1] < found.wildness < scores[2]
    assert scores[0] < -2
    assert scores[2] > 1


def test_the_page_needs_no_other_file(found, tmp_path):
    hostile = replace(found, name="<script>alert(1)</script>")
    page = hostile.save(tmp_path / "a" / "b").read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "src=" not in page
    assert "<link" not in page
    assert page.index("Does it overfit?") < page.index("<svg")
    data = json.loads((tmp_path / "a" / "b" / "report.json").read_text("utf-8"))
    assert data["calibration"]["error"] == found.calibration.error
    assert page == hostile.save(tmp_path / "c").read_text("utf-8")


def test_settings_are_fitted_and_stored(texts, tmp_path, capsys, monkeypatch):
    """The bundled model is told to write at temperature 0.7: what it was asked for at 1.0 is wilder."""
    monkeypatch.setattr(fitting, "TEMPERATURES", (0.8, 1.0))
    monkeypatch.setattr(fitting, "CUTS", ({}, {"top_p": 0.9}))
    command = ["report", "stories", "--valid", str(texts / "valid.txt"), "-o", str(tmp_path / "r")]
    assert main([*command, "--fix", str(tmp_path / "f.gguf")]) == 0
    said = capsys.readouterr()
    assert "Its texts are too generic at temperature 0.7" in said.out
    assert said.err.splitlines() == list(dict.fromkeys(said.err.splitlines()))  # each stage once
    fit = json.loads((tmp_path / "r" / "report.json").read_text("utf-8"))["fit"]
    assert fit["nearer"] >= 4
    fixed, stories = fastlm.load(tmp_path / "f.gguf"), fastlm.load("stories")
    assert fixed.recommended == pytest.approx(fit["after"])
    assert fixed.check() == stories.check()
    assert fixed.score("Once upon a time").total == stories.score("Once upon a time").total
    assert main([*command, "--no-fit", "--fix", str(tmp_path / "g.gguf")]) == 1
    assert "--fix: sampling settings are stored that were tried" in capsys.readouterr().err


def test_training_text_that_is_given_for_validation_is_found(stories, texts, tmp_path):
    with pytest.raises(ValueError, match="passages stand in the training text"):
        report(stories, texts / "train.txt", texts / "train.txt", fitted=False)
    both = [(texts / name).read_text("utf-8") for name in ("valid.txt", "train.txt")]
    (tmp_path / "some.txt").write_text(both[0] + "\n\n" + "\n\n".join(both[1].split("\n\n")[:4]), "utf-8")
    index = fastlm.build_index(texts / "train.txt", stories, tmp_path / "t.flnx")
    some = passages(stories, tmp_path / "some.txt", SIZES, 1000, 0, "valid")
    assert seen(index, some, SIZES.same).sum() == sum(index.longest(one.tokens).max() >= SIZES.same for one in some) > 3
    again = report(stories, tmp_path / "some.txt", texts / "train.txt", index=index, fitted=False)
    assert "of the validation text stand in the training text" in again.warnings[0]
    assert str(again).startswith("Beware: ")


def test_what_cannot_be_reported_is_refused(stories, texts, tmp_path, byte_model):
    (tmp_path / "bad.jsonl").write_text('{"epoch": 1, "train": 2, "valid": 3}\n{"epoch": 1}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl: line 2: expected epoch, train and valid"):
        read_curve(tmp_path / "bad.jsonl")
    another = fastlm.build_index(texts / "valid.txt", stories, tmp_path / "v.flnx")
    with pytest.raises(ValueError, match="index: it is of another text than train"):
        report(stories, texts / "valid.txt", texts / "train.txt", index=another)
    with pytest.raises(ValueError, match="canary 'no secret': expected digits"):
        report(stories, texts / "valid.txt", canaries=["no secret"])
    with pytest.raises(TypeError, match="canaries='no secret': expected several texts, found one"):
        report(stories, texts / "valid.txt", canaries="no secret")
    with pytest.raises(ValueError, match="valid: expected at least one file, found none"):
        report(stories, [])
    other = fastlm.build_index(texts / "train.txt", fastlm.load(byte_model), tmp_path / "o.flnx")
    with pytest.raises(ValueError, match="the index is of another tokenizer"):
        report(stories, texts / "valid.txt", texts / "train.txt", index=other)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"train: .*empty\.txt: 0 passages"):
        report(stories, texts / "valid.txt", tmp_path / "empty.txt")
    with pytest.raises(ValueError, match=r"also: .*empty\.txt: 0 passages"):
        report(stories, texts / "valid.txt", also=[texts / "train.txt", tmp_path / "empty.txt"])
    with pytest.raises(ValueError, match=r"bad\.jsonl: no GGUF file"):
        format.rewrite(tmp_path / "bad.jsonl", tmp_path / "n.gguf", {})


def test_a_file_is_copied_with_other_keys(tmp_path):
    fastlm.export(random_weights(257, 16, (24,)), tmp_path / "m.gguf", tokenizer=ByteTokenizer(), dtype="int8")
    format.rewrite(tmp_path / "m.gguf", tmp_path / "n.gguf", {"general.sampling.temp": 0.5, "general.name": "other"})
    one, other = fastlm.load(tmp_path / "m.gguf"), fastlm.load(tmp_path / "n.gguf")
    assert other.recommended == {"temperature": 0.5}
    assert {**one.metadata, "general.sampling.temp": 0.5, "general.name": "other"} == dict(other.metadata)
    assert one._fingerprint == other._fingerprint
    assert other.check() == one.check()
    format.rewrite(tmp_path / "n.gguf", tmp_path / "n.gguf", {"general.sampling.temp": 0.25})
    assert fastlm.load(tmp_path / "n.gguf").recommended == {"temperature": 0.25}


# ---- specificity ---------------------------------------------------------------------------------------


def test_what_is_generic_gets_rarer(stories):
    logits = np.array(stories.state().feed("Once").logprobs(), np.float32)
    tokens = [stories.bos, *stories.encode("Once")]
    np.testing.assert_array_equal(Specific(stories, stories, 0.0, 0.0)(tokens, logits), logits)
    np.testing.assert_array_equal(Specific(stories, stories, 0.5, least_entropy=99)(tokens, logits), logits)
    expected = Experts(stories, unlike=stories, alpha=0.5)(tokens, logits)
    np.testing.assert_array_equal(Specific(stories, stories, 0.5, 0.0)(tokens, logits), expected)
    with pytest.raises(ValueError, match="strength=-1: expected a finite number from 0 on"):
        Specific(stories, stories, -1)
