# SPDX-License-Identifier: Apache-2.0
"""When your wishes conflict: what cannot be had is said before anything is written, what pulls apart is shown.

python docs/tutorials/when_wishes_conflict.py [FOLDER]    # writes wishes.svg there; needs fastlm[plot]
"""

import sys
from pathlib import Path

import fastlm
from fastlm.goals import Brief, ConflictError, Diverse, Exclude, Include, Length, Likely, Search, check

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
lm = fastlm.load("stories")
prompt = "Once upon a time there was a bear who"

# 1. Wishes that cannot all be had. A text of nine characters has no room for "honey" and "river". Nothing is written:
# the error names the smallest set of wishes that are in each other's way, and what would have to change.
impossible = [Include(["honey", "river"]), Length("characters", max=9), Exclude("said"), Length("words", min=2)]
try:
    check(impossible, lm)
except ConflictError as conflict:
    print("1.", conflict)
    print("   in each other's way:", *(f"\n   - {goal}" for goal in conflict.conflict))
    print("   changes, each of which is enough:", *(f"\n   - {goal}" for goal in conflict.relaxations))

# 2. With more room than the least all wishes are met; each is proved of the text that was written, with its price: by
# how many nats a token the text is less likely than one that was written freely.
possible = [Include(["honey", "river"]), Length("characters", max=90), Exclude("said"), Length("sentences", max=1)]
text = lm.generate(prompt, goals=possible, max_tokens=40, seed=7)
print("\n2.", prompt + text.text)
for outcome in text.goals:
    print(f"   {outcome} (price {outcome.price:+.2f})")

# 3. Wishes of which there is more or less. A text that is likely says common things; one that is diverse does not
# repeat itself; a brief one stops early. Texts grow side by side, what is promising by some weighting is forked, and
# what remains is a front: texts than which none is better in every wish.
wishes = [Likely(), Diverse(n=1), Brief()]
text = lm.generate(prompt, goals=wishes, search=Search(lanes=32, choose="fairest"), max_tokens=48, seed=0)
print("\n3. The fairest compromise:", prompt + text.text)
for other in text.tradeoff.front[1:4]:
    print("   or:", other.text.strip().replace("\n", " "))
for said in text.tradeoff.pulls():
    print("  ", said)

# 4. The same wishes, by what somebody holds dear: first of all diverse, then brief.
first = [Likely(), Diverse(n=1, priority=2), Brief(priority=1)]
text = lm.generate(prompt, goals=first, search=Search(lanes=32, choose="priority"), max_tokens=48, seed=0)
print("\n4. Diverse before all:", prompt + text.text)

lm.generate(prompt, goals=wishes[:2], search=Search(lanes=32, choose="fairest"), max_tokens=48, seed=0).tradeoff.plot(
    folder / "wishes.svg"
)
print(f"\nThe picture: {folder / 'wishes.svg'}")
