"""The monitor of a run, where some of its interventions act by one."""

from collections.abc import Mapping
from pathlib import Path

from refusal.config.run_config import RunConfig
from refusal.core.errors import ConfigError, LeakageError
from refusal.core.monitor import CARD, TENSORS, Monitor
from refusal.core.storage import file_sha256
from refusal.interventions.conditions import action_of, by_prompt
from refusal.runs.stage import Asked


def monitor_of(config: RunConfig) -> Monitor | None:
    """The monitor that a configuration names; ``None`` where no intervention acts by one.

    Raises:
        ConfigError: an intervention needs one and there is none, or the other way round.
        MonitorError: its folder holds none.
    """
    names, folder = by_prompt(config.interventions), config.condition_on
    if names and folder is None:
        raise ConfigError(
            f"--interventions {names[0]} acts by a monitor. Give its folder with --condition-on: "
            "refusal monitor fit makes one."
        )
    if folder is not None and not names:
        raise ConfigError(
            f"--condition-on {folder} without an intervention that acts by it. Give one: "
            "--interventions conditional-addition (where it fires), unless-ablation (elsewhere)."
        )
    return None if folder is None else Monitor.load(Path(folder).expanduser())


def check_unseen(monitor: Monitor | None, asked: Asked) -> None:
    """Raise LeakageError if a monitor was made with a prompt that is measured."""
    for name, prompts in asked.measured.items() if monitor is not None else ():
        leaked = [p for p in prompts if monitor is not None and p.fingerprint in monitor.seen]
        if leaked:
            raise LeakageError(
                f"{len(leaked)} of {len(prompts)} {name} prompts took part in making the monitor, "
                f"the first of them {leaked[0].id!r}. Measure others, or fit it without them."
            )


def monitor_inputs(config: RunConfig, condition: str) -> Mapping[str, object]:
    """What results under a condition depend on, where it acts by the monitor: its files' hashes."""
    if config.condition_on is None or not acts_by_prompt(condition):
        return {}
    return {"monitor": hashes(config)}


def hashes(config: RunConfig) -> list[str]:
    """Sha256 of the monitor's files; none where there is no monitor."""
    if config.condition_on is None:
        return []
    folder = Path(config.condition_on).expanduser()
    return [file_sha256(folder / name) for name in (CARD, TENSORS)]


def acts_by_prompt(intervention: str) -> bool:
    """Whether an intervention acts on some prompts only."""
    return action_of(intervention).when is not None
