"""Completions, greedy or drawn: as many rows at once as keep the device busy, whatever they are
rows of; what they begin with is read once, and where one has ended the next takes its place
(``writing``).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from refusal.core import parallel
from refusal.core.progress import Advance, task
from refusal.core.records import Written
from refusal.core.sampling import GREEDY, Sampling
from refusal.core.turns import Question
from refusal.model.base import Batching, LoadedModel
from refusal.model.batch_size import BatchSize, row_budget
from refusal.model.caches import cache_bytes_per_token, rows_apart
from refusal.model.contexts import check_rows
from refusal.model.draw import Draw
from refusal.model.edits import RowWise
from refusal.model.endings import end_tokens, read_at_lengths, read_outputs
from refusal.model.forward import PROBES, last_logits, logit_tolerance, uncounted
from refusal.model.prefill import read_prompts, shared_start
from refusal.model.thinking_limits import limits
from refusal.model.writing import Ended, Wanted, Writer

log = logging.getLogger(__name__)

Finished = Callable[[int, list[int]], object]
AT_ONCE = 4  # batches' worth of rows that a process takes at most, where several share the work


def generate(
    model: LoadedModel,
    instructions: Sequence[Question],
    max_new_tokens: int,
    name: str = "generate",
) -> list[str]:
    """Greedy completions of ``instructions``, in their order, as `read_outputs` gives them."""
    new, ended = limits(model, max_new_tokens)
    rows = model.tokenize(instructions, freely=True)
    return read_outputs(model, generate_rows(model, rows, new, name, ended), freely=True)


def generate_and_read(
    model: LoadedModel,
    instructions: Sequence[Question],
    max_new_tokens: int,
    name: str = "generate",
) -> tuple[list[str], Float[Tensor, "prompt vocab"]]:
    """Greedy completions without thoughts, and the logits of each prompt's last token (on the CPU),
    both from one reading of the prompts where a process writes all of them in batches.
    """
    rows = model.tokenize(instructions)
    if parallel.world() > 1 or batching(model) == "alone":
        outputs = generate_rows(model, rows, max_new_tokens, name)
        return read_outputs(model, outputs), last_logits(model, instructions)
    found: list[list[int]] = [[] for _ in rows]
    logits: dict[int, Tensor] = {}

    def keep(some: Sequence[int], read: Float[Tensor, "row vocab"]) -> None:
        logits.update(zip(some, read.cpu(), strict=True))

    _write(model, Wanted(rows, max_new_tokens, read=keep), name, found.__setitem__)
    return read_outputs(model, found), torch.stack([logits[i] for i in range(len(rows))])


def generate_each(
    model: LoadedModel,
    instructions: Sequence[Sequence[Question]],
    interventions: RowWise,
    max_new_tokens: int,
    name: str = "generate",
    finished: Callable[[int, list[Written]], object] = lambda which, completions: None,
    sampling: Sampling = GREEDY,
) -> list[list[Written]]:
    """Completions of ``instructions[i]`` under intervention ``i``, for every ``i``, all of them
    side by side; the samples of an instruction follow one another.

    A step of a small batch costs little more than reading the weights, so many small runs are best
    done as one. ``finished`` is told the number and the completions of an intervention as soon as
    all of them are there, those with the smaller numbers about first; each is read at several
    lengths too.
    """
    different = list(dict.fromkeys(text for texts in instructions for text in texts))
    ids = dict(zip(different, model.tokenize(different, freely=True), strict=True))
    left = [len(texts) * sampling.samples for texts in instructions]
    which = [i for i, n in enumerate(left) for _ in range(n)]
    first = [which.index(i) if texts else 0 for i, texts in enumerate(instructions)]
    asked = [text for texts in instructions for text in texts]
    rows = [ids[text] for text in asked for _ in range(sampling.samples)]
    draw = None if sampling.greedy else Draw(sampling.temperature, sampling.keys(asked))
    found: dict[int, list[int]] = {}
    done: list[list[Written]] = [[] for _ in instructions]

    def keep(row: int, tokens: list[int]) -> None:
        found[row] = tokens
        i = which[row]
        left[i] -= 1
        if left[i] == 0:
            mine = range(first[i], first[i] + len(instructions[i]) * sampling.samples)
            done[i] = read_at_lengths(model, [found.pop(row) for row in mine])
            finished(i, done[i])

    batching(model)  # measured without interventions that differ by row
    for i, texts in enumerate(instructions):
        if not texts:
            finished(i, [])
    new, ended = limits(model, max_new_tokens)
    with model.apply(interventions):
        wanted = Wanted(rows, new, 0, interventions, which, ended, draw=draw)
        _write(model, wanted, name, keep)
    return done


def generate_rows(
    model: LoadedModel,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    name: str = "generate",
    ended: Ended | None = None,
    draw: Draw | None = None,
) -> list[list[int]]:
    """Continuations of token ids, in their order, the ending token left out; greedy ones, unless
    there is a ``draw`` with a key for each.

    ``ended`` says of the tokens written so far whether more are not needed (a stop string is among
    them).

    Raises:
        PromptError: no room for a prompt and what is to be written; ModelLoadError: a token that
            the model has not.
    """
    found: list[list[int]] = [[] for _ in rows]
    wanted = Wanted(rows, max_new_tokens, ended=ended, draw=draw)
    _write(model, wanted, name, found.__setitem__)
    return found


def _write(model: LoadedModel, wanted: Wanted, name: str, finished: Finished) -> None:
    """Continue all rows, in one process or several; of each intervention the longest first."""
    rows, new = wanted.rows, wanted.new
    check_rows(model, rows, new)
    if not rows or new < 1:
        for row in range(len(rows)):
            finished(row, [])
        return
    how = batching(model)
    length = max(map(len, rows)) + new
    fits = parallel.smallest(row_budget(model.device, length * cache_bytes_per_token(model)))
    size = model.batch_size if model.batch_size.value <= fits else BatchSize(fits)
    order = sorted(range(len(rows)), key=lambda i: (wanted.under([i]), -len(rows[i])))
    if how == "shared" and not model.watched and len(rows) > len(set(wanted.which)):
        wanted = replace(wanted, shared=shared_start(rows, new, model.hf.config))
    if how == "alone":
        log.warning(
            "%s: its state cannot be padded or thinned out, so prompts are completed one by one.",
            model.name,
        )
    with task(name, total=len(rows) * new, unit="tokens") as advance:

        def write(some: Sequence[int], told: Finished) -> None:
            if how == "alone":
                for row in some:
                    told(row, write_alone(model, wanted, row, advance))
            else:
                Writer(model, wanted, size, advance, told).write(some)

        if parallel.world() == 1:
            write(order, finished)
            return
        for units in _shares(wanted, order, size.value):
            parts = parallel.share(units, lambda unit: _collected(write, unit))
            for row, tokens in (pair for part in parts for pair in part):
                finished(row, tokens)


def _collected(
    write: Callable[[Sequence[int], Finished], None], rows: Sequence[int]
) -> list[tuple[int, list[int]]]:
    """What was written, as other processes are to have it."""
    found: list[tuple[int, list[int]]] = []
    write(rows, lambda row, tokens: found.append((row, tokens)))
    return found


def _shares(wanted: Wanted, order: Sequence[int], size: int) -> Iterator[list[list[int]]]:
    """The units of each round of several processes: in a round as many interventions as give every
    process a batch, in a unit some rows of each of them.
    """
    world, size = parallel.world(), parallel.smallest(size)
    start = 0
    while start < len(order):
        end = min(start + world * size, len(order))
        while end < len(order) and wanted.under([order[end]]) == wanted.under([order[end - 1]]):
            end += 1
        some = order[start:end]
        n = max(world, -(-len(some) // (AT_ONCE * size)))
        yield [list(some[i::n]) for i in range(min(n, len(some)))]
        start = end


def write_alone(model: LoadedModel, wanted: Wanted, row: int, count: Advance) -> list[int]:
    """One row through transformers' own generation, which knows every kind of state."""
    wanted.tell([row])
    ids = torch.tensor([list(wanted.rows[row])], device=model.device)
    length, ends, ended = ids.shape[1], end_tokens(model), wanted.ended

    def enough(seen: Tensor, scores: object, **kwargs: object) -> Tensor:
        return torch.tensor(
            [ended is not None and ended(seen[0, length:].tolist())], device=seen.device
        )

    how = GenerationConfig(
        max_new_tokens=wanted.new, do_sample=False, eos_token_id=list(ends), pad_token_id=0
    )
    drawn = [] if wanted.draw is None else [_Drawn(wanted.draw, row, length)]
    own, model.hf.generation_config = model.hf.generation_config, how  # it may ask for penalties
    try:
        out = model.hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            stopping_criteria=[enough],
            logits_processor=LogitsProcessorList(drawn),
        )  # type: ignore[operator]
    finally:
        model.hf.generation_config = own
    new: list[int] = out[0, length:].tolist()
    model.forward_tokens += ids.shape[1] + len(new)
    count(wanted.new)
    return new[:-1] if new and new[-1] in ends else new


class _Drawn(LogitsProcessor):
    """Scores whose largest is the token that is drawn, for transformers' own greedy generation."""

    def __init__(self, draw: Draw, row: int, start: int) -> None:
        self.draw, self.row, self.start = draw, row, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.draw.perturbed(scores, [self.row], [input_ids.shape[1] - self.start])


def batching(model: LoadedModel) -> Batching:
    """How rows are put together: the start they share read once, only padded, or each alone;
    measured at first use.

    A few prompts of different length are read and continued by a token together, and each alone;
    then one of them leaves and another joins them.
    """
    if model.batching is None:
        with uncounted(model):
            model.batching = _measure_batching(model)
    return model.batching


def _measure_batching(model: LoadedModel) -> Batching:
    if not rows_apart(model.hf.config):
        return "alone"
    rows = model.tokenize(PROBES)
    if _is_exact(model, rows, share=True):
        return "shared"
    return "padded" if _is_exact(model, rows, share=False) else "alone"


def _is_exact(model: LoadedModel, rows: Sequence[Sequence[int]], share: bool) -> bool:
    try:
        together = _steps(model, rows, share)
        alone = torch.cat([_steps(model, [row], share=False) for row in rows], dim=1)
    except (RuntimeError, ValueError, IndexError) as error:
        log.info("rows side by side: %s", error)
        return False
    gaps = (together - alone).norm(dim=-1) / (alone - alone.mean()).norm(dim=-1).clamp_min(1e-12)
    return bool(gaps.max() < logit_tolerance(model.hf.dtype))


@torch.inference_mode()
def _steps(
    model: LoadedModel, rows: Sequence[Sequence[int]], share: bool
) -> Float[Tensor, "step row vocab"]:
    """Logits of the last prompt token and of two more tokens, which are those of every row; of
    several rows the longest has left before the last token, and another like it has joined.
    """
    token, order = rows[0][-1], sorted(range(len(rows)), key=lambda i: len(rows[i]))
    state = read_prompts(model, [rows[i] for i in order], 2, share)
    found = [state.logits]
    state.step(model, [token] * len(rows))
    found.append(state.logits)
    if len(rows) > 1:
        another = read_prompts(model, [rows[order[-1]]], 2, share=False)
        another.step(model, [token])
        state.keep(range(len(rows) - 1), len(rows[order[-2]]) + 1)
        state.join(another)
    state.step(model, [token] * len(rows))
    found.append(state.logits)
    place = [order.index(i) for i in range(len(rows))]
    return torch.stack(found)[:, place].float().cpu()
