"""Audits side by side: a plain and a hardened model, attack by attack, paired by prompt."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refusal.core.errors import RunFolderError
from refusal.core.frames import NotebookRecord
from refusal.core.records import Metric, Prompt
from refusal.core.stats import rate_change
from refusal.core.storage import check_page, write_text
from refusal.core.tables import Cell, Style, Table, bar, p_value, points, share, table
from refusal.evaluations.audit.records import BASELINE
from refusal.evaluations.audit.result import Audited, is_audit_folder, read_audit
from refusal.evaluations.refusal.rates import REFUSED, metric
from refusal.report.audit_tables import HARMFUL, NOTHING, written
from refusal.report.page import render
from refusal.runs.files import read_completions

NOTE = (
    "Refusal under the best arm of each attack, which may be another in each audit. A change is "
    "from audit 1, in points, on the prompts that both share, paired; p is McNemar's exact one."
)
Verdicts = Mapping[str, bool]  # by a prompt's fingerprint, whether it is refused


@dataclass(frozen=True)
class AuditRow:
    """Refusal of a set under an attack in every audit (``None`` where one has it not), and its
    change from the first audit.
    """

    set: str
    attack: str
    arms: tuple[str | None, ...]
    values: tuple[Metric | None, ...]
    changes: tuple[Metric | None, ...]


@dataclass(frozen=True)
class AuditComparison(NotebookRecord):
    """Audits and what they have in common."""

    audits: tuple[Audited, ...]
    rows: tuple[AuditRow, ...]


def are_audits(folders: Sequence[Path]) -> bool:
    """Whether folders are of audits, all of them or none.

    Raises:
        RunFolderError: some are, and some are not.
    """
    which = [is_audit_folder(path) for path in folders]
    if any(which) and not all(which):
        raise RunFolderError(
            f"{folders[which.index(True)]} is an audit and {folders[which.index(False)]} is none. "
            "Compare runs with runs, and audits (RUN/audit) with audits."
        )
    return all(which) and bool(which)


def compare_audits(folders: Sequence[Path]) -> AuditComparison:
    """Compare finished audits with the first of them.

    Raises:
        RunFolderError: fewer than two folders, or one without a finished audit.
    """
    if len(folders) < 2:
        raise RunFolderError(f"{len(folders)} audit is nothing to compare. Give two or more.")
    audits = tuple(read_audit(path) for path in folders)
    best = [_best(one) for one in audits]
    rows = []
    for set_name in dict.fromkeys(m.set for m in audits[0].metrics if m.name == "refusal_rate"):
        for attack in dict.fromkeys(name for arms in best for name in arms):
            arms = tuple(mine.get(attack) for mine in best)
            row = _row(audits, set_name, attack, arms)
            if sum(value is not None for value in row.values) > 1:
                rows.append(row)
    return AuditComparison(audits, tuple(rows))


def _best(one: Audited) -> dict[str, str]:
    """The best arm of each attack; a control's arms by their own names."""
    found = {NOTHING: BASELINE}
    for record in one.attacks:
        if record.kind == "control":
            found.update({arm.name: arm.name for arm in record.arms})
        elif record.chosen is not None:
            found[record.name] = record.chosen
    return found


def _row(
    audits: Sequence[Audited], set_name: str, attack: str, arms: tuple[str | None, ...]
) -> AuditRow:
    values, verdicts = [], []
    for one, arm in zip(audits, arms, strict=True):
        values.append(None if arm is None else one.find("refusal_rate", set_name, arm))
        verdicts.append(_verdicts(one, set_name, arm))
    changes = [_change(set_name, attack, verdicts[0], other) for other in verdicts[1:]]
    return AuditRow(set_name, attack, arms, tuple(values), (None, *changes))


def _verdicts(one: Audited, set_name: str, arm: str | None) -> Verdicts:
    path = Path(one.folder) / "completions" / f"{set_name}.{arm}.jsonl"
    if arm is None or not path.is_file():
        return {}
    found = {}
    for row in read_completions(path):
        prompt = Prompt(row.prompt_id, row.prompt, "harmful", before=row.before)
        found[prompt.fingerprint] = row.verdict in REFUSED
    return found


def _change(set_name: str, attack: str, first: Verdicts, other: Verdicts) -> Metric | None:
    shared = [one for one in first if one in other]
    if not shared:
        return None
    change = rate_change([first[one] for one in shared], [other[one] for one in shared])
    return metric("refusal_rate_change", set_name, attack, change, len(shared))


def comparison_tables(found: AuditComparison) -> Iterator[Table]:
    """Which audits, their numbers, and refusal attack by attack."""
    about = [(str(i), a.folder, a.model, a.verdict) for i, a in enumerate(found.audits, start=1)]
    yield table("Audits", ("audit", "folder", "model", "verdict"), (), about)
    names = dict.fromkeys(m.name for one in found.audits for m in one.summary)
    numbers = []
    for name in names:
        for i, one in enumerate(found.audits, start=1):
            for m in one.summary:
                if m.name == name:
                    numbers.append((name, m.condition, str(i), written(m)))
    yield table("Numbers", ("number", "of", "audit"), ("value",), numbers, grouped=True)
    for set_name in dict.fromkeys(row.set for row in found.rows):
        rows = [line for row in found.rows if row.set == set_name for line in _lines(row)]
        measured = ("0 to 100%", "refusal", "change", "p", "n")
        title = f"Refusal of {set_name} prompts"
        labels = ("attack", "arm", "audit")
        yield table(title, labels, measured, rows, note=NOTE, grouped=True)


def _lines(row: AuditRow) -> Iterator[tuple[Cell, ...]]:
    style: Style = "harmful" if row.set == HARMFUL else "plain"
    cells = zip(row.arms, row.values, row.changes, strict=True)
    for i, (arm, value, change) in enumerate(cells, start=1):
        if value is not None and arm is not None:
            paired = (points(change), p_value(change), str((change or value).n))
            name = "" if arm in (BASELINE, row.attack) else arm
            drawn = bar(value, style)
            yield (row.attack, name, str(i), drawn, share(value), *paired)


def write_audit_comparison(found: AuditComparison, out: Path) -> Path:
    """Write a comparison as one HTML file.

    Raises:
        ExportError: ``out`` is something else than a page of this program.
        StorageError: the file could not be written.
    """
    check_page(out)
    audits, *tables = comparison_tables(found)
    page = render(
        "compare.html.j2",
        title=f"Refusal: {len(found.audits)} audits compared",
        heading=f"{len(found.audits)} audits compared",
        runs=audits,
        pictures=(),
        tables=tuple(tables),
        note=NOTE,
    )
    write_text(out, page)
    return out
