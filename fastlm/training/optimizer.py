# SPDX-License-Identifier: Apache-2.0
"""Adam with clipping, on TensorFlow's fused kernel."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from fastlm.training.recurrence import Tensor


class Adam:
    """Adam (Kingma & Ba 2015) after clipping by the global norm (Pascanu et al. 2013).

    One kernel per variable reads and writes each number once; Keras' optimizer is a dozen passes over
    memory, which at 20 million weights takes as long as a quarter of the step.

    Parameters
    ----------
    variables : sequence of tf.Variable
    clip : float
        Largest global norm of the gradients.

    Attributes
    ----------
    moments : list of tf.Variable
        First moments, then second moments: with the step's number, all there is to save.
    """

    def __init__(self, variables: Sequence[Tensor], clip: float = 1.0) -> None:
        self._variables, self._clip = list(variables), clip
        self.moments = [tf.Variable(tf.zeros_like(v), trainable=False) for _ in "mv" for v in variables]

    def apply(self, gradients: Sequence[Tensor], learning_rate: Tensor, step: Tensor) -> None:
        """Update the variables; ``step`` is 0 for the first update, float32."""
        # A gathered embedding's gradient names its rows, some twice: only summed up has it a norm.
        dense = [tf.convert_to_tensor(g) for g in gradients]
        dense, _ = tf.clip_by_global_norm(dense, self._clip)
        first, second = self.moments[: len(dense)], self.moments[len(dense) :]
        for variable, m, v, gradient in zip(self._variables, first, second, dense, strict=True):
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=m.handle,
                v=v.handle,
                beta1_power=tf.pow(0.9, step + 1),
                beta2_power=tf.pow(0.999, step + 1),
                lr=learning_rate,
                beta1=0.9,
                beta2=0.999,
                epsilon=1e-8,
                grad=gradient,
            )
