"""An audit in the folder of a run: the run's direction, then every attack on it.

RUN/            the run that the direction comes from
RUN/audit/      the audit: a folder like a run's, with a manifest of its own, and audit.json
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refusal.config.audit import AuditConfig, AuditOptions
from refusal.config.run_config import RunConfig
from refusal.core import parallel
from refusal.core.errors import ConfigError
from refusal.core.lock import locked
from refusal.core.progress import NOTE
from refusal.core.records import Metric
from refusal.core.storage import file_sha256
from refusal.evaluations.audit.arms import read_arms
from refusal.evaluations.audit.damage import AuditCapability, AuditDrift
from refusal.evaluations.audit.measure import HARMFUL, Completed
from refusal.evaluations.audit.result import Audited, Spent, read_audit, write_audit
from refusal.evaluations.audit.search import Attacks, attacks_of, audited
from refusal.evaluations.audit.summary import summarise
from refusal.evaluations.audit.verdict import notes, verdict
from refusal.evaluations.refusal.rates import REFUSED
from refusal.model.chat_model import ChatModel
from refusal.model.memory import room_of
from refusal.pipeline.asking import ask
from refusal.pipeline.costs.estimate import seconds_by_stage
from refusal.pipeline.costs.loaded import loaded_speed
from refusal.pipeline.run import load_for, plan_of, run
from refusal.runs.files import read_completions, read_manifest
from refusal.runs.folder import RunFolder
from refusal.runs.stage import Run, Stage

STAGES: tuple[type[Stage], ...] = (Attacks, Completed, AuditDrift, AuditCapability)
FINDING = ("tokens", "extract", "select")  # what the textbook direction took, in the run's manifest
SIZES = ("n_test", "n_val", "n_train", "max_new_tokens", "n_texts", "over_refusal", "tasks", "seed")
AUDIT = "audit"
RUN = frozenset(RunConfig.model_fields)
log = logging.getLogger(__name__)


def audit(
    config: AuditConfig,
    out: str | Path,
    *,
    base: RunConfig | None = None,
    model: ChatModel | None = None,
) -> Audited:
    """Audit a model: what is missing of its run up to the direction in ``out``, then every attack
    in ``out/audit``; what is there already is reused.

    In a program that torchrun or accelerate has started, all its processes share the work, and all
    must call this.

    Args:
        base: the configuration of the run that is there, where the audit's sizes are others.
        model: an already loaded model; default: what the config names.

    Raises:
        ConfigError: an unknown attack, or options that an audit has no use for.
        LeakageError: test prompts took part in finding or choosing an attack.
        RunFolderError: the folder is of another model or format, is in use, or cannot be used.
        refusal.Error: whatever a stage raises.
    """
    check_audit(config)
    with parallel.joined(split=config.tp_plan is not None):
        model = model or load_for(config)
        found = run(base or _run_config(config), out, until="select", model=model)
        folder = RunFolder(Path(out) / AUDIT)
        folder.check()
        with locked(folder.path):
            folder.check()  # again: another audit may just have ended here
            asked = ask(config, folder.path)
            stages = [stage(asked) for stage in STAGES]
            for stage in stages:
                stage.check(model)
            folder.begin(config, model, asked.prompts)
            about = (asked, folder, model, plan_of(asked, model))
            work = Run(
                *about,
                tokens=found.tokens,
                found_with=found.found_with,
                candidates=found.candidates,
                selection=found.selection,
            )
            work.direction_hash = file_sha256(Path(out) / "direction.safetensors")
            _announce(work)
            metrics = tuple(dict.fromkeys(m for stage in stages for m in stage.work(work)))
            return _audited(work, Path(out), metrics)


def check_audit(config: AuditConfig) -> None:
    """Raise ConfigError for options that an audit cannot go by."""
    attacks_of(config)
    if config.minutes is not None:
        raise ConfigError(
            "--minutes is for a whole run. What an audit's searches may take is --budget-minutes; "
            "its sizes are --n-test, --n-val and --max-new-tokens."
        )
    if config.temperature:
        raise ConfigError(
            f"An audit's completions are the likeliest ones, not drawn at a temperature of "
            f"{config.temperature:g}. Leave --temperature out."
        )
    if config.budget_minutes is not None and config.budget_tokens is not None:
        raise ConfigError(
            f"A budget of {config.budget_minutes:g} minutes and one of {config.budget_tokens} "
            "tokens are two. Give one."
        )


def _run_config(config: AuditConfig) -> RunConfig:
    """The configuration of the run that the audit starts from; where only as many layers are read
    as may be chosen, the attack per layer asks for all.
    """
    own = {name: value for name, value in config.model_dump().items() if name in RUN}
    if "per-layer" in attacks_of(config) and config.filter == "none":
        own["interventions"] = tuple(dict.fromkeys((*config.interventions, "per_layer")))
    return RunConfig(**own)


def _announce(work: Run) -> None:
    """Say how long it should take, by what the stages count."""
    seconds = estimated(work)
    total = sum(seconds.values()) / max(1, parallel.world())
    parts = ", ".join(f"{name} {value / 60:.1f}" for name, value in seconds.items())
    log.log(NOTE, "The audit should take about %.0f minutes (%s).", total / 60 + 0.5, parts)


def estimated(work: Run) -> dict[str, float]:
    """Seconds of every stage of the audit in one process, all attacks going as far as they may."""
    room, minutes = room_of(work.model), audited(work.asked).budget_minutes
    about = (work.plan, room.size, loaded_speed(work.model), room)
    found = seconds_by_stage(*about, STAGES)
    if minutes is not None:
        found[Attacks.name] = found.get(Attacks.name, 0.0) + 60 * minutes
    return found


def _audited(work: Run, out: Path, metrics: tuple[Metric, ...]) -> Audited:
    """Sum up, and leave it in ``audit.json``."""
    config = audited(work.asked)
    names = list(attacks_of(config))
    records, arms = read_arms(work.folder.path, names)
    refused = {}
    for arm in arms:
        rows = read_completions(work.folder.completions(HARMFUL, arm.name))
        refused[arm.name] = [row.verdict in REFUSED for row in rows]
    summary = tuple(summarise(records, refused, metrics))
    options = {**AuditOptions(**_own(config)).model_dump(mode="json"), **_sizes(config)}
    found = Audited(
        folder=str(work.folder.path),
        model=work.model.name,
        prompts=work.asked.prompts.name,
        options=options,
        attacks=tuple(records),
        spent=_spent(work, out, names),
        summary=summary,
        metrics=metrics,
        verdict=verdict(records, summary, metrics),
        notes=tuple(notes(records, refused, summary)),
    )
    parallel.only_writer(lambda: write_audit(work.folder.path, found))
    return read_audit(work.folder.path)


def _own(config: AuditConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in AuditOptions.model_fields}


def _sizes(config: AuditConfig) -> dict[str, Any]:
    found = {name: getattr(config, name) for name in SIZES}
    return {key: list(x) if isinstance(x, tuple) else x for key, x in found.items()}


def _spent(work: Run, out: Path, names: list[str]) -> dict[str, Spent]:
    """What finding each attack took beside the textbook direction; of that one the run's stages."""
    audits, runs = work.folder.manifest["stages"], read_manifest(out)["stages"]
    found = {}
    for name in names:
        stages = [audits[f"{Attacks.name} {name}"]]
        if name == "textbook":
            stages += [runs[stage] for stage in FINDING if stage in runs]
        found[name] = _sum(stages)
    return found


def _sum(stages: list[Mapping[str, Any]]) -> Spent:
    costs = [stage["cost"] for stage in stages if stage.get("cost") is not None]
    return Spent(
        round(sum(stage["seconds"] for stage in stages), 2),
        sum(stage["forward_tokens"] for stage in stages),
        sum(costs) if costs else None,
    )
