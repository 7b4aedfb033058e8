"""What edits do to the validation prompts: the one thing that a search may look at.

Scores come from the last prompt token alone, so that many edits can be looked at; what they choose
is confirmed by completions. Test prompts are never in here: `Validation` refuses them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core import parallel
from refusal.core.errors import LeakageError
from refusal.core.records import Prompt
from refusal.directions.refusal_metric import kl_floor, kl_from, rows_at_once, softmax64
from refusal.model.chat_model import ChatModel
from refusal.model.edits import Intervention
from refusal.model.forward import read, run_batches

LOOKS = (0.25, 0.5, 1.0)  # of the harmful prompts, after each of which the better half goes on
LEAST = 4  # edits that all prompts are asked of


class Validation:
    """Scores edits on fixed validation prompts; the unmodified model is read once.

    Attributes:
        seen: fingerprints of the prompts.
    """

    def __init__(
        self,
        model: ChatModel,
        harmful: Sequence[Prompt],
        harmless: Sequence[Prompt],
        tokens: Sequence[int],
        test: frozenset[str],
    ) -> None:
        """Look at the prompts, and read the harmless ones under the unmodified model.

        Args:
            tokens: ids of the refusal tokens.
            test: fingerprints of the prompts that the audit reports on.

        Raises:
            LeakageError: one of them is among the validation prompts.
        """
        self.model, self.harmful, self.harmless = model, tuple(harmful), tuple(harmless)
        self.tokens = list(dict.fromkeys(tokens))
        self.seen = frozenset(prompt.fingerprint for prompt in (*harmful, *harmless))
        if leaked := self.seen & test:
            raise LeakageError(
                f"{len(leaked)} of {len(self.seen)} validation prompts are among the test prompts "
                "that the audit reports on, so that what it chooses would be tested on what chose "
                "it. Give prompts in separate splits."
            )
        self._harmful = model.tokenize([prompt.question for prompt in harmful])
        self._harmless = model.tokenize([prompt.question for prompt in harmless])
        self._base = softmax64(self._logits(self._harmless, None))

    def bypass(
        self, edits: Sequence[Intervention | None], start: int = 0, stop: int | None = None
    ) -> list[list[float]]:
        """Log-odds of the refusal tokens on the harmful prompts ``start .. stop - 1`` under each
        edit, prompt by prompt.
        """
        rows = self._harmful[start:stop]

        def one(edit: Intervention | None) -> list[float]:
            odds: list[float] = log_odds(self._logits(rows, edit), self.tokens).tolist()
            return odds

        return parallel.share(list(edits), one)

    def kl(self, edits: Sequence[Intervention | None], limit: float | None = None) -> list[float]:
        """Mean KL on the harmless prompts under each edit, first token.

        Args:
            limit: an edit whose mean is certain to exceed it after half of the prompts gets the
                least mean that it can have.
        """
        half = len(self._harmless) // 2 if limit is not None else 0

        def one(edit: Intervention | None) -> float:
            known: list[float] = []
            for part in (slice(None, half), slice(half, None)):
                rows, base = self._harmless[part], self._base[part]
                known += kl_from(base, self._logits(rows, edit)).tolist() if rows else []
                left = (len(self._harmless) - len(known)) * kl_floor(base.shape[-1])
                least = (sum(known) + left) / len(self._harmless)
                if limit is not None and least > limit:
                    return least
            return sum(known) / len(known)

        return parallel.share(list(edits), one)

    def best_within(
        self, edits: Sequence[Intervention], limit: float
    ) -> tuple[int, float, float] | None:
        """The edit with the lowest bypass of those whose KL is within the limit: which, its mean
        bypass, its KL; ``None`` where none is.

        Successive halving: after a quarter and a half of the harmful prompts the better half goes
        on, so that the last ones are asked about few edits.
        """
        alive, n = list(range(len(edits))), len(self.harmful)
        sums, start = dict.fromkeys(alive, 0.0), 0
        for look in LOOKS:
            stop = max(start, round(look * n))
            values = self.bypass([edits[i] for i in alive], start, stop)
            for i, value in zip(alive, values, strict=True):
                sums[i] += sum(value)
            alive.sort(key=lambda i: (sums[i], i))
            start = stop
            if look < 1:
                alive = alive[: max(LEAST, -(-len(alive) // 2))]
        for i in alive:
            (kl,) = self.kl([edits[i]], limit)
            if kl <= limit:
                return i, sums[i] / n, kl
        return None

    def _logits(
        self, rows: Sequence[list[int]], edit: Intervention | None
    ) -> Float[Tensor, "prompt vocab"]:
        found: dict[int, Tensor] = {}
        with self.model.apply(*(() if edit is None else (edit,))):
            for batch, logits in run_batches(self.model, rows, lambda b: read(self.model, b)[0]):
                found.update(zip(batch.prompts, logits.cpu(), strict=True))
        return torch.stack([found[i] for i in range(len(rows))])


def log_odds(
    logits: Float[Tensor, "prompt vocab"], tokens: Sequence[int]
) -> Float[Tensor, "prompt"]:
    """``log p_R - log(1 - p_R)`` of a set of tokens, float64.

    The refusal metric without its epsilons: that one ends at 18.4, and a search would not see an
    attack that takes away half of what is far beyond.
    """
    chosen, others = list(tokens), torch.ones(logits.shape[-1], dtype=torch.bool)
    others[chosen] = False
    found = []
    for few in logits.cpu().split(rows_at_once(logits)):
        wide = few.double()
        found.append(wide[:, chosen].logsumexp(-1) - wide[:, others].logsumexp(-1))
    return torch.cat(found)
