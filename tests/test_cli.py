# SPDX-License-Identifier: Apache-2.0
"""The `fastlm` command."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

import fastlm
from conftest import random_weights
from fastlm.cli import main
from fastlm.weights import Weights

COMMAND = str(Path(sys.executable).with_name("fastlm"))


def run(*arguments, stdin=""):
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, input=stdin.encode())


def test_generate_prints_what_the_api_gives(byte_model, lm, capsysbinary):
    options = ["--model", byte_model, "--max-tokens", "40", "--temperature", "1", "--seed", "5"]
    assert main(["generate", "abc", "--no-echo", *options]) == 0
    expected = lm.generate("abc", max_tokens=40, temperature=1.0, seed=5).text
    assert capsysbinary.readouterr().out.decode() == expected + "\n"
    assert main(["generate", "abc", *options]) == 0
    assert capsysbinary.readouterr().out.decode() == "abc" + expected + "\n"
    assert main(["generate", "abc", *options, "--stats"]) == 0
    out, err = capsysbinary.readouterr()
    assert out.decode() == "abc" + expected + "\n"
    assert b"tokens a second" in err
    assert b"seed 5]" in err
    assert main(["generate", "abc", *options, "--n", "2", "--top-k", "50", "--top-p", "0.9"]) == 0
    several = lm.generate("abc", n=2, max_tokens=40, temperature=1.0, seed=5, top_k=50, top_p=0.9)
    assert capsysbinary.readouterr().out.decode() == "".join(f"abc{c.text}\n" for c in several)


def test_generate_reads_standard_input(byte_model, lm):
    done = run("generate", "-", "--model", byte_model, "--max-tokens", 20, "--seed", 1, stdin="Grüße")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == "Grüße" + lm.generate("Grüße", max_tokens=20, seed=1).text + "\n"


def test_score_reports_each_file(byte_model, lm, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Hello, Wörld")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"Bye"))
    assert main(["score", "--model", byte_model, str(tmp_path / "a.txt"), str(tmp_path / "b.txt.gz"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = lm.score("Hello, Wörld", documents=True)
    assert rows[0]["perplexity"] == expected.perplexity
    assert rows[0]["bits_per_char"] == expected.bits_per_char
    assert (rows[1]["tokens"], rows[1]["characters"], rows[1]["unknown"]) == (4, 3, 0)
    assert main(["score", "--model", byte_model, str(tmp_path / "a.txt")]) == 0
    assert "bits per character (14 tokens, 0 unknown, 12 characters)" in capsys.readouterr().out


def test_info_shows_keys_and_tensors(byte_model, capsys):
    assert main(["info", byte_model]) == 0
    text = capsys.readouterr().out
    for part in ("vocab_size       257", "units            [24, 18]", "general.architecture", "blk.1.h.weight"):
        assert part in text
    assert all(len(line) < 150 for line in text.splitlines())
    assert main(["info", byte_model, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["metadata"]["lstm.layer.units"] == [16, 24, 18, 257]


def test_info_does_not_let_a_file_speak_to_the_terminal(tmp_path, capsys):
    fastlm.export(random_weights(), tmp_path / "m.gguf", metadata={"name": "\x1b[31mred\x07"})
    assert main(["info", str(tmp_path / "m.gguf")]) == 0
    out = capsys.readouterr().out
    assert "[31mred" in out
    assert "\x1b" not in out


def test_check_says_good_or_bad(byte_model, tmp_path, capsys):
    assert main(["check", byte_model]) == 0
    assert "good: log-probabilities of the test vector differ by at most" in capsys.readouterr().out
    fastlm.format.write(tmp_path / "untested.gguf", Weights.from_dict(random_weights()), {})
    assert main(["check", str(tmp_path / "untested.gguf")]) == 1
    assert "no test vector" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["generate", "x", "--model", "nowhere"], 1, "nowhere"),
        (["generate", "x", "--top-p", "7"], 1, "top_p=7.0: expected above 0 and at most 1"),
        (["generate", "x", "--temperature", "hot"], 2, "invalid float value: 'hot'"),
        (["generate", "x", "--colour"], 2, "unrecognized arguments: --colour"),
        (["score", "nowhere.txt"], 1, "nowhere.txt"),
        (["score", "/dev/null"], 1, "/dev/null: no text to score"),
        (["info", "/dev/null"], 1, "not a regular file"),
        (["check", "nowhere.gguf"], 1, "nowhere.gguf"),
        (["export", "m.h5", "m.gguf"], 1, "expected a .keras file"),
        ([], 2, "required: command"),
    ],
    ids=str,
)
def test_errors_are_one_line_without_a_traceback(arguments, status, message):
    done = run(*arguments)
    assert done.returncode == status
    assert message in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    if status == 1:
        assert done.stderr.decode().startswith("fastlm: ")
        assert len(done.stderr.decode().splitlines()) == 1


def test_text_that_is_not_utf8_is_named(byte_model, tmp_path, capsys):
    (tmp_path / "latin1.txt").write_bytes(b"Gr\xfc\xdfe")
    assert main(["score", "--model", byte_model, str(tmp_path / "latin1.txt")]) == 1
    assert "latin1.txt: expected UTF-8 text, found byte 0xfc at offset 2" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error(byte_model):
    command = f"{COMMAND} generate a --model {byte_model} --max-tokens 100000 | head -c 5"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True)
    assert done.stderr == b""


def test_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "fastlm", "--version"], capture_output=True, cwd="/", check=True)
    assert done.stdout.decode() == f"fastlm {fastlm.__version__}\n"


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"fastlm {fastlm.__version__}\n"
