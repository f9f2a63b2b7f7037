# SPDX-License-Identifier: Apache-2.0
"""What each sampling control adds to a token: `python benchmarks/bench_controls.py [MODEL]`.

Ratios to drawing from all tokens without any control, in turns in one process, one thread. Default: `ptb-medium` in
int8, whose random weights make flat probabilities; a trained model's are peaked, and restrictions are then cheaper.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import fastlm
from workloads import WORKLOADS

TOKENS, ROUNDS = 200, 15

CONTROLS = {
    "temperature=0": {"temperature": 0.0},
    "top_k=50": {"top_k": 50},
    "top_p=0.95": {"top_p": 0.95},
    "min_p=0.05": {"min_p": 0.05},
    "typical_p=0.95": {"typical_p": 0.95},
    "epsilon_cutoff": {"epsilon_cutoff": 3e-4},
    "eta_cutoff": {"eta_cutoff": 2e-3},
    "top_n_sigma=1.5": {"top_n_sigma": 1.5},
    "xtc": {"xtc_probability": 0.5, "xtc_threshold": 0.1},
    "mirostat": {"mirostat_tau": 5.0},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "presence, frequency": {"presence_penalty": 0.5, "frequency_penalty": 0.5},
    "penalties, window 64": {"repetition_penalty": 1.1, "penalty_window": 64},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 3},
    "dry": {"dry_multiplier": 0.8},
    "logit_bias": {"logit_bias": dict.fromkeys(range(20), 1.0)},
    "bad_words": {"bad_words": [[n, n + 1] for n in range(100)]},
    "allowed_token_ids": {"allowed_token_ids": range(0, 10_000, 2)},
    "stop_repeats": {"stop_repeats": 4},
    "logprobs": {"logprobs": True},
    "logprobs=5": {"logprobs": 5},
    "logits_processor": {"logits_processor": lambda tokens, logits: None},
}
"""Among all others: an option's values."""

ALL_TOKENS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ptb-medium.gguf"
        if len(sys.argv) == 1:
            fastlm.export(WORKLOADS["ptb-medium"].weights, path, dtype="int8")
        model = fastlm.load(path if len(sys.argv) == 1 else sys.argv[1], threads=1)
        ratios: dict[str, list[float]] = {name: [] for name in CONTROLS}
        bare = []
        for seed in range(-1, ROUNDS):
            for name, options in CONTROLS.items():
                without, taken = microseconds(model, {}, seed + 1), microseconds(model, options, seed + 1)
                if seed >= 0:  # the first round warms up
                    ratios[name].append(taken / without)
                    bare.append(without)
    print(f"without any control: {statistics.median(bare):.1f} us a token")
    for name, found in ratios.items():
        print(f"{name:22} {100 * (statistics.median(found) - 1):+6.1f} %")


def microseconds(model: fastlm.Model, options: dict[str, object], seed: int) -> float:
    """Of a token."""
    begin = time.perf_counter()
    completion = model.generate([5], max_tokens=TOKENS, seed=seed, **{**ALL_TOKENS, **options})
    return (time.perf_counter() - begin) / max(1, len(completion.token_ids)) * 1e6


if __name__ == "__main__":
    main()
