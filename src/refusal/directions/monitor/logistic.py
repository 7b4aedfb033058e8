"""A logistic of a few numbers, by Newton's method."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

ROUNDS, ENOUGH = 100, 1e-10


@dataclass(frozen=True)
class Logistic:
    """``weights . x + bias`` is the logit that something is positive."""

    weights: Float[np.ndarray, "feature"]
    bias: float


def fit_logistic(
    features: Float[np.ndarray, "row feature"],
    positive: Bool[np.ndarray, "row"],
    strength: float = 1.0,
) -> Logistic:
    """The weights with the least ``|w|^2 / 2 + strength * sum(log loss)``, the bias free.

    That is scikit-learn's ``LogisticRegression(C=strength)``. Without the first term classes that
    do not overlap would have infinite weights. The loss is convex; a step that does not lower it is
    halved.
    """
    x = np.column_stack([features, np.ones(len(features))]).astype(np.float64)
    y = positive.astype(np.float64)
    ridge = np.append(np.ones(features.shape[1]), 0.0)

    def loss(w: Float[np.ndarray, "_"]) -> float:
        logits = x @ w
        log_loss = np.logaddexp(0, logits) - y * logits
        return float(ridge @ (w * w) / 2 + strength * log_loss.sum())

    w = np.zeros(x.shape[1])
    for _ in range(ROUNDS):
        p = probability(x @ w)
        gradient = ridge * w + strength * x.T @ (p - y)
        curvature = np.diag(ridge) + strength * (x.T * (p * (1 - p))) @ x
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        scale = 1.0
        while loss(w - scale * step) > loss(w) and scale > ENOUGH:
            scale /= 2
        w = w - scale * step
        if np.abs(scale * step).max() < ENOUGH:
            break
    return Logistic(w[:-1], float(w[-1]))


def probability(logits: Float[np.ndarray, "*rows"]) -> Float[np.ndarray, "*rows"]:
    """``1 / (1 + exp(-logit))``, without overflow."""
    found: np.ndarray = np.exp(-np.logaddexp(0, -logits))
    return found
