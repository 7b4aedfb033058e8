"""Orthogonalisation: the direction projected out of every parameter that writes to the stream, and
what that is worth.

``W <- W - r_hat r_hat^T W`` is directional ablation baked into the weights (paper section 4.1). How
well the two agree is measured on prompts: behind a post-norm they do not quite, because the norm
rescales what is left.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from refusal.core.direction import Direction
from refusal.core.errors import DirectionError
from refusal.core.turns import Question
from refusal.core.valid import check_width
from refusal.interventions.ablate_add import Ablate
from refusal.model.chat_model import ChatModel
from refusal.model.forward import last_logits
from refusal.weights.agreement import Agreement
from refusal.weights.parameters import StreamParameter, find_parameters, removal_for
from refusal.weights.projection import project_weight


@dataclass(frozen=True)
class OrthogonalisationGap:
    """Edited weights against ablation by hooks: last-token logits of the same prompts.

    Attributes:
        logits: largest absolute difference.
        kl: mean KL divergence from the hooked to the edited model, in nats.
        same_argmax: share of prompts with the same most likely token.
        prompts: how many.
    """

    logits: float
    kl: float
    same_argmax: float
    prompts: int


@dataclass(frozen=True)
class OrthogonalisationReport:
    """What was done to the weights.

    Attributes:
        parameters: names of the edited parameters.
        behind_norm: how many of them write through a post-norm.
        untied: whether the embedding shared its weight with the output head, which keeps the
            original.
        text_only: whether images or sounds enter the stream too, past the edited weights: the edit
            was found and measured on text.
        preserve_norm: whether the vectors along the stream's dimension kept their norm.
        gap: agreement with the hooks; ``None`` if no prompts were given.
    """

    parameters: tuple[str, ...]
    behind_norm: int
    untied: bool
    text_only: bool = False
    preserve_norm: bool = False
    gap: OrthogonalisationGap | None = None


def orthogonalise(
    model: ChatModel,
    direction: Direction,
    prompts: Sequence[Question] = (),
    *,
    preserve_norm: bool = False,
    parameters: Sequence[StreamParameter] | None = None,
) -> OrthogonalisationReport:
    """Project ``direction`` out of the model's weights, for good; see ``orthogonalised`` for a
    while.

    Args:
        model: edited in memory, parameter by parameter.
        direction: found on this model.
        prompts: instructions on which to measure the agreement with the hooks.
        preserve_norm: keep the norm of what each input writes (an approximation that the hooks do
            not make).
        parameters: those to edit, if they have been found already.

    Raises:
        DirectionError: a direction of another width or model, or without a length.
        UnsupportedModelError: not everything that writes to the stream was found; or, with the
            model edited all the same, the edit does something else than the hooks.
        QuantisedModelError: the weights are not plain floating-point numbers.
    """
    parameters = plan(model, direction) if parameters is None else parameters
    hooked = _hooked_logits(model, direction, prompts)
    agreement = Agreement(model.hf, model.sites, direction)
    untied = _edit(model.hf, parameters, direction, preserve_norm, undo=None)
    if not preserve_norm:  # which the hooks do not
        agreement.check(parameters)
    gap = None if hooked is None else _compare(hooked, last_logits(model, prompts))
    return report_of(model, parameters, untied=untied, preserve_norm=preserve_norm, gap=gap)


def report_of(
    model: ChatModel, parameters: Sequence[StreamParameter], **rest: Any
) -> OrthogonalisationReport:
    """The report of an edit of ``parameters``."""
    return OrthogonalisationReport(
        parameters=tuple(p.name for p in parameters),
        behind_norm=sum(p.norm is not None for p in parameters),
        text_only=model.hf.config.get_text_config() is not model.hf.config,
        **rest,
    )


@contextmanager
def orthogonalised(
    model: ChatModel,
    direction: Direction,
    *,
    preserve_norm: bool = False,
    parameters: Sequence[StreamParameter] | None = None,
) -> Iterator[ChatModel]:
    """The model with ``direction`` projected out of its weights inside the block; afterwards as it
    was, to the bit.

    The original parameters are kept beside the edited ones. ``parameters`` are those to edit, if
    they have been found already. Raises as ``orthogonalise`` does.
    """
    parameters = plan(model, direction) if parameters is None else parameters
    undo: list[tuple[Any, str, Any]] = []
    try:
        _edit(model.hf, parameters, direction, preserve_norm, undo)
        yield model
    finally:
        for owner, name, value in reversed(undo):
            setattr(owner, name, value)


def orthogonalisation_gap(
    model: ChatModel,
    direction: Direction,
    prompts: Sequence[Question],
    *,
    preserve_norm: bool = False,
    parameters: Sequence[StreamParameter] | None = None,
) -> OrthogonalisationGap:
    """Measure the edited weights against ablation by hooks on ``prompts``; the model stays as it
    is.

    Arguments and errors are those of ``orthogonalised``.
    """
    hooked = _hooked_logits(model, direction, prompts)
    if hooked is None:
        raise ValueError("the gap is measured on at least one prompt")
    with orthogonalised(model, direction, preserve_norm=preserve_norm, parameters=parameters):
        return _compare(hooked, last_logits(model, prompts))


def plan(model: ChatModel, direction: Direction) -> tuple[StreamParameter, ...]:
    """The parameters to edit, after checking that the direction fits the model. Raises as
    ``orthogonalise`` does.
    """
    check_direction(direction, model.name, model.sites.d_model)
    return find_parameters(model.hf, model.sites)


def check_direction(direction: Direction, name: str, d_model: int) -> None:
    """Make sure that a direction is of unit length and fits the model called ``name``.

    Raises:
        DirectionError: it does not.
    """
    if direction.model and direction.model != name:
        raise DirectionError(
            f"The direction was found on {direction.model}, not on {name}. Give a direction of "
            "this model; if it is the same model under another name, set the direction's `model` "
            "to this name."
        )
    check_width(direction.vector, d_model)
    if not abs(float(direction.vector.float().norm()) - 1) < 1e-3:
        raise DirectionError(
            f"The direction has length {float(direction.vector.float().norm()):.3g}, not 1. "
            "Divide it by its norm."
        )


def _edit(
    hf: PreTrainedModel,
    parameters: Sequence[StreamParameter],
    direction: Direction,
    preserve_norm: bool,
    undo: list[tuple[Any, str, Any]] | None,
) -> bool:
    """Replace every parameter; what was replaced goes to ``undo``. Returns whether an output head
    was untied.

    Parameters are replaced, not written to: what else holds the original (a tied output head) keeps
    it.
    """

    def put(owner: Any, name: str, value: Any) -> None:
        if undo is not None:
            undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    head = hf.get_output_embeddings()
    untied = False
    for parameter in parameters:
        old = hf.get_parameter(parameter.name)
        removal = removal_for(hf, parameter, direction.vector)
        edited = project_weight(old.detach(), parameter.axis, removal, preserve_norm)
        new = nn.Parameter(edited, requires_grad=old.requires_grad)
        for owner in hf.modules():
            for name in [name for name, held in owner._parameters.items() if held is old]:
                if owner is head:
                    untied = True
                else:
                    put(owner, name, new)
    if untied and undo is None:
        _separate(hf)
    if untied:
        for config in {id(c): c for c in (hf.config, hf.config.get_text_config())}.values():
            if getattr(config, "tie_word_embeddings", False):
                put(config, "tie_word_embeddings", False)
        put(hf, "all_tied_weights_keys", hf.get_expanded_tied_weights_keys(all_submodels=True))
    return untied


def _separate(hf: PreTrainedModel) -> None:
    """Give all that is tied weights of its own: one switch of the config ties the head and Zamba's
    blocks.
    """
    seen: set[int] = set()
    for owner in hf.modules():
        for name, held in owner._parameters.items():
            if held is not None and id(held) in seen:
                setattr(
                    owner,
                    name,
                    nn.Parameter(held.detach().clone(), requires_grad=held.requires_grad),
                )
            elif held is not None:
                seen.add(id(held))


def _hooked_logits(
    model: ChatModel, direction: Direction, prompts: Sequence[Question]
) -> Float[Tensor, "prompt vocab"] | None:
    if not prompts:
        return None
    with model.apply(Ablate(direction)):
        return last_logits(model, prompts)


def _compare(
    hooked: Float[Tensor, "prompt vocab"], edited: Float[Tensor, "prompt vocab"]
) -> OrthogonalisationGap:
    log_p, log_q = hooked.double().log_softmax(-1), edited.double().log_softmax(-1)
    return OrthogonalisationGap(
        logits=float((hooked.float() - edited.float()).abs().max()),
        kl=float((log_p.exp() * (log_p - log_q)).sum(-1).mean()),
        same_argmax=float((hooked.argmax(-1) == edited.argmax(-1)).double().mean()),
        prompts=len(hooked),
    )
