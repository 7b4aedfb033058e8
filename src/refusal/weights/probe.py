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
from refusal.model.probe import probe_ids
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

    def taps(self, layer: int | None) -> list[Tap]:
        """The writes of a block, each looked at behind its norm and, if the writer is a norm,
        before it too.
        """
        if layer is None:
            return [Tap(self.sites.blocks[0], "input")]
        taps = [Tap(name, "output") for name in self.sites.writers[layer]]
        norms = [tap.module for tap in taps if is_norm(self.model.get_submodule(tap.module))]
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
                seen[tap] = x.detach().float().cpu().reshape(-1, x.shape[-1])

            return Edit(
                self.model.get_submodule(tap.module),
                "input" if tap.side == "input" else "output",
                fn,
            )

        head = Edit(self.model.get_submodule(self.sites.head), "input", lambda x: x[:, -1:])
        others = [
            self.model.get_submodule(b) for i, b in enumerate(self.sites.blocks) if i != layer
        ]
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
