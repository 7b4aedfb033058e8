"""Orthogonalisation: the direction projected out of every parameter that writes to the stream, and
what that is worth.

``W <- W - r_hat r_hat^T W`` is directional ablation baked into the weights (paper section 4.1); any
other strength, subspace or kernel over layers is, in the same way, ``W <- W - alpha Q' Q W``. How
well the two agree is measured on prompts: behind a post-norm they do not quite, because the norm
rescales what is left, nor where an edit keeps norms.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from refusal.config.exports import NormRule
from refusal.core.direction import Direction
from refusal.core.turns import Question
from refusal.interventions.ablate_add import Ablate
from refusal.model.chat_model import ChatModel
from refusal.model.forward import last_logits
from refusal.weights.agreement import Agreement
from refusal.weights.edit import WeightEdit, as_ablation, check_direction, edit_of
from refusal.weights.parameters import StreamParameter, find_parameters
from refusal.weights.projection import check_kept, project_weight, share_read


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
        norm: whose norms were kept, see ``project_weight``.
        left: size of what the directions read in all edited weights, as a share of what they read
            before: what rounding (and another strength than 1, or ``norm = "row"``) leaves;
            ``None`` where it was not measured.
        gap: agreement with the hooks; ``None`` if no prompts were given.
    """

    parameters: tuple[str, ...]
    behind_norm: int
    untied: bool
    text_only: bool = False
    norm: NormRule | None = None
    left: float | None = None
    gap: OrthogonalisationGap | None = None


def orthogonalise(
    model: ChatModel,
    direction: Direction | Ablate,
    prompts: Sequence[Question] = (),
    *,
    norm: NormRule | None = None,
    parameters: Sequence[StreamParameter] | None = None,
) -> OrthogonalisationReport:
    """Do an ablation to the model's weights, for good; see ``orthogonalised`` for a while.

    Args:
        model: edited in memory, parameter by parameter.
        direction: found on this model and projected out; or an ablation of any form.
        prompts: instructions on which to measure the agreement with the hooks.
        norm: keep the norm of what each input writes (``column``) or of what is written to each
            dimension of the stream (``row``, which brings a part of the direction back): see
            ``project_weight``. The hooks do neither.
        parameters: all that write to the stream, if they have been found already.

    Raises:
        DirectionError: a direction of another width or model, or without a length.
        UnsupportedModelError: not everything that writes to the stream was found; or, with the
            model edited all the same, the edit does something else than the hooks.
        QuantisedModelError: the weights are not plain floating-point numbers.
    """
    edit = plan(model, direction, parameters)
    hooked = _hooked_logits(model, edit.ablation, prompts)
    agreement = Agreement(model.hf, model.sites, edit.ablation)
    untied, left = _edit(model.hf, edit, norm, undo=None)
    if norm is None:  # which the hooks do not keep
        agreement.check(edit)
    gap = None if hooked is None else _compare(hooked, last_logits(model, prompts))
    return report_of(model, edit, untied=untied, norm=norm, left=left, gap=gap)


def report_of(model: ChatModel, edit: WeightEdit, **rest: Any) -> OrthogonalisationReport:
    """The report of an edit."""
    return OrthogonalisationReport(
        parameters=tuple(p.name for p in edit.parameters),
        behind_norm=sum(p.norm is not None for p in edit.parameters),
        text_only=model.hf.config.get_text_config() is not model.hf.config,
        **rest,
    )


@contextmanager
def orthogonalised(
    model: ChatModel,
    direction: Direction | Ablate,
    *,
    norm: NormRule | None = None,
    parameters: Sequence[StreamParameter] | None = None,
) -> Iterator[ChatModel]:
    """The model with ``direction`` projected out of its weights (or an ablation of any form done
    to them) inside the block; afterwards as it was, to the bit.

    The original parameters are kept beside the edited ones. ``parameters`` are all that write to
    the stream, if they have been found already. Raises as ``orthogonalise`` does.
    """
    edit = plan(model, direction, parameters)
    undo: list[tuple[Any, str, Any]] = []
    try:
        _edit(model.hf, edit, norm, undo)
        yield model
    finally:
        for owner, name, value in reversed(undo):
            setattr(owner, name, value)


def orthogonalisation_gap(
    model: ChatModel,
    direction: Direction | Ablate,
    prompts: Sequence[Question],
    *,
    norm: NormRule | None = None,
    parameters: Sequence[StreamParameter] | None = None,
) -> OrthogonalisationGap:
    """Measure the edited weights against ablation by hooks on ``prompts``; the model stays as it
    is.

    Arguments and errors are those of ``orthogonalised``.
    """
    hooked = _hooked_logits(model, as_ablation(direction), prompts)
    if hooked is None:
        raise ValueError("the gap is measured on at least one prompt")
    with orthogonalised(model, direction, norm=norm, parameters=parameters):
        return _compare(hooked, last_logits(model, prompts))


def plan(
    model: ChatModel,
    direction: Direction | Ablate,
    parameters: Sequence[StreamParameter] | None = None,
) -> WeightEdit:
    """What is taken out of which parameter, after checking that the direction fits the model.
    Raises as ``orthogonalise`` does.
    """
    check_direction(direction, model.name, model.sites.d_model)
    found = find_parameters(model.hf, model.sites) if parameters is None else parameters
    return edit_of(model.hf, model.sites, found, direction)


def _edit(
    hf: PreTrainedModel,
    edit: WeightEdit,
    norm: NormRule | None,
    undo: list[tuple[Any, str, Any]] | None,
) -> tuple[bool, float]:
    """Replace every parameter; what was replaced goes to ``undo``. Returns whether an output head
    was untied, and which share of what the directions read is left.

    Parameters are replaced, not written to: what else holds the original (a tied output head) keeps
    it.
    """

    def put(owner: Any, name: str, value: Any) -> None:
        if undo is not None:
            undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    head = hf.get_output_embeddings()
    untied, before, after = False, 0.0, 0.0
    for parameter in edit.parameters:
        old = hf.get_parameter(parameter.name)
        removal = edit.removals[parameter.name]
        edited = project_weight(old.detach(), parameter.axis, removal, norm)
        check_kept(parameter.name, old.detach(), edited, parameter.axis, removal, norm)
        had, has = share_read(old.detach(), edited, parameter.axis, removal)
        before, after = before + had, after + has
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
    return untied, (after / before) ** 0.5 if before else 0.0


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
    model: ChatModel, ablation: Ablate, prompts: Sequence[Question]
) -> Float[Tensor, "prompt vocab"] | None:
    if not prompts:
        return None
    with model.apply(ablation):
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
