"""The verb that compares what checkpoints do with what their base does."""

from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from refusal.cli import present as display
from refusal.cli.options import RUN_DEFAULTS, Json, Quiet, Run, Verbose, default_folder
from refusal.cli.progress_bars import reporting
from refusal.config.diff import DiffOptions, diff_config, without_unused
from refusal.config.run_config import added, make_config
from refusal.core.errors import ConfigError, RunFailure


class Comparing(DiffOptions):
    """What is compared, beside the sizes of a run, and what the result must not be."""

    run: str | None = None
    """Folder of a run of the base, whose direction is looked for; by default one is made in
    OUT/run, up to the direction.
    """
    fail_on: tuple[str, ...] = ()
    """End with exit code 1 where one of these holds of a candidate: 'refusal_change<-0.05' 'kl>0.1'
    'direction_left<0.5', alone or with .low or .high behind the number (docs/diff.md lists them).
    """


Compare = Annotated[Comparing, Parameter(name="*", group=Group("Comparison", sort_key=0))]
DEFAULTS = Comparing()


def diff(
    base: Annotated[
        str, Parameter(help="Hub id, folder, .gguf file or embedded; or a run's folder.")
    ],
    /,
    *candidates: Annotated[
        str, Parameter(help="The same, or the folder of a LoRA adapter for the base.")
    ],
    out: Annotated[Path | None, Parameter(help="Folder; default runs/diff-BASE.")] = None,
    comparing: Compare = DEFAULTS,
    settings: Run = RUN_DEFAULTS,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """What checkpoints do beside the one that they were made from, paired by prompt: refusal by
    length, over-refusal, KL, cross-entropy, ability, and what is left of the base's refusal
    direction in their streams.

    One model is loaded after the other, never two at once. Finished steps in the folder are reused.
    Exit code 1 where something holds that --fail-on names.
    """
    from refusal.evaluations.audit.limits import broken, parse_limit
    from refusal.evaluations.diff.summary import numbers_asked
    from refusal.pipeline.diff import diff as diff_models
    from refusal.pipeline.diff import run_of
    from refusal.report.diff_page import write_diff_page

    if comparing.run is not None and run_of(base) is not None:
        raise ConfigError(
            f"{base} is a run already, and --run names {comparing.run}. Give one of them: the base "
            "as a model beside --run, or a run's folder as the base."
        )
    run = Path(comparing.run) if comparing.run is not None else run_of(base)
    if run is None:
        config = settings.make(base)
    else:
        config = added(without_unused(make_config(file=run / "run.toml")), settings.given)
        if comparing.run is not None:
            config = config.model_copy(update={"model": base})
    typed = comparing.model_fields_set & set(DiffOptions.model_fields)
    asked = diff_config(config, **{name: getattr(comparing, name) for name in typed})
    numbers = numbers_asked(asked)
    limits = [parse_limit(text, numbers=numbers) for text in comparing.fail_on]
    folder = out or _folder(asked.model)
    with reporting(quiet, verbose):
        found = diff_models(asked, candidates, folder, run=run)
    page = write_diff_page(found)
    display.present(found, json, quiet)
    if not json:
        display.show_notice(f"Page: {page}")
    failed = []
    for one in found.candidates:
        failed += [f"{one.label}: {said}" for said in broken(limits, one.summary)]
    if failed:
        raise RunFailure(
            f"The comparison fails: {'; '.join(failed)}. Mend the candidate, or give other limits."
        )


def _folder(model: str) -> Path:
    plain = default_folder(model)
    return plain.with_name(f"diff-{plain.name}")
