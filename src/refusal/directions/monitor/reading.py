"""What a monitor reads of prompts: their residual streams at a few places, and their scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core.errors import NonFiniteError
from refusal.core.monitor import Monitor
from refusal.core.progress import task
from refusal.core.turns import Question
from refusal.model.batch_size import keeping_memory
from refusal.model.chat_model import ChatModel
from refusal.model.fingerprint import check_monitor
from refusal.model.forward import read, share_batches
from refusal.model.hooks import Edit, skipped
from refusal.model.rows import Batch

CHUNK = 256  # prompts: enough to fill batches
Place = tuple[int, int]  # layer, and position counted from a prompt's end (-1 is its last token)


@dataclass(frozen=True)
class Scored:
    """What a monitor says of prompts, float32 on the CPU: ``z`` along refusal and harmfulness, and
    the logit that each is harmful.
    """

    z: Float[Tensor, "prompt 2"]
    logits: Float[Tensor, "prompt"]


def score_prompts(model: ChatModel, monitor: Monitor, questions: Sequence[Question]) -> Scored:
    """Read prompts up to the last layer that the monitor looks at, and score them.

    Raises:
        MonitorError: it was fitted on another model or template.
        NonFiniteError: what it reads is not finite.
    """
    check_monitor(monitor, model)
    return scored(monitor, read_at(model, questions, places_of(monitor, model)))


def places_of(monitor: Monitor, model: ChatModel) -> list[Place]:
    """Where the two readers look."""
    suffix = len(model.chat.suffix)
    return [(reader.layer, reader.place(suffix)) for reader in monitor.readers]


def scored(monitor: Monitor, streams: Float[Tensor, "prompt 2 d_model"]) -> Scored:
    """The scores of residual streams that were read at the places of both readers."""
    z = torch.stack([one.z(streams[:, i]) for i, one in enumerate(monitor.readers)], dim=1)
    return Scored(z, monitor.scores(z[:, 0], z[:, 1]))


@keeping_memory()
def read_at(
    model: ChatModel, questions: Sequence[Question], places: Sequence[Place], name: str = "read"
) -> Float[Tensor, "prompt place d_model"]:
    """The inputs of blocks at places of every prompt, in the model's dtype on the CPU; blocks above
    the last of them are not run.

    Raises:
        NonFiniteError: one is NaN or infinite.
        OutOfMemoryError: one prompt alone does not fit.
    """
    if not questions:
        return torch.empty(0, len(places), model.sites.d_model, dtype=model.hf.dtype)
    above = model.sites.blocks[max(layer for layer, _ in places) + 1 :]
    skip = [model.hf.get_submodule(block) for block in above]
    found: dict[int, Tensor] = {}

    def run(batch: Batch) -> Float[Tensor, "prompt place d_model"]:
        store: dict[int, Tensor] = {}
        edits = [_read(model, batch, place, store, i) for i, place in enumerate(places)]
        with skipped(skip, model.sites.in_tuple):
            read(model, batch, edits)
        return torch.stack([store[i].cpu() for i in range(len(places))], dim=1)

    with task(name, total=len(questions), unit="prompts") as advance:
        for start in range(0, len(questions), CHUNK):
            rows = model.tokenize(questions[start : start + CHUNK])
            for prompts, streams in share_batches(model, rows, run):
                found.update(zip((start + i for i in prompts), streams, strict=True))
            advance(len(rows))
    whole = torch.stack([found[i] for i in range(len(questions))])
    if not torch.isfinite(whole).all():
        raise NonFiniteError(
            f"The residual stream of {model.name} is not finite at one of the places "
            f"{list(places)[:4]} (layer, position). Try --dtype float32."
        )
    return whole


def _read(
    model: ChatModel, batch: Batch, place: Place, store: dict[int, Tensor], number: int
) -> Edit:
    layer, position = place
    columns = torch.stack([path[position] for path in batch.paths])

    def keep(x: Tensor) -> None:
        store[number] = x[batch.row.to(x.device), columns.to(x.device)]

    return Edit(model.hf.get_submodule(model.sites.reading(layer)), "input", keep)
