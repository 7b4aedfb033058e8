"""Why a direction is still in what is written after every parameter found has lost it: measured, so
that a refusal to edit weights gives its own reason.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from refusal.weights.probe import Probe, Tap

SHOWN = 3  # names in a message


def why_left(probe: Probe, layer: int | None, tap: Tap, found: Sequence[str], after: Tensor) -> str:
    """Say what keeps a direction in a write.

    Args:
        probe: of the model.
        layer: the block, or ``None`` for what comes before the first.
        tap: where the direction was seen.
        found: names of the parameters that it was projected out of.
        after: what was seen there, ``(token, d_model)``, float32.
    """
    turning = _turning(probe, layer, tap, found)
    if turning:
        held = {name: probe.model.get_parameter(name) for name in turning}
        single = [name for name, p in held.items() if _by_coordinate(p)]
        named = ", ".join((single or turning)[:SHOWN])
        if len(single or turning) > SHOWN:
            named += f" and {len(single or turning) - SHOWN} more"
        if single:
            return (
                f"it goes through {named}: numbers that weigh every coordinate by itself (gains, "
                "gates, a convolution by channel) and bring back what was projected out before them"
            )
        return (
            f"it is made by {named}, one behind the other, so that none of them alone has the "
            "direction"
        )
    zeros = {name: torch.zeros_like(p) for name, p in _near(probe, layer, tap)}
    without = probe.run(layer, [tap], zeros)[tap]
    if float((without @ probe.unit).norm()) > 0.1 * float((after @ probe.unit).norm()):
        if layer is None:
            return "a part of it is made by no parameter (positions that are computed, say)"
        return (
            "the module hands on a part of what it is given, which no parameter makes (by experts "
            "that copy it, say)"
        )
    return "something else writes to the stream"


def _turning(probe: Probe, layer: int | None, tap: Tap, found: Sequence[str]) -> list[str]:
    """Parameters, of the module looked at or from before block 0, that change what is written, and
    not along one direction.
    """
    before = probe.run(layer, [tap], {})[tap]
    turning = []
    for name, p in _near(probe, layer, tap):
        if name in found:
            continue
        if layer is not None and not _by_coordinate(p):
            continue
        moved = p + 0.5 * p.abs().mean().clamp_min(0.1) * torch.sign(
            torch.randn(p.shape, generator=probe.random)
        ).to(p)
        change = probe.run(layer, [tap], {name: moved})[tap] - before
        if float(change.norm()) > probe.tolerance * float(before.norm()):
            turning.append(name)
    return turning


def _near(probe: Probe, layer: int | None, tap: Tap) -> list[tuple[str, Tensor]]:
    """Parameters of the module looked at; before block 0 those outside all blocks."""
    blocks = tuple(f"{block}." for block in probe.sites.blocks)
    near = []
    for name, p in probe.model.named_parameters():
        inside = name.startswith(f"{tap.module}.")
        if inside if layer is not None else not name.startswith(blocks):
            near.append((name, p.detach()))
    return near


def _by_coordinate(p: Tensor) -> bool:
    """Whether a parameter has one number, or one short kernel, for each coordinate."""
    return p.dim() == 1 or (p.dim() == 3 and p.shape[1] == 1)
