"""The direction along what a model thinks before it answers, as a stage of a run with
``--thinking on``.

    thoughts/<set>.jsonl   of every baseline completion the projections along its thought

Each completion is read once as it was written, and the stream's component along the unit direction
is taken where the block at the direction's layer reads it. A thought is cut into tenths, whatever
its length. Probes of refusal were seen to stay high along a thought and to fall over its last
tokens (arXiv 2510.06036, the "refusal cliff"); how far it falls is given as the mean of the eighth
and ninth tenth less the value at the last token before the answer's first word, the one from which
that word is chosen. The same of a random direction of equal norm stands beside it.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core.errors import NonFiniteError
from refusal.core.progress import task
from refusal.core.records import Completion, Metric, to_json
from refusal.core.stats import mean
from refusal.core.storage import write_jsonl
from refusal.core.strict_files import damaged, read_lines
from refusal.core.turns import asked
from refusal.core.work import Read, Work
from refusal.directions.controls import random_directions
from refusal.evaluations.refusal.rates import metric
from refusal.interventions.conditions import BASELINE, LABELS
from refusal.model.chat_model import ChatModel
from refusal.model.forward import read, share_batches
from refusal.model.hooks import Edit, skipped
from refusal.model.probe import other_dtype
from refusal.model.rows import Batch
from refusal.model.thinking_spans import ThoughtSpan, written_thought
from refusal.runs.files import read_completions
from refusal.runs.stage import Plan, Run, Stage

TENTHS = 10
BEFORE_FALL = (8, 9)  # tenths, counted from 1: the last is where it falls
WRITTEN = 0.7  # of the tokens that a thought may have: many end early
Along = Literal["direction", "random"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ThoughtText:
    """A prompt and its completion up to the token before the answer's first word, and which of
    these tokens are the thought: ``begin .. end - 1``.
    """

    id: str
    ids: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class AlongThought:
    """Projections of the residual stream along one thought.

    Attributes:
        along: the run's direction, or a random one. tokens: of the thought.
        tenths: mean projection in each tenth of the thought, its first to its last.
        before_answer: projection at the last token before the answer's first word.
    """

    prompt_id: str
    along: Along
    tokens: int
    tenths: tuple[float, ...]
    before_answer: float

    @property
    def cliff(self) -> float:
        """How far it falls before the answer."""
        high = [self.tenths[i - 1] for i in BEFORE_FALL]
        return sum(high) / len(high) - self.before_answer


class Thoughts(Stage):
    """The direction along the thoughts of the baseline's completions."""

    name = "thoughts"

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Every test prompt with its thought, under ``--thinking on`` alone."""
        config = plan.config
        if config.thinking != "on":
            return ()
        return (Read(2 * config.n_test, plan.lengths.test + WRITTEN * config.thinking_tokens),)

    def work(self, run: Run) -> Iterable[Metric]:
        """Project each set's completions, and leave them in its file."""
        if run.config.thinking != "on":
            return
        for set_name in LABELS:
            rows = read_completions(run.folder.completions(set_name, BASELINE))
            completions = [row for row in rows if not row.sample]  # of several samples the first
            texts = thought_texts(run.model, completions)
            if not texts:
                text = "None of the %d baseline completions of %s has a thought and an answer: %s."
                log.warning(text, len(completions), set_name, "nothing is measured along thoughts")
                continue
            yield from thought_metrics(self._measured(run, set_name, texts), set_name)

    def _measured(
        self, run: Run, set_name: str, texts: Sequence[ThoughtText]
    ) -> tuple[AlongThought, ...]:
        path = run.folder.path / "thoughts" / f"{set_name}.jsonl"
        inputs = {
            "direction": run.direction_hash,
            "seed": run.config.seed,
            "texts": [to_json(text) for text in texts],
        }
        (random,) = random_directions(run.direction, 1, run.config.seed).values()
        vectors: dict[Along, Tensor] = {
            "direction": run.direction.vector,
            "random": random.vector,
        }

        def work() -> None:
            found = project(run.model, texts, vectors, run.direction.layer, set_name)
            write_jsonl(path, to_json(found))

        tokens = sum(len(text.ids) for text in texts) / len(texts)
        self.do(run, set_name, inputs, [path], work, [Read(len(texts), tokens)])
        return read_along(path)


def thought_texts(model: ChatModel, completions: Sequence[Completion]) -> list[ThoughtText]:
    """Those completions that have a thought which ends, and an answer after it, as tokens."""
    prompts = model.tokenize([asked(c.prompt, c.before) for c in completions], freely=True)
    found = []
    for c, prompt in zip(completions, prompts, strict=True):
        if (written := written_thought(model, c.completion)) is not None:
            ids, span = written
            found.append(_text(c.prompt_id, prompt, ids, span))
    return found


def _text(name: str, prompt: Sequence[int], ids: Sequence[int], span: ThoughtSpan) -> ThoughtText:
    n = len(prompt)
    return ThoughtText(name, (*prompt, *ids[: span.answer]), n + span.begin, n + span.end)


def project(
    model: ChatModel,
    texts: Sequence[ThoughtText],
    vectors: dict[Along, Float[Tensor, "d_model"]],
    layer: int,
    name: str,
) -> tuple[AlongThought, ...]:
    """Component of what a block reads along each vector, over each text's thought; in the order of
    the texts. One pass through the blocks below, however many vectors there are.

    Raises:
        NonFiniteError: a projection is NaN or infinite.
        OutOfMemoryError: one text alone does not fit.
    """
    stacked = torch.stack(list(vectors.values()), dim=1).float()
    reads = model.hf.get_submodule(model.sites.reading(layer))
    above = [model.hf.get_submodule(block) for block in model.sites.blocks[layer + 1 :]]

    def run(batch: Batch) -> list[Float[np.ndarray, "token vector"]]:
        kept: list[Tensor] = []

        def keep(x: Tensor) -> None:
            kept.append((x.float() @ stacked.to(x.device)).cpu())

        with skipped(above, model.sites.in_tuple):
            read(model, batch, [Edit(reads, "input", keep)])
        rows = zip(batch.row.tolist(), batch.paths, strict=True)
        found = [kept[-1][row, path].double().numpy() for row, path in rows]
        if not all(np.isfinite(one).all() for one in found):
            said = f"The projections at layer {layer} are not finite."
            raise NonFiniteError(f"{said} {other_dtype(model.hf.dtype)}")
        advance(len(found))
        return found

    results: dict[int, Float[np.ndarray, "token vector"]] = {}
    with task(f"thoughts: {name}", len(texts), "texts") as advance:
        for members, found in share_batches(model, [text.ids for text in texts], run):
            results.update(zip(members, found, strict=True))
    rows = []
    for i, text in enumerate(texts):
        rows += [_along(text, one, results[i][:, j]) for j, one in enumerate(vectors)]
    return tuple(rows)


def _along(text: ThoughtText, along: Along, values: Float[np.ndarray, "token"]) -> AlongThought:
    tenths = tuple(in_tenths(values[text.begin : text.end]).tolist())
    return AlongThought(text.id, along, text.end - text.begin, tenths, float(values[-1]))


def in_tenths(values: Float[np.ndarray, "token"]) -> Float[np.ndarray, "tenth"]:
    """Mean over each tenth; a token that lies in two counts in each by its share there."""
    found: np.ndarray = values.repeat(TENTHS).reshape(TENTHS, -1).mean(1)
    return found


def thought_metrics(rows: Sequence[AlongThought], set_name: str) -> Iterable[Metric]:
    """Means over prompts with bootstrap intervals, of the direction and of the random one:
    ``thought_projection_tenth_1`` …, ``thought_projection_before_answer``, ``thought_cliff``.
    """
    for along in dict.fromkeys(row.along for row in rows):
        some = [row for row in rows if row.along == along]
        for name, values in _measures(some):
            yield metric(name, set_name, along, mean(values), len(values))


def _measures(rows: Sequence[AlongThought]) -> Iterator[tuple[str, list[float]]]:
    for i in range(TENTHS):
        yield f"thought_projection_tenth_{i + 1}", [row.tenths[i] for row in rows]
    yield "thought_projection_before_answer", [row.before_answer for row in rows]
    yield "thought_cliff", [row.cliff for row in rows]


def read_along(path: Path) -> tuple[AlongThought, ...]:
    """The projections of one file.

    Raises:
        RunFolderError: it cannot be read, or a row is something else.
    """
    found = read_lines(path, AlongThought)
    for number, row in enumerate(found, start=1):
        if len(row.tenths) != TENTHS:
            raise damaged(path, f"line {number}, tenths: {len(row.tenths)} of them, not {TENTHS}")
    return found
