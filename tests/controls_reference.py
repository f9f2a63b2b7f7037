# SPDX-License-Identifier: Apache-2.0
"""What each control means, written to be read: float64 numpy, one token at a time. Definitions are Hugging Face's
(transformers' LogitsProcessor of the same name) where there is one, else the paper's or llama.cpp's (docs/options.md).

A set is a boolean array. Those of the tokens whose decision is nearer to its border than rounding may be in or out:
so each restriction takes `slack`, by which its parameter is widened (or, negative, narrowed).
"""

import numpy as np


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def entropy(p):
    p = p[p > 0]
    return -(p * np.log(p)).sum()


def ranked(z):
    """Ids, the likeliest first, equal ones by rising id."""
    return np.lexsort((np.arange(len(z)), -z))


def only(ids, size):
    kept = np.zeros(size, bool)
    kept[ids] = True
    return kept


# ---- restrictions --------------------------------------------------------------------------------------


def top_k(z, k, slack=0):
    return only(ranked(z)[:k], len(z))


def top_p(z, p, slack=0):
    order = ranked(z)
    mass = softmax(z)[order]
    return only(order[np.cumsum(mass) - mass < p + slack], len(z))


def min_p(z, p, slack=0):
    mass = softmax(z)
    return mass >= p * (1 - slack) * mass.max()


def epsilon_cutoff(z, epsilon, slack=0):
    return (softmax(z) >= epsilon * (1 - slack)) | only([ranked(z)[0]], len(z))


def eta_cutoff(z, eta, slack=0):
    p = softmax(z)
    return epsilon_cutoff(z, min(eta, np.sqrt(eta) * np.exp(-entropy(p))), slack)


def top_n_sigma(z, n, slack=0):
    return z >= z.max() - n * (1 + slack) * z[z > -np.inf].std()


def is_typical(z, kept, p, slack):
    """Whether a set is a run, from the tokens whose surprise is nearest to the entropy, that just reaches p."""
    mass = softmax(z)
    distance = np.abs(-np.log(np.maximum(mass, 1e-300)) - entropy(mass))
    farthest = np.flatnonzero(kept)[np.argmax(distance[kept])]
    outside = distance[~kept & (mass > 0)]
    without = kept & ~only([farthest], len(z))
    return (
        distance[farthest] <= outside.min(initial=np.inf) + 10 * slack
        and mass[kept].sum() >= p - slack
        and mass[without].sum() < p + slack
    )


def xtc(z, threshold, slack=0):
    """When it acts."""
    order = ranked(z)
    above = int((softmax(z)[order] >= threshold * (1 - slack)).sum())
    return only(order[max(above - 1, 0) :], len(z))


# ---- changes of logits ---------------------------------------------------------------------------------


def penalise(z, history, written, window=0, repetition=1.0, frequency=0.0, presence=0.0):
    """history: tokens; written: for each whether the model wrote it."""
    z = z.copy()
    if window:
        history, written = history[-window:], written[-window:]
    for token in set(history):
        z[token] = z[token] / repetition if z[token] > 0 else z[token] * repetition
        count = sum(w for t, w in zip(history, written, strict=True) if t == token)
        z[token] -= count * frequency + (count > 0) * presence
    return z


def ban_ngrams(z, history, n):
    z = z.copy()
    last = tuple(history[len(history) - n + 1 :])
    for at in range(len(history) - n + 1):
        if tuple(history[at : at + n - 1]) == last:
            z[history[at + n - 1]] = -np.inf
    return z


def ban_words(z, history, words):
    z = z.copy()
    for word in words:
        if len(word) == 1 or tuple(history[-len(word) + 1 :]) == tuple(word[:-1]):
            z[word[-1]] = -np.inf
    return z


def dry(z, history, multiplier, base, allowed, breakers=(), window=0):
    z = z.copy()
    history = history[-window:] if window else history
    longest = {}
    for at in range(len(history) - 1):
        length = 0
        while length < 50 and length <= at:
            token = history[at - length]
            if token != history[-1 - length] or token in breakers:
                break
            length += 1
        follower = history[at + 1]
        if length >= allowed and follower not in breakers:
            longest[follower] = max(longest.get(follower, 0), length)
    for token, length in longest.items():
        z[token] -= multiplier * base ** (length - allowed)
    return z


def repeats(written, times):
    """Whether the end of a text is one pattern of 1 to 64 tokens so many times."""
    for size in range(1, min(64, len(written) // times) + 1):
        tail = written[len(written) - size * times :]
        if tail == tail[:size] * times:
            return True
    return False
