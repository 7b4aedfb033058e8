"""The three scores of many candidates on fixed validation prompts, prompt by prompt.

Ablation changes every block, so bypass and KL take whole passes. Addition at layer ``l`` changes nothing before ``l``:
it starts from the block-``l`` input of the unmodified run, kept from the one pass of the unmodified model, and the
blocks before it are not run. Several candidates go through the model side by side where one alone is a small batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.batches import is_out_of_memory, too_large
from refusal.forward import Batch, layout, read
from refusal.hooks import Edit, skipped
from refusal.interventions import AblateEach, Add
from refusal.metrics import kl_from, refusal_metric, softmax64
from refusal.model import ChatModel
from refusal.records import Direction, Prompt, RefusalTokens

Score = Literal["induce", "kl", "bypass"]

# After which share of the prompts to look whether a candidate can be dropped. The bound on a log-odds is so wide that
# it decides nothing before about 7/8; a KL term has no upper bound, so a few prompts settle the bad ones.
LOOKS: dict[Score, tuple[float, ...]] = {"induce": (7 / 8, 1), "kl": (1 / 8, 1 / 2, 1), "bypass": (7 / 8, 1)}


@dataclass(frozen=True)
class _Part:
    """Prompts ``start`` to ``stop``, laid out, and (for additions) each batch's unmodified block inputs by layer."""

    start: int
    stop: int
    batches: list[Batch]
    inputs: list[list[Float[Tensor, "row token d_model"]]]


class Scorer:
    """Scores candidates on validation prompts; the unmodified model is run once, at construction."""

    def __init__(
        self,
        model: ChatModel,
        harmful: Sequence[Prompt],
        harmless: Sequence[Prompt],
        tokens: RefusalTokens,
        layers: int,
    ) -> None:
        """``layers``: additions will be asked for at layers ``0 .. layers - 1``."""
        self.model = model
        self.tokens = tokens.ids
        self.layers = layers
        harmful_rows = model.tokenize([prompt.text for prompt in harmful])
        harmless_rows = model.tokenize([prompt.text for prompt in harmless])
        self.rows: dict[Score, list[list[int]]] = {
            "induce": harmless_rows,
            "kl": harmless_rows,
            "bypass": harmful_rows,
        }
        self.parts: dict[Score, list[_Part]] = {}
        self._lay_out()

    def n_prompts(self, score: Score) -> int:
        """How many prompts a score is the mean over."""
        return len(self.rows[score])

    def values(
        self, score: Score, part: int, directions: Sequence[Direction], wanted: Callable[[int], bool] = lambda i: True
    ) -> Iterator[tuple[int, Float[Tensor, "prompt"]]]:
        """Score the prompts of one part: yield ``(index of a direction, its values in prompt order)``, float64.

        ``wanted`` is asked before a direction's turn: what no longer matters is skipped.

        Raises:
            OutOfMemoryError: one prompt alone does not fit.
        """
        todo = list(range(len(directions)))
        while todo := [i for i in todo if wanted(i)]:
            layer = directions[todo[0]].layer
            alike = [i for i in todo if score != "induce" or directions[i].layer == layer]
            tokens = max(batch.ids.numel() for batch in self.parts[score][part].batches)
            group = alike[: max(1, self.model.token_budget.value // tokens)]
            try:
                values = self._score(score, self.parts[score][part], [directions[i] for i in group])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._make_room(len(group) * tokens, error)
                continue
            yield from zip(group, values, strict=True)
            todo = [i for i in todo if i not in group]

    def _lay_out(self) -> None:
        """Cut the prompts into parts, and run the unmodified model on the harmless ones."""
        for score, looks in LOOKS.items():
            n = self.n_prompts(score)
            stops = sorted({max(1, int(share * n)) for share in looks})
            cuts = list(zip([0, *stops], stops, strict=False))
            self.parts[score] = [_Part(a, b, layout(self.model, self.rows[score], range(a, b)), []) for a, b in cuts]
        try:
            self._run_baseline()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._make_room(max(b.ids.numel() for part in self.parts["induce"] for b in part.batches), error)

    def _run_baseline(self) -> None:
        """Keep the unmodified model's block inputs and next-token probabilities on the harmless prompts."""
        logits: dict[int, Tensor] = {}
        for part in self.parts["induce"]:
            for batch in part.batches:
                inputs: list[Tensor] = []
                logits.update(zip(batch.prompts, read(self.model, batch, self._keep(inputs))[0], strict=True))
                part.inputs.append(inputs)
        self.base = softmax64(torch.stack([logits[i] for i in range(len(logits))]))

    def _keep(self, inputs: list[Tensor]) -> list[Edit]:
        """Reads that append the input of every block that additions may start at, kept on the CPU."""

        def keep(x: Tensor) -> None:
            inputs.append(x.cpu())

        names = self.model.sites.blocks[: self.layers]
        return [Edit(self.model.hf.get_submodule(name), "input", keep) for name in names]

    def _make_room(self, tried: int, error: BaseException) -> None:
        """Halve the token budget and lay the prompts out anew: what was scored stays valid."""
        longest = max(len(row) for rows in self.rows.values() for row in rows)
        if tried <= longest:
            raise too_large(longest) from error
        self.model.token_budget.halve(tried)
        self._lay_out()

    def _score(self, score: Score, part: _Part, directions: Sequence[Direction]) -> Float[Tensor, "direction prompt"]:
        out = torch.empty(len(directions), part.stop - part.start, dtype=torch.float64)
        for index, batch in enumerate(part.batches):
            where = [i - part.start for i in batch.prompts]
            if score == "induce":
                logits = self._added(batch, part.inputs[index][directions[0].layer], directions)
            else:
                with self.model.apply(AblateEach(tuple(directions))):
                    logits = read(self.model, batch, copies=len(directions))
            for row, one in zip(out, logits, strict=True):
                row[where] = (
                    kl_from(self.base[list(batch.prompts)], one) if score == "kl" else refusal_metric(one, self.tokens)
                ).cpu()
        return out

    def _added(
        self, batch: Batch, inputs: Float[Tensor, "row token d_model"], directions: Sequence[Direction]
    ) -> Float[Tensor, "direction prompt vocab"]:
        """Logits when each candidate is added at its layer (the same for all of them)."""
        layer = directions[0].layer
        blocks = [self.model.hf.get_submodule(name) for name in self.model.sites.blocks]
        start = torch.cat([Add(direction)(inputs) for direction in directions])
        start_here = Edit(blocks[layer], "input", lambda x: start.to(x.device))
        self.model.forward_tokens -= len(directions) * batch.ids.numel() * layer // len(blocks)  # only what is run
        with skipped(blocks[:layer], self.model.sites.in_tuple):
            return read(self.model, batch, [start_here], len(directions))
