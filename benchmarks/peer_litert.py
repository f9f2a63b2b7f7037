# SPDX-License-Identifier: Apache-2.0
"""LiteRT (formerly TensorFlow Lite) with XNNPACK: one call per token, the past kept in the model's own variables.

Variables beat passing the state in and out as tensors: no array but the token crosses into Python between two steps.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import Form, Job, Stepper, make

PASSED = "state as tensors"  # set by index before each step, fetched after it: slower, and how most people drive it
MODULES = ("ai_edge_litert.interpreter",)  # tensorflow converts the model; it does not run it
FORMS = tuple(
    form
    for precision in ("f32", "int8")
    for form in (
        Form("LiteRT", precision, draws=True),
        Form("LiteRT", precision, "invoke alone", role="bare", streams=False),
        Form("LiteRT", precision, PASSED, role="bare", streams=False),
    )
)


def _path(job: Job) -> Path:
    passed = "passed" if job.form.how == PASSED else "kept"
    return job.path(".tflite", job.form.precision, job.batch, job.output, passed)


def Runner(job: Job) -> Any:
    return PassedRunner(job) if job.form.how == PASSED else KeptRunner(job)


class PassedRunner(Stepper):
    def __init__(self, job: Job) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(_path(job)), num_threads=job.threads)
        self._interpreter.allocate_tensors()
        signature = self._interpreter._get_full_signature_list()["decode"]
        names = ["token", *(f"state_{i}" for i in range(2 * job.workload.L))]
        self._inputs = [signature["inputs"][name] for name in names]
        self._outputs = [signature["outputs"][f"new_{name}"] for name in names]
        zeros = [np.zeros((job.batch, job.workload.H), np.float32)] * (2 * job.workload.L)
        self._start = [np.array(job.workload.start(job.batch), np.int32), *zeros]
        self.rewind()

    def step(self) -> None:
        for place, value in zip(self._inputs, self._values, strict=True):
            self._interpreter.set_tensor(place, value)
        self._interpreter.invoke()
        self._values = [self._interpreter.get_tensor(place) for place in self._outputs]

    def rewind(self) -> None:
        self._values = self._start

    def tokens(self) -> NDArray[np.int32]:
        return np.asarray(self._values[0])


class KeptRunner(Stepper):
    def __init__(self, job: Job) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.output, self._bare = job.output, job.form.role == "bare"
        self._interpreter = Interpreter(str(_path(job)), num_threads=job.threads)
        self._interpreter.allocate_tensors()
        self._token = [place["index"] for place in self._interpreter.get_input_details()]  # none if it is a variable
        self._result = self._interpreter.get_output_details()[0]["index"]
        self._next = job.workload.start(job.batch)
        self.rewind()

    def step(self) -> None:
        for place in self._token:
            self._interpreter.set_tensor(place, np.array(self._next, np.int32))
        self._interpreter.invoke()
        self._last = self._interpreter.get_tensor(self._result)

    def run(self, count: int) -> None:
        if not self._bare:
            return super().run(count)
        for _ in range(count):
            self._interpreter.invoke()

    def rewind(self) -> None:
        # Variables must be set before they can be read. A signature's runner must not outlive the call, or the
        # interpreter refuses to work.
        self._interpreter.get_signature_runner("rewind")()

    def tokens(self) -> NDArray[np.int32]:
        return np.asarray(self._last)

    def put(self, token: int) -> None:
        self._next = [token]

    def logits(self) -> NDArray[np.float32]:
        return np.asarray(self._last).ravel()


def convert(job: Job) -> None:
    make(_path(job), lambda path: path.write_bytes(_flatbuffer(job)))


def _flatbuffer(job: Job) -> bytes:
    """`decode` is first in the alphabet of signatures, so it is what `invoke` runs."""
    import tensorflow as tf

    decoder, signatures = _passing(job) if job.form.how == PASSED else _keeping(job)
    with tempfile.TemporaryDirectory(dir=job.folder) as saved:
        tf.saved_model.save(decoder, saved, signatures=signatures)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=list(signatures))
        converter.experimental_enable_resource_variables = True
        if job.form.precision == "int8":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        return bytes(converter.convert())


def _passing(job: Job) -> tuple[Any, dict[str, Any]]:
    """`decode` takes the past and returns the new one."""
    import tensorflow as tf

    from peer_tensorflow import network

    module = tf.Module()
    module.network = network(job)
    names = [f"state_{i}" for i in range(2 * job.workload.L)]

    def decode(token: Any, **past: Any) -> dict[str, Any]:
        new, state = module.network.step(token, [past[name] for name in names])
        return {"new_token": new, **{f"new_{name}": value for name, value in zip(names, state, strict=True)}}

    past = {name: tf.TensorSpec([job.batch, job.workload.H], name=name) for name in names}
    token = tf.TensorSpec([job.batch], tf.int32, "token")
    return module, {"decode": tf.function(decode).get_concrete_function(token, **past)}


def _keeping(job: Job) -> tuple[Any, dict[str, Any]]:
    """`decode` makes a step from the variables and keeps what it finds in them; with logits as its output it takes the
    token as an argument instead. `rewind` sets the variables to the start."""
    import tensorflow as tf

    from peer_tensorflow import network

    class Decoder(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            self.network = network(job)
            zeros = [tf.zeros([job.batch, job.workload.H])] * (2 * job.workload.L)
            self.start = [tf.constant(job.workload.start(job.batch), tf.int32), *zeros]
            self.past = [tf.Variable(value) for value in self.start]

        def _set(self, values: list[Any]) -> None:
            for variable, value in zip(self.past, values, strict=True):
                variable.assign(value)

        @tf.function(input_signature=[])  # type: ignore[untyped-decorator]
        def rewind(self) -> dict[str, Any]:
            self._set(self.start)
            return {"token": self.start[0]}

    class Greedy(Decoder):
        @tf.function(input_signature=[])  # type: ignore[untyped-decorator]
        def decode(self) -> dict[str, Any]:
            token, *state = (variable.read_value() for variable in self.past)
            token, state = self.network.step(token, state)
            self._set([token, *state])
            return {"token": token}

    class Logits(Decoder):
        @tf.function(input_signature=[tf.TensorSpec([job.batch], tf.int32)])  # type: ignore[untyped-decorator]
        def decode(self, token: Any) -> dict[str, Any]:
            logits, state = self.network.logits(token, [variable.read_value() for variable in self.past[1:]])
            self._set([token, *state])
            return {"logits": logits}

    decoder = Logits() if job.output == "logits" else Greedy()
    return decoder, {name: getattr(decoder, name).get_concrete_function() for name in ("decode", "rewind")}
