"""The refusal metric and KL against definitions evaluated by hand and by scipy."""

import math

import torch
from plain import kl, metric
from scipy.special import rel_entr

from refusal import kl_divergence, refusal_metric


def test_metric_is_the_log_odds() -> None:
    p = torch.tensor([[0.25, 0.25, 0.5], [0.1, 0.2, 0.7]], dtype=torch.float64)
    found = refusal_metric(p.log(), [0, 1])
    assert found.dtype == torch.float64
    torch.testing.assert_close(
        found, torch.tensor([0.0, math.log(0.3 / 0.7)], dtype=torch.float64), atol=1e-7, rtol=0
    )


def test_metric_is_bounded_by_its_epsilon() -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]])
    bound = math.log(1 + 1e-8) - math.log(1e-8)
    torch.testing.assert_close(refusal_metric(logits, [0]).tolist(), [bound, -bound])
    assert 18.42 < bound < 18.43


def test_kl_is_near_the_true_divergence() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, 50), torch.randn(5, 50)
    p, q = a.double().softmax(-1).numpy(), b.double().softmax(-1).numpy()
    torch.testing.assert_close(
        kl_divergence(a, b), torch.from_numpy(rel_entr(p, q).sum(-1)), atol=1e-3, rtol=1e-3
    )
    assert kl_divergence(a, a).abs().max() == 0


def test_batched_equals_the_plain_formula() -> None:
    torch.manual_seed(1)
    a, b = torch.randn(7, 40) * 4, torch.randn(7, 40) * 4
    tokens = [3, 17]
    torch.testing.assert_close(
        refusal_metric(a, tokens).tolist(), [metric(row, tokens) for row in a]
    )
    torch.testing.assert_close(
        kl_divergence(a, b).tolist(), [kl(x, y) for x, y in zip(a, b, strict=True)]
    )
