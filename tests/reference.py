# SPDX-License-Identifier: Apache-2.0
"""What fastlm computes, written to be read: an LSTM language model and its sampling in float64 numpy.

Nothing here is shared with the package, so that a mistake in one shows against the other.
"""

import itertools

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


# ---- weights in fewer bits -----------------------------------------------------------------------------


def read_matrix(tensors, name, inputs):
    """A matrix of a model file: float64 [rows, inputs], and the scale of each row if they are whole numbers, which
    it multiplies; else None. ``tensors``: arrays by name, bf16 as uint16. Rows come as they lie in the file, 16 a
    panel; an embedding of its own has one."""
    lanes = 1 if name == "token_embd" else 16
    weight = tensors[f"{name}.weight"]
    scale, group = (tensors.get(f"{name}.{part}") for part in ("scale", "group"))
    run = {np.float32: 1, np.uint16: 2, np.int8: 4}[weight.dtype.type]
    weight = weight.reshape(-1, weight.size // (weight.shape[0] * lanes * run), lanes, run)
    rows = np.empty((weight.shape[0], lanes, inputs))
    for k in range(inputs):
        if scale is None:
            rows[..., k] = _widened(weight[:, k // run, :, k % run])
        elif group is None:
            rows[..., k] = weight[:, k // 4, :, k % 4]
        else:
            byte = weight[:, k // 8, :, k % 4].astype(np.int64) & 255
            value = (byte >> 4 if k % 8 >= 4 else byte & 15) - 8
            rows[..., k] = value * group.reshape(len(weight), -1, lanes, 2)[:, k // 64, :, k // 32 % 2]
    return rows.reshape(-1, inputs), None if scale is None else scale.reshape(-1).astype(np.float64)


def _widened(weight):
    """bf16 is the upper half of a float32."""
    return weight if weight.dtype == np.float32 else (weight.astype(np.uint32) << 16).view(np.float32)


def embedding_row(matrix, token):
    rows, scale = matrix
    return rows[token] if scale is None else np.float64(np.float32(rows[token] * scale[token]))


def times(matrix, x, units=127.0):
    """Matrix times vector. Rows of whole numbers take the vector in whole units too: hidden states, which are within
    (-1, 1), have 127 to 1. That product is rounded to float32 before it becomes whole, to the nearest, ties to even."""
    rows, scale = matrix
    return rows @ x if scale is None else scale / units * (rows @ np.rint(np.float32(x) * units))


def largest_as_127(x):
    """Units of the first layer's input, which is no hidden state: an embedding may be of any size."""
    largest = np.float32(np.abs(x).max())
    return np.float32(127) / largest if largest >= 2.0**-100 else np.float32(2.0**-100)


def gate(z, n):
    """Gate n of every unit: panels of i, f, g, o of 16 units lie in turn."""
    return z.reshape(-1, 4, 16)[:, n].reshape(-1)


def file_logits(tensors, sizes, vocab_size, tokens):
    """[T, V] of a model file in any mixture of types. ``sizes``: of the embedding and of each layer's h. Units that
    fill up a panel are computed like others and left out."""
    output = read_matrix(tensors, "output", sizes[-1])
    embedding = read_matrix(tensors, "token_embd", sizes[0]) if "token_embd.weight" in tensors else output
    cells = [
        (read_matrix(tensors, f"blk.{n}.x", inputs), read_matrix(tensors, f"blk.{n}.h", width))
        for n, (inputs, width) in enumerate(itertools.pairwise(sizes))
    ]
    state = [(np.zeros(width), np.zeros(width)) for width in sizes[1:]]
    rows = []
    for token in tokens:
        x = embedding_row(embedding, token)
        units = largest_as_127(x)
        for n, ((of_x, of_h), (h, c)) in enumerate(zip(cells, state, strict=True)):
            z = tensors[f"blk.{n}.bias"].reshape(-1) + times(of_x, x, units) + times(of_h, h)
            i, f, g, o = (gate(z, part)[: len(c)] for part in range(4))
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            x, units = sigmoid(o) * np.tanh(c), 127.0
            state[n] = x, c
        rows.append((tensors["output.bias"].reshape(-1) + times(output, x))[:vocab_size])
    return np.stack(rows)


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


# ---- sequence to sequence --------------------------------------------------------------------------------


def _cell(weights, name, x, h, c):
    z = x @ weights[f"{name}.kernel"].astype(np.float64) + h @ weights[f"{name}.recurrent_kernel"]
    i, f, g, o = np.split(z + weights.get(f"{name}.bias", 0), 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def _read(weights, name, values):
    """Every h of a layer that reads the values in turn, and its last c."""
    units = weights[f"{name}.recurrent_kernel"].shape[0]
    h = c = np.zeros(units)
    out = []
    for x in values:
        h, c = _cell(weights, name, x, h, c)
        out.append(h)
    return out, c


def encode_source(weights, source):
    """The outputs of an encoder [S, D], and the last (h, c) of each of its layers."""
    values = [weights.get("source.embedding", weights["embedding"])[token].astype(np.float64) for token in source]
    ends, n = [], 0
    while f"encoder.{n}.kernel" in weights:
        out, c = _read(weights, f"encoder.{n}", values)
        h = out[-1]
        if f"encoder.{n}.reverse.kernel" in weights:
            back, back_c = _read(weights, f"encoder.{n}.reverse", values[::-1])
            h, c = np.concatenate([h, back[-1]]), np.concatenate([c, back_c])
            out = [np.concatenate(pair) for pair in zip(out, back[::-1], strict=True)]
        values, n = out, n + 1
        ends.append((h, c))
    return np.array(values), ends


def seq2seq_logits(weights, source, target):
    """Logits [T, V] behind each token of the target (log-probabilities, if tokens are copied), and where attention
    looked, [T, S], or None."""
    w = weights
    outputs, ends = encode_source(w, source)
    state = []
    while f"lstm.{len(state)}.kernel" in w:
        n = len(state)
        h, c = ends[min(n, len(ends) - 1)]
        if f"bridge.{n}.h.kernel" in w:
            both = np.concatenate([h, c])
            h = np.tanh(both @ w[f"bridge.{n}.h.kernel"] + w[f"bridge.{n}.h.bias"])
            c = both @ w[f"bridge.{n}.c.kernel"] + w[f"bridge.{n}.c.bias"]
        state.append((h, c))
    given, rows, looked = np.zeros(len(w.get("attention.bias", ()))), [], []
    for token in target:
        x = w["embedding"][token].astype(np.float64)
        for n in range(len(state)):
            layer = w
            if n == 0 and "attention.feed" in w:
                x = np.concatenate([x, given])
                layer = {**w, "lstm.0.kernel": np.concatenate([w["lstm.0.kernel"], w["attention.feed"]])}
            x, c = _cell(layer, f"lstm.{n}", x, *state[n])
            state[n] = (x, c)
        if "attention.bias" in w:
            keys = outputs @ w["attention.key"] if "attention.key" in w else outputs
            if "attention.score" in w:
                query = x @ w["attention.query.kernel"] + w["attention.query.bias"]
                scores = np.tanh(keys + query) @ w["attention.score"]
            else:
                scores = keys @ x
            share = np.exp(scores - scores.max())
            looked.append(share / share.sum())
            x = given = np.tanh(
                looked[-1] @ outputs @ w["attention.context"] + x @ w["attention.hidden"] + w["attention.bias"]
            )
        output = w.get("output.kernel", w["embedding"].T)
        row = x @ output + w.get("output.bias", 0)
        if "attention.copy.kernel" in w:
            gate = sigmoid(x @ w["attention.copy.kernel"] + w["attention.copy.bias"])
            both = gate * np.exp(log_softmax(row))
            np.add.at(both, source, (1 - gate) * looked[-1])
            row = np.log(both)
        rows.append(row)
    return np.array(rows), np.array(looked) if looked else None


def classifier_logits(weights, pooling, tokens):
    """Logits [labels] of a text."""
    renamed = {name.replace("lstm.", "encoder.", 1): array for name, array in weights.items()}
    outputs, ends = encode_source(renamed, tokens)
    if pooling == "attention":
        scores = np.tanh(outputs @ weights["pooling.key.kernel"] + weights["pooling.key.bias"])
        scores = scores @ weights["pooling.score"]
        share = np.exp(scores - scores.max())
        pooled = (share / share.sum()) @ outputs
    else:
        found = {"last": ends[-1][0], "max": outputs.max(0), "mean": outputs.mean(0)}
        pooled = np.concatenate(list(found.values())) if pooling == "concat" else found[pooling]
    return pooled @ weights["output.kernel"] + weights["output.bias"]
