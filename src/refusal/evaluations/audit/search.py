"""The attacks as a stage: each looks for its best setting on training and validation prompts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from refusal.config.audit import AuditConfig
from refusal.core import parallel
from refusal.core.errors import UsageError
from refusal.core.records import Metric
from refusal.core.work import Search, Work, Write
from refusal.directions.pool import draw_passing
from refusal.directions.refusal_tokens import tokens_for
from refusal.evaluations.audit import ATTACKS
from refusal.evaluations.audit.arms import (
    complete,
    paths_of,
    shares,
    write_attack,
    write_impossible,
)
from refusal.evaluations.audit.attack import Attack, Bench, Budget, Found, Setting, filters
from refusal.evaluations.audit.attacks.forms import TEXTBOOK
from refusal.evaluations.audit.records import Validated
from refusal.evaluations.audit.validation import Validation
from refusal.runs.folder import prompts_hash
from refusal.runs.stage import Asked, Plan, Run, Stage

ALWAYS = ("textbook", "random")  # what all others stand beside


def attacks_of(config: AuditConfig) -> dict[str, Attack]:
    """The attacks of a configuration by name, the textbook one first, controls last.

    Raises:
        ConfigError: there is no such attack.
    """
    names = dict.fromkeys(config.attacks or ATTACKS)
    found = {name: ATTACKS[name]() for name in names}
    first, last = ALWAYS
    others = {name: attack for name, attack in found.items() if name not in ALWAYS}
    return {first: ATTACKS[first](), **others, last: ATTACKS[last]()}


def audited(asked: Asked) -> AuditConfig:
    """The configuration of an audit."""
    assert isinstance(asked.config, AuditConfig)
    return asked.config


class Attacks(Stage):
    """Every attack, a step each: settings, their scores, completions that confirm them."""

    name = "attack"

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self.attacks = attacks_of(audited(asked))

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """The searches, unless minutes are set for them, and the validation prompts completed under
        every arm.
        """
        config, found = plan.config, list[Work]()
        assert isinstance(config, AuditConfig)
        attacks = attacks_of(config).values()
        rows = sum(attack.arms(config) for attack in attacks) * config.n_val
        found.append(Write(rows, config.new_tokens, plan.lengths.val))
        if config.budget_minutes is None:
            works = [work for attack in attacks for work in attack.costs(plan)]
            found += _within(works, config.budget_tokens)
        return found

    def work(self, run: Run) -> Iterable[Metric]:
        """Leave what each came to in ``attacks/``."""
        config, lab = audited(self.asked), _Lab(run)
        searching = sum(attack.searches for attack in self.attacks.values())
        for name, attack in self.attacks.items():

            def work(name: str = name, attack: Attack = attack) -> None:
                budget = _budget(run, config, searching if attack.searches else 0)
                bench = replace(lab.bench, budget=budget)
                try:
                    found = attack.find(bench)
                    validated = lab.validated(found)
                except UsageError as error:
                    why = str(error)
                    parallel.only_writer(
                        lambda: write_impossible(run.folder.path, name, attack, bench.textbook, why)
                    )
                    return
                about = (run.folder.path, name, attack, found, validated, config.damage_limit)
                parallel.only_writer(lambda: write_attack(*about))

            self.do(
                run, name, self._inputs(run, name, attack), paths_of(run.folder.path, name), work
            )
        return ()

    def _inputs(self, run: Run, name: str, attack: Attack) -> dict[str, Any]:
        config, prompts = audited(self.asked), self.asked.prompts
        names = ["damage_limit", "ranks", "n_train", "n_val", "filter", "max_new_tokens", "seed"]
        names += ["thinking_tokens", "prune_layers", "centroids", "rdo_epochs"]
        if attack.searches:
            names += ["budget_minutes", "budget_tokens"]
        return {
            "attack": name,
            "train": prompts_hash([*prompts.train.harmful, *prompts.train.harmless]),
            "val": prompts_hash([*prompts.val.harmful, *prompts.val.harmless]),
            "direction": run.direction_hash,
            "filtered": run.finding.config.filter,
            "tokens": run.token_ids,
            **{option: getattr(config, option) for option in names},
        }


def _within(works: Sequence[Work], tokens: int | None) -> list[Work]:
    """Searches as far as a budget goes."""
    searched = sum(work.tokens for work in works if isinstance(work, Search))
    share = 1.0 if tokens is None else min(1.0, tokens / max(1.0, searched))
    found = []
    for work in works:
        if isinstance(work, Search):
            work = replace(work, tokens=share * work.tokens, passes=share * work.passes)
        found.append(work)
    return found


@dataclass
class _Lab:
    """What the attacks of a run share, made when the first of them needs it."""

    run: Run

    @cached_property
    def bench(self) -> Bench:
        """The validation prompts that pass the filter, and the unmodified model on them."""
        run, model, finding = self.run, self.run.model, self.run.finding
        given = audited(run.asked).model_copy(update={"filter": finding.config.filter})
        tokens = run.tokens or tokens_for(model, finding.train)
        how = (tokens, given.n_val, filters(given))
        harmful = draw_passing(model, finding.val.harmful, "harmful", *how).prompts
        harmless = draw_passing(model, finding.val.harmless, "harmless", *how).prompts
        test = [prompt for pool in run.asked.measured.values() for prompt in pool]
        measured = frozenset(prompt.fingerprint for prompt in test)
        validation = Validation(model, harmful, harmless, tokens.ids, measured)
        assert run.candidates is not None
        about = (finding.train, tokens, run.candidates, run.chosen)
        return Bench(model, given, *about, validation, Budget(model))

    @cached_property
    def textbook(self) -> Validated:
        """What the textbook direction does; several attacks begin with it."""
        setting = Setting("ablation", self.bench.textbook)
        return self._completed({TEXTBOOK: setting})[TEXTBOOK]

    def validated(self, found: Found) -> dict[str, Validated]:
        """Scores and judged completions of every setting on the validation prompts."""
        others = {name: one for name, one in found.settings.items() if name != TEXTBOOK}
        done = self._completed(others)
        if TEXTBOOK in found.settings:
            done[TEXTBOOK] = self.textbook
        return {name: done[name] for name in found.settings}

    def _completed(self, settings: Mapping[str, Setting]) -> dict[str, Validated]:
        model, validation = self.bench.model, self.bench.validation
        new, done = self.bench.config.max_new_tokens, {}
        completions = complete(model, settings, validation.harmful, new)
        for name, setting in settings.items():
            edit = setting.edit(model)
            bypass, kl = None, None
            if edit is not None:
                (values,), (kl,) = validation.bypass([edit]), validation.kl([edit])
                bypass = sum(values) / len(values)
            rows = completions[name]
            done[name] = Validated(bypass, kl, *shares(rows), n=len(rows))
        return done


def _budget(run: Run, config: AuditConfig, searching: int) -> Budget:
    """An equal share of what all searching attacks may take."""
    if not searching:
        return Budget(run.model)
    tokens, minutes = config.budget_tokens, config.budget_minutes
    return Budget(
        run.model,
        None if tokens is None else tokens / searching,
        None if minutes is None else 60 * minutes / searching,
    )
