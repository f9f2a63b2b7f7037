# SPDX-License-Identifier: Apache-2.0
"""Translation: the best texts that a beam search finds, and which word of the source each word looked at."""

import argparse
from pathlib import Path

import fastlm

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("text", nargs="*", default=["This package contains the documentation for the Python library."])
parser.add_argument("--model", default=Path(__file__).parent.parent / "models" / "debian-en-fr.gguf")
options = parser.parse_args()

translator = fastlm.load(options.model)
for source in options.text:
    print(source)
    best, *others = translator.generate(source, num_beams=10, n=3, keep_names=True, attention=True)
    print(f"  {best.score:6.2f}  {best}")
    for other in others:
        print(f"  {other.score:6.2f}  {other}")
    spans = translator.source_tokenizer.spans(source)
    pairs = []
    for token, weights in zip(best.token_ids, best.attention, strict=True):
        begin, end = spans[min(int(weights.argmax()), len(spans) - 1)]  # behind them is only the source's end
        pairs.append(f"{translator.decode([token]).strip()}<{source[begin:end].strip()}")
    print("         " + " ".join(pairs))
