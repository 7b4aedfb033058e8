"""Does a monitor know harm, or the sets that it was fitted on? Every source of prompts left out in
turn.

A split of one source flatters: both halves share words, length and style. So each source is told
from the other class by directions and a logistic that have not seen it, at the monitor's places,
and beside it by ones that have seen its other half.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core.errors import MonitorError
from refusal.core.monitor import Monitor
from refusal.core.records import Label, Prompt
from refusal.directions.monitor.fit import reader_of
from refusal.directions.monitor.logistic import fit_logistic
from refusal.evaluations.monitor.measure import contrast
from refusal.evaluations.monitor.records import Contrast, LeftOut
from refusal.prompts.similarity import drop_near_duplicates

LEAST = 16  # prompts of a source, half of which are scored
Streams = Float[Tensor, "_ 2 d_model"]


@dataclass(frozen=True)
class Source:
    """Prompts from one place, with their residual streams where both readers look."""

    name: str
    label: Label
    prompts: tuple[Prompt, ...]
    streams: Float[Tensor, "prompt 2 d_model"]

    def half(self, which: int) -> Streams:
        """Every other prompt, from the first or the second."""
        return self.streams[which::2]


def leave_one_out(
    monitor: Monitor, sources: Sequence[Source], notes: list[str]
) -> Iterator[LeftOut]:
    """Each source that another of its class can stand in for; of one that none can, ``notes`` says
    why.
    """
    large = [source for source in sources if len(source.prompts) >= LEAST]
    for source in large:
        same = [one for one in large if one.label == source.label]
        other = [one for one in large if one.label != source.label]
        if len(same) < 2 or not other:
            continue
        rest = torch.cat([_apart(one, source) for one in same if one is not source])
        if len(rest) < LEAST // 2:
            notes.append(
                f"{source.name} was not left out: {len(rest)} {source.label} prompts of other sets "
                f"are unlike its own, and {LEAST // 2} are needed."
            )
            continue
        known, unknown = (torch.cat([one.half(i) for one in other]) for i in (0, 1))
        halves = torch.cat([one.half(0) for one in same])
        scored = (source.half(1), unknown)
        without = _refitted(monitor, source, (rest, known), scored)
        yield LeftOut(
            source.name,
            source.label,
            without,
            _refitted(monitor, source, (halves, known), scored),
        )


def _apart(one: Source, left_out: Source) -> Streams:
    """A source without prompts that are much like those that are left out."""
    kept, _ = drop_near_duplicates(one.prompts, left_out.prompts)
    ids = {prompt.id for prompt in kept}
    return one.streams[[i for i, prompt in enumerate(one.prompts) if prompt.id in ids]]


def _refitted(
    monitor: Monitor,
    source: Source,
    fit: tuple[Streams, Streams],
    scored: tuple[Streams, Streams],
) -> Contrast:
    """Fit to (the source's class, the other class) and tell two others of these apart.

    Raises:
        MonitorError: they do not differ.
    """
    harmful = source.label == "harmful"
    positive, negative = fit if harmful else fit[::-1]
    features, tested = [], []
    for i, old in enumerate(monitor.readers):
        reader = reader_of(positive[:, i], negative[:, i], old.layer, old.position)
        if reader is None:
            continue
        features.append(reader.z(torch.cat([positive[:, i], negative[:, i]])).double().numpy())
        tested.append([reader.z(x[:, i]).double().numpy() for x in scored])
    if not features:
        raise MonitorError(
            f"Without {source.name} the classes do not differ where the monitor reads. Leave that "
            "set out."
        )
    labels = np.arange(len(positive) + len(negative)) < len(positive)
    logistic = fit_logistic(np.stack(features, axis=1), labels)
    logits = []
    for k in (0, 1):
        columns = np.stack([pair[k] for pair in tested], axis=1)
        logits.append(columns @ logistic.weights + logistic.bias)
    own, other = (source.name, logits[0]), ("the other class", logits[1])
    return contrast(own, other) if harmful else contrast(other, own)
