"""The rates of a run: computed from its completions alone."""

import logging
from collections.abc import Iterable, Sequence

from refusal.core.records import Metric
from refusal.core.work import Work
from refusal.directions.controls import cosines
from refusal.evaluations.refusal.curves import curves, without_lengths
from refusal.evaluations.refusal.pairs import completions_of, control_pairs, plain_pairs
from refusal.evaluations.refusal.rates import measure_all
from refusal.interventions.conditions import action_of
from refusal.runs.stage import Plan, Run, Stage

log = logging.getLogger(__name__)


class Rates(Stage):
    """Refusal by set and condition with intervals, and how alike the controls are."""

    name = "rates"

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """No model is run."""
        return ()

    def work(self, run: Run) -> Iterable[Metric]:
        """Every rate, its correction, its change from the baseline, and how it grows with
        length.
        """
        measured, further = self.asked.measured, run.config.interventions
        plain = plain_pairs(measured, further)
        pairs = [*plain, *control_pairs(measured, run.controls, further)]
        completions = completions_of(run, pairs)
        yield from measure_all(completions)
        yield from curves(completions, run.config.max_new_tokens)
        if lacking := without_lengths(completions):
            log.warning(
                "No rate against length of %s: the engine gave no tokens, or an older version "
                "wrote the completions.",
                "; ".join(", ".join(key) for key in lacking),
            )
        for name, value in cosines(run.direction, run.controls).items():
            yield Metric("cosine", "direction", name, value, value, value, 1)
        for action in {one.told_by: one for one in map(action_of, further)}.values():
            yield from action.tell(run.direction)
