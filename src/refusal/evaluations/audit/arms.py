"""The arms of an audit as they are kept in its folder, and read back to be measured."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from refusal.core.direction import Direction
from refusal.core.records import Completion, Prompt, to_json
from refusal.core.storage import file_sha256, write_json
from refusal.evaluations.audit.attack import Attack, Found, Setting
from refusal.evaluations.audit.records import (
    BASELINE,
    Arm,
    AttackRecord,
    Validated,
    read_attack,
)
from refusal.evaluations.audit.talking import talking
from refusal.evaluations.refusal.completions import Wanted, generate_together
from refusal.evaluations.refusal.rates import REFUSED
from refusal.model.chat_model import ChatModel


@dataclass(frozen=True)
class Ready:
    """An arm that can be measured.

    Attributes:
        name: of its files. attack, kind: whose it is. depends: what its results are kept under.
    """

    name: str
    attack: str
    kind: str
    setting: Setting
    depends: Mapping[str, Any]


def paths_of(folder: Path, attack: str) -> tuple[Path, Path]:
    """What an attack came to, and its direction."""
    file = folder / "attacks" / f"{attack}.json"
    return file, file.with_suffix(".safetensors")


def complete(
    model: ChatModel, settings: Mapping[str, Setting], prompts: Sequence[Prompt], new: int
) -> dict[str, tuple[Completion, ...]]:
    """Judged completions of validation prompts under some settings, by name.

    The directions have seen these prompts, which here is what they are for.
    """
    found: dict[str, tuple[Completion, ...]] = {}
    for some in alike(settings):
        wanted = []
        for name in some:
            one = settings[name]
            unseen = replace(one.direction, seen=frozenset())
            wanted.append(Wanted(name, written_under(one), unseen, tuple(prompts)))
        with prepared(model, settings[some[0]]):
            generate_together(
                model, wanted, new, lambda one, rows: found.update({one.set_name: rows})
            )
    return {name: found[name] for name in settings}


def alike(settings: Mapping[str, Setting]) -> list[list[str]]:
    """Names of settings that can be written side by side: asked alike, and of edits of weights each
    alone.
    """
    found: dict[object, list[str]] = {}
    for name, one in settings.items():
        found.setdefault((one.talk, name if one.keep_norms else ""), []).append(name)
    return list(found.values())


def written_under(setting: Setting) -> str:
    """The condition that completions are written under once the model is `prepared`."""
    return BASELINE if setting.keep_norms else setting.condition


@contextmanager
def prepared(model: ChatModel, setting: Setting) -> Iterator[None]:
    """The model asked as a setting says; with its edit, where that is one of weights."""
    edit = setting.edit(model) if setting.keep_norms else None
    with talking(model, *setting.talk), model.apply(*(() if edit is None else (edit,))):
        yield


def shares(rows: Sequence[Completion]) -> tuple[float, float]:
    """Of some completions those that are refused, and those that are degenerate."""
    n = max(1, len(rows))
    refused = sum(row.verdict in REFUSED for row in rows)
    return refused / n, sum(row.verdict == "degenerate" for row in rows) / n


def strength_of(validated: Validated) -> tuple[float, float]:
    """How much an arm leaves unanswered on validation prompts, to sort by: the least first, of
    equal ones the lower log-odds. Gibberish is no answer.
    """
    unanswered = (validated.refused or 0.0) + (validated.degenerate or 0.0)
    return unanswered, 0.0 if validated.bypass is None else validated.bypass


def choose(validated: Mapping[str, Validated], limit: float) -> tuple[str, bool]:
    """The strongest arm within the damage limit, and whether there is one; else the one with the
    least damage.
    """
    within = [name for name, one in validated.items() if one.kl is None or one.kl <= limit]
    if within:
        return min(within, key=lambda name: strength_of(validated[name])), True
    return min(validated, key=lambda name: validated[name].kl or 0.0), False


def write_attack(
    folder: Path,
    name: str,
    attack: Attack,
    found: Found,
    validated: Mapping[str, Validated],
    limit: float,
) -> None:
    """Keep an attack's arms and its direction."""
    chosen, within = choose(validated, limit)
    arms = []
    for arm, setting in found.settings.items():
        if arm in found.kept or arm == chosen:
            about = (setting.condition, setting.direction.rank, validated[arm])
            arms.append(Arm(arm, *about, *setting.talk, setting.keep_norms))
    record = AttackRecord(
        name, attack.kind, chosen, within, tuple(arms), tuple(found.trials), found.note
    )
    largest = max((one.direction for one in found.settings.values()), key=lambda d: d.rank)
    file, tensors = paths_of(folder, name)
    largest.save(tensors)
    write_json(file, to_json(record))


def write_impossible(
    folder: Path, name: str, attack: Attack, direction: Direction, why: str
) -> None:
    """Keep that an attack cannot be made of this model."""
    file, tensors = paths_of(folder, name)
    direction.save(tensors)
    write_json(file, to_json(AttackRecord(name, attack.kind, None, False, (), (), why)))


def read_arms(folder: Path, attacks: Sequence[str]) -> tuple[list[AttackRecord], list[Ready]]:
    """What some attacks came to, and all arms: the baseline, then each once."""
    records, arms = [], dict[str, Ready]()
    for name in attacks:
        file, tensors = paths_of(folder, name)
        record, direction = read_attack(file), Direction.load(tensors)
        records.append(record)
        if not arms:
            base = Setting(BASELINE, direction)
            arms[BASELINE] = Ready(BASELINE, BASELINE, "control", base, {})
        of = file_sha256(tensors)
        for arm in record.arms:
            said = (arm.system, arm.prefill, arm.keep_norms)
            setting = Setting(arm.condition, first_rows(direction, arm.rank), *said)
            depends = {key: value for key, value in asdict(arm).items() if key != "validated"}
            ready = Ready(arm.name, name, record.kind, setting, {**depends, "direction": of})
            arms.setdefault(arm.name, ready)
    return records, list(arms.values())


def first_rows(direction: Direction, rank: int) -> Direction:
    """The direction with the first ``rank`` rows of its subspace, which span the first directions
    that it was made of.
    """
    if rank >= direction.rank:
        return direction
    if rank == 1:
        return replace(direction, basis=None, row_places=())
    return replace(direction, basis=direction.rows[:rank], row_places=direction.places[:rank])
