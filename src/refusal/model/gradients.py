"""Gradients of a loss on a model's logits with respect to what interventions are made of.

The model's parameters stay as they are and need no gradients. Everything else of this package runs
without gradients; a direction that is sought by gradient descent needs this one path.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refusal.model.base import LoadedModel
from refusal.model.contexts import check_rows
from refusal.model.edits import Intervention
from refusal.model.forward import call, plan
from refusal.model.hooks import Edit, hooked
from refusal.model.rows import Batch

TOKENS = 1024  # through the model at once: what a backward pass needs is kept of every block

Loss = Callable[[Sequence[int], Sequence[Tensor]], Tensor]


def logits_of(
    model: LoadedModel, batch: Batch, starts: Sequence[int]
) -> list[Float[Tensor, "token vocab"]]:
    """For each text ``p`` of a batch, the logits that predict its tokens from ``starts[p]`` (at
    least 1) on, with gradients.

    Interventions are those that are applied; what they are made of is what gradients reach.
    """
    head = model.hf.get_submodule(model.sites.head)
    before = [path[start - 1 : -1] for path, start in zip(batch.paths, starts, strict=True)]
    rows = [row.expand(len(at)) for row, at in zip(batch.row.cpu(), before, strict=True)]
    row, column = torch.cat(rows), torch.cat(before)
    model.forward_tokens += batch.ids.numel()

    def predicting(x: Tensor) -> Tensor:
        return x[row.to(x.device), column.to(x.device)][:, None]

    with torch.enable_grad(), frozen(model.hf), hooked([Edit(head, "input", predicting)]):
        logits = call(model, batch.ids, batch.mask, batch.positions)[:, 0]
    return list(logits.split([len(at) for at in before]))


def loss_gradients(
    model: LoadedModel,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    interventions: Callable[[], Sequence[Intervention]],
    loss: Loss,
    leaves: Sequence[Tensor],
) -> tuple[float, list[Tensor]]:
    """A loss over texts, and its gradient with respect to each of ``leaves``, in float64.

    Args:
        rows: the tokens of each text.
        starts: the first token of each that is predicted, at least 1.
        interventions: makes those under which the model runs out of the leaves, anew for each
            batch.
        loss: of some of the texts (their indices, and their logits as ``logits_of`` gives them); it
            adds up over texts.
        leaves: tensors that require gradients.

    Raises:
        PromptError: a text is longer than the model's context.
    """
    check_rows(model, rows)
    total, sums = 0.0, [torch.zeros_like(leaf, dtype=torch.float64) for leaf in leaves]
    for planned in plan(model, rows, most=TOKENS):
        batch = planned.lay_out()
        with torch.enable_grad(), model.apply(*interventions()):
            logits = logits_of(model, batch, [starts[i] for i in batch.prompts])
            value = loss(batch.prompts, logits)
        found = torch.autograd.grad(value, leaves, allow_unused=True)
        for i, gradient in enumerate(found):
            if gradient is not None:  # None: nothing of it is in this batch's interventions
                sums[i] = sums[i] + gradient.double()
        total += float(value.detach())
    return total, sums


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let no parameter need gradients inside the block; afterwards those that did do again."""
    needing = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in needing:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in needing:
            parameter.requires_grad_(True)
