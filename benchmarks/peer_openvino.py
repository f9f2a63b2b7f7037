# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: the ONNX model, run once per token.

Two requests swap roles, each with its tensors bound once: what one writes is what the other reads. That is faster than
one request whose tensors are set before each step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import peer_onnxruntime
from harness import Form, Job, Stepper, score_padded

MODULES = ("onnx", "openvino")  # onnx writes the model; it does not run it
FORMS = tuple(Form("OpenVINO", precision, draws=True, scores=True) for precision in ("f32", "bf16"))


def convert(job: Job) -> None:
    peer_onnxruntime.write_onnx(job)


def Runner(job: Job) -> Any:
    return Scorer(job) if job.output == "logprobs" else Decoder(job)


def _compiled(job: Job) -> Any:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": job.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": job.form.precision,
        "ENABLE_CPU_PINNING": False,  # the process is pinned already
    }
    return openvino.Core().compile_model(peer_onnxruntime.onnx_path(job), "CPU", settings)


class Scorer:
    def __init__(self, job: Job) -> None:
        self._request = _compiled(job).create_infer_request()

    def score(self, texts: list[list[int]]) -> list[NDArray[np.float32]]:
        def run(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            columns = np.ascontiguousarray(rows.T)
            result = self._request.infer([columns[:-1], columns[1:]], share_inputs=True)
            return np.asarray(result[0][:, :, 0].T)

        return score_padded(texts, run)


class Decoder(Stepper):
    def __init__(self, job: Job) -> None:
        model = _compiled(job)
        self.output = job.output
        self._start, self._turn = job.workload.start(job.batch), 0
        self._requests = [model.create_infer_request() for _ in range(2)]
        self._buffers: list[list[Any]] = [[_zeros(port) for port in model.inputs] for _ in range(2)]
        self._logits = _zeros(model.outputs[0])  # unused if that is the token
        for request, read, written in zip(self._requests, self._buffers, reversed(self._buffers), strict=True):
            into = dict(zip([f"new_{port.get_any_name()}" for port in model.inputs], written, strict=True))
            into["logits"] = self._logits
            for place, tensor in enumerate(read):
                request.set_input_tensor(place, tensor)
            for place, port in enumerate(model.outputs):
                request.set_output_tensor(place, into[port.get_any_name()])

    def step(self) -> None:
        self._requests[self._turn].infer(share_outputs=True)
        self._turn ^= 1

    def rewind(self) -> None:
        token, *state = self._buffers[self._turn]
        token.data[0] = self._start
        for tensor in state:
            tensor.data[:] = 0

    def tokens(self) -> NDArray[np.int64]:
        return np.asarray(self._buffers[self._turn][0].data[0])

    def put(self, token: int) -> None:
        self._buffers[self._turn][0].data[0, 0] = token

    def logits(self) -> NDArray[np.float32]:
        return np.asarray(self._logits.data).ravel()


def _zeros(port: Any) -> Any:
    import openvino

    return openvino.Tensor(np.zeros(port.shape, port.element_type.to_dtype()))
