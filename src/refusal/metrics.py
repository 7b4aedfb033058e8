"""The refusal metric and the KL divergence: pure functions of logits, in float64.

The epsilons are those of the method: they bound the metric to about +-18.42.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

METRIC_EPSILON = 1e-8
KL_EPSILON = 1e-6


def refusal_metric(logits: Float[Tensor, "prompt vocab"], tokens: Sequence[int]) -> Float[Tensor, "prompt"]:
    """Log-odds of the refusal tokens ``R`` (Arditi et al. 2024, section 2.4 and appendix B).

    ``log(sum_R p + 1e-8) - log(1 - sum_R p + 1e-8)`` with ``p`` the softmax of the last prompt token's logits.
    Positive: the model is about to refuse.
    """
    probability = softmax64(logits)[:, list(tokens)].sum(-1)
    return (probability + METRIC_EPSILON).log() - (1 - probability + METRIC_EPSILON).log()


def kl_divergence(base: Float[Tensor, "prompt vocab"], other: Float[Tensor, "prompt vocab"]) -> Float[Tensor, "prompt"]:
    """``sum p_base (log(p_base + 1e-6) - log(p_other + 1e-6))`` per prompt, from logits.

    The epsilon makes it a hair less than the true divergence, so single values may be slightly negative.
    """
    p, q = softmax64(base), softmax64(other)
    return (p * ((p + KL_EPSILON).log() - (q + KL_EPSILON).log())).sum(-1)


def softmax64(logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, "prompt vocab"]:
    """Probabilities in float64, on the CPU where the device has no float64 (Apple's)."""
    if logits.device.type == "mps":
        logits = logits.cpu()
    return logits.double().softmax(-1)
