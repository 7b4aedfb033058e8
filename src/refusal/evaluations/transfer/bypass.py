"""The refusal metric of prompts under the ablation of several directions, side by side."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from refusal.core.direction import Direction
from refusal.core.records import Prompt
from refusal.directions.refusal_metric import refusal_metric
from refusal.interventions.ablate_add import AblateEach
from refusal.model.chat_model import ChatModel
from refusal.model.forward import read, share_batches
from refusal.model.rows import Batch


def metrics_under(
    model: ChatModel, prompts: Sequence[Prompt], directions: Sequence[Direction], ids: Sequence[int]
) -> list[list[float]]:
    """The metric of every prompt when nothing is done, then under the ablation of each direction.

    Args:
        ids: the refusal tokens.
    """

    def run(batch: Batch) -> list[Float[Tensor, "prompt"]]:
        found = [refusal_metric(read(model, batch)[0], ids).cpu()]
        if directions:
            with model.apply(AblateEach(tuple(directions))):
                logits = read(model, batch, copies=len(directions))
            found += [refusal_metric(one, ids).cpu() for one in logits]
        return found

    values = [[0.0] * len(prompts) for _ in range(1 + len(directions))]
    rows = model.tokenize([prompt.question for prompt in prompts])
    most = max(1, model.token_budget.value // max(1, len(directions)))
    for members, metrics in share_batches(model, rows, run, most):
        for row, found in zip(values, metrics, strict=True):
            for i, value in zip(members, found.tolist(), strict=True):
                row[i] = value
    return values
