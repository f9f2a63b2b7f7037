# SPDX-License-Identifier: Apache-2.0
"""Translation and classification with trained models: fastlm against TensorFlow and ONNX Runtime, the same weights.

python benchmarks/applications.py translate en-de.gguf test.tsv [--batch 1 32] [--beams 1 5] [--texts 200]
python benchmarks/applications.py classify sentiment.gguf test.tsv

One thread each, in turns in one process. fastlm writes greedily with a screen, too (docs/screening.md), made for the
pairs in the data. TensorFlow decodes inside one graph (`tf.function`, padded batches of the like lengths that sorting
gives); ONNX Runtime runs an encoder graph and a graph for a step, with ArgMax or TopK in it, in float32 and in int8
(`quantize_dynamic`). Every engine's texts are compared with fastlm's in float32 first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
from numpy.typing import NDArray

import fastlm
from fastlm.format import unpack
from fastlm.pairs import read_pairs
from peer_onnxruntime import IR_VERSION, OPSET, _onnx_gates
from peer_tensorflow import use_threads

Ids = list[list[int]]
Run = Callable[[Ids], list[Any]]
ROUNDS, LONGEST = 5, 100
NEVER = -1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("translate", "classify"))
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, help="tab-separated: the first column is read")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5], help="translate: 1 is greedy")
    parser.add_argument("--texts", type=int, default=200, help="so many, spread over the data")
    options = parser.parse_args()
    use_threads(1)
    pairs = read_pairs(options.data)
    texts = [text for text, _ in pairs[::2]]  # the others fit the screen
    texts = texts[:: max(1, len(texts) // options.texts)][: options.texts]
    with tempfile.TemporaryDirectory() as folder:
        models = {"f32": options.model, "int8": Path(folder) / "int8.gguf"}
        fastlm.quantize(options.model, models["int8"], dtype="int8")
        if options.task == "classify":
            compare_classifiers(models, texts, options.batch, Path(folder))
            return
        models["screen"] = Path(folder) / "screen.gguf"
        report = fastlm.quantize(options.model, models["screen"], dtype="int8", screen=True, text=pairs[1::2])
        if report.screen is None:
            del models["screen"]
        compare_translators(models, texts, options.batch, options.beams, Path(folder))


def in_turns(title: str, runs: dict[str, Run], texts: Ids, batch: int) -> None:
    """Prints milliseconds a text of each way, and how many times as much that is as each form of fastlm takes; and how
    many texts are the same."""
    order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
    parts = [[texts[n] for n in order[at : at + batch]] for at in range(0, len(texts), batch)]
    times: dict[str, list[float]] = {name: [] for name in runs}
    found: dict[str, list[Any]] = {}
    for name, run in runs.items():
        found[name] = [one for part in parts for one in run(part)]
    for _ in range(ROUNDS):
        for name, run in runs.items():
            begin = time.perf_counter()
            for part in parts:
                run(part)
            times[name].append(time.perf_counter() - begin)
    ours = {name.split()[1]: statistics.median(times[name]) for name in times if name.startswith("fastlm")}
    first = found["fastlm f32"]
    heads = "".join(f"{kind + ' x':>9}" for kind in ours)
    print(f"\n{title}, batch {batch}, {len(texts)} texts\n{'':24}{'ms a text':>10}{heads}   same")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        same = sum(a == b for a, b in zip(found[name], first, strict=True)) / len(first)
        ratios = "".join(f"{median / our:9.2f}" for our in ours.values())
        print(f"{name:24}{1e3 * median / len(texts):10.3f}{ratios} {same:6.1%}", flush=True)


# ---- classification --------------------------------------------------------------------------------------


def compare_classifiers(models: dict[str, Path], texts: list[str], batches: Sequence[int], folder: Path) -> None:
    judges = {name: fastlm.load(model, threads=1) for name, model in models.items()}
    one = judges["f32"]
    ids = [[*([] if one.bos is None else [one.bos]), *one.encode(text)] for text in texts]
    arrays, kind = unpack(models["f32"]).to_dict(), one.metadata["lstm.layer.kind"][-2].removeprefix("pooling.")
    for batch in batches:
        runs: dict[str, Run] = {
            f"fastlm {name}": lambda part, judge=judge: [found.label for found in judge.classify(part)]
            for name, judge in judges.items()
        }
        runs["TensorFlow f32"] = tensorflow_classifier(arrays, kind, one.labels)
        runs |= onnx_classifiers(arrays, kind, one.labels, folder)
        in_turns("classification", runs, ids, batch)


def padded(texts: Ids) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """[S, B], padded behind, and lengths."""
    lengths = np.array([len(text) for text in texts], np.int32)
    rows = np.zeros((int(lengths.max()), len(texts)), np.int64)
    for n, text in enumerate(texts):
        rows[: len(text), n] = text
    return rows, lengths


def tensorflow_lstm(tf: Any, x: Any, lengths: Any, kernel: Any, recurrent: Any, bias: Any, back: bool) -> Any:
    """Outputs [S, B, H], and the last h and c of each; the input products of all places are one product."""
    S, B, units = tf.shape(x)[0], tf.shape(x)[1], recurrent.shape[0]
    if back:
        x = tf.reverse_sequence(x, lengths, seq_axis=0, batch_axis=1)
    projected = tf.reshape(tf.matmul(tf.reshape(x, [-1, x.shape[2]]), kernel) + bias, [S, B, 4 * units])

    def step(t: Any, h: Any, c: Any, out: Any) -> tuple[Any, ...]:
        i, f, g, o = tf.split(projected[t] + tf.matmul(h, recurrent), 4, axis=1)
        c_new = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        h_new = tf.sigmoid(o) * tf.tanh(c_new)
        on = (t < lengths)[:, None]
        h, c = tf.where(on, h_new, h), tf.where(on, c_new, c)
        return t + 1, h, c, out.write(t, h)

    zero, out = tf.zeros([B, units]), tf.TensorArray(tf.float32, S, element_shape=[None, units])
    _, h, c, out = tf.while_loop(lambda t, *_: t < S, step, (0, zero, zero, out))
    y = out.stack()
    return (tf.reverse_sequence(y, lengths, seq_axis=0, batch_axis=1) if back else y), h, c


def tensorflow_stack(tf: Any, w: dict[str, Any], prefix: str, x: Any, lengths: Any) -> tuple[Any, list[Any], list[Any]]:
    h: list[Any] = []
    c: list[Any] = []
    for n in layers_of(w, prefix):
        ways = []
        for way in ("", ".reverse"):
            name = f"{prefix}.{n}{way}"
            if f"{name}.kernel" in w:
                parts = (w[f"{name}.{part}"] for part in ("kernel", "recurrent_kernel", "bias"))
                ways.append(tensorflow_lstm(tf, x, lengths, *parts, bool(way)))
        x, h_all, c_all = (tf.concat(parts, -1) for parts in zip(*ways, strict=True))
        h.append(h_all)
        c.append(c_all)
    return x, h, c


def layers_of(w: dict[str, Any], prefix: str) -> range:
    n = 0
    while f"{prefix}.{n}.kernel" in w:
        n += 1
    return range(n)


def tensorflow_classifier(arrays: dict[str, Any], kind: str, labels: Sequence[str]) -> Run:
    import tensorflow as tf

    w = {name: tf.constant(array) for name, array in arrays.items()}

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int64), tf.TensorSpec([None], tf.int32)])  # type: ignore[untyped-decorator]
    def judge(rows: Any, lengths: Any) -> Any:
        y, h, _ = tensorflow_stack(tf, w, "lstm", tf.gather(w["embedding"], rows), lengths)
        real = (tf.range(tf.shape(rows)[0])[:, None] < lengths)[:, :, None]
        mean = tf.reduce_sum(tf.where(real, y, 0.0), 0) / tf.cast(lengths, tf.float32)[:, None]
        if kind == "attention":
            scores = tf.tanh(tf.tensordot(y, w["pooling.key.kernel"], 1) + w["pooling.key.bias"])
            share = tf.nn.softmax(tf.where(real[:, :, 0], tf.tensordot(scores, w["pooling.score"], 1), NEVER), 0)
            pooled = tf.einsum("sb,sbd->bd", share, y)
        else:
            parts = {"last": h[-1], "max": tf.reduce_max(tf.where(real, y, NEVER), 0), "mean": mean}
            pooled = tf.concat(list(parts.values()), 1) if kind == "concat" else parts[kind]
        return tf.nn.softmax(tf.matmul(pooled, w["output.kernel"]) + w["output.bias"])

    return lambda part: [labels[n] for n in judge(*padded(part)).numpy().argmax(1)]


Values = dict[str, tuple[str, list[Any]]]
"""Inputs or outputs of a graph: their types and sizes."""


class Graph:
    """ONNX nodes in the making."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._tensor = helper, numpy_helper.from_array
        self.nodes: list[Any] = []
        self._constants: list[Any] = []
        self._count = 0

    def constant(self, array: Any) -> str:
        name = f"constant{len(self._constants)}"
        self._constants.append(self._tensor(np.ascontiguousarray(array), name))
        return name

    def __call__(self, kind: str, *inputs: str, outputs: int = 1, named: str = "", **attributes: Any) -> Any:
        self._count += 1
        found = [named] if named else [f"{kind}{self._count}_{n}" for n in range(outputs)]
        self.nodes.append(self._helper.make_node(kind, list(inputs), found, **attributes))
        return found[0] if len(found) == 1 else found

    def save(
        self, path: Path, inputs: dict[str, tuple[str, list[Any]]], outputs: dict[str, tuple[str, list[Any]]]
    ) -> None:
        import onnx

        def infos(given: dict[str, tuple[str, list[Any]]]) -> list[Any]:
            kinds = {"int": onnx.TensorProto.INT64, "int32": onnx.TensorProto.INT32, "float": onnx.TensorProto.FLOAT}
            return [
                self._helper.make_tensor_value_info(name, kinds[kind], size) for name, (kind, size) in given.items()
            ]

        graph = self._helper.make_graph(self.nodes, "graph", infos(inputs), infos(outputs), self._constants)
        opset = [self._helper.make_opsetid("", OPSET)]
        onnx.save(self._helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION), path)

    def stack(self, w: dict[str, Any], prefix: str, x: str, lengths: str) -> tuple[str, list[str], list[str]]:
        """ONNX' own LSTM operator, with the lengths of a padded batch: outputs [S, B, D], h and c [B, D]."""
        h: list[str] = []
        c: list[str] = []
        for n in layers_of(w, prefix):
            names = [name for name in (f"{prefix}.{n}", f"{prefix}.{n}.reverse") if f"{name}.kernel" in w]
            W, R, b = (
                np.concatenate([_onnx_gates(w[f"{name}.{part}"]) for name in names])
                for part in ("kernel", "recurrent_kernel", "bias")
            )
            given = [self.constant(a) for a in (W, R, np.concatenate([b, np.zeros_like(b)], 1))]
            way = "bidirectional" if len(names) == 2 else "forward"
            units = R.shape[2]
            y, hn, cn = self("LSTM", x, *given, lengths, outputs=3, hidden_size=units, direction=way)
            turned = self("Transpose", y, perm=[0, 2, 1, 3])  # [S, B, directions, H]
            x = self("Reshape", turned, self.constant(np.array([0, 0, len(names) * units])))
            for to, state in ((h, hn), (c, cn)):
                back = self("Transpose", state, perm=[1, 0, 2])
                to.append(self("Reshape", back, self.constant(np.array([0, len(names) * units]))))
        return x, h, c

    def linear(self, x: str, kernel: Any, bias: Any = None) -> str:
        product: str = self("MatMul", x, self.constant(kernel))
        return product if bias is None else str(self("Add", product, self.constant(bias)))


def real_places(graph: Graph, x: str, lengths: str) -> str:
    """0 where a text is, `NEVER` behind it: [S, B]."""
    zero, one = graph.constant(np.array(0)), graph.constant(np.array(1))
    size = graph("Gather", graph("Shape", x), zero)
    place = graph("Cast", graph("Range", zero, size, one), to=6)  # int32, as the lengths
    place = graph("Unsqueeze", place, graph.constant(np.array([1])))
    behind = graph("Cast", graph("Less", place, lengths), to=1)
    return str(graph("Mul", graph("Sub", graph.constant(np.float32(1)), behind), graph.constant(np.float32(NEVER))))


def sessions(path: Path) -> dict[str, Any]:
    """In float32 and in int8."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    rounded = path.with_suffix(".int8.onnx")
    quantize_dynamic(path, rounded, weight_type=QuantType.QInt8)
    return {
        kind: onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        for kind, file in (("f32", path), ("int8", rounded))
    }


def onnx_classifiers(w: dict[str, Any], kind: str, labels: Sequence[str], folder: Path) -> dict[str, Run]:
    g = Graph()
    x = g("Gather", g.constant(w["embedding"]), "rows")
    y, h, _ = g.stack(w, "lstm", x, "lengths")
    off = real_places(g, x, "lengths")
    wide = g("Unsqueeze", off, g.constant(np.array([2])))
    if kind == "attention":
        keys = g("Tanh", g.linear(y, w["pooling.key.kernel"], w["pooling.key.bias"]))
        scores = g("Add", g.linear(keys, w["pooling.score"]), off)
        share = g("Unsqueeze", g("Softmax", scores, axis=0), g.constant(np.array([2])))
        pooled = g("ReduceSum", g("Mul", y, share), g.constant(np.array([0])), keepdims=0)
    else:
        real = g("Cast", g("Equal", wide, g.constant(np.float32(0))), to=1)
        total = g("ReduceSum", g("Mul", y, real), g.constant(np.array([0])), keepdims=0)
        count = g("Unsqueeze", g("Cast", "lengths", to=1), g.constant(np.array([1])))
        parts = {"last": h[-1], "max": g("ReduceMax", g("Add", y, wide), axes=[0], keepdims=0)}
        parts["mean"] = g("Div", total, count)
        pooled = g("Concat", *parts.values(), axis=1) if kind == "concat" else parts[kind]
    g("Softmax", g.linear(pooled, w["output.kernel"], w["output.bias"]), named="shares", axis=1)
    path = folder / "classifier.onnx"
    g.save(path, {"rows": ("int", ["S", "B"]), "lengths": ("int32", ["B"])}, {"shares": ("float", ["B", len(labels)])})

    def run(session: Any) -> Run:
        def judge(part: Ids) -> list[Any]:
            rows, lengths = padded(part)
            return [labels[n] for n in session.run(None, {"rows": rows, "lengths": lengths})[0].argmax(1)]

        return judge

    return {f"ONNX Runtime {kind}": run(session) for kind, session in sessions(path).items()}


# ---- translation -----------------------------------------------------------------------------------------


def compare_translators(
    models: dict[str, Path], texts: list[str], batches: Sequence[int], beams: Sequence[int], folder: Path
) -> None:
    writers = {name: fastlm.load(model, threads=1) for name, model in models.items()}
    one = writers["f32"]
    ids = [one.encode_source(text) for text in texts]  # type: ignore[attr-defined]
    w = unpack(models["f32"]).to_dict()
    if "attention.query.kernel" in w or "attention.feed" in w or "attention.copy.kernel" in w:
        raise SystemExit("expected a model with attention 'dot' or 'general', without input feeding and copying")
    ends = one.bos, one.eos
    onnx = Translator(w, folder, ends)
    for batch in batches:
        for count in beams:
            options: dict[str, Any] = {"max_tokens": LONGEST, "temperature": 0.0}
            if count > 1:
                options = {"max_tokens": LONGEST, "num_beams": count}
            runs: dict[str, Run] = {
                f"fastlm {name}": lambda part, lm=lm, given=options: [c.token_ids for c in lm.generate(part, **given)]
                for name, lm in writers.items()
                if count == 1 or name != "screen"  # beams need every token's probability
            }
            runs["TensorFlow f32"] = tensorflow_translator(w, count, ends)
            runs |= onnx.runs(count)
            in_turns("greedy" if count == 1 else f"beam {count}", runs, ids, batch)


def cut(rows: NDArray[Any], eos: int) -> list[list[int]]:
    return [row[: row.index(eos)] if eos in row else row for row in rows.tolist()]


def tensorflow_translator(arrays: dict[str, Any], beams: int, ends: tuple[Any, Any]) -> Run:
    """Encoder and decoding in one graph; a search ends as fastlm's does: as many texts are finished as there are beams,
    and none of those that go on is better than the worst of them."""
    import tensorflow as tf

    w = {name: tf.constant(array) for name, array in arrays.items()}
    layers, (bos, eos) = layers_of(arrays, "lstm"), ends
    output = tf.transpose(w["embedding"]) if "output.kernel" not in w else w["output.kernel"]
    V = len(arrays["embedding"])

    def encode(rows: Any, lengths: Any) -> tuple[Any, ...]:
        x = tf.gather(w.get("source.embedding", w["embedding"]), rows)
        y, h, c = tensorflow_stack(tf, w, "encoder", x, lengths)
        state = []
        for n in layers:
            end = tf.concat([h[min(n, len(h) - 1)], c[min(n, len(h) - 1)]], 1)
            if f"bridge.{n}.h.kernel" in w:
                state.append(tf.tanh(tf.matmul(end, w[f"bridge.{n}.h.kernel"]) + w[f"bridge.{n}.h.bias"]))
                state.append(tf.matmul(end, w[f"bridge.{n}.c.kernel"]) + w[f"bridge.{n}.c.bias"])
            else:
                state += [h[min(n, len(h) - 1)], c[min(n, len(h) - 1)]]
        values = tf.transpose(y, [1, 0, 2])
        keys = tf.tensordot(values, w["attention.key"], 1) if "attention.key" in w else values
        off = tf.where(tf.sequence_mask(lengths, tf.shape(rows)[0]), 0.0, NEVER)
        return keys, values, off, state

    def step(token: Any, state: list[Any], keys: Any, values: Any, off: Any) -> tuple[Any, list[Any]]:
        x, after = tf.gather(w["embedding"], token), []
        for n in layers:
            h, c = state[2 * n : 2 * n + 2]
            z = tf.matmul(x, w[f"lstm.{n}.kernel"]) + tf.matmul(h, w[f"lstm.{n}.recurrent_kernel"])
            i, f, g, o = tf.split(z + w[f"lstm.{n}.bias"], 4, axis=1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
            x = tf.sigmoid(o) * tf.tanh(c)
            after += [x, c]
        share = tf.nn.softmax(tf.linalg.matvec(keys, x) + off)
        context = tf.linalg.matvec(values, share, transpose_a=True)
        mixed = tf.matmul(context, w["attention.context"]) + tf.matmul(x, w["attention.hidden"])
        return tf.matmul(tf.tanh(mixed + w["attention.bias"]), output) + w["output.bias"], after

    signature = [tf.TensorSpec([None, None], tf.int64), tf.TensorSpec([None], tf.int32)]

    @tf.function(input_signature=signature)  # type: ignore[untyped-decorator]
    def greedy(rows: Any, lengths: Any) -> Any:
        keys, values, off, state = encode(rows, lengths)
        B = tf.shape(rows)[1]

        def more(t: Any, token: Any, state: Any, done: Any, out: Any) -> Any:
            return (t < LONGEST) & ~tf.reduce_all(done)

        def body(t: Any, token: Any, state: Any, done: Any, out: Any) -> tuple[Any, ...]:
            logits, state = step(token, state, keys, values, off)
            token = tf.where(done, eos, tf.argmax(logits, 1, tf.int32))
            return t + 1, token, state, done | (token == eos), out.write(t, token)

        out = tf.TensorArray(tf.int32, 0, dynamic_size=True, element_shape=[None])
        start = (0, tf.fill([B], bos), state, tf.fill([B], False), out)
        return tf.transpose(tf.while_loop(more, body, start)[-1].stack())

    @tf.function(input_signature=signature)  # type: ignore[untyped-decorator]
    def beam(rows: Any, lengths: Any) -> Any:
        keys, values, off, state = encode(rows, lengths)
        B, K = tf.shape(rows)[1], beams
        keys, values, off = (tf.repeat(part, K, 0) for part in (keys, values, off))
        state = [tf.repeat(part, K, 0) for part in state]
        scores = tf.tile([[0.0] + [NEVER] * (K - 1)], [B, 1])
        texts = tf.zeros([B, K, LONGEST], tf.int32)
        best, best_texts = tf.fill([B, K], NEVER), tf.fill([B, K, LONGEST], eos)

        def more(t: Any, token: Any, state: Any, scores: Any, texts: Any, best: Any, best_texts: Any) -> Any:
            top = tf.reduce_max(scores, 1) / tf.cast(tf.maximum(t, 1), tf.float32)
            return (t < LONGEST) & ~tf.reduce_all(best[:, K - 1] >= top)

        def body(
            t: Any, token: Any, state: Any, scores: Any, texts: Any, best: Any, best_texts: Any
        ) -> tuple[Any, ...]:
            logits, state = step(token, state, keys, values, off)
            found = tf.reshape(tf.nn.log_softmax(logits), [B, K, V]) + scores[:, :, None]
            top, place = tf.math.top_k(tf.reshape(found, [B, K * V]), 2 * K)
            source, token = place // V, place % V
            ended = token == eos
            finished = tf.where(ended & (tf.range(2 * K) < K), top / tf.cast(t + 1, tf.float32), NEVER)
            endings = tf.gather(texts, source[:, :K], batch_dims=1)
            endings = tf.concat([endings[:, :, :t], tf.fill([B, K, LONGEST - t], eos)], 2)
            best, which = tf.math.top_k(tf.concat([best, finished[:, :K]], 1), K)
            best_texts = tf.gather(tf.concat([best_texts, endings], 1), which, batch_dims=1)
            scores, chosen = tf.math.top_k(tf.where(ended, NEVER, top), K)
            source, token = (tf.gather(part, chosen, batch_dims=1) for part in (source, token))
            flat = tf.reshape(source + tf.range(B)[:, None] * K, [-1])
            state = [tf.gather(part, flat) for part in state]
            texts = tf.gather(texts, source, batch_dims=1)
            texts = tf.concat([texts[:, :, :t], token[:, :, None], texts[:, :, t + 1 :]], 2)
            return t + 1, tf.reshape(token, [-1]), state, scores, texts, best, best_texts

        start = (0, tf.fill([B * K], bos), state, scores, texts, best, best_texts)
        shapes = (
            tf.TensorShape([]), tf.TensorShape([None]), [tf.TensorShape([None, part.shape[1]]) for part in state],
            tf.TensorShape([None, K]), tf.TensorShape([None, K, None]), tf.TensorShape([None, K]),
            tf.TensorShape([None, K, None]),
        )  # fmt: skip
        return tf.while_loop(more, body, start, shape_invariants=shapes)[-1][:, 0]

    decode = greedy if beams == 1 else beam

    def run(part: Ids) -> list[Any]:
        return cut(decode(*padded(part)).numpy(), int(eos))

    return run


def _read(count: str) -> Values:
    """What a step looks at of so many sources."""
    return {
        "values": ("float", [count, "S", "D"]),
        "keys": ("float", [count, "H", "S"]),
        "off": ("float", [count, "S"]),
    }


class Translator:
    """ONNX Runtime: a graph that reads sources, and one for a step of all texts."""

    def __init__(self, w: dict[str, Any], folder: Path, ends: tuple[Any, Any]) -> None:
        self._ends, self._layers = ends, layers_of(w, "lstm")
        self._encoders = sessions(self._encoder(w, folder / "encoder.onnx"))
        self._steps = {k: sessions(self._step(w, folder / f"step{k}.onnx", k)) for k in (1, 5)}

    def _encoder(self, w: dict[str, Any], path: Path) -> Path:
        g = Graph()
        x = g("Gather", g.constant(w.get("source.embedding", w["embedding"])), "rows")
        y, h, c = g.stack(w, "encoder", x, "lengths")
        outputs: Values = {}
        for n in self._layers:
            at = min(n, len(h) - 1)
            units = len(w[f"lstm.{n}.recurrent_kernel"])
            if f"bridge.{n}.h.kernel" in w:
                end = g("Concat", h[at], c[at], axis=1)
                g("Tanh", g.linear(end, w[f"bridge.{n}.h.kernel"], w[f"bridge.{n}.h.bias"]), named=f"h{n}")
                g("Identity", g.linear(end, w[f"bridge.{n}.c.kernel"], w[f"bridge.{n}.c.bias"]), named=f"c{n}")
            else:
                g("Identity", h[at], named=f"h{n}")
                g("Identity", c[at], named=f"c{n}")
            outputs |= {f"{part}{n}": ("float", ["B", units]) for part in "hc"}
        values = g("Transpose", y, named="values", perm=[1, 0, 2])
        keys = g.linear(values, w["attention.key"]) if "attention.key" in w else values
        g("Transpose", keys, named="keys", perm=[0, 2, 1])
        g("Transpose", real_places(g, x, "lengths"), named="off", perm=[1, 0])
        outputs |= {
            "values": ("float", ["B", "S", "D"]),
            "keys": ("float", ["B", "H", "S"]),
            "off": ("float", ["B", "S"]),
        }
        g.save(path, {"rows": ("int", ["S", "B"]), "lengths": ("int32", ["B"])}, outputs)
        return path

    def _step(self, w: dict[str, Any], path: Path, beams: int) -> Path:
        g = Graph()
        two = g.constant(np.array([0]))
        x = g("Unsqueeze", g("Gather", g.constant(w["embedding"]), "token"), two)
        inputs: Values = {"token": ("int", ["N"])}
        outputs: Values = {}
        for n in self._layers:
            W, R, b = (_onnx_gates(w[f"lstm.{n}.{part}"]) for part in ("kernel", "recurrent_kernel", "bias"))
            given = [g.constant(a) for a in (W, R, np.append(b, np.zeros_like(b), 1))]
            state = [g("Unsqueeze", f"{part}{n}", two) for part in "hc"]
            _, h, c = g("LSTM", x, *given, "", *state, outputs=3, hidden_size=R.shape[2])
            x = h
            g("Squeeze", h, two, named=f"new_h{n}")
            g("Squeeze", c, two, named=f"new_c{n}")
            for part in "hc":
                inputs[f"{part}{n}"] = outputs[f"new_{part}{n}"] = ("float", ["N", R.shape[2]])
        top = f"new_h{len(self._layers) - 1}"
        one = g.constant(np.array([1]))
        scores = g("Add", g("Squeeze", g("MatMul", g("Unsqueeze", top, one), "keys"), one), "off")
        share = g("Unsqueeze", g("Softmax", scores, axis=1), one)
        context = g("Squeeze", g("MatMul", share, "values"), one)
        mixed = g(
            "Add", g.linear(context, w["attention.context"], w["attention.bias"]), g.linear(top, w["attention.hidden"])
        )
        output = w["output.kernel"] if "output.kernel" in w else w["embedding"].T
        logits = g.linear(g("Tanh", mixed), output, w["output.bias"])
        inputs |= {
            "values": ("float", ["N", "S", "D"]),
            "keys": ("float", ["N", "H", "S"]),
            "off": ("float", ["N", "S"]),
        }
        if beams == 1:
            g("ArgMax", logits, named="best", axis=1, keepdims=0)
            outputs["best"] = ("int", ["N"])
        else:
            top_k = g("TopK", g("LogSoftmax", logits, axis=1), g.constant(np.array([2 * beams])), outputs=2, axis=1)
            g("Identity", top_k[0], named="logprobs")
            g("Identity", top_k[1], named="best")
            outputs |= {"logprobs": ("float", ["N", 2 * beams]), "best": ("int", ["N", 2 * beams])}
        g.save(path, inputs, outputs)
        return path

    def runs(self, beams: int) -> dict[str, Run]:
        return {f"ONNX Runtime {kind}": self._run(kind, beams) for kind in ("f32", "int8")}

    def _run(self, kind: str, beams: int) -> Run:
        encoder, step = self._encoders[kind], self._steps[beams][kind]
        names = [one.name for one in encoder.get_outputs()]
        after = [one.name for one in step.get_outputs()]
        bos, eos = self._ends

        def begin(part: Ids) -> dict[str, Any]:
            rows, lengths = padded(part)
            return dict(zip(names, encoder.run(None, {"rows": rows, "lengths": lengths}), strict=True))

        def advance(given: dict[str, Any]) -> dict[str, Any]:
            found = dict(zip(after, step.run(None, given), strict=True))
            for name in after:
                if name.startswith("new_"):
                    given[name.removeprefix("new_")] = found[name]
            return found

        def greedy(part: Ids) -> list[Any]:
            given, rows = begin(part), []
            given["token"] = np.full(len(part), bos, np.int64)
            done = np.zeros(len(part), bool)
            while not done.all() and len(rows) < LONGEST:
                token = np.where(done, eos, advance(given)["best"])
                done |= token == eos
                given["token"] = token
                rows.append(token)
            return cut(np.array(rows).T, eos)

        def beam(part: Ids) -> list[Any]:
            B, K = len(part), beams
            given = {name: np.repeat(array, K, 0) for name, array in begin(part).items()}
            given["token"] = np.full(B * K, bos, np.int64)
            scores = np.tile(np.array([0.0] + [NEVER] * (K - 1)), (B, 1))
            texts, over = np.zeros((B, K, 0), np.int64), np.zeros(B, bool)
            finished: list[list[tuple[float, list[int]]]] = [[] for _ in part]
            for t in range(LONGEST):
                found = advance(given)
                both = (scores[:, :, None] + found["logprobs"].reshape(B, K, 2 * K)).reshape(B, -1)
                order = np.argsort(-both, 1, kind="stable")[:, : 2 * K]
                top = np.take_along_axis(both, order, 1)
                token = np.take_along_axis(found["best"].reshape(B, -1), order, 1)
                source, ended = order // (2 * K), token == eos
                for b, k in np.argwhere(ended[:, :K] & ~over[:, None]):
                    finished[b].append((-top[b, k] / (t + 1), texts[b, source[b, k]].tolist()))
                    finished[b].sort()
                    del finished[b][K:]
                chosen = np.argsort(ended, 1, kind="stable")[:, :K]  # those that go on, best first
                scores, token, source = (np.take_along_axis(a, chosen, 1) for a in (top, token, source))
                flat = (source + np.arange(B)[:, None] * K).reshape(-1)
                for n in self._layers:
                    for name in (f"h{n}", f"c{n}"):
                        given[name] = given[name][flat]
                texts = np.concatenate([np.take_along_axis(texts, source[:, :, None], 1), token[:, :, None]], 2)
                given["token"] = token.reshape(-1)
                worst = np.array([-found[-1][0] if len(found) == K else -np.inf for found in finished])
                over |= worst >= scores.max(1) / (t + 1)
                if over.all():
                    break
            return [found[0][1] for found in finished]

        return greedy if beams == 1 else beam


if __name__ == "__main__":
    main()
