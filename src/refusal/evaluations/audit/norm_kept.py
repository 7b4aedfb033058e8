"""The edit of weights that keeps the norm of what each input writes, as hooks, so that it is scored
and measured as all other attacks are.

``W' = (I - u u') W D`` with ``D`` diagonal: column ``j`` of ``W`` gets back the norm that the
projection took from it. So the input of every writing matrix is scaled by ``D``, and what it writes
is projected as in ablation. An embedding is a matrix with one input a token: what it writes gets
its own norm back.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from refusal.core.direction import Direction
from refusal.core.errors import UnsupportedModelError
from refusal.interventions.ablate_add import Ablate, project_out
from refusal.interventions.stream import Placed
from refusal.model.chat_model import ChatModel
from refusal.model.hooks import Edit, EditFunction
from refusal.model.sites import Sites
from refusal.weights.parameters import find_parameters

LEAST = 1e-2  # of a norm: what is nearly all direction stays as it is, as in weights/projection.py


@dataclass(frozen=True)
class NormKept:
    """Ablation of a direction in weights whose columns keep their norms.

    Attributes:
        scales: by the name of a module, what its inputs are multiplied by.
        embeddings: names of the embeddings.
    """

    direction: Direction
    scales: Mapping[str, Tensor]
    embeddings: tuple[str, ...]

    @classmethod
    def of(cls, model: ChatModel, direction: Direction) -> "NormKept":
        """Measure the columns of every matrix that writes to the stream.

        Raises:
            UnsupportedModelError: a matrix is of several experts, or behind a norm.
            QuantisedModelError: the weights are no plain numbers.
        """
        scales, embeddings = {}, []
        weights = dict(model.hf.named_parameters())
        for parameter in find_parameters(model.hf, model.sites):
            weight = weights[parameter.name].detach()
            name = parameter.name.rpartition(".")[0]
            if weight.dim() == 1:  # a bias is projected only
                continue
            if weight.dim() > 2 or parameter.norm is not None:
                raise UnsupportedModelError(
                    f"{parameter.name} is a matrix of experts or behind a norm, for which the edit "
                    "that keeps norms has no hooks. refusal export --norm column makes it in "
                    "weights."
                )
            if isinstance(model.hf.get_submodule(name), nn.Embedding):
                embeddings.append(name)
            else:
                columns = weight.float().movedim(parameter.axis, -1)
                unit = direction.vector.float().to(columns.device)
                scales[name] = _gain(columns, project_out(columns, unit)).flatten()
        return cls(direction, scales, tuple(embeddings))

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit]:
        """The scales at the inputs of matrices, then ablation."""
        found = []
        for name, scale in self.scales.items():
            found.append(Edit(model.get_submodule(name), "input", _scaling(Placed(scale))))
        unit = Placed(self.direction.vector.float())
        for name in self.embeddings:
            found.append(Edit(model.get_submodule(name), "output", _restoring(unit)))
        return [*found, *Ablate(self.direction).edits(model, sites)]


def _gain(
    old: Float[Tensor, "*rows d_model"], new: Float[Tensor, "*rows d_model"]
) -> Float[Tensor, "*rows 1"]:
    """What each row of ``new`` is multiplied by to be as long as it was."""
    before, after = old.norm(dim=-1, keepdim=True), new.norm(dim=-1, keepdim=True)
    return torch.where(after > LEAST * before, before / after, 1.0)


def _scaling(scale: Placed) -> EditFunction:
    return lambda x: (x.float() * scale.beside(x)).to(x.dtype)


def _restoring(unit: Placed) -> EditFunction:
    def restore(x: Tensor) -> Tensor:
        old = x.float()
        new = project_out(old, unit.beside(x))
        return (new * _gain(old, new)).to(x.dtype)

    return restore
