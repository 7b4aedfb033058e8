"""The refusal metric and the KL divergence: pure functions of logits, in float64.

The epsilons are those of the method: they bound the metric to about +-18.42.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core.errors import ConfigError
from refusal.model.batch_size import FORCED_CHUNK

METRIC_EPSILON = 1e-8
KL_EPSILON = 1e-6
CACHED = 1 << 19  # numbers in float64 that stay in a processor's cache (docs/performance.md)

# Of the refusal metric: it is largest in size where p is 0 or 1.
METRIC_BOUND = math.log1p(METRIC_EPSILON) - math.log(METRIC_EPSILON)


def kl_floor(vocabulary: int) -> float:
    """The least that ``kl_divergence`` can be, a hair under 0: ``-log(1 + V e)``.

    With ``P = p + e`` and ``Q = q + e`` (each sums to ``1 + V e``), ``sum p log Q`` is largest at
    ``Q = (1 + V e) p``, so ``sum p (log P - log Q) >= sum p log(P / p) - log(1 + V e)``, and ``P >=
    p``.
    """
    return -math.log1p(vocabulary * KL_EPSILON)


def refusal_metric(
    logits: Float[Tensor, "prompt vocab"], tokens: Sequence[int]
) -> Float[Tensor, "prompt"]:
    """Log-odds of the refusal tokens ``R`` (Arditi et al. 2024, section 2.4 and appendix B).

    ``log(sum_R p + 1e-8) - log(1 - sum_R p + 1e-8)`` with ``p`` the softmax of the last prompt
    token's logits. Positive: the model is about to refuse. ``tokens`` are a set: one that is named
    twice counts once.

    Raises:
        ConfigError: none, or one outside the vocabulary.
    """
    chosen, size = list(dict.fromkeys(tokens)), logits.shape[-1]
    if not chosen or min(chosen) < 0 or max(chosen) >= size:
        raise ConfigError(
            f"Refusal tokens {chosen[:8]} are not in the vocabulary of {size}. Give ids below that."
        )
    return torch.cat([_log_odds(few, chosen) for few in logits.split(rows_at_once(logits))])


def _log_odds(logits: Float[Tensor, "prompt vocab"], chosen: list[int]) -> Float[Tensor, "prompt"]:
    wide = _float64(logits)
    probability = (wide[:, chosen] - wide.logsumexp(-1, keepdim=True)).exp().sum(-1)
    return (probability + METRIC_EPSILON).log() - (1 - probability + METRIC_EPSILON).log()


def rows_at_once(logits: Float[Tensor, "row vocab"]) -> int:
    """How many rows are looked at together in float64: on a processor as many as stay in its cache,
    six times as fast as all of them; elsewhere as many as there is memory for.
    """
    return max(1, CACHED // logits.shape[-1]) if logits.device.type == "cpu" else FORCED_CHUNK


def kl_divergence(
    base: Float[Tensor, "prompt vocab"], other: Float[Tensor, "prompt vocab"]
) -> Float[Tensor, "prompt"]:
    """``sum p_base (log(p_base + 1e-6) - log(p_other + 1e-6))`` per prompt, from logits.

    The epsilon makes it a hair less than the true divergence, so single values may be slightly
    negative.
    """
    parts = [part.split(rows_at_once(base)) for part in (base, other)]
    return torch.cat([kl_between(softmax64(p), softmax64(q)) for p, q in zip(*parts, strict=True)])


def kl_from(
    p: Float[Tensor, "prompt vocab"], other: Float[Tensor, "prompt vocab"]
) -> Float[Tensor, "prompt"]:
    """``kl_divergence`` with the base's probabilities already at hand, float64."""
    parts = [part.split(rows_at_once(other)) for part in (p, other)]
    return torch.cat([kl_between(p, softmax64(q)) for p, q in zip(*parts, strict=True)])


def kl_between(
    p: Float[Tensor, "prompt vocab"], q: Float[Tensor, "prompt vocab"]
) -> Float[Tensor, "prompt"]:
    """``kl_divergence`` with both probabilities already at hand, float64."""
    return (p * ((p + KL_EPSILON) / (q + KL_EPSILON)).log()).sum(-1)


def softmax64(logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, "prompt vocab"]:
    """Probabilities in float64."""
    return _float64(logits).softmax(-1)


def _float64(logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, "prompt vocab"]:
    """In float64, on the CPU where the device has none (Apple's)."""
    return (logits.cpu() if logits.device.type == "mps" else logits).double()
