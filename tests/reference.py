# SPDX-License-Identifier: Apache-2.0
"""What fastlm computes, written to be read: an LSTM language model and its sampling in float64 numpy.

Nothing here is shared with the package, so that a mistake in one shows against the other.
"""

import numpy as np

# ---- the network ---------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def step(weights, state, token):
    """One token through the network. ``state``: list of (h, c) by layer. Returns the new state and the logits."""
    x = weights["embedding"][token].astype(np.float64)
    new = []
    for n, (h, c) in enumerate(state):
        z = x @ weights[f"lstm.{n}.kernel"] + h @ weights[f"lstm.{n}.recurrent_kernel"]
        i, f, g, o = np.split(z + weights.get(f"lstm.{n}.bias", 0), 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        x = sigmoid(o) * np.tanh(c)
        new.append((x, c))
    output = weights.get("output.kernel", weights["embedding"].T)
    return new, x @ output + weights.get("output.bias", 0)


def fresh(weights):
    """The state of a network that has read nothing."""
    units = [w.shape[0] for name, w in weights.items() if name.endswith("recurrent_kernel")]
    return [(np.zeros(n), np.zeros(n)) for n in units]


def logits(weights, tokens):
    """[T, V]: row t is for the token after tokens[: t + 1]."""
    state, rows = fresh(weights), []
    for token in tokens:
        state, row = step(weights, state, token)
        rows.append(row)
    return np.stack(rows)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


# ---- the next token ------------------------------------------------------------------------------------


def philox(counter, key):
    """Philox4x32-10: four 32-bit words."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (p1 >> 32) ^ b ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ d ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return a, b, c, d


def gumbel(token, position, seed, index=0):
    """Standard Gumbel noise of one token at one position of one sample."""
    block, rest = divmod(token, 64)
    word, lane = divmod(rest, 16)
    counter = (16 * block + lane, position & 0xFFFFFFFF, index, position >> 32 << 8)
    n = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))[word]
    return -np.log(-np.log1p(-(n + 0.5) / 2**32))


def kept(logits, temperature=1.0, top_k=0, top_p=1.0):
    """Ids that the controls leave, likeliest first; equal logits by rising id."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    if top_k:
        order = order[:top_k]
    if top_p < 1:
        p = np.exp((logits[order] - logits[order[0]]) / temperature)
        order = order[: 1 + int(np.searchsorted(np.cumsum(p), top_p * p.sum()))]
    return order


def draw(logits, position, seed, temperature=1.0, top_k=0, top_p=1.0, index=0):
    """The drawn token, and by how much it won."""
    ids = kept(logits, temperature, top_k, top_p) if temperature else np.arange(len(logits))
    noise = np.array([gumbel(int(i), position, seed, index) for i in ids]) if temperature else 0
    keys = logits[ids] + temperature * noise
    order = np.argsort(-keys)
    return int(ids[order[0]]), float(keys[order[0]] - keys[order[1]]) if len(ids) > 1 else np.inf
