"""The verb that asks how robust a model's refusal is."""

from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from refusal.cli import present as display
from refusal.cli.options import RUN_DEFAULTS, Json, Model, Quiet, Run, Verbose, default_folder
from refusal.cli.progress_bars import reporting
from refusal.config.audit import AuditOptions, audit_config
from refusal.config.run_config import RunConfig, added, make_config
from refusal.core import parallel
from refusal.core.errors import RunFailure
from refusal.evaluations.audit import ATTACKS
from refusal.evaluations.audit.limits import NUMBERS, broken, parse_limit


class Auditing(AuditOptions):
    """Which attacks are tried, what they may cost, and what the result must not be."""

    fail_on: tuple[str, ...] = ()


_attacks = Auditing.model_fields["attacks"]
_attacks.description = f"{_attacks.description} One of: {', '.join(ATTACKS)}."
Auditing.model_fields["fail_on"].description = (
    "End with exit code 1 where one of these holds of the result: 'residual_refusal<0.5' 'k10<=1'. "
    f"Numbers: {', '.join(NUMBERS)}, alone or with .low or .high behind them."
)
AuditGroup = Annotated[Auditing, Parameter(name="*", group=Group("Audit", sort_key=0))]
AUDIT_DEFAULTS = Auditing()
Out = Annotated[
    Path | None, Parameter(help="Run folder, in which audit/ is made; default runs/MODEL.")
]


def audit(
    model: Model = None,
    /,
    *,
    out: Out = None,
    attacking: AuditGroup = AUDIT_DEFAULTS,
    settings: Run = RUN_DEFAULTS,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """How much refusal is left under the strongest edit that a budget allows, and what that costs
    the model: every attack found on validation prompts and measured on untouched test prompts.

    Instead of a model it takes the folder of a run, whose direction it begins with. Finished stages
    in RUN/audit are reused. Exit code 1 where something holds that --fail-on names.
    """
    from refusal.pipeline.audit import audit as audit_model
    from refusal.report.audit_page import write_audit_page
    from refusal.runs.files import is_run_folder

    base: RunConfig | None = None
    if model is not None and is_run_folder(Path(model)):
        out = out or Path(model)
        base = make_config(file=Path(model) / "run.toml")
    config = settings.make(model) if base is None else added(base, settings.given)
    typed = attacking.model_fields_set & set(AuditOptions.model_fields)
    own = {name: getattr(attacking, name) for name in typed}
    asked = audit_config(config, **own)
    limits = [parse_limit(text, asked.tasks) for text in attacking.fail_on]
    with parallel.joined(split=asked.tp_plan is not None):
        with reporting(quiet, verbose):
            found = audit_model(asked, out or default_folder(asked.model), base=base)
        if not parallel.is_writer():
            return
        page = write_audit_page(found)
    display.present(found, json, quiet)
    if not json:
        display.show_notice(f"Page: {page}")
    if failed := list(broken(limits, found.summary)):
        raise RunFailure(
            f"The audit fails: {'; '.join(failed)}. Harden the model, or give other limits."
        )
