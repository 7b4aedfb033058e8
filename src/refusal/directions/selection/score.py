"""The three scores of candidates on fixed validation prompts, prompt by prompt.

Ablation changes every block, so bypass and KL take whole passes. Addition at layer ``l`` changes
nothing before ``l``: it starts from the block-``l`` input of the unmodified run, kept from the one
pass of the unmodified model, and the blocks before it are not run. Several candidates go through
the model side by side where one alone is a small batch.
"""

import random
from collections.abc import Sequence
from itertools import takewhile
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core import parallel
from refusal.core.direction import Direction
from refusal.core.records import RefusalTokens
from refusal.directions.pool import Passed
from refusal.directions.refusal_metric import METRIC_BOUND, kl_from, refusal_metric, softmax64
from refusal.interventions.ablate_add import AblateEach, Add
from refusal.interventions.side_by_side import SideBySide
from refusal.model.batch_size import is_out_of_memory, too_large
from refusal.model.chat_model import ChatModel
from refusal.model.forward import plan, read, run_batches
from refusal.model.hooks import Edit, skipped
from refusal.model.rows import Batch, Planned

Score = Literal["induce", "kl", "bypass"]


class Scorer:
    """Scores candidates on ranges of the validation prompts; the unmodified model is run once, at
    construction.

    Attributes:
        unmodified: the value of each score and prompt when nothing is done to the model.
    """

    def __init__(
        self,
        model: ChatModel,
        harmful: Passed,
        harmless: Passed,
        tokens: RefusalTokens | None,
        layers: int,
        shuffled: bool = False,
    ) -> None:
        """Run the unmodified model.

        Args:
            tokens: without them only KL can be asked for.
            layers: additions will be asked for at layers ``0 .. layers - 1``.
            shuffled: the prompts stand in random (seeded) order, so that the first are a sample of
                all; else in the order in which bounds decide soonest.
        """
        self.model = model
        self.tokens = () if tokens is None else tokens.ids
        self.layers = layers
        harmful_rows, refused = _in_order(model, harmful, shuffled)
        harmless_rows, answered = _in_order(model, harmless, shuffled)
        self.rows: dict[Score, list[list[int]]] = {
            "induce": harmless_rows,
            "kl": harmless_rows,
            "bypass": harmful_rows,
        }
        self.unmodified: dict[Score, list[float]] = {
            "induce": answered,
            "kl": [0.0] * len(answered),
            "bypass": refused,
        }
        self._plans: dict[tuple[Score, int, int], list[Planned]] = {}
        self._run_unmodified()

    def n_prompts(self, score: Score) -> int:
        """How many prompts a score is the mean over."""
        return len(self.rows[score])

    def cost(self, score: Score, start: int, stop: int, layer: int) -> float:
        """How many tokens through the whole model the prompts ``start .. stop - 1`` take for one
        candidate.
        """
        tokens = sum(planned.tokens for planned in self._planned(score, start, stop))
        sites = self.model.sites
        saved = layer / sites.n_layers if score == "induce" and sites.resumes else 0.0
        return tokens * (1.0 - saved)

    def room(self, score: Score, start: int, stop: int) -> int:
        """How many candidates fit side by side into a pass."""
        largest = max(planned.tokens for planned in self._planned(score, start, stop))
        return max(1, self.model.token_budget.value // largest)

    def plan_alike(self) -> None:
        """Agree with the other processes of a run on how much goes into a pass, so that all plan
        the same looks.
        """
        agreed = parallel.smallest(self.model.token_budget.value)
        if agreed != self.model.token_budget.value:
            self.model.token_budget.value = agreed
            self._plans.clear()

    def values(
        self, score: Score, start: int, stop: int, directions: Sequence[Direction]
    ) -> Float[Tensor, "direction prompt"]:
        """One score on the prompts ``start .. stop - 1``, float64; for induce all directions are of
        one layer.

        Raises:
            OutOfMemoryError: one prompt alone does not fit.
        """
        done: list[Tensor] = []
        while len(done) < len(directions):
            if not directions[
                len(done)
            ].vector.any():  # the same token at that position in every prompt
                done.append(torch.tensor(self.unmodified[score][start:stop], dtype=torch.float64))
                continue
            group = directions[len(done) :][: self.room(score, start, stop)]
            try:
                done += [*self._score(score, start, stop, group)]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                largest = max(planned.tokens for planned in self._planned(score, start, stop))
                self._make_room(len(group) * largest, error)
        return torch.stack(done)

    def _planned(self, score: Score, start: int, stop: int) -> list[Planned]:
        key = (score, start, stop)
        if key not in self._plans:
            self._plans[key] = plan(self.model, self.rows[score], range(start, stop))
        return self._plans[key]

    def _run_unmodified(self) -> None:
        """Keep the unmodified model's block inputs (on the CPU) and next-token probabilities on the
        harmless prompts.

        The inputs of all tokens stand in one list per layer; ``_where`` says at which indices those
        of a prompt are.
        """
        rows = self.rows["induce"]
        self._where: dict[int, Tensor] = {}
        inputs: list[list[Tensor]] = [[] for _ in range(self.layers)]
        logits: dict[int, Tensor] = {}
        end = 0
        for batch, (last, read_inputs) in run_batches(self.model, rows, self._run_with_inputs):
            logits.update(zip(batch.prompts, last, strict=True))
            for layer, x in enumerate(read_inputs):
                inputs[layer].append(x.flatten(0, 1))
            for prompt, row, path in zip(
                batch.prompts, batch.row.tolist(), batch.paths, strict=True
            ):
                self._where[prompt] = end + row * batch.ids.shape[1] + path
            end += batch.ids.numel()
        self._inputs: list[Float[Tensor, "all d_model"]] = [
            torch.cat(parts) for parts in inputs if parts
        ]
        self.base = softmax64(torch.stack([logits[i] for i in range(len(rows))]))

    def _run_with_inputs(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        inputs: list[Tensor] = []

        def keep(x: Tensor) -> None:
            inputs.append(x.cpu())

        sites = self.model.sites
        names = sites.blocks[: self.layers] if sites.resumes else ()
        return read(
            self.model, batch, [Edit(self.model.hf.get_submodule(n), "input", keep) for n in names]
        )[0], inputs

    def _make_room(self, tried: int, error: BaseException) -> None:
        """Halve the token budget; what was scored stays valid."""
        longest = max(len(row) for rows in self.rows.values() for row in rows)
        if tried <= longest:
            raise too_large(longest) from error
        self.model.token_budget.halve(tried)
        self._plans.clear()

    def _score(
        self, score: Score, start: int, stop: int, directions: Sequence[Direction]
    ) -> Float[Tensor, "direction prompt"]:
        out = torch.empty(len(directions), stop - start, dtype=torch.float64)
        for planned in self._planned(score, start, stop):
            batch = planned.lay_out()
            where = [i - start for i in batch.prompts]
            if score == "induce":
                logits = self._added(batch, directions)
            else:
                with self.model.apply(AblateEach(tuple(directions))):
                    logits = read(self.model, batch, copies=len(directions))
            for row, one in zip(out, logits, strict=True):
                row[where] = (
                    kl_from(self.base[list(batch.prompts)], one)
                    if score == "kl"
                    else refusal_metric(one, self.tokens)
                ).cpu()
        return out

    def _added(
        self, batch: Batch, directions: Sequence[Direction]
    ) -> Float[Tensor, "direction prompt vocab"]:
        """Logits when each candidate is added at its layer (the same for all of them)."""
        layer = directions[0].layer
        if not self.model.sites.resumes:
            added = SideBySide([Add(direction) for direction in directions])
            added.rows([i for i in range(len(directions)) for _ in range(len(batch.ids))])
            with self.model.apply(added):
                return read(self.model, batch, copies=len(directions))
        index = torch.zeros(batch.ids.shape, dtype=torch.long)  # padding may hold anything
        for prompt, row, path in zip(batch.prompts, batch.row.tolist(), batch.paths, strict=True):
            index[row, path] = self._where[prompt]
        inputs = self._inputs[layer][index]
        blocks = [self.model.hf.get_submodule(name) for name in self.model.sites.blocks]
        start = torch.cat([Add(direction)(inputs) for direction in directions])
        start_here = Edit(blocks[layer], "input", lambda x: start.to(x.device))
        self.model.forward_tokens -= (
            len(directions) * batch.ids.numel() * layer // len(blocks)
        )  # only what is run
        with skipped(blocks[:layer], self.model.sites.in_tuple):
            return read(self.model, batch, [start_here], len(directions))


def _in_order(
    model: ChatModel, passed: Passed, shuffled: bool
) -> tuple[list[list[int]], list[float]]:
    """The prompts' tokens and their metrics, shuffled or those first that decide soonest.

    A prompt tells the more, the farther its metric is from the end of the range that the score
    would have to reach (induce: the upper, bypass: the lower), and the less it costs. The order
    changes nothing but when a bound decides.
    """
    rows = model.tokenize([prompt.question for prompt in passed.prompts])
    order = list(range(len(rows)))
    if shuffled:
        random.Random(len(rows)).shuffle(order)
    else:
        together = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False))
        shared = sum(1 for _ in together)
        told = [METRIC_BOUND + abs(metric) for metric in passed.metrics]
        order.sort(key=lambda i: -told[i] / max(1, len(rows[i]) - shared))
    return [rows[i] for i in order], [passed.metrics[i] for i in order]
