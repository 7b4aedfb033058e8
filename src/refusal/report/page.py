"""The page: what was read and drawn, put into one HTML file that fetches nothing.

The template computes nothing. Its content security policy names our style and our script by their
hashes, so that even a completion that slipped past the escaping could run nothing.
"""

import base64
import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from refusal.core.tables import Bar, Table, bar, minus
from refusal.core.text import sanitised
from refusal.evaluations.refusal.curves import without_lengths
from refusal.report import content, run_tables, svg
from refusal.report.data import ReportData
from refusal.report.draw import captioned
from refusal.report.figures import curves, own_scores, separation
from refusal.report.grids import GridGroup, cosine_group, score_group
from refusal.report.tables import style_of, tables_by_section
from refusal.report.transfer import transfer_section
from refusal.report.verdict import numbers, verdict

Picture = tuple[str, str, Markup]  # title, caption, SVG


@dataclass(frozen=True)
class Section:
    """One section; what is empty is not shown."""

    id: str
    title: str
    text: str = ""
    groups: tuple[dict[str, Any], ...] = ()
    pictures: tuple[Picture, ...] = ()
    pictures_title: str = ""
    tables: tuple[Table, ...] = ()
    examples: tuple[dict[str, Any], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    code: tuple[tuple[str, str], ...] = ()
    folded: tuple[tuple[str, str | Table], ...] = field(default=())


def render(template: str, **values: Any) -> str:
    """A template with our style and script inlined; everything else is escaped."""
    style, script = _resource("style.css") + _resource("figure.css"), _resource("script.js")
    return (
        _environment()
        .get_template(template)
        .render(
            style=Markup(style),
            script=Markup(script),
            style_hash=_csp_hash(style),
            script_hash=_csp_hash(script),
            version=version("refusal"),
            **values,
        )
    )


def table_html(table: Table) -> Markup:
    """Return one table as it is on the page."""
    macros: Any = _environment().get_template("macros.html.j2").module
    return Markup(macros.table(table))


def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_resource),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = lambda c: (
        svg.interval_bar(c) if isinstance(c, Bar) else minus(str(c))
    )
    return environment


def _shown(value: Any) -> Any:
    """Show the unseen characters of every text on a page; what we wrote ourselves is as it is."""
    return sanitised(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def report_page(data: ReportData, *, show_completions: bool = False) -> str:
    """The report of a run.

    Args:
        show_completions: also put the completions of harmful prompts into the page; by default not
            even the file has them.
    """
    manifest = data.manifest
    name = sanitised(data.model)
    title, advice = _missing_words(data)
    first = []
    for n in numbers(data):
        drawn = bar(n.metric, style_of(n.metric.set)) if n.metric else ""
        first.append({**vars(n), "bar": drawn})
    prompts = sanitised(manifest["prompts"]["name"])
    return render(
        "report.html.j2",
        title=f"Refusal: {name}",
        heading=f"{name}, prompts {prompts}, seed {manifest['seed']}",
        verdict=verdict(data),
        numbers=first,
        numbers_note=_numbers_note(data),
        missing=data.missing,
        missing_title=title,
        missing_advice=advice,
        command=data.command,
        sections=tuple(_sections(data, show_completions)),
        footer=f"Written by refusal {version('refusal')}. Completions of harmful prompts are "
        + ("shown: handle this file with care." if show_completions else "not in this file."),
    )


def _numbers_note(data: ReportData) -> str:
    words = ["Intervals are at 95%; n is the number of prompts."]
    if data.find("kl_first_token", "own-answers", "ablation") is not None:
        words.append(
            "Drift here is the KL divergence at the first token of the model's answers to "
            "harmless test prompts;"
        )
        words.append("that in the sentence above is the selection's, on validation prompts.")
    if data.config.n_test < 30:
        words.append("With so few prompts the interval is the result.")
    return " ".join(words)


def _missing_words(data: ReportData) -> tuple[str, str]:
    if data.finished:
        return (
            "Not in this run",
            "It was made by an older version, or a file was deleted. This command adds what is "
            "missing:",
        )
    return (
        "This run is not finished. Missing:",
        "The same command as before goes on where it stopped; so does this one:",
    )


def _sections(data: ReportData, show_completions: bool) -> Iterator[Section]:
    tables = tables_by_section(data.metrics)
    yield from _rates(data, tables["rates"])
    yield from _lengths(data, tables["lengths"])
    yield from _choice(data, tables["choice"])
    yield from _separation(data, tables["separation"])
    yield from _side_effects(data, tables["side-effects"])
    if data.transfer is not None:
        yield Section(*transfer_section(data.transfer))
    if tables["judges"]:
        text = (
            "The same completions judged by others. Failed and malformed answers are counted, "
            "never guessed."
        )
        yield Section("judges", "Judges", text, tables=tables["judges"])
    if any(data.completions.values()):
        yield _completions(data, show_completions)
    yield _provenance(data)


def _rates(data: ReportData, tables: tuple[Table, ...]) -> Iterator[Section]:
    tables = (*tables, *run_tables.category_tables(data, ("harmful",)))
    text = (
        "Refusals, whole and partial, by the built-in detector. Degenerate text (empty, looping, "
        "no language) is neither a refusal nor an answer."
    )
    if not data.config.controls:
        text += " No control directions were measured."
    if tables:
        yield Section("rates", "Refusal by condition", text, tables=tables)


def _lengths(data: ReportData, tables: tuple[Table, ...]) -> Iterator[Section]:
    pictures = captioned(curves(data))
    text = ""
    if tables:
        text = (
            "What shorter completions would have shown, from the same texts. A refusal that comes "
            "after the last length is seen by none of these rates."
        )
    if lacking := without_lengths(data.completions):
        where = "; ".join(", ".join(key) for key in lacking)
        text += (
            f" Not known of {where}: the engine gave no tokens, or an older version wrote "
            "the completions."
        )
    if tables or lacking:
        yield Section("lengths", "Refusal by length", text.strip(), (), pictures, "", tables)


def _rule_words(data: ReportData) -> str:
    """Say what the candidates are and which of them is chosen."""
    rule, method = data.rule, data.config.found_by
    own = next(iter(own_scores(data)), None)
    kind = "a difference in means" if method == "dim" else f"one of the method {method}"
    best = "lowest bypass" if own is None else f"highest {own} score"
    induce = "" if own is not None else f"induce at least {rule.induce_threshold:g}, "
    text = (
        f"Of all candidates, {kind} per position and layer, the rule takes the one with the {best} "
        f"among those with {induce}KL at most {rule.kl_threshold:g} and a layer below "
        f"{data.eligible}."
    )
    if data.selection is None:
        return text
    harmful, harmless = data.selection.harmful_count, data.selection.harmless_count
    if harmful.mean_metric is None or harmless.mean_metric is None:
        return text
    passed = content.passed_words(data, own)
    return (
        f"{text} Without intervention the metric is {harmful.mean_metric:+.2f} on the "
        f"{harmful.passed} harmful and {harmless.mean_metric:+.2f} on the {harmless.passed} "
        f"harmless validation prompts{passed}."
    )


def _choice(data: ReportData, tables: tuple[Table, ...]) -> Iterator[Section]:
    group = score_group(data)
    if group is None:
        return
    text = _rule_words(data)
    scored = [s for s in data.scores if None not in (s.bypass, s.induce, s.kl)]
    hint = f"All three scores are known of {len(scored)} of {len(data.scores)} candidates: "
    hint += "the others left as soon as the rule had to reject them (--full-map scores them all). "
    words = (
        "Point at a cell, or move with the arrow keys; a click or Enter keeps its numbers below."
    )
    if len(scored) < len(data.scores) and not own_scores(data):
        words = hint + words
    firm = run_tables.stability_table(data)
    columns, cells = group.columns, tuple(group.cells.values())
    every = Table("Every candidate", columns, cells, frozenset(columns[:-1]))
    yield Section(
        "choice",
        "How the direction was chosen",
        minus(text),
        groups=(_group(group, "Score maps", words),),
        tables=tables if firm is None else (firm, *tables),
        folded=(("Every candidate as a table", every),),
    )


def _group(group: GridGroup, title: str, text: str) -> dict[str, Any]:
    return {**vars(group), "title": title, "text": text, "first": group.cells[group.start]}


def _separation(data: ReportData, tables: tuple[Table, ...]) -> Iterator[Section]:
    pictures = captioned(separation(data))
    group = cosine_group(data)
    if not pictures and group is None:
        return
    text = ""
    if data.projections is not None:
        p = data.projections
        text = (
            f"Validation prompts, read at position {p.position} at the input of every block. They "
            "took no part in the means; the direction was chosen with them. At its own layer, "
            f"AUROC is {p.auroc[p.layer]:.3f}."
        )
    words = (
        "Cosines between candidates: how gradually the direction changes from layer to layer "
        "and token to token."
    )
    groups = (_group(group, "Neighbouring candidates", words),) if group is not None else ()
    title = "Separation of harmful and harmless prompts"
    drawn = (pictures, "Along the direction")
    yield Section("separation", title, minus(text), groups, *drawn, tables)


def _side_effects(data: ReportData, tables: tuple[Table, ...]) -> Iterator[Section]:
    if data.selection is None:
        return
    options = (
        ("over-refusal", "--over-refusal xstest", data.config.over_refusal),
        ("drift", "--drift-tokens 32", data.config.drift_tokens),
        ("cross-entropy on other text", "--texts FILE", data.config.texts),
        ("capability", "--tasks arc_challenge", data.config.tasks),
    )
    absent = [f"{name} ({option})" for name, option, asked in options if not asked]
    text = "What changes beside refusal. Changes are from the baseline on the same items."
    if absent:
        text += f" Not asked for in this run: {', '.join(absent)}; "
        text += f"refusal evaluate {shlex.quote(str(data.path))} adds them."
    sets = dict.fromkeys(
        set_name for set_name, _ in data.completions if set_name not in ("harmful", "harmless")
    )
    folded = tuple((t.title, t) for t in run_tables.category_tables(data, sets))
    yield Section(
        "side-effects",
        "Side effects: over-refusal, drift, capability",
        text,
        tables=tables,
        folded=folded,
    )


def _completions(data: ReportData, show: bool) -> Section:
    words = {
        "harmless": "Completions of harmless test prompts",
        "harmful": "Completions of harmful test prompts",
    }
    sets = []
    for set_name, title in words.items():
        if examples := content.examples(data, set_name, show):
            n = len(data.completions[next(key for key in data.completions if key[0] == set_name)])
            text = f"The first {len(examples)} of {n} in drawing order, not picked."
            if set_name not in content.OPEN_SETS and not show:
                text += " Only the verdicts: the texts are not in this file. To put them in: "
                text += f"refusal report {shlex.quote(str(data.path))} --show-completions."
            sets.append({"title": title, "text": text, "examples": examples})
    text = (
        "Side by side by condition. Control characters and characters that turn the direction "
        "of text are made visible."
    )
    return Section("completions", "Completions", text, examples=tuple(sets))


def _provenance(data: ReportData) -> Section:
    again = f"refusal run --config {shlex.quote(str(data.path / 'run.toml'))} --out NEW_FOLDER"
    return Section(
        "run",
        "What was run",
        facts=content.facts(data),
        code=(("To reproduce it", again),),
        folded=(
            ("Prompt pools", run_tables.prompt_table(data)),
            ("What every stage cost", run_tables.stage_table(data)),
            ("run.toml: the whole configuration", content.configuration(data)),
        ),
    )


def _resource(name: str) -> str:
    return resources.files("refusal.report").joinpath(name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
