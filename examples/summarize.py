# SPDX-License-Identifier: Apache-2.0
"""Summarisation: a line for each paragraph of standard input; blank lines are between them."""

import argparse
import re
import sys

import fastlm

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--beams", type=int, default=5)
options = parser.parse_args()

paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", sys.stdin.read()) if part.strip()]
writer = fastlm.load(options.model)
summaries = writer.generate(paragraphs, num_beams=options.beams) if paragraphs else []
for paragraph, summary in zip(paragraphs, summaries, strict=True):
    saved = 100 * (1 - len(str(summary)) / len(paragraph))
    print(f"{summary}    [{len(paragraph)} characters, {saved:.0f} % shorter]")
