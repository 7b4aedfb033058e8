"""Several directions taken out together: after the textbook one, whichever lowers refusal most."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from refusal.config.audit import AuditConfig
from refusal.core.direction import Direction
from refusal.core.subspace import spanned
from refusal.core.work import Read, Search, Work
from refusal.directions import METHODS
from refusal.directions.from_activations import read_activations
from refusal.directions.records import Candidates
from refusal.evaluations.audit.attack import Attack, Bench, Found, Setting
from refusal.evaluations.audit.attacks.forms import TEXTBOOK
from refusal.evaluations.audit.records import Trial, Validated
from refusal.interventions.ablate_add import Ablate
from refusal.runs.stage import Plan

LEAST_NEW = 0.05  # of a direction that the subspace does not have yet
ALIKE = 0.9  # cosine of what is new of two directions, from which on only the first is tried
CLUSTERED = 3  # layers whose centroids are in the pool
CLUSTERS = "kmeans"
LOOKED = 0.5  # of the harmful validation prompts that an edit is asked of, on average
POOL = 40  # edits to choose from, about, without those that are alike


@dataclass
class Chain:
    """A subspace that grows by one direction at a time.

    Attributes:
        directions: taken in so far; ``bypass``: of their ablation. trials: each step.
        stopped: why it grows no further.
    """

    directions: list[Direction]
    bypass: float
    trials: list[Trial]
    stopped: str = ""

    @classmethod
    def begun(cls, bench: Bench) -> "Chain":
        """With the textbook direction."""
        (values,) = bench.validation.bypass([Ablate(bench.textbook)])
        return cls([bench.textbook], sum(values) / len(values), [])

    def grow(self, pool: Sequence[Direction], bench: Bench) -> bool:
        """Add the direction of the pool that lowers bypass most within the damage limit; whether
        there was one.
        """
        new = different(pool, self.directions)
        if not new:
            self.stopped = "no direction of the pool is left"
            return False
        edits = [Ablate(spanned([*self.directions, one])) for one in new]
        best = bench.validation.best_within(edits, bench.config.damage_limit)
        if best is None:
            self.stopped = "no further direction is within the damage limit"
            return False
        which, bypass, kl = best
        if bypass >= self.bypass:
            self.stopped = "no further direction lowers the refusal metric"
            return False
        chosen = new[which]
        self.directions.append(chosen)
        self.bypass = bypass
        place = f"({chosen.position}, {chosen.layer})"
        label = f"{len(self.directions)} directions, the last from {place}"
        self.trials.append(Trial(label, Validated(bypass, kl)))
        return True

    def found(self, name: str, seen: frozenset[str]) -> Found:
        """An arm for each number of directions."""
        settings = {TEXTBOOK: Setting("ablation", self.directions[0])}
        for k in range(2, len(self.directions) + 1):
            settings[f"{name}-{k}"] = Setting("ablation", with_seen(self.directions[:k], seen))
        return Found(settings, kept=tuple(settings), trials=self.trials, note=self.stopped)


class Rank(Attack):
    """Greedy: from one pool of candidates and centroids, up to ``ranks`` directions."""

    searches = True

    def find(self, bench: Bench) -> Found:
        """Grow the chain until nothing helps, the ranks are done or the budget is spent."""
        pool, chain = pool_of(bench), Chain.begun(bench)
        while len(chain.directions) < bench.config.ranks:
            if bench.budget.spent:
                chain.stopped = "the budget is spent"
                break
            if not chain.grow(pool, bench):
                break
        return chain.found("rank", bench.validation.seen)

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """The pool's centroids, and the looks at the validation prompts."""
        config = plan.config
        reads = Read(2 * config.n_train, plan.lengths.train)
        return (reads, *looks(plan, 4))

    @classmethod
    def arms(cls, config: AuditConfig) -> int:
        """One a rank, but the first, which is the textbook's."""
        return config.ranks - 1


def looks(plan: Plan, steps: int) -> Sequence[Work]:
    """``steps`` times through a pool."""
    tokens = LOOKED * POOL * steps * plan.config.n_val * plan.lengths.val
    return (Search(tokens, POOL * steps),)


def pool_of(bench: Bench) -> list[Direction]:
    """The centroids of harmful prompts at the layers where candidates did best, and the candidates
    of all eligible places but those whose own damage is beyond the limit; the lowest bypass first.
    """
    scores = {(s.position, s.layer): s for s in bench.selection.scores}
    found = []
    for direction in every(bench.candidates, bench.layers):
        score = scores.get((direction.position, direction.layer))
        kl, bypass = (None, None) if score is None else (score.kl, score.bypass)
        if kl is None or kl <= bench.config.damage_limit:
            found.append((math.inf if bypass is None else bypass, direction))
    found.sort(key=lambda pair: pair[0])
    return _centroids(bench) + [direction for _, direction in found]


def every(candidates: Candidates, layers: int) -> list[Direction]:
    """The candidates of the first ``layers`` layers, where there is one."""
    found = []
    for position in range(-candidates.n_positions, 0):
        for layer in range(layers):
            vector = candidates.vectors[position, layer]
            if torch.isfinite(vector).all() and vector.any():
                found.append(candidates.at(position, layer))
    return found


def _centroids(bench: Bench) -> list[Direction]:
    """Of the harmful prompts, minus the harmless mean, at the textbook direction's position."""
    position = bench.textbook.position
    scored = {s.layer: s.bypass for s in bench.selection.scores if s.position == position}
    known = {layer: bypass for layer, bypass in scored.items() if bypass is not None}
    chosen = bench.textbook.layer
    order = sorted(known, key=lambda layer: (layer != chosen, known[layer], layer))
    layers = [layer for layer in order if layer < bench.layers][:CLUSTERED]
    if not layers:
        return []
    about = (bench.model, bench.train, bench.tokens, bench.config)
    read, method = read_activations(*about, max(layers) + 1), METHODS[CLUSTERS]()
    found = []
    for layer in layers:
        rows = [x[:, position, layer].double() for x in (read.harmful, read.harmless)]
        if torch.equal(rows[0].mean(0), rows[1].mean(0)):  # the same token in every prompt
            continue
        for vector in method.find(*rows, bench.config):
            if norm := float(vector.norm()):
                where = (norm, position, layer)
                unit = (vector / norm).float()
                found.append(Direction(unit, *where, model=read.model, seen=read.seen))
    return found


def different(pool: Sequence[Direction], taken: Sequence[Direction]) -> list[Direction]:
    """The directions of a pool that have something new beside those taken, each unlike those kept
    before it: neighbouring layers point nearly the same way.
    """
    rows = spanned(taken).rows.double()
    kept, news = [], torch.empty(0, rows.shape[1], dtype=torch.float64)
    for direction in pool:
        unit = direction.vector.double()
        new = unit - (rows @ unit) @ rows
        length = float(new.norm())
        if length < LEAST_NEW or ((news @ new).abs() > ALIKE * length).any():
            continue
        kept.append(direction)
        news = torch.cat([news, new[None] / length])
    return kept


def with_seen(directions: Sequence[Direction], seen: frozenset[str]) -> Direction:
    """The subspace of some directions, which the validation prompts have chosen."""
    found = spanned(directions)
    return replace(found, seen=found.seen | seen)
