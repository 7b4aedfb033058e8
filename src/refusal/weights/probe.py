"""Runs one block on a few tokens, with some parameters swapped for copies, and looks at what is
written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from refusal.model.hooks import Edit, hooked, skipped
from refusal.model.probe import probe_ids, run_probe
from refusal.model.sites import Sites
from refusal.weights.norms import is_norm

TOKENS = 64  # enough that some reach every kind of expert


@dataclass(frozen=True)
class Tap:
    """A place to look at: what a module takes in or hands on, and the norm that still follows."""

    module: str
    side: str
    norm: str | None = None


class Probe:
    """Runs one block (or what comes before the first) on a few tokens and looks at what is
    written.
    """

    def __init__(self, model: PreTrainedModel, sites: Sites) -> None:
        self.model, self.sites = model, sites
        self.ids = probe_ids(model, TOKENS)
        self.random = torch.Generator().manual_seed(0)
        unit = torch.randn(sites.d_model, generator=self.random)
        self.unit = unit / unit.norm()
        exact = model.dtype in (torch.float32, torch.float64)
        self.tolerance = (
            1e-3 if exact else 5e-2
        )  # of a component; rounding a half precision leaves 2^-9 of it
        self.norms = norms_before(model, sites)

    def taps(self, layer: int | None) -> list[Tap]:
        """The writes of a block (or what enters the first), each looked at behind its norm and, if
        a norm makes it, before that too.
        """
        if layer is None:
            taps = [Tap(self.sites.blocks[0], "input")]
        else:
            taps = [Tap(name, "output") for name in self.sites.writers[layer]]
        norms = [self.norms[tap.module] for tap in taps if tap.module in self.norms]
        return taps + [Tap(name, "input", name) for name in norms]

    def run(
        self, layer: int | None, taps: Sequence[Tap], swapped: Mapping[str, Tensor]
    ) -> dict[Tap, Tensor]:
        """What is seen at ``taps``, ``(token, d_model)`` in float32, with some parameters
        swapped.
        """
        seen: dict[Tap, Tensor] = {}

        def keep(tap: Tap) -> Edit:
            def fn(x: Tensor) -> None:
                if tap.norm is not None and tap in seen:
                    return  # a norm that runs again at the end
                seen[tap] = x.detach().float().cpu().reshape(-1, self.sites.d_model)

            return Edit(
                self.model.get_submodule(tap.module),
                "input" if tap.side == "input" else "output",
                fn,
            )

        head = Edit(self.model.get_submodule(self.sites.head), "input", lambda x: x[:, -1:])
        blocks = enumerate(self.sites.blocks if self.sites.stands_alone else ())
        others = [self.model.get_submodule(b) for i, b in blocks if i != layer]
        arguments = {"input_ids": self.ids, "use_cache": False}
        with (
            torch.no_grad(),
            hooked([*(keep(tap) for tap in taps), head]),
            skipped(others, self.sites.in_tuple),
        ):
            functional_call(self.model, dict(swapped), (), arguments)
        return seen

    def moved(self, parameter: Tensor, axis: int, size: float) -> Tensor:
        """The parameter plus something random along ``unit``, about as large as what is there."""
        unit = self.unit.to(parameter.device)
        if parameter.dim() == 1:
            shifted: Tensor = parameter.float() + unit * size
            return shifted.to(parameter.dtype)
        wide = parameter.to(torch.float32, copy=True)
        rest = [n for dim, n in enumerate(parameter.shape) if dim != axis]
        length = float(wide.norm()) * (self.sites.d_model / wide.numel()) ** 0.5 or 1.0
        along = torch.randn(rest, generator=self.random).to(parameter.device) * length
        wide.movedim(axis, -1).addcmul_(along[..., None], unit)
        return wide.to(parameter.dtype)

    def only_along(self, change: Tensor, before: Tensor) -> bool:
        """Whether a change is there and along ``unit`` alone."""
        total = change.norm()
        across = (change - (change @ self.unit)[:, None] * self.unit).norm()
        return bool(total > self.tolerance * before.norm() and across < 2 * self.tolerance * total)

    def kept(self, before: Tensor, after: Tensor) -> float:
        """Size of the component along ``unit``, relative to what it was; 0 where nothing is
        written.
        """
        return float((after @ self.unit).norm() / (before @ self.unit).norm().clamp_min(1e-20))


def norms_before(model: PreTrainedModel, sites: Sites) -> dict[str, str]:
    """By writer, and for block 0's input by the block's name, the norm whose output it is.

    A post-norm is itself the writer (Gemma-2); others end a writer from inside (A.X-K1's experts),
    or stand between the embedding and block 0 (BLOOM).
    """
    writers = {name for block in sites.writers for name in block}
    within = tuple(f"{block}." for block in sites.blocks)
    holders: dict[
        str, str
    ] = {}  # of a norm: the writer that it may end, or block 0 that it may feed
    for name, module in model.named_modules():
        if not name or next(module.children(), None) is not None or not is_norm(module):
            continue
        parts = name.split(".")
        outer = {".".join(parts[:i]) for i in range(1, len(parts))} & writers
        if outer:
            holders[name] = outer.pop()
        elif not name.startswith(within):
            holders[name] = sites.blocks[0]
    ends: dict[str, Tensor] = {}

    def first(name: str) -> Edit:
        def keep(x: object) -> None:  # nanochat's final norm is also that behind the embedding
            if isinstance(x, Tensor) and name not in ends:
                ends[name] = x.detach().cpu()

        return Edit(model.get_submodule(name), "output", keep)

    with hooked([first(name) for name in sorted({*writers, *holders})]):
        ends[sites.blocks[0]] = run_probe(model, sites.blocks[:1]).inputs[0]
    found = {name: name for name in writers if is_norm(model.get_submodule(name))}
    for name, holder in holders.items():
        if (
            name in ends
            and holder in ends
            and torch.equal(ends[name].flatten(), ends[holder].flatten())
        ):
            found.setdefault(holder, name)
    return found
