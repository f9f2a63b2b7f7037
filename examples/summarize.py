# SPDX-License-Identifier: Apache-2.0
"""Summarisation: a line for each paragraph of standard input; blank lines are between them."""

import argparse
import re
import sys
from pathlib import Path

import fastlm

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=Path(__file__).parent.parent / "models" / "debian-summaries.gguf")
parser.add_argument("--beams", type=int, default=32)
options = parser.parse_args()

paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", sys.stdin.read()) if part.strip()]
writer = fastlm.load(options.model)
# Chosen on validation texts: of what the beams find, the line that is most like all of them.
how = {"num_beams": options.beams, "mbr": True, "no_repeat_ngram_size": 2, "length_penalty": 0.5}
summaries = writer.generate(paragraphs, **how) if paragraphs else []
for paragraph, summary in zip(paragraphs, summaries, strict=True):
    saved = 100 * (1 - len(str(summary)) / len(paragraph))
    print(f"{summary}    [{len(paragraph)} characters, {saved:.0f} % shorter]")
