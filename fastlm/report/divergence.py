# SPDX-License-Identifier: Apache-2.0
"""How far what a model writes is from human text as a whole, by how the model itself sees both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastlm.calibration import output_states
from fastlm.report.passages import Passage, started

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastlm.model import Model

_TEXTS_A_CLUSTER = 10

_SCALE = 5.0
"""Of divergences, as in the paper."""

_MIXTURES = 25


def features(model: Model, texts: Sequence[Passage]) -> npt.NDArray[np.float32]:
    """The mean of the last layer's states behind the prompts, [texts, units]."""
    tokens = np.array([started(model, one.tokens) for one in texts], np.int32)
    states = output_states(model, tokens, tokens.shape[1] - len(texts[0].text))
    found: npt.NDArray[np.float32] = states.reshape(len(texts), -1, states.shape[-1]).mean(1)
    return found


def likeness(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32], seed: int = 0) -> float:
    """The area under the divergence curve of two sets of features, in clusters of both together: 1 if they are the same
    (Pillutla et al. 2021, "MAUVE")."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import auc

    both = np.concatenate([one, other])
    reduced = PCA(0.9, random_state=seed).fit_transform(both)
    clusters = KMeans(max(2, len(both) // 2 // _TEXTS_A_CLUSTER), n_init=5, random_state=seed).fit_predict(reduced)
    count = clusters.max() + 1
    p, q = (
        (np.bincount(part, minlength=count) + 0.5) / (len(part) + 0.5 * count)
        for part in (clusters[: len(one)], clusters[len(one) :])
    )
    shares = np.linspace(0, 1, _MIXTURES + 2)[1:-1]
    mixed = shares[:, None] * p + (1 - shares[:, None]) * q
    x, y = (np.exp(-_SCALE * (part * np.log(part / mixed)).sum(1)) for part in (q, p))
    x, y = np.array([0, *x[::-1], 1]), np.array([1, *y[::-1], 0])
    order = np.argsort(x, kind="stable")
    return float(auc(x[order], y[order]))
