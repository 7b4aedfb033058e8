"""Which parameters write to the residual stream, and along which of their dimensions: found by measurement.

A parameter writes to the stream if moving it along ``u`` (an arbitrary direction of the stream) moves what is written
along ``u`` and nowhere else: an output projection does, a query projection, a router or the wrong axis of a square
matrix does not. Whether all have been found is measured too: with ``u`` projected out of them, no write keeps a
component along ``u``. Every measurement runs one block on a few tokens, with the parameters swapped for copies, so the
model's own weights are never touched.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from refusal.errors import QuantisedModelError, UnsupportedModelError
from refusal.hooks import Edit, EditFunction, hooked, skipped
from refusal.sites import Sites
from refusal.weights.projection import Removal, project_weight

PROBE_TOKENS = 64  # enough that some reach every kind of expert
SMALL_GAIN = 0.01  # of the mean squared gain; measured: 0 and 0.1 leave larger gaps to the hooks


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


@dataclass(frozen=True)
class _Tap:
    """A place to look at: what a module takes in or hands on, and the norm that still follows."""

    module: str
    side: str
    norm: str | None = None


def find_parameters(model: PreTrainedModel, sites: Sites) -> tuple[StreamParameter, ...]:
    """Every parameter that writes to the stream, embeddings first, then block by block; verified.

    Blocks whose parameters have the same names and shapes are of one kind, and one of each kind is measured; the
    verification runs all of them.

    Raises:
        UnsupportedModelError: some write keeps a component along a direction that all parameters found have lost.
        QuantisedModelError: the weights are not plain floating-point numbers.
    """
    refuse_quantised(model)
    probe = _Probe(model, sites)
    found = probe.writing(None, _outside(model, sites))
    of_kind: dict[object, list[StreamParameter]] = {}
    for layer, block in enumerate(sites.blocks):
        own = {name.removeprefix(f"{block}."): p for name, p in _inside(model, block)}
        writers = tuple(name.removeprefix(f"{block}.") for name in sites.writers[layer])
        kind = (writers, tuple((name, p.shape) for name, p in own.items()))
        if kind not in of_kind:
            measured = probe.writing(layer, {f"{block}.{name}": p for name, p in own.items()})
            of_kind[kind] = [_renamed(p, f"{block}.", "") for p in measured]
        found += [_renamed(p, "", f"{block}.") for p in of_kind[kind]]
    verify_parameters(model, sites, found)
    return tuple(found)


def verify_parameters(model: PreTrainedModel, sites: Sites, parameters: Sequence[StreamParameter]) -> float:
    """Project an arbitrary direction out of ``parameters`` and look at every write; the weights stay as they are.

    Returns:
        The largest share of its component along the direction that a write keeps (rounding).

    Raises:
        UnsupportedModelError: a write keeps more than rounding explains, or of several like parameters (experts, say)
            some are left out.
    """
    _check_complete(model, parameters)
    probe = _Probe(model, sites)
    worst = 0.0
    for layer in (None, *range(sites.n_layers)):
        prefix = "" if layer is None else f"{sites.blocks[layer]}."
        inside = [p for p in parameters if (layer is None) == (_block_of(p.name, sites) is None)]
        own = [p for p in inside if p.name.startswith(prefix)]
        taps = [tap for tap in probe.taps(layer) if tap.norm is None]
        before = probe.run(layer, taps, {})
        after = probe.run(layer, taps, {p.name: probe.projected(p) for p in own})
        for tap in taps:
            kept = probe.kept(before[tap], after[tap])
            if not kept <= probe.tolerance:  # also when it is NaN
                where = "the input of the first block" if layer is None else tap.module
                raise UnsupportedModelError(
                    f"A direction projected out of {', '.join(p.name for p in own) or 'no parameter'} is still in "
                    f"{where}: {kept:.2g} of it is left (limit {probe.tolerance:.0e}), so something else writes to "
                    "the stream. Ablation by hooks works: use Ablate."
                )
            worst = max(worst, kept)
    return worst


def before_norm(norm: nn.Module, unit: Float[Tensor, "d_model"]) -> Removal:
    """What to take out of the input of ``norm`` for its output to lose ``unit``, float32, on the device of ``unit``.

    With the norm's gain ``g`` the output is ``g * x / s(x)``. Reading ``unit * g`` and writing ``unit / g`` takes out
    of it just what the hook takes, but for the norm's own rescaling (``s`` is that of the edited ``x``). Where a gain
    is nearly 0 dividing by it would make that rescaling large, so the write is ``unit * g / (g^2 + a little)``: any
    write leaves nothing of ``unit`` in the output. A norm that subtracts the mean does so with both. The gain is
    measured (Gemma's is ``1 + weight``). A bias of the norm writes to the stream by itself.

    Raises:
        UnsupportedModelError: the module is neither an RMS nor a layer norm.
    """
    wide = copy.deepcopy(norm).float()
    device = next((p.device for p in norm.parameters()), torch.device("cpu"))

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = wide(x.to(device)[None, None])[0, 0]
        return out.float().cpu()

    d_model = unit.shape[0]
    scale = 100.0  # the norm's epsilon is nothing beside it
    signs = torch.tensor([1.0, -1.0]).repeat(d_model)[:d_model]
    plus, minus = run(signs * scale), run(-signs * scale)
    gain, bias = (plus - minus) / 2 * signs, (plus + minus) / 2
    centred = torch.allclose(run(signs * scale + 3 * scale), plus, rtol=1e-3, atol=1e-5)

    def linear(x: Tensor) -> Tensor:
        return x - x.mean() if centred else x

    x = torch.randn(d_model, generator=torch.Generator().manual_seed(0)) * scale
    expected = gain * linear(x) / linear(x).square().mean().sqrt() + bias
    if d_model % 2 or not (run(x) - expected).norm() <= 1e-3 * expected.norm():
        raise UnsupportedModelError(
            f"The {type(norm).__name__} between a writer and the stream is no RMS or layer norm, so weights cannot be "
            "edited through it. Ablation by hooks works: use Ablate."
        )
    weighted = unit.float().cpu() * gain
    read = _unit(linear(weighted))
    write = linear(weighted / (gain.square() + SMALL_GAIN * gain.square().mean()))
    return Removal(read, write / (read @ write)).to(unit.device)


def refuse_quantised(model: PreTrainedModel) -> None:
    """Raise unless every parameter is stored as plain floating-point numbers, in memory.

    Raises:
        QuantisedModelError: a quantiser packed the weights, or they are 8-bit or integer numbers.
        UnsupportedModelError: weights are offloaded to disk.
    """
    config = getattr(model.config, "quantization_config", None)
    method = getattr(config, "quant_method", None) or (config or {}).get("quant_method") if config else None
    packed = [name for name, p in model.named_parameters() if not p.is_floating_point() or p.dtype.itemsize < 2]
    if getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False) or packed:
        raise QuantisedModelError(
            f"The weights are quantised ({getattr(method, 'value', method) or packed[0]}), so a direction cannot be "
            "projected out of them. Load the model in bfloat16 or dequantised, or ablate by hooks: use Ablate."
        )
    away = [name for name, p in model.named_parameters() if p.is_meta]
    if away:
        raise UnsupportedModelError(
            f"{len(away)} weights are offloaded to disk ({away[0]} first), so they cannot be edited. "
            "Load the model without --device-map, or export with --stream."
        )


def removal_for(model: PreTrainedModel, parameter: StreamParameter, unit: Float[Tensor, "d_model"]) -> Removal:
    """What to take out of ``parameter`` for the stream to lose ``unit``, on the parameter's device."""
    removal = Removal.of(unit) if parameter.norm is None else before_norm(model.get_submodule(parameter.norm), unit)
    return removal.to(model.get_parameter(parameter.name).device)


class _Probe:
    """Runs one block (or what comes before the first) on a few tokens and looks at what is written."""

    def __init__(self, model: PreTrainedModel, sites: Sites) -> None:
        self.model, self.sites = model, sites
        vocabulary = model.config.get_text_config().vocab_size
        self.ids = torch.arange(1, PROBE_TOKENS + 1).mul(7919).remainder(vocabulary)[None]
        self.random = torch.Generator().manual_seed(0)
        self.unit = _unit(torch.randn(sites.d_model, generator=self.random))
        exact = model.dtype in (torch.float32, torch.float64)
        self.tolerance = 1e-3 if exact else 5e-2  # of a component; rounding a half precision leaves 2^-9 of it
        self.device = next(model.get_input_embeddings().parameters()).device

    def taps(self, layer: int | None) -> list[_Tap]:
        """The writes of a block, each looked at behind its norm and, if the writer is a norm, before it too."""
        if layer is None:
            return [_Tap(self.sites.blocks[0], "input")]
        taps = [_Tap(name, "output") for name in self.sites.writers[layer]]
        return taps + [_Tap(tap.module, "input", tap.module) for tap in taps if self._is_norm(tap.module)]

    def _is_norm(self, name: str) -> bool:
        """A writer without a matrix can only rescale what it is given."""
        return all(p.dim() == 1 for p in self.model.get_submodule(name).parameters())

    def run(self, layer: int | None, taps: Sequence[_Tap], swapped: Mapping[str, Tensor]) -> dict[_Tap, Tensor]:
        """What is seen at ``taps``, ``(token, d_model)`` in float32, with some parameters swapped."""
        seen: dict[_Tap, Tensor] = {}

        def keep(tap: _Tap) -> Edit:
            def fn(x: Tensor) -> None:
                seen[tap] = x.detach().float().cpu().reshape(-1, x.shape[-1])

            return Edit(self.model.get_submodule(tap.module), "input" if tap.side == "input" else "output", fn)

        head = Edit(self.model.get_submodule(self.sites.head), "input", lambda x: x[:, -1:])
        others = [self.model.get_submodule(b) for i, b in enumerate(self.sites.blocks) if i != layer]
        arguments = {"input_ids": self.ids.to(self.device), "use_cache": False}
        with torch.no_grad(), hooked([*(keep(tap) for tap in taps), head]), skipped(others, self.sites.in_tuple):
            functional_call(self.model, dict(swapped), (), arguments)
        return seen

    def writing(self, layer: int | None, parameters: Mapping[str, Tensor]) -> list[StreamParameter]:
        """Those of ``parameters`` that write to the stream; like ones (experts) are moved together."""
        taps = self.taps(layer)
        before = self.run(layer, taps, {})
        found = []
        for group in _alike(parameters):
            first = parameters[group[0]]
            for axis in [dim for dim, size in enumerate(first.shape) if size == self.sites.d_model]:
                size = max(float(x.norm(dim=-1).mean()) for x in before.values())
                moved = {name: self._moved(parameters[name], axis, size) for name in group}
                after = self.run(layer, taps, moved)
                tap = next((tap for tap in taps if self._only_along(after[tap] - before[tap], before[tap])), None)
                if tap is not None:
                    found += [StreamParameter(name, axis, tap.norm) for name in group]
                    break
        order = {name: i for i, name in enumerate(parameters)}
        return sorted(found, key=lambda p: order[p.name])

    def _moved(self, parameter: Tensor, axis: int, size: float) -> Tensor:
        """The parameter plus something random along ``unit``, about as large as what is there."""
        unit = self.unit.to(parameter.device)
        if parameter.dim() == 1:
            return (parameter.float() + unit * size).to(parameter.dtype)
        rest = [n for dim, n in enumerate(parameter.shape) if dim != axis]
        length = float(parameter.float().square().mean().sqrt()) * self.sites.d_model**0.5 or 1.0
        along = torch.randn(rest, generator=self.random).to(parameter.device) * length
        return (parameter.float() + (along[..., None] * unit).movedim(-1, axis)).to(parameter.dtype)

    def _only_along(self, change: Tensor, before: Tensor) -> bool:
        """Whether a change is there and along ``unit`` alone."""
        total = change.norm()
        across = (change - (change @ self.unit)[:, None] * self.unit).norm()
        return bool(total > self.tolerance * before.norm() and across < 2 * self.tolerance * total)

    def projected(self, parameter: StreamParameter) -> Tensor:
        """A copy of the parameter without ``unit``."""
        weight = self.model.get_parameter(parameter.name).detach()
        return project_weight(weight, parameter.axis, removal_for(self.model, parameter, self.unit))

    def kept(self, before: Tensor, after: Tensor) -> float:
        """Size of the component along ``unit``, relative to what it was; 0 where nothing is written."""
        return float((after @ self.unit).norm() / (before @ self.unit).norm().clamp_min(1e-20))


def _check_complete(model: PreTrainedModel, parameters: Iterable[StreamParameter]) -> None:
    """Of parameters that differ in an index only and have one shape (experts, blocks), all or none are there."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    named = {p.name for p in parameters}
    wanted = {(_pattern(name), shapes.get(name)) for name in named}
    missing = [name for name, shape in shapes.items() if (_pattern(name), shape) in wanted and name not in named]
    if missing:
        raise UnsupportedModelError(
            f"{len(missing)} parameters like those that write to the stream are left out, {missing[0]} first. "
            "Name all of them, or use find_parameters(model, sites)."
        )


def _outside(model: PreTrainedModel, sites: Sites) -> dict[str, Tensor]:
    """Parameters outside the blocks whose modules run on text: what may make the input of the first block."""
    called: set[str] = set()
    holders = {name.rpartition(".")[0] for name, _ in model.named_parameters() if _block_of(name, sites) is None}
    edits = [Edit(model.get_submodule(name), "output", _note(called, name)) for name in holders if name]
    probe = _Probe(model, sites)
    with hooked(edits):
        probe.run(None, probe.taps(None), {})
    return {
        name: p
        for name, p in _detached(model)
        if _block_of(name, sites) is None and (name.rpartition(".")[0] in called or "." not in name)
    }


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


def _unit(x: Tensor) -> Tensor:
    unit: Tensor = x / x.norm()
    return unit
