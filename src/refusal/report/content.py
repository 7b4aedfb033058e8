"""What stands on the page beside figures and tables: completions side by side, what was run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tomli_w

from refusal.config.tables import in_tables
from refusal.core.records import Completion, RefusalTokens
from refusal.core.text import sanitised
from refusal.report.data import ReportData

EXAMPLES = 12  # prompts of a class that are shown
LONG = 1200  # characters from which on a completion is folded
SHOWN = 300  # of a folded one
OPEN_SETS = ("harmless",)  # whose completions are shown without being asked for


@dataclass(frozen=True)
class Answer:
    """One completion: ``text`` is ``None`` where hidden, ``folded`` what shows of a long one."""

    condition: str
    verdict: str
    text: str | None
    folded: str | None = None
    length: int = 0


@dataclass(frozen=True)
class Example:
    """A prompt and what the model wrote under each condition."""

    prompt: str
    answers: tuple[Answer, ...]


def examples(data: ReportData, set_name: str, show_hidden: bool) -> tuple[Example, ...]:
    """The first prompts of a set, in the drawing order that the seed gave: not picked; of several
    samples the first.
    """
    conditions = [c for s, c in data.completions if s == set_name]
    if not conditions:
        return ()
    firsts = [[r for r in data.completions[set_name, c] if not r.sample] for c in conditions]
    by_id = [{row.prompt_id: row for row in rows} for rows in firsts]
    shown = firsts[0][:EXAMPLES]
    hidden = set_name not in OPEN_SETS and not show_hidden
    found = []
    for row in shown:
        answers = []
        for condition, rows in zip(conditions, by_id, strict=True):
            if row.prompt_id in rows:
                answers.append(_answer(condition, rows[row.prompt_id], hidden))
        found.append(Example(sanitised(row.prompt), tuple(answers)))
    return tuple(found)


def _answer(condition: str, row: Completion, hidden: bool) -> Answer:
    if hidden:
        return Answer(condition, row.verdict, None)
    text = sanitised(row.completion).strip("\n")
    folded = text[:SHOWN].rstrip() + " …" if len(text) > LONG else None
    return Answer(condition, row.verdict, text, folded, len(row.completion))


def _thinking(found: Mapping[str, Any] | None) -> str:
    """What was done about thoughts, in words."""
    if not found:
        return ""
    shown = {"off": "off, by the template's switch", "closed": "closed before the answer"}
    text = shown.get(found["mode"]) or f"on, at most {found.get('tokens')} tokens"
    return f"{text}: {found['block']!r}" if found["block"] else text


def _sampling(data: ReportData) -> str:
    """How completions were drawn; empty for greedy ones."""
    given = data.config
    words = f"temperature {given.temperature:g}, {given.samples} of each prompt"
    return words if given.temperature else ""


def facts(data: ReportData) -> tuple[tuple[str, str], ...]:
    """What was run, as name and value; what is not known is left out."""
    manifest, tokens = data.manifest, data.tokens
    model = manifest["model"]
    hardware = {k.replace("_", " "): v for k, v in manifest["hardware"].items() if v is not None}
    found = {
        "Model": model["name"],
        "Revision": model.get("revision"),
        "Weights, sha256": model["weight_hash"],
        "Precision": model["dtype"],
        "Chat template, sha256": model["template_hash"],
        "System prompt": model.get("system"),
        "Turns before every prompt": " / ".join(text for _, text in model.get("turns", ())),
        "Answers begin": model.get("prefill"),
        "Thinking": _thinking(manifest.get("thinking")),
        "Prompts": manifest["prompts"]["name"],
        "Seed": str(manifest["seed"]),
        "Sizes": " ".join((manifest.get("fitted") or {}).get("said", ())),
        "Sampling": _sampling(data),
        "Refusal tokens": "" if tokens is None else _tokens(tokens),
        "Filter": _filter(data),
        "Hardware": ", ".join(f"{name} {value}" for name, value in hardware.items()),
        "Versions": ", ".join(f"{name} {value}" for name, value in manifest["versions"].items()),
        "Started": manifest["started"].replace("T", " "),
    }
    if manifest.get("command"):
        found["Command"] = " ".join(["refusal", *manifest["command"]])
    return tuple((name, sanitised(str(value))) for name, value in found.items() if value)


def _filter(data: ReportData) -> str:
    """Which prompts the direction is found with, and what the refusal metric is good for."""
    said = "" if data.filter is None else data.filter.why
    return f"{said} {data.calibration.why}".strip()


def passed_words(data: ReportData, own_score: str | None) -> str:
    """Whether the prompts of the selection are those that passed a filter."""
    kind = data.config.filter
    if kind == "auto" and data.filter is not None:
        kind = data.filter.kind
    if kind == "completions":
        return " that passed the filter by completions"
    return " that passed the filter" if own_score is None and kind != "none" else ""


def _tokens(tokens: RefusalTokens) -> str:
    text = f"{', '.join(map(repr, tokens.texts))} ({tokens.source})"
    if tokens.auroc is not None:
        text += f"; AUROC {tokens.auroc:.2f} on {tokens.judged} completions"
    return text


def configuration(data: ReportData) -> str:
    """``run.toml``, as it is."""
    return sanitised(tomli_w.dumps(in_tables(data.config.model_dump())))
