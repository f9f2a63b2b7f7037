# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: LSTM operators and ArgMax in one graph, run once per token through I/O binding.

Two sets of buffers swap roles: what one step writes, token included, is what the next step reads. Nothing is copied.
"""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import PADDED, Form, Job, Stepper, make, score_padded
from workloads import Workload

MODULES = ("onnx", "onnxruntime")
FORMS = tuple(Form("ONNX Runtime", precision, draws=True, scores=True) for precision in ("f32", "int8"))
OPSET, IR_VERSION = 17, 9  # old enough for every ONNX Runtime since 1.14


def convert(job: Job) -> None:
    write_onnx(job)
    if job.form.precision == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        make(_path(job), lambda path: quantize_dynamic(onnx_path(job), path, weight_type=QuantType.QInt8))


def write_onnx(job: Job) -> None:
    """The float32 model, which OpenVINO reads too."""
    import onnx

    graph = _scoring_graph if job.output == "logprobs" else _graph
    make(onnx_path(job), lambda path: onnx.save(graph(job.workload, job.batch, job.output), path))


def onnx_path(job: Job) -> Path:
    return job.path(".onnx", "f32", job.batch, job.output)


def _path(job: Job) -> Path:
    return job.path(".onnx", "int8", job.batch, job.output) if job.form.precision == "int8" else onnx_path(job)


def Runner(job: Job) -> Any:
    return Scorer(job) if job.output == "logprobs" else Decoder(job)


def _session(job: Job) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    return onnxruntime.InferenceSession(_path(job), options, providers=["CPUExecutionProvider"])


class Scorer:
    def __init__(self, job: Job) -> None:
        self._session = _session(job)

    def score(self, texts: list[list[int]]) -> list[NDArray[np.float32]]:
        def run(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            columns = np.ascontiguousarray(rows.T)
            [logprobs] = self._session.run(None, {"token": columns[:-1], "following": columns[1:]})
            return np.asarray(logprobs[:, :, 0].T)

        return score_padded(texts, run)


class Decoder(Stepper):
    def __init__(self, job: Job) -> None:
        import onnxruntime

        session = _session(job)
        self.output = job.output
        self._start, self._run = job.workload.start(job.batch), session.run_with_iobinding

        inputs, outputs = session.get_inputs(), session.get_outputs()
        self._buffers = [[_zeros(argument) for argument in inputs] for _ in range(2)]
        self._logits = _zeros(outputs[0])  # unused if that is the token
        self._bindings = [session.io_binding() for _ in range(2)]
        for binding, read, written in zip(self._bindings, self._buffers, reversed(self._buffers), strict=True):
            into = dict(zip([f"new_{argument.name}" for argument in inputs], written, strict=True))
            into["logits"] = self._logits
            for argument, array in zip(inputs, read, strict=True):
                binding.bind_ortvalue_input(argument.name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
            for result in outputs:
                binding.bind_ortvalue_output(result.name, onnxruntime.OrtValue.ortvalue_from_numpy(into[result.name]))
        self._turn = 0

    def step(self) -> None:
        self._run(self._bindings[self._turn])
        self._turn ^= 1

    def run(self, count: int) -> None:
        turns = cycle([self._bindings[self._turn], self._bindings[self._turn ^ 1]])
        for binding in islice(turns, count):
            self._run(binding)
        self._turn ^= count & 1

    def rewind(self) -> None:
        token, *state = self._buffers[self._turn]
        token[0] = self._start
        for array in state:
            array.fill(0)

    def tokens(self) -> NDArray[np.int64]:
        return self._buffers[self._turn][0][0]

    def put(self, token: int) -> None:
        self.tokens()[0] = token

    def logits(self) -> NDArray[np.float32]:
        return self._logits.ravel()


def _zeros(argument: Any) -> NDArray[Any]:
    """An array for a graph's value. ONNX Runtime uses it where it lies, so a step's results are seen in it."""
    return np.zeros(argument.shape, np.int64 if argument.type == "tensor(int64)" else np.float32)


def _graph(workload: Workload, batch: int, output: str) -> Any:
    """The ONNX model `token, h0, c0, h1, c1, … -> new token or logits, new h0, c0, h1, c1, …`."""
    from onnx import TensorProto, helper, numpy_helper

    layers, constants = range(workload.L), _weights(workload)
    nodes = [helper.make_node("Gather", ["embedding", "token"], ["x0"])]
    for i in layers:
        inputs = [f"x{i}", f"W{i}", f"R{i}", f"B{i}", "", f"h{i}", f"c{i}"]
        nodes += [
            helper.make_node("LSTM", inputs, ["", f"new_h{i}", f"new_c{i}"], hidden_size=workload.H),
            helper.make_node("Identity", [f"new_h{i}"], [f"x{i + 1}"]),
        ]
    nodes += [
        helper.make_node("MatMul", [f"x{workload.L}", "output.kernel"], ["product"]),
        helper.make_node("Add", ["product", "output.bias"], ["logits"]),
    ]
    token = helper.make_tensor_value_info("token", TensorProto.INT64, [1, batch])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, batch, workload.V])
    if output == "token":
        nodes.append(helper.make_node("ArgMax", ["logits"], ["new_token"], axis=2, keepdims=0))
        result = helper.make_tensor_value_info("new_token", TensorProto.INT64, [1, batch])

    def state(prefix: str) -> list[Any]:
        names = [f"{prefix}{part}{i}" for i in layers for part in "hc"]
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, batch, workload.H]) for name in names]

    initializers = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "lstm", [token, *state("")], [result, *state("new_")], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _scoring_graph(workload: Workload, batch: int, output: str) -> Any:
    """The ONNX model `token, following [T, PADDED] -> logprobs [T, PADDED, 1]` of the latter given the former."""
    from onnx import TensorProto, helper, numpy_helper

    layers = range(workload.L)
    constants = {"one": np.array([1]), "last": np.array([2]), **_weights(workload)}
    nodes = [helper.make_node("Gather", ["embedding", "token"], ["x0"])]
    for i in layers:
        nodes += [
            helper.make_node("LSTM", [f"x{i}", f"W{i}", f"R{i}", f"B{i}"], [f"y{i}"], hidden_size=workload.H),
            helper.make_node("Squeeze", [f"y{i}", "one"], [f"x{i + 1}"]),
        ]
    nodes += [
        helper.make_node("MatMul", [f"x{workload.L}", "output.kernel"], ["product"]),
        helper.make_node("Add", ["product", "output.bias"], ["logits"]),
        helper.make_node("LogSoftmax", ["logits"], ["all"], axis=2),
        helper.make_node("Unsqueeze", ["following", "last"], ["places"]),
        helper.make_node("GatherElements", ["all", "places"], ["logprobs"], axis=2),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["T", PADDED]) for name in ("token", "following")]
    result = helper.make_tensor_value_info("logprobs", TensorProto.FLOAT, ["T", PADDED, 1])
    initializers = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "lstm", inputs, [result], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _weights(workload: Workload) -> dict[str, NDArray[np.float32]]:
    """As the graphs name and order them."""
    w = workload.weights
    found = {name: w[name] for name in ("embedding", "output.kernel", "output.bias")}
    for i in range(workload.L):
        W, R, b = (_onnx_gates(w[f"lstm.{i}.{part}"]) for part in ("kernel", "recurrent_kernel", "bias"))
        found |= {f"W{i}": W, f"R{i}": R, f"B{i}": np.append(b, np.zeros_like(b), axis=1)}
    return found


def _onnx_gates(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keras' columns i, f, g, o as ONNX' rows i, o, f, g, with a leading axis for the direction."""
    i, f, g, o = np.split(weights.T, 4)
    return np.concatenate([i, o, f, g])[np.newaxis]
