"""A judge from its short name, as the command line takes it."""

import difflib
import re
from collections.abc import Sequence
from pathlib import PurePath

from refusal.config.judges import JudgeOptions
from refusal.core.errors import ConfigError, PromptError
from refusal.core.text_files import user_path
from refusal.evaluations.judges.builtin import DetectorJudge, SubstringJudge
from refusal.evaluations.judges.classifier import ClassifierJudge
from refusal.evaluations.judges.endpoint import EndpointJudge
from refusal.evaluations.judges.formats import FORMATS
from refusal.evaluations.judges.labels import LabelsJudge
from refusal.evaluations.judges.local_safety import LOCAL, LocalSafetyJudge
from refusal.evaluations.judges.protocol import Judge
from refusal.evaluations.judges.rubrics import RUBRICS

BUILTIN: dict[str, type[DetectorJudge | SubstringJudge]] = {
    "detector": DetectorJudge,
    "substring": SubstringJudge,
}
LABELS = "labels"
KINDS = (*BUILTIN, LABELS, LOCAL, *FORMATS, *RUBRICS)


def make_judge(spec: str, options: JudgeOptions | None = None) -> Judge:
    """The judge that ``spec`` names: ``KIND`` or ``KIND=MODEL``.

    ``detector`` and ``substring`` take no model. ``llama-guard-2``, ``llama-guard-3``,
    ``harmbench``, ``wildguard``, ``wildguard-refusal`` and ``strongreject`` take a hub id or a
    folder, by default what their authors published. ``local-safety`` takes any chat model, by
    default the run's own. ``labels`` takes a file of labels that people gave. ``endpoint-refusal``
    and ``endpoint-strongreject`` need the model's name at the endpoint.

    Raises:
        ConfigError: unknown kind, a model too many or too few, a missing package or key.
        ModelLoadError: the classifier is not there.
        ChatTemplateError: its chat template is missing or unfit.
    """
    options = options if options is not None else JudgeOptions()
    kind, equals, model = spec.partition("=")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=3, cutoff=0.5)
        choice = f"Did you mean {' or '.join(near)}?" if near else f"Use one of {', '.join(KINDS)}."
        raise ConfigError(f"There is no judge {kind!r}. {choice}")
    if equals and (not model or kind in BUILTIN):
        raise ConfigError(
            f"The judge {spec!r} names no model. Write {kind}=MODEL."
            if kind not in BUILTIN
            else f"The judge {kind!r} takes no model. Write {kind}."
        )
    if kind in BUILTIN:
        return BUILTIN[kind]()
    name = _name(kind, model)
    if kind == LABELS:
        if not model:
            raise ConfigError("The judge 'labels' needs a file of labels. Write labels=FILE.")
        return LabelsJudge(name, user_path(model, PromptError))
    if kind == LOCAL:
        return LocalSafetyJudge(name, model, options)
    if kind in FORMATS:
        return ClassifierJudge(name, FORMATS[kind], model or FORMATS[kind].model, options)
    if not model:
        raise ConfigError(
            f"The judge {kind!r} needs the name of a model at the endpoint. Write {kind}=MODEL."
        )
    return EndpointJudge(name, RUBRICS[kind], model, options)


def make_judges(specs: Sequence[str], options: JudgeOptions | None = None) -> tuple[Judge, ...]:
    """Several judges, no two of the same name. Raises as ``make_judge`` does."""
    names = [_name(*spec.partition("=")[::2]) for spec in specs]
    twice = next(
        (spec for spec, name in zip(specs, names, strict=True) if names.count(name) > 1), None
    )
    if twice is not None:
        raise ConfigError(
            f"Two of the judges are called {_name(*twice.partition('=')[::2])!r}. Name each judge "
            "once."
        )
    return tuple(make_judge(spec, options) for spec in specs)


def _name(kind: str, model: str) -> str:
    """``llama_guard_3``, or with the last part of the model's name ``endpoint_refusal_gpt_4o``."""
    last = PurePath(model.rstrip("/\\")).name if model else ""
    return re.sub(r"[^A-Za-z0-9.]+", "_", f"{kind} {last}").strip("_")
