"""Which parameters write to the residual stream, and along which of their dimensions: found by measurement.

A parameter writes to the stream if moving it along ``u`` (an arbitrary direction of the stream) moves the write along
``u`` and nowhere else. Whether all have been found is then measured too: with ``u`` projected out of them, no write has
a component along ``u`` any more.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from refusal.sites import Sites


@dataclass(frozen=True)
class StreamParameter:
    """A parameter that writes to the residual stream.

    Attributes:
        name: as in ``model.named_parameters()``.
        axis: the dimension of size d_model on the stream's side: 0 for a Linear weight, 1 for an embedding and for
            GPT-2's Conv1D, 1 for fused experts ``[expert, d_model, inner]``, 2 for ``[expert, inner, d_model]``, the
            last for a bias.
        norm: name of the norm module between it and the stream (Gemma-2/3, OLMo-2), or ``None``.
    """

    name: str
    axis: int
    norm: str | None = None


def find_parameters(model: PreTrainedModel, sites: Sites) -> tuple[StreamParameter, ...]:
    """Every parameter that writes to the stream, embeddings first, then block by block; verified.

    Raises:
        UnsupportedModelError: some write keeps a component along a direction that all parameters found have lost.
    """
    raise NotImplementedError


def before_norm(norm: nn.Module, unit: Float[Tensor, "d_model"]) -> Float[Tensor, "d_model"]:
    """The unit direction that the input of ``norm`` has to lose for its output to lose ``unit``, float32.

    For an RMS norm with gain ``g`` (measured: Gemma's is ``1 + weight``) that is ``unit * g``, normalised.
    """
    raise NotImplementedError
