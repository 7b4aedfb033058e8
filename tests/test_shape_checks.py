"""A wrong shape is an error in the tests, wherever an annotation names one."""

import pytest
import torch
from jaxtyping import TypeCheckError

from refusal.directions.refusal_metric import kl_divergence, refusal_metric


def test_a_wrong_shape_is_an_error() -> None:
    with pytest.raises(TypeCheckError, match="logits"):
        refusal_metric(torch.zeros(3), [0])
    with pytest.raises(TypeCheckError, match="other"):
        kl_divergence(torch.zeros(2, 3), torch.zeros(2, 4))
