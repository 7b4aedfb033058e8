"""Which parameters write to the residual stream, and along which of their dimensions: found by
measurement.

A parameter writes to the stream if moving it along ``u`` (an arbitrary direction of the stream)
moves what is written along ``u`` and nowhere else: an output projection does, a query projection, a
router or the wrong axis of a square matrix does not. Whether all have been found is measured too:
with ``u`` projected out of them, no write keeps a component along ``u``. Every measurement runs one
block on a few tokens, with the parameters swapped for copies, so the model's own weights are never
touched.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from refusal.core.errors import QuantisedModelError, UnsupportedModelError
from refusal.model.hooks import Edit, EditFunction, hooked
from refusal.model.sites import Sites
from refusal.weights.norms import before_norm
from refusal.weights.probe import Probe
from refusal.weights.projection import Removal, project_weight
from refusal.weights.what_is_left import why_left


@dataclass(frozen=True)
class StreamParameter:
    """A parameter that writes to the residual stream.

    Attributes:
        name: as in ``model.named_parameters()``.
        axis: the dimension of size d_model on the stream's side: 0 for a Linear weight, 1 for an
            embedding and for GPT-2's Conv1D, 1 for fused experts ``[expert, d_model, inner]``, 2
            for ``[expert, inner, d_model]``, the last for a bias.
        norm: name of the norm module between it and the stream (Gemma-2/3, OLMo-2), or ``None``.
    """

    name: str
    axis: int
    norm: str | None = None


def find_parameters(model: PreTrainedModel, sites: Sites) -> tuple[StreamParameter, ...]:
    """Every parameter that writes to the stream, embeddings first, then block by block; verified.

    Raises:
        UnsupportedModelError: some write keeps a component along a direction that all parameters
            found have lost.
        QuantisedModelError: the weights are not plain floating-point numbers.
    """
    found = discover_parameters(model, sites)
    verify_parameters(model, sites, found)
    return found


def discover_parameters(model: PreTrainedModel, sites: Sites) -> tuple[StreamParameter, ...]:
    """``find_parameters`` without its verification.

    Blocks whose parameters have the same names and shapes are of one kind, and one of each kind is
    measured; the verification runs all of them.

    Raises:
        QuantisedModelError: the weights are not plain floating-point numbers.
    """
    refuse_quantised(model)
    probe = Probe(model, sites)
    found = _writing(probe, None, _outside(probe))
    of_kind: dict[object, list[StreamParameter]] = {}
    for layer, block in enumerate(sites.blocks):
        own = {name.removeprefix(f"{block}."): p for name, p in _inside(model, block)}
        writers = tuple(name.removeprefix(f"{block}.") for name in sites.writers[layer])
        kind = (writers, tuple((name, p.shape) for name, p in own.items()))
        if kind not in of_kind:
            measured = _writing(probe, layer, {f"{block}.{name}": p for name, p in own.items()})
            of_kind[kind] = [_renamed(p, f"{block}.", "") for p in measured]
        found += [_renamed(p, "", f"{block}.") for p in of_kind[kind]]
    return tuple(found)


def verify_parameters(
    model: PreTrainedModel, sites: Sites, parameters: Sequence[StreamParameter]
) -> float:
    """Project an arbitrary direction out of ``parameters`` and look at every write; the weights
    stay as they are.

    Returns:
        The largest share of its component along the direction that a write keeps (rounding).

    Raises:
        UnsupportedModelError: a write keeps more than rounding explains, or of several like
            parameters (experts, say) some are left out.
    """
    _check_complete(model, parameters)
    probe = Probe(model, sites)
    worst = 0.0
    for layer in (None, *range(sites.n_layers)):
        prefix = "" if layer is None else f"{sites.blocks[layer]}."
        inside = [p for p in parameters if (layer is None) == (_block_of(p.name, sites) is None)]
        own = [p for p in inside if p.name.startswith(prefix)]
        taps = [tap for tap in probe.taps(layer) if tap.norm is None]
        before = probe.run(layer, taps, {})
        after = probe.run(layer, taps, {p.name: _projected(probe, p) for p in own})
        for tap in taps:
            kept = probe.kept(before[tap], after[tap])
            if not kept <= probe.tolerance:  # also when it is NaN
                where = "the input of the first block" if layer is None else tap.module
                names = [p.name for p in own]
                why = why_left(probe, layer, tap, names, after[tap])
                raise UnsupportedModelError(
                    f"A direction projected out of {', '.join(names) or 'no parameter'} is still "
                    f"in {where}: {kept:.2g} of it is left (limit {probe.tolerance:.0e}), since "
                    f"{why}. Ablation by hooks works: use Ablate."
                )
            worst = max(worst, kept)
    return worst


def refuse_quantised(model: PreTrainedModel) -> None:
    """Raise unless every parameter is stored as plain floating-point numbers, in memory.

    Raises:
        QuantisedModelError: a quantiser packed the weights, or they are 8-bit or integer numbers.
        UnsupportedModelError: weights are offloaded to disk.
    """
    packed = []
    for name, p in model.named_parameters():
        if not p.is_floating_point() or p.dtype.itemsize < 2:
            packed.append(name)
    if (
        getattr(model, "hf_quantizer", None) is not None
        or getattr(model, "is_quantized", False)
        or packed
    ):
        how = quantisation(model) or next(iter(packed), "by a quantiser that does not say its name")
        raise QuantisedModelError(
            f"The weights are quantised ({how}), so a direction cannot be "
            "projected out of them. Load the model in bfloat16 or dequantised, or ablate by "
            "hooks: use Ablate."
        )
    away = [name for name, p in model.named_parameters() if p.is_meta]
    if away:
        raise UnsupportedModelError(
            f"{len(away)} weights are offloaded to disk ({away[0]} first), so they cannot be "
            "edited. Load the model without --device-map, or export with --stream."
        )


def quantisation(model: PreTrainedModel) -> str | None:
    """The method that a model's config says its weights are quantised by."""
    config = getattr(model.config, "quantization_config", None)
    method = (
        config.get("quant_method")
        if isinstance(config, dict)
        else getattr(config, "quant_method", None)
    )
    return None if method is None else str(getattr(method, "value", method))


def removal_for(
    model: PreTrainedModel,
    parameter: StreamParameter,
    rows: Float[Tensor, "rank d_model"],
    strength: float = 1.0,
) -> Removal:
    """What to take out of ``parameter`` for the stream to lose a share ``strength`` of orthonormal
    ``rows``, on the parameter's device.
    """
    removal = (
        Removal.of(rows, strength)
        if parameter.norm is None
        else before_norm(model.get_submodule(parameter.norm), rows, strength)
    )
    return removal.to(model.get_parameter(parameter.name).device)


def _writing(
    probe: Probe, layer: int | None, parameters: Mapping[str, Tensor]
) -> list[StreamParameter]:
    """Those of ``parameters`` that write to the stream; like ones (experts) are moved together."""
    taps = probe.taps(layer)
    before = probe.run(layer, taps, {})
    found = []
    for group in _alike(parameters):
        first = parameters[group[0]]
        for axis in [dim for dim, size in enumerate(first.shape) if size == probe.sites.d_model]:
            size = max(float(x.norm(dim=-1).mean()) for x in before.values())
            moved = {name: probe.moved(parameters[name], axis, size) for name in group}
            after = probe.run(layer, taps, moved)
            tap = next(
                (tap for tap in taps if probe.only_along(after[tap] - before[tap], before[tap])),
                None,
            )
            if tap is not None:
                found += [StreamParameter(name, axis, tap.norm) for name in group]
                break
    order = {name: i for i, name in enumerate(parameters)}
    return sorted(found, key=lambda p: order[p.name])


def _projected(probe: Probe, parameter: StreamParameter) -> Tensor:
    """A copy of the parameter without ``unit``."""
    weight = probe.model.get_parameter(parameter.name).detach()
    removal = removal_for(probe.model, parameter, probe.unit[None])
    return project_weight(weight, parameter.axis, removal)


def _check_complete(model: PreTrainedModel, parameters: Iterable[StreamParameter]) -> None:
    """Of parameters that differ in an index only and have one shape (experts, blocks), all or none
    are there.
    """
    shapes = {name: p.shape for name, p in model.named_parameters()}
    named = {p.name for p in parameters}
    wanted = {(_pattern(name), shapes.get(name)) for name in named}
    others = [name for name in shapes if name not in named]
    missing = [name for name in others if (_pattern(name), shapes[name]) in wanted]
    if missing:
        raise UnsupportedModelError(
            f"{len(missing)} parameters like those that write to the stream are left out, "
            f"{missing[0]} first. Name all of them, or use find_parameters(model, sites)."
        )


def _outside(probe: Probe) -> dict[str, Tensor]:
    """Parameters outside the blocks whose modules run on text: what may make the input of the first
    block.
    """
    model, sites = probe.model, probe.sites
    called: set[str] = set()
    outside = [name for name, _ in model.named_parameters() if _block_of(name, sites) is None]
    holders = {name.rpartition(".")[0] for name in outside}
    edits = [
        Edit(model.get_submodule(name), "output", _note(called, name)) for name in holders if name
    ]
    with hooked(edits):
        probe.run(None, probe.taps(None), {})
    found = {}
    for name, p in _detached(model):
        runs = name.rpartition(".")[0] in called or "." not in name
        if runs and _block_of(name, sites) is None:
            found[name] = p
    return found


def _note(called: set[str], name: str) -> EditFunction:
    def fn(x: object) -> None:
        called.add(name)

    return fn


def _inside(model: PreTrainedModel, block: str) -> list[tuple[str, Tensor]]:
    return [(f"{block}.{name}", p) for name, p in _detached(model.get_submodule(block))]


def _detached(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, p.detach()) for name, p in module.named_parameters())


def _block_of(name: str, sites: Sites) -> str | None:
    return next((block for block in sites.blocks if name.startswith(f"{block}.")), None)


def _alike(parameters: Mapping[str, Tensor]) -> list[list[str]]:
    """Names that differ in an index only and have the same shape, together."""
    groups: dict[object, list[str]] = {}
    for name, p in parameters.items():
        groups.setdefault((_pattern(name), p.shape), []).append(name)
    return list(groups.values())


def _pattern(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _renamed(parameter: StreamParameter, old: str, new: str) -> StreamParameter:
    norm = parameter.norm if parameter.norm is None else new + parameter.norm.removeprefix(old)
    return StreamParameter(new + parameter.name.removeprefix(old), parameter.axis, norm)
