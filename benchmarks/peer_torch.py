# SPDX-License-Identifier: Apache-2.0
"""PyTorch: `nn.LSTM` in inference mode, called once per token: eager, as TorchScript, in bfloat16, dynamically int8."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import PADDED, Form, Job, Stepper, score_padded

MODULES = ("torch",)
EAGER = Form("PyTorch", "f32", "eager", draws=True, scores=True)
SCRIPT = Form("PyTorch", "f32", "TorchScript", draws=True)
BF16 = Form("PyTorch", "bf16", draws=True, scores=True)
INT8 = Form("PyTorch", "int8", draws=True, scores=True)
FORMS = (EAGER, SCRIPT, BF16, INT8)
convert = None  # there is no file: the weights become parameters


class Runner(Stepper):
    _token: Any
    _state: Any

    def __init__(self, job: Job) -> None:
        import torch

        torch.set_num_threads(job.threads)
        model, self._type = _model(job).eval(), torch.float32
        if job.form == SCRIPT:
            model = torch.jit.freeze(torch.jit.script(model))
        elif job.form == BF16:
            model, self._type = model.bfloat16(), torch.bfloat16
        elif job.form == INT8:
            model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.LSTM, torch.nn.Linear}, dtype=torch.qint8)
        self.output = job.output
        self._torch, self._model, self._job = torch, model, job
        self.rewind()

    def step(self) -> None:
        with self._torch.inference_mode():
            self._result, *self._state = self._model(self._token, *self._state)
        self._token = self._result

    def rewind(self) -> None:
        sizes = (self._job.workload.L, self._job.batch, self._job.workload.H)
        self._token = self._torch.tensor([self._job.workload.start(self._job.batch)])
        self._state = [self._torch.zeros(sizes, dtype=self._type) for _ in range(2)]

    def tokens(self) -> list[int]:
        tokens: list[int] = self._token[0].tolist()
        return tokens

    def put(self, token: int) -> None:
        self._token = self._torch.tensor([[token]])

    def logits(self) -> NDArray[np.float32]:
        return np.asarray(self._result.float().numpy()).ravel()

    def score(self, texts: list[list[int]]) -> list[NDArray[np.float32]]:
        torch, sizes = self._torch, (self._job.workload.L, PADDED, self._job.workload.H)
        state = [torch.zeros(sizes, dtype=self._type) for _ in range(2)]

        def run(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            tokens = torch.from_numpy(rows).T
            with torch.inference_mode():
                logits = self._model(tokens[:-1], *state)[0].float()
                logprobs = -torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), tokens[1:].flatten(), reduction="none"
                )
                return np.asarray(logprobs.reshape(len(tokens) - 1, -1).T.numpy())

        return score_padded(texts, run)


def _model(job: Job) -> Any:
    """`token [1, B], h and c [L, B, H] -> next token [1, B] or logits [1, B, V], new h and c`."""
    import torch

    V, E, H, L = (getattr(job.workload, letter) for letter in "VEHL")

    class Decoder(torch.nn.Module):
        def __init__(self, greedy: bool) -> None:
            super().__init__()
            self.embedding, self.lstm = torch.nn.Embedding(V, E), torch.nn.LSTM(E, H, L)
            self.output, self.greedy = torch.nn.Linear(H, V), greedy

        def forward(self, token: torch.Tensor, h: torch.Tensor, c: torch.Tensor):  # type: ignore[no-untyped-def]
            x, (h, c) = self.lstm(self.embedding(token), (h, c))
            logits = self.output(x)
            return (logits.argmax(-1) if self.greedy else logits), h, c

    w, model = job.workload.weights, Decoder(job.output == "token")
    parts = {"weight_ih": "kernel", "weight_hh": "recurrent_kernel", "bias_ih": "bias"}
    found = {"embedding.weight": w["embedding"], "output.weight": w["output.kernel"].T, "output.bias": w["output.bias"]}
    for layer in range(L):
        found |= {f"lstm.{name}_l{layer}": w[f"lstm.{layer}.{part}"].T for name, part in parts.items()}
        found[f"lstm.bias_hh_l{layer}"] = np.zeros(4 * H, np.float32)
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.items()})
    return model
