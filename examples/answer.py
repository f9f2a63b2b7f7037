# SPDX-License-Identifier: Apache-2.0
"""Question answering: sentences are remembered, a line with a question mark at its end is answered from them, an empty
line forgets them."""

import argparse
import math
import sys
from pathlib import Path

import fastlm

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=Path(__file__).parent.parent / "models" / "babi.gguf")
options = parser.parse_args()

model, story = fastlm.load(options.model), []
for line in map(str.strip, sys.stdin):
    if not line:
        story.clear()
    elif not line.endswith("?"):
        story.append(line)
    else:
        # The model learnt with questions on both sides of their stories, so that it knows what to look for in both
        # directions. Without a length penalty a score is the log-probability of the whole answer.
        answers = model.generate(" ".join([line, *story, line]), num_beams=3, n=3, length_penalty=0.0)
        print(line, ", ".join(f"{answer} ({math.exp(answer.score):.0%})" for answer in answers))
