"""A judge from its short name, as the command line takes it."""

from collections.abc import Sequence

from refusal.config.judges import JudgeOptions
from refusal.core.errors import ConfigError
from refusal.evaluations.judges import JUDGES
from refusal.evaluations.judges.protocol import Judge, judge_name


def judge_class(spec: str) -> type[Judge]:
    """The class of the judge that ``spec`` names: ``KIND`` or ``KIND=MODEL``.

    Raises:
        ConfigError: unknown kind.
    """
    found: type[Judge] = JUDGES[spec.partition("=")[0]]
    return found


def make_judge(spec: str, options: JudgeOptions | None = None) -> Judge:
    """The judge that ``spec`` names: ``KIND`` or ``KIND=MODEL``.

    ``detector`` and ``substring`` take no model. ``llama-guard-2``, ``llama-guard-3``,
    ``harmbench``, ``wildguard``, ``wildguard-refusal`` and ``strongreject`` take a hub id or a
    folder, by default what their authors published. ``local-safety`` takes any chat model, by
    default the run's own. ``labels`` takes a file of labels that people gave. ``endpoint-refusal``
    and ``endpoint-strongreject`` need the model's name at the endpoint.

    Raises:
        ConfigError: unknown kind, a model too many or too few, a missing package or key.
        PromptError: the file of labels cannot be used.
        ModelLoadError: the classifier is not there.
        ChatTemplateError: its chat template is missing or unfit.
    """
    kind, equals, model = spec.partition("=")
    found = judge_class(spec)
    if equals and found.argument is None:
        raise ConfigError(f"The judge {kind!r} takes no model. Write {kind}.")
    if equals and not model:
        raise ConfigError(f"The judge {spec!r} names no model. Write {kind}={found.argument}.")
    if not model and found.needs is not None:
        raise ConfigError(f"The judge {kind!r} needs {found.needs}. Write {kind}={found.argument}.")
    return found(kind, model, options if options is not None else JudgeOptions())


def make_judges(specs: Sequence[str], options: JudgeOptions | None = None) -> tuple[Judge, ...]:
    """Several judges, no two of one name.

    Raises:
        ConfigError: two of one name, an unknown kind, a model too many or too few, a missing
            package or key.
        PromptError: the file of labels cannot be used.
        ModelLoadError: a classifier is not there.
        ChatTemplateError: its chat template is missing or unfit.
    """
    names = [judge_name(*spec.partition("=")[::2]) for spec in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"Two of the judges are called {twice!r}. Name each judge once.")
    return tuple(make_judge(spec, options) for spec in specs)
