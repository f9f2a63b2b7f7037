# SPDX-License-Identifier: Apache-2.0
"""fastlm: the fastest way to run an LSTM language model on a CPU.

>>> import fastlm
>>> text = str(fastlm.generate("Once upon a time", max_tokens=20, seed=1))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from fastlm._engine import FormatError
except ModuleNotFoundError as e:
    if e.name != "fastlm._engine":
        raise
    raise ImportError(
        "the compiled engine is missing: this is fastlm's source tree, which hides an installed fastlm; leave the "
        "directory, or build the engine here with 'pip install -e .'"
    ) from e
from fastlm.model import Model, cpu_info, generate, load
from fastlm.novelty import CorpusIndex, build_index, load_index
from fastlm.options import Completion, GenerationOptions, Score
from fastlm.scoring import Candidate, rescore
from fastlm.state import Session, State

if TYPE_CHECKING:
    from fastlm.exporter import ExportReport, export
    from fastlm.quantizer import QuantizeReport, quantize
    from fastlm.training import TrainReport, train

__version__ = "0.1.0"

__all__ = [
    "Candidate",
    "Completion",
    "CorpusIndex",
    "ExportReport",
    "FormatError",
    "GenerationOptions",
    "Model",
    "QuantizeReport",
    "Score",
    "Session",
    "State",
    "TrainReport",
    "build_index",
    "cpu_info",
    "export",
    "generate",
    "load",
    "load_index",
    "quantize",
    "rescore",
    "train",
]

# Loaded when first used: they want packages that running a model does not.
_LATER = {
    "export": "fastlm.exporter",
    "ExportReport": "fastlm.exporter",
    "quantize": "fastlm.quantizer",
    "QuantizeReport": "fastlm.quantizer",
    "train": "fastlm.training",
    "TrainReport": "fastlm.training",
}


_PARTS = ("goals", "report", "training")


def __getattr__(name: str) -> Any:
    if name in _LATER or name in _PARTS:
        import importlib

        module = importlib.import_module(_LATER.get(name, f"fastlm.{name}"))
        return module if name in _PARTS else getattr(module, name)
    raise AttributeError(f"module 'fastlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__doc__", "__version__"])
