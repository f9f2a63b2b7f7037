# SPDX-License-Identifier: Apache-2.0
"""Text generation: a text in pieces as it is written, then other endings for its first half."""

import argparse

import fastlm

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompt", nargs="?", default="Once upon a time")
parser.add_argument("--model", default="stories")
parser.add_argument("--seed", type=int, default=1)
options = parser.parse_args()

lm = fastlm.load(options.model)
print(options.prompt, end="")
for piece in lm.stream(options.prompt, seed=options.seed, max_tokens=80):
    print(piece, end="", flush=True)

# A session keeps what was read: going on costs only what is written.
story = lm.session(seed=options.seed).feed(options.prompt)
begun = options.prompt + str(story.generate(40))
print("\n\nOther endings for the first half:")
for ending in lm.generate(begun, n=3, max_tokens=25, stop=["\n"], seed=options.seed + 1):
    print(f"  ...{ending}")
