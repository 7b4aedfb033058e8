"""The textbook direction led on by gradient through the frozen model (arXiv 2502.17420)."""

from collections.abc import Sequence
from dataclasses import replace

from refusal.core.errors import ConfigError
from refusal.core.work import Read, Search, Work, Write
from refusal.directions.pool import draw_passing
from refusal.directions.rdo import ANSWER, BATCH, PASSES, lessons_of, train_rows
from refusal.directions.rdo_losses import Lessons
from refusal.evaluations.audit.attack import Attack, Bench, Found, Setting, filters
from refusal.runs.stage import Plan


class Gradient(Attack):
    """Trained on the training prompts to answer where it is ablated, and to change nothing else."""

    searches = True

    def find(self, bench: Bench) -> Found:
        """Go on until the epochs are done or the budget is spent.

        Raises:
            ConfigError: the budget does not even allow a step.
        """
        config = bench.config.model_copy(update={"rank": 1, "rdo_seconds": bench.budget.seconds})
        how = (bench.tokens, config.n_train, filters(config))
        harmful = draw_passing(bench.model, bench.train.harmful, "harmful", *how)
        harmless = draw_passing(bench.model, bench.train.harmless, "harmless", *how)
        start = bench.textbook
        lessons = lessons_of(bench.model, start, harmful.prompts, harmless.prompts)
        if bench.budget.tokens is not None:
            lessons = _as_far_as(lessons, bench.budget.tokens)
        done = train_rows(bench.model, start, lessons, config)
        seen = start.seen | harmful.seen | harmless.seen | bench.validation.seen
        direction = replace(start, vector=done.rows[0].clone(), by_layer=None, seen=seen)
        cosine = float(done.rows[0].double() @ start.vector.double())
        note = (
            f"{len(done.losses)} steps, loss {done.losses[0]:.3f} to {done.losses[-1]:.3f}, cosine "
            f"with the textbook direction {cosine:.3f}"
        )
        return Found({"rdo": Setting("ablation", direction)}, note=note)

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """The training prompts, three sets of answers, and the steps, back and forth."""
        n, length = plan.config.n_train, plan.lengths.train
        passes = PASSES * plan.config.rdo_epochs * n
        steps = Search(passes * (length + ANSWER), passes / BATCH)
        return Read(2 * n, length), Write(3 * n, ANSWER, length, 3), steps


def _as_far_as(lessons: Lessons, tokens: float) -> Lessons:
    """The first lessons, as many as a budget of tokens allows, back passes counted as forward."""
    longest = max(len(one.row) for some in lessons.values() for one in some)
    n = int(tokens / (PASSES * longest))
    if n < 1:
        raise ConfigError(
            f"A budget of {tokens:.0f} tokens does not allow a step of {PASSES * longest}. Raise "
            "--budget-tokens."
        )
    return {term: some[:n] for term, some in lessons.items()}
