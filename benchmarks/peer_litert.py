# SPDX-License-Identifier: Apache-2.0
"""LiteRT (formerly TensorFlow Lite) with XNNPACK: one call per token, the past kept in the model's own variables.

Variables beat passing the state in and out as tensors: no array crosses into Python between two tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peer_tensorflow import network
from workloads import FIRST_TOKEN, Workload

if TYPE_CHECKING:
    from pathlib import Path

NAME = "LiteRT"
MODULES = ("tensorflow", "ai_edge_litert")  # tensorflow converts the model; it does not run it


class Runner:
    def __init__(self, workload: Workload, directory: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        path = directory / f"{workload.name}.tflite"
        path.write_bytes(_convert(workload, directory / "saved_model"))
        interpreter = Interpreter(str(path), num_threads=1)
        self._step, self._rewind = (interpreter.get_signature_runner(name) for name in ("step", "rewind"))
        self._rewind()  # the variables must be set before they can be read

    def tokens(self, count: int) -> list[int]:
        self._rewind()
        return [self._step()["token"].item() for _ in range(count)]

    def run(self, count: int) -> None:
        for _ in range(count):
            self._step()


def _convert(workload: Workload, directory: Path) -> bytes:
    """The workload as a .tflite file with two signatures, `step` and `rewind`."""
    import tensorflow as tf

    class Decoder(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            self.network = network(workload)
            self.start = [tf.fill([1], FIRST_TOKEN)] + [tf.zeros([1, workload.H])] * (2 * workload.L)
            self.past = [tf.Variable(value) for value in self.start]

        @tf.function(input_signature=[])  # type: ignore[untyped-decorator]
        def step(self) -> dict[str, Any]:
            token, *state = (variable.read_value() for variable in self.past)
            token, state = self.network.step(token, state)
            return self._set([token, *state])

        @tf.function(input_signature=[])  # type: ignore[untyped-decorator]
        def rewind(self) -> dict[str, Any]:
            return self._set(self.start)

        def _set(self, values: list[Any]) -> dict[str, Any]:
            for variable, value in zip(self.past, values, strict=True):
                variable.assign(value)
            return {"token": values[0]}

    decoder = Decoder()
    signatures = {name: getattr(decoder, name).get_concrete_function() for name in ("step", "rewind")}
    tf.saved_model.save(decoder, str(directory), signatures=signatures)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(directory), signature_keys=list(signatures))
    converter.experimental_enable_resource_variables = True
    return bytes(converter.convert())
