"""Find the direction in a chat model that mediates refusal, show what it does, measure how robust
refusal is.

model = refusal.load("embedded")
prompts = refusal.load_prompts("builtin")
candidates = refusal.difference_in_means(refusal.collect(model, prompts.train))
selection = refusal.select(model, candidates, prompts.val)
with model.apply(refusal.Ablate(selection.direction)):
    model.generate(["Describe the water cycle."])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what mypy and editors read; a test holds it equal to the table below
    from refusal.audits.self_checks import Check as Check
    from refusal.audits.self_checks import Inspection as Inspection
    from refusal.audits.self_checks import inspect_model as inspect_model
    from refusal.cli.progress_bars import show_progress as show_progress
    from refusal.config.rule import Rule as Rule
    from refusal.config.run_config import RunConfig as RunConfig
    from refusal.config.run_config import make_config as make_config
    from refusal.core.direction import Direction as Direction
    from refusal.core.errors import ChatTemplateError as ChatTemplateError
    from refusal.core.errors import ConfigError as ConfigError
    from refusal.core.errors import DirectionError as DirectionError
    from refusal.core.errors import EngineError as EngineError
    from refusal.core.errors import Error as Error
    from refusal.core.errors import ExportError as ExportError
    from refusal.core.errors import JudgeError as JudgeError
    from refusal.core.errors import LeakageError as LeakageError
    from refusal.core.errors import ModelLoadError as ModelLoadError
    from refusal.core.errors import MonitorError as MonitorError
    from refusal.core.errors import NoCandidateError as NoCandidateError
    from refusal.core.errors import NonFiniteError as NonFiniteError
    from refusal.core.errors import OutOfMemoryError as OutOfMemoryError
    from refusal.core.errors import PromptError as PromptError
    from refusal.core.errors import QuantisedModelError as QuantisedModelError
    from refusal.core.errors import RankError as RankError
    from refusal.core.errors import RunFailure as RunFailure
    from refusal.core.errors import RunFolderError as RunFolderError
    from refusal.core.errors import StorageError as StorageError
    from refusal.core.errors import TooFewPromptsError as TooFewPromptsError
    from refusal.core.errors import UnsupportedModelError as UnsupportedModelError
    from refusal.core.errors import UsageError as UsageError
    from refusal.core.monitor import Monitor as Monitor
    from refusal.core.records import CandidateScore as CandidateScore
    from refusal.core.records import Completion as Completion
    from refusal.core.records import Evaluation as Evaluation
    from refusal.core.records import Metric as Metric
    from refusal.core.records import Prompt as Prompt
    from refusal.core.records import PromptPair as PromptPair
    from refusal.core.records import PromptSplits as PromptSplits
    from refusal.core.records import RefusalTokens as RefusalTokens
    from refusal.core.records import Verdict as Verdict
    from refusal.detector.verdict import paper_substring_match as paper_substring_match
    from refusal.detector.verdict import refusal_verdict as refusal_verdict
    from refusal.directions.controls import control_directions as control_directions
    from refusal.directions.difference_in_means import difference_in_means as difference_in_means
    from refusal.directions.monitor.fit import FitPrompts as FitPrompts
    from refusal.directions.monitor.fit import Fitted as Fitted
    from refusal.directions.monitor.fit import fit_monitor as fit_monitor
    from refusal.directions.monitor.reading import Scored as Scored
    from refusal.directions.monitor.reading import score_prompts as score_prompts
    from refusal.directions.monitor.watch import Watch as Watch
    from refusal.directions.monitor.watch import watch as watch
    from refusal.directions.pool import collect as collect
    from refusal.directions.records import Activations as Activations
    from refusal.directions.records import Candidates as Candidates
    from refusal.directions.records import Selection as Selection
    from refusal.directions.refusal_metric import kl_divergence as kl_divergence
    from refusal.directions.refusal_metric import refusal_metric as refusal_metric
    from refusal.directions.refusal_tokens import tokens_for as tokens_for
    from refusal.directions.selection.rule import choose as choose
    from refusal.directions.selection.select import HowToSearch as HowToSearch
    from refusal.directions.selection.select import select as select
    from refusal.evaluations.refusal.evaluate import evaluate as evaluate
    from refusal.interventions.ablate_add import Ablate as Ablate
    from refusal.interventions.ablate_add import Add as Add
    from refusal.interventions.conditional import Conditional as Conditional
    from refusal.interventions.conditional import Gate as Gate
    from refusal.interventions.conditional import gate_of as gate_of
    from refusal.model.chat_model import ChatModel as ChatModel
    from refusal.model.load import load as load
    from refusal.model.sites import SiteReport as SiteReport
    from refusal.model.sites import Sites as Sites
    from refusal.model.sites import find_sites as find_sites
    from refusal.pipeline.run import run as run
    from refusal.prompts.load import load_prompts as load_prompts
    from refusal.report.compare import ComparedRow as ComparedRow
    from refusal.report.compare import Comparison as Comparison
    from refusal.report.compare import RunSummary as RunSummary
    from refusal.report.compare import compare as compare
    from refusal.report.compare_page import write_comparison as write_comparison
    from refusal.report.write import write_report as write_report
    from refusal.runs.result import RunResult as RunResult
    from refusal.weights.orthogonalise import OrthogonalisationGap as OrthogonalisationGap
    from refusal.weights.orthogonalise import OrthogonalisationReport as OrthogonalisationReport
    from refusal.weights.orthogonalise import orthogonalisation_gap as orthogonalisation_gap
    from refusal.weights.orthogonalise import orthogonalise as orthogonalise
    from refusal.weights.orthogonalise import orthogonalised as orthogonalised
    from refusal.weights.parameters import StreamParameter as StreamParameter
    from refusal.weights.parameters import find_parameters as find_parameters
    from refusal.weights.save import Exported as Exported
    from refusal.weights.save import export_direction as export_direction
    from refusal.weights.save import export_lora as export_lora
    from refusal.weights.save import export_model as export_model

# Where each public name is defined; its module is imported when the name is first asked for, so
# that `import refusal` loads no torch.
_MODULES = {
    "audits.self_checks": "Check Inspection inspect_model",
    "cli.progress_bars": "show_progress",
    "config.rule": "Rule",
    "config.run_config": "RunConfig make_config",
    "core.direction": "Direction",
    "core.errors": (
        "ChatTemplateError ConfigError DirectionError EngineError Error ExportError "
        "JudgeError LeakageError ModelLoadError MonitorError NoCandidateError NonFiniteError "
        "OutOfMemoryError PromptError QuantisedModelError RankError RunFailure RunFolderError "
        "StorageError TooFewPromptsError UnsupportedModelError UsageError"
    ),
    "core.monitor": "Monitor",
    "core.records": (
        "CandidateScore Completion Evaluation Metric Prompt PromptPair PromptSplits "
        "RefusalTokens Verdict"
    ),
    "detector.verdict": "paper_substring_match refusal_verdict",
    "directions.controls": "control_directions",
    "directions.difference_in_means": "difference_in_means",
    "directions.monitor.fit": "FitPrompts Fitted fit_monitor",
    "directions.monitor.reading": "Scored score_prompts",
    "directions.monitor.watch": "Watch watch",
    "directions.pool": "collect",
    "directions.records": "Activations Candidates Selection",
    "directions.refusal_metric": "kl_divergence refusal_metric",
    "directions.refusal_tokens": "tokens_for",
    "directions.selection.rule": "choose",
    "directions.selection.select": "HowToSearch select",
    "evaluations.refusal.evaluate": "evaluate",
    "interventions.ablate_add": "Ablate Add",
    "interventions.conditional": "Conditional Gate gate_of",
    "model.chat_model": "ChatModel",
    "model.load": "load",
    "model.sites": "SiteReport Sites find_sites",
    "pipeline.run": "run",
    "prompts.load": "load_prompts",
    "report.compare": "ComparedRow Comparison RunSummary compare",
    "report.compare_page": "write_comparison",
    "report.write": "write_report",
    "runs.result": "RunResult",
    "weights.orthogonalise": (
        "OrthogonalisationGap OrthogonalisationReport orthogonalisation_gap orthogonalise "
        "orthogonalised"
    ),
    "weights.parameters": "StreamParameter find_parameters",
    "weights.save": "Exported export_direction export_lora export_model",
}
_WHERE = {
    name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names.split()
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
