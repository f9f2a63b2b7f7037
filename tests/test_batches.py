# SPDX-License-Identifier: Apache-2.0
"""A text has the same bits whoever computes it: every level and dtype, one thread or two, alone or in a batch, its
prompt read at once or in parts."""

import os
import subprocess
import sys
from array import array

import numpy as np
import pytest

import fastlm
from conftest import LEVELS, Reader, random_weights

DTYPES = ("f32", "bf16", "int8", "int4")
THREADS = (1, 2)
OPTIONS = (
    {"temperature": 0.0},
    {"temperature": 0.9, "seed": 5},
    {"temperature": 0.9, "seed": 5, "top_p": 0.8, "logprobs": True},
    {"temperature": 1.1, "seed": 6, "top_k": 4, "top_p": 0.95},
)


@pytest.fixture(scope="module", params=DTYPES)
def path(request, tmp_path_factory):
    """Sizes that fill up no panel, block or group."""
    path = tmp_path_factory.mktemp("batches") / f"{request.param}.gguf"
    fastlm.export(random_weights(301, 37, (75, 50), scale=2.0), path, dtype=request.param)
    return path


def prompts(count):
    """Some of one token, some longer than what is read at once."""
    random = np.random.default_rng(count)
    return [random.integers(0, 301, random.choice([1, 1, 2, 7, 65, 200])).tolist() for _ in range(count)]


def facts(completion):
    return completion.token_ids, completion.logprobs, completion.finish_reason


@pytest.mark.parametrize("isa", LEVELS)
def test_scores_and_texts_have_the_same_bits_on_every_level(path, isa):
    first = fastlm.load(path, isa=LEVELS[0], threads=1)
    for threads in THREADS:
        model = fastlm.load(path, isa=isa, threads=threads, row_cache_mb=0.05)
        for prompt in prompts(6):
            assert model.score(prompt).logprobs == first.score(prompt).logprobs
            for options in OPTIONS[::3] if isa == "scalar" else OPTIONS:
                ours = model.generate(prompt, max_tokens=12, **options)
                assert facts(ours) == facts(first.generate(prompt, max_tokens=12, **options))


@pytest.mark.parametrize("size", [2, 3, 8, 9, 64, 100])
def test_texts_of_a_batch_equal_those_written_alone(path, size):
    for threads in THREADS:
        model = fastlm.load(path, threads=threads)
        for options in OPTIONS:
            options = {"max_tokens": 40, "stop_token_ids": range(0, 301, 29), **options}  # so that some end early
            together = model.generate(prompts(size), **options)
            assert [facts(c) for c in together] == [facts(model.generate(p, **options)) for p in prompts(size)]


def test_samples_of_a_prompt_equal_those_written_alone(path):
    model = fastlm.load(path)
    together = model.generate([[1, 2], [3]], n=5, max_tokens=20, temperature=1.0, seed=1)
    for prompt, completions in zip([[1, 2], [3]], together, strict=True):
        alone = model.generate(prompt, n=5, max_tokens=20, temperature=1.0, seed=1)
        assert [facts(c) for c in completions] == [facts(c) for c in alone]
        assert len({tuple(c.token_ids) for c in alone}) == 5


def test_prompt_has_the_same_bits_read_at_once_or_in_parts(path):
    tokens = array("i", np.random.default_rng(0).integers(0, 301, 300).tolist())
    for threads in THREADS:
        model = fastlm.load(path, threads=threads)
        whole, steps, parts = Reader(model), Reader(model), Reader(model)
        whole.feed(tokens)
        for token in tokens:
            steps.feed(array("i", [token]))
        scores = array("f")
        for at in range(0, 300, 37):
            scores += parts.score(tokens[at : at + 37])
        assert bytes(whole.logits()) == bytes(steps.logits()) == bytes(parts.logits())
        assert scores == Reader(model).score(tokens)


def test_prompts_may_be_empty_where_texts_have_a_start(byte_model):
    model = fastlm.load(byte_model)
    assert model.bos is not None
    options = {"max_tokens": 20, "temperature": 1.0, "seed": 1}
    together = model.generate(["", "abc", [], [5, 6]], **options)
    assert [facts(c) for c in together] == [facts(model.generate(p, **options)) for p in ("", "abc", [], [5, 6])]
    assert model.generate(["a", "b"], max_tokens=0)[1].token_ids == []


@pytest.mark.parametrize("threads", [0, -1, 65, 1.5, "2", True])
def test_number_of_threads_is_checked(byte_model, threads):
    with pytest.raises(ValueError, match=f"threads={threads!r}: expected a whole number from 1 to 64$"):
        fastlm.load(byte_model, threads=threads)


def test_environment_says_how_many_threads(byte_model, monkeypatch):
    monkeypatch.setenv("FASTLM_THREADS", "2")
    assert fastlm.load(byte_model).info["threads"] == min(2, len(os.sched_getaffinity(0)))
    assert fastlm.load(byte_model, threads=1).info["threads"] == 1
    for wrong in ("0", "-1", "two", "1e3", "65"):
        monkeypatch.setenv("FASTLM_THREADS", wrong)
        with pytest.raises(ValueError, match=f"FASTLM_THREADS={wrong}: expected a number from 1 to 64"):
            fastlm.load(byte_model)


def test_small_models_have_one_thread_and_large_ones_those_that_the_process_may_use(byte_model, tmp_path):
    assert fastlm.load(byte_model).info["threads"] == 1
    large = tmp_path / "large.gguf"
    fastlm.export(random_weights(2000, 64, (512,)), large)
    code = f"import os, fastlm; print(fastlm.load({str(large)!r}).info['threads'])"
    for command, expected in (([], None), (["taskset", "-c", str(min(os.sched_getaffinity(0)))], 1)):
        run = [*command, sys.executable, "-c", code]
        found = int(subprocess.run(run, cwd=tmp_path, capture_output=True, check=True).stdout)
        assert found == expected or (expected is None and 1 <= found <= len(os.sched_getaffinity(0)))
