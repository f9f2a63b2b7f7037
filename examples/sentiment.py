# SPDX-License-Identifier: Apache-2.0
"""Sentiment: the verdict as the text grows, word by word, and then which words decided."""

import argparse
from pathlib import Path

import fastlm

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("text", nargs="*", default=["The plot is thin, but the acting is superb."])
parser.add_argument("--model", default=Path(__file__).parent.parent / "models" / "reviews.gguf")
options = parser.parse_args()

judge = fastlm.load(options.model)
for text in options.text:
    whole = judge.classify(text, explain=True)
    print(f"{text}\n  {whole.label}, {whole.probability:.1%}")
    if not judge.bidirectional:  # nothing is read twice
        state, verdicts = judge.state(), []
        for place, word in enumerate(text.split()):
            state.feed(word if place == 0 else f" {word}")
            now = state.classify()
            verdicts.append(f"{word} [{now.label} {now.probability:.0%}]")
        print("  " + " ".join(verdicts))
    for word in sorted(whole.words, key=lambda word: -abs(word.effect))[:3]:
        print(f"  without {word.word!r} {whole.label!r} loses {word.effect:+.2f} in log-probability")
