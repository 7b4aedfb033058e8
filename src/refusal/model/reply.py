"""One completion that is told as it grows, for a conversation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core.direction import Direction
from refusal.core.sampling import Sampling
from refusal.core.turns import Question
from refusal.model.base import LoadedModel
from refusal.model.draw import Draw
from refusal.model.endings import read_outputs
from refusal.model.forward import call
from refusal.model.generation import generate_rows
from refusal.model.hooks import Edit, hooked
from refusal.model.thinking_limits import limits


@dataclass(frozen=True)
class Reply:
    """Tokens of a prompt and of what was written after it, and that as text."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str


def reply(
    model: LoadedModel,
    question: Question,
    max_new_tokens: int,
    sampling: Sampling,
    told: Callable[[str], object] = lambda text: None,
) -> Reply:
    """Complete a question; ``told`` is given the text as it stands after each token.

    Raises:
        PromptError: there is no room for it. ChatTemplateError: the template rejects a turn.
    """
    prompt = model.tokenize([question], freely=True)[0]
    new, limit = limits(model, max_new_tokens)

    def ended(tokens: Sequence[int]) -> bool:
        told(read_outputs(model, [tokens], freely=True)[0])
        return limit is not None and limit(tokens)

    draw = None if sampling.greedy else Draw(sampling.temperature, sampling.keys([question]))
    (tokens,) = generate_rows(model, [prompt], new, "reply", ended, draw)
    text = read_outputs(model, [tokens], freely=True)[0]
    return Reply(tuple(prompt), tuple(tokens), text)


def along(model: LoadedModel, ids: Sequence[int], direction: Direction) -> Float[Tensor, "token"]:
    """What the block at the direction's layer reads of each token, projected on the direction."""
    unit = direction.vector.float()
    found: list[Tensor] = []

    def keep(x: Tensor) -> None:
        found.append((x.float() @ unit.to(x.device)).reshape(-1).cpu())

    reads = model.hf.get_submodule(model.sites.reading(direction.layer))
    tokens = torch.tensor([list(ids)], device=model.device)
    positions = torch.arange(len(ids), device=model.device)[None]
    last = model.only_at(torch.tensor([0]), torch.tensor([len(ids) - 1]))
    with torch.inference_mode(), hooked([Edit(reads, "input", keep)]), last:
        call(model, tokens, torch.ones_like(tokens, dtype=torch.bool), positions)
    return found[-1]
