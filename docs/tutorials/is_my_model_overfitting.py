# SPDX-License-Identifier: Apache-2.0
"""Is my model overfitting? A mistake that training cannot see, what the report says of it, and what helps.

python docs/tutorials/is_my_model_overfitting.py [FOLDER]    # writes there; needs fastlm[train,report]

Three minutes. The picture is overfitting.svg; the pages are index.html in by-heart, better and best.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from matplotlib.figure import Figure

import fastlm
from fastlm.report import read_curve, report
from fastlm.training import GapCurve, train

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")

# So that nothing needs to be downloaded, the bundled model stands in for people: what it writes, as wild as it is, are
# the texts. There is little to train on, and enough to see by how the models do.
author = fastlm.load("stories")


def texts(name, count, seed):
    """A file of so many texts by the author."""
    written = author.generate("Once", n=count, seed=seed, temperature=1.0, top_p=1.0, min_tokens=300, max_tokens=300)
    path = folder / name
    path.write_text("\n".join(f"Once{one.text}".replace("\n", " ") for one in written) + "\n", encoding="utf-8")
    return path


trained_on, held_out, unseen = texts("train.txt", 24, 1), texts("valid.txt", 12, 2), texts("unseen.txt", 60, 3)
small = {"preset": "bpe", "vocab_size": 500, "documents": "line", "layers": 1, "units": 256, "learning_rate": 4e-3}
small |= {"sequence_length": 32, "batch_size": 16, "progress": False}

# 1. The mistake: the text that training is watched by is the one it learns. The perplexity falls and falls.
by_heart = folder / "by-heart.gguf"
mistaken = train(trained_on, by_heart, valid=trained_on, dropout=0.0, epochs=60, **small)
print(f"1. Training is content: perplexity {mistaken.valid_perplexity:.1f}.")

# 2. The report has texts that really are unseen, and tells how often it can say which of two passages was trained on.
first = report(fastlm.load(by_heart), unseen, trained_on, fitted=False)
first.save(folder / "by-heart")
print("\n2.", first.verdicts[0].question, first.verdicts[0].answer)
for remedy in first.verdicts[0].remedies:
    print("   -", remedy)

# 3. The first remedies: dropout, and a text that is held out. Training then keeps the weights that are best on it, and
# writes down how what it has seen and what it has not part from each other.
better, curve = folder / "better.gguf", folder / "curve.jsonl"
options = {**small, "progress": GapCurve(curve, stream=False)}
honest = train(trained_on, better, valid=held_out, dropout=0.4, epochs=60, **options)
second = report(fastlm.load(better), unseen, trained_on, curve=curve, fitted=False)
second.save(folder / "better")
print(f"\n3. Perplexity {honest.valid_perplexity:.1f} of text that was held out.")
print("  ", second.verdicts[0].answer)
print(f"   On unseen text a token costs {first.gap.valid:.2f} nats before, {second.gap.valid:.2f} now.")

# 4. What helps most is more text: of forty times as much, read twice, little can be learnt by heart.
more = texts("more.txt", 1000, 4)
best = folder / "best.gguf"
train([trained_on, more], best, valid=held_out, dropout=0.3, epochs=2, **small)
third = report(fastlm.load(best), unseen, [trained_on, more], fitted=False)
third.save(folder / "best")
print("\n4. With more text:", third.verdicts[0].answer)
print(f"   On unseen text a token costs {third.gap.valid:.2f} nats.")

# 5. Whatever a model knows by heart, it need not say: no run of more than eight tokens is copied.
index = fastlm.build_index(trained_on, fastlm.load(by_heart), folder / "train.flnx")
print("\n5. Copies:")
for limits in ({}, {"max_copied": 8, "corpus": index}):
    text = fastlm.load(by_heart).generate("Once", max_tokens=120, seed=0, **limits)
    longest = max(copy.length for copy in index.copies(text.token_ids, 1))
    print(f"   {'with' if limits else 'without'} max_copied the longest copied run has {longest} tokens.")

rows = read_curve(curve)
figure = Figure(figsize=(7, 3.2), layout="constrained")
axes = figure.add_subplot()
axes.spines[["top", "right"]].set_visible(False)
for key, colour, label in (("valid", "#777777", "text that was held out"), ("train", "#1f5fa8", "training text")):
    axes.plot([row["epoch"] for row in rows], [row[key] for row in rows], color=colour, label=label)
axes.set(xlabel="epochs", ylabel="nats a token")
axes.legend(frameon=False)
figure.savefig(folder / "overfitting.svg", metadata={"Date": None})
print(f"\nThe picture: {folder / 'overfitting.svg'}")
