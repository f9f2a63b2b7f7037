# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: LSTM operators and ArgMax in one graph, run once per token through I/O binding.

Two sets of buffers swap roles: what one step writes, token included, is what the next step reads. Nothing is copied.
"""

from __future__ import annotations

from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from workloads import FIRST_TOKEN, Workload

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

NAME = "ONNX Runtime"
MODULES = ("onnx", "onnxruntime")
OPSET, IR_VERSION = 17, 9  # old enough for every ONNX Runtime since 1.14


class Runner:
    def __init__(self, workload: Workload, directory: Path) -> None:
        import onnx
        import onnxruntime

        path = directory / f"{workload.name}.onnx"
        onnx.save(_graph(workload), path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._run = session.run_with_iobinding

        inputs, outputs = session.get_inputs(), session.get_outputs()
        self._buffers = [[_zeros(argument) for argument in inputs] for _ in range(2)]
        self._bindings = [session.io_binding() for _ in range(2)]
        for binding, read, written in zip(self._bindings, self._buffers, reversed(self._buffers), strict=True):
            for argument, array in zip(inputs, read, strict=True):
                binding.bind_ortvalue_input(argument.name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
            for result, array in zip(outputs, written, strict=True):
                binding.bind_ortvalue_output(result.name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        self._next = cycle(self._bindings)

    def tokens(self, count: int) -> list[int]:
        token, *state = self._buffers[0]
        token.fill(FIRST_TOKEN)
        for array in state:
            array.fill(0)
        self._next, tokens = cycle(self._bindings), []
        for step in range(count):
            self.run(1)
            tokens.append(self._buffers[(step + 1) % 2][0].item())
        return tokens

    def run(self, count: int) -> None:
        for binding in islice(self._next, count):
            self._run(binding)


def _zeros(argument: Any) -> NDArray[Any]:
    """An array for a graph's input. ONNX Runtime uses it where it lies, so a step's results are seen in it."""
    return np.zeros(argument.shape, np.int64 if argument.type == "tensor(int64)" else np.float32)


def _graph(workload: Workload) -> Any:
    """The ONNX model `token, h0, c0, h1, c1, … -> next token, new h0, c0, h1, c1, …` for a batch of one."""
    from onnx import TensorProto, helper, numpy_helper

    w, layers = workload.weights, range(workload.L)
    constants = {name: w[name] for name in ("embedding", "output.kernel", "output.bias")}
    nodes = [helper.make_node("Gather", ["embedding", "token"], ["x0"])]
    for i in layers:
        W, R, b = (_onnx_gates(w[f"lstm.{i}.{part}"]) for part in ("kernel", "recurrent_kernel", "bias"))
        constants |= {f"W{i}": W, f"R{i}": R, f"B{i}": np.append(b, np.zeros_like(b), axis=1)}
        inputs = [f"x{i}", f"W{i}", f"R{i}", f"B{i}", "", f"h{i}", f"c{i}"]
        nodes += [
            helper.make_node("LSTM", inputs, ["", f"new_h{i}", f"new_c{i}"], hidden_size=workload.H),
            helper.make_node("Identity", [f"new_h{i}"], [f"x{i + 1}"]),
        ]
    nodes += [
        helper.make_node("MatMul", [f"x{workload.L}", "output.kernel"], ["product"]),
        helper.make_node("Add", ["product", "output.bias"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["next_token"], axis=2, keepdims=0),
    ]

    def values(token: str, prefix: str) -> list[Any]:
        state = [f"{prefix}{part}{i}" for i in layers for part in "hc"]
        return [helper.make_tensor_value_info(token, TensorProto.INT64, [1, 1])] + [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, workload.H]) for name in state
        ]

    initializers = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "lstm", values("token", ""), values("next_token", "new_"), initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _onnx_gates(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keras' columns i, f, g, o as ONNX' rows i, o, f, g, with a leading axis for the direction."""
    i, f, g, o = np.split(weights.T, 4)
    return np.concatenate([i, o, f, g])[np.newaxis]
