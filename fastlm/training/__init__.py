# SPDX-License-Identifier: Apache-2.0
"""Training with TensorFlow; the only part of fastlm that imports it.

`train` is the whole road from text files to a model file. `build_model` gives the plain Keras model that
it trains, `load_checkpoint` the model and tokenizer of a run, `evaluate` perplexity on other text.
"""

try:
    import keras
    import tensorflow as _tensorflow  # noqa: F401
except ImportError as e:
    raise ImportError("training needs TensorFlow: pip install 'fastlm[train]'") from e
if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"training needs Keras on TensorFlow, found Keras on {keras.backend.backend()}: unset KERAS_BACKEND"
    )

from fastlm.training.evaluation import Evaluation
from fastlm.training.network import TiedDense, build_model, load_keras_model
from fastlm.training.progress import GapCurve, Progress
from fastlm.training.run import TrainReport, evaluate, load_checkpoint, train, train_pairs

__all__ = [
    "Evaluation",
    "GapCurve",
    "Progress",
    "TiedDense",
    "TrainReport",
    "build_model",
    "evaluate",
    "load_checkpoint",
    "load_keras_model",
    "train",
    "train_pairs",
]
