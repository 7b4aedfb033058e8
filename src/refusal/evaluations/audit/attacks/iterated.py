"""Find a direction, take it out, and look again at the model that is left ("hydra")."""

from collections.abc import Sequence

from refusal.config.audit import AuditConfig
from refusal.core.direction import Direction
from refusal.core.errors import NonFiniteError, TooFewPromptsError
from refusal.core.subspace import spanned
from refusal.core.work import Read, Work
from refusal.directions.difference_in_means import difference_in_means
from refusal.directions.pool import collect
from refusal.evaluations.audit.attack import Attack, Bench, Found, filters
from refusal.evaluations.audit.attacks.rank import Chain, every, looks
from refusal.interventions.ablate_add import Ablate
from refusal.runs.stage import Plan


class Iterated(Attack):
    """Each further direction is found on the model without those before it.

    Only prompts that this model still refuses count, so that it ends where too few are left.
    """

    searches = True

    def find(self, bench: Bench) -> Found:
        """Extract and choose again until nothing helps, the ranks are done or the budget is
        spent.
        """
        chain = Chain.begun(bench)
        while len(chain.directions) < bench.config.ranks:
            if bench.budget.spent:
                chain.stopped = "the budget is spent"
                break
            try:
                left = self._extracted(bench, chain)
            except TooFewPromptsError:
                chain.stopped = "too few training prompts are still refused"
                break
            except NonFiniteError:
                chain.stopped = "the ablated model's activations are not finite"
                break
            if not chain.grow(left, bench):
                break
        return chain.found("iterated", bench.validation.seen)

    def _extracted(self, bench: Bench, chain: Chain) -> list[Direction]:
        """Differences in means of the model without the directions of the chain, those near the
        textbook direction's layer first.
        """
        config = bench.config
        with bench.model.apply(Ablate(spanned(chain.directions))):
            means = collect(
                bench.model,
                bench.train,
                n=config.n_train,
                tokens=bench.tokens,
                filtered=filters(config),
                layers=None if filters(config) else bench.layers,
                seed=config.seed,
            )
        found, best = every(difference_in_means(means), bench.layers), bench.textbook.layer
        return sorted(found, key=lambda one: (abs(one.layer - best), -one.position))

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """The training prompts again, and the looks at the validation prompts, for each rank."""
        reads = Read(2 * 4 * plan.config.n_train, plan.lengths.train)
        return (reads, *looks(plan, 4))

    @classmethod
    def arms(cls, config: AuditConfig) -> int:
        """One a rank, but the first, which is the textbook's."""
        return config.ranks - 1
