"""Find the direction in a chat model that mediates refusal, show what it does, measure how robust
refusal is.

model = refusal.load("embedded")
prompts = refusal.load_prompts("builtin")
candidates = refusal.difference_in_means(refusal.collect(model, prompts.train))
selection = refusal.select(model, candidates, prompts.val)
with model.apply(refusal.Ablate(selection.direction)):
    model.generate(["Describe the water cycle."])
"""

import refusal.report.notebook as _notebook  # noqa: F401 (tells the records how a notebook shows them)
from refusal.audits.self_checks import Check, Inspection, inspect_model
from refusal.cli.progress_bars import show_progress
from refusal.config.rule import Rule
from refusal.config.run_config import RunConfig, make_config
from refusal.core.direction import Direction
from refusal.core.errors import (
    ChatTemplateError,
    ConfigError,
    DirectionError,
    EngineError,
    Error,
    ExportError,
    JudgeError,
    LeakageError,
    ModelLoadError,
    NoCandidateError,
    NonFiniteError,
    OutOfMemoryError,
    PromptError,
    QuantisedModelError,
    RankError,
    RunFailure,
    RunFolderError,
    StorageError,
    TooFewPromptsError,
    UnsupportedModelError,
    UsageError,
)
from refusal.core.records import (
    CandidateScore,
    Completion,
    Evaluation,
    Metric,
    Prompt,
    PromptPair,
    PromptSplits,
    RefusalTokens,
    Verdict,
)
from refusal.detector.verdict import paper_substring_match, refusal_verdict
from refusal.directions.controls import control_directions
from refusal.directions.difference_in_means import difference_in_means
from refusal.directions.pool import collect
from refusal.directions.records import Activations, Candidates, Selection
from refusal.directions.refusal_metric import kl_divergence, refusal_metric
from refusal.directions.refusal_tokens import tokens_for
from refusal.directions.selection.rule import choose
from refusal.directions.selection.select import select
from refusal.evaluations.refusal.evaluate import evaluate
from refusal.interventions.ablate_add import Ablate, Add
from refusal.model.chat_model import ChatModel
from refusal.model.load import load
from refusal.model.sites import SiteReport, Sites, find_sites
from refusal.pipeline.run import run
from refusal.prompts.load import load_prompts
from refusal.report.compare import ComparedRow, Comparison, RunSummary, compare
from refusal.report.compare_page import write_comparison
from refusal.report.write import write_report
from refusal.runs.result import RunResult
from refusal.weights.orthogonalise import (
    OrthogonalisationGap,
    OrthogonalisationReport,
    orthogonalisation_gap,
    orthogonalise,
    orthogonalised,
)
from refusal.weights.parameters import StreamParameter, find_parameters
from refusal.weights.save import Exported, export_direction, export_lora, export_model

__all__ = [
    "Ablate",
    "Activations",
    "Add",
    "CandidateScore",
    "Candidates",
    "ChatModel",
    "ChatTemplateError",
    "Check",
    "ComparedRow",
    "Comparison",
    "Completion",
    "ConfigError",
    "Direction",
    "DirectionError",
    "EngineError",
    "Error",
    "Evaluation",
    "ExportError",
    "Exported",
    "Inspection",
    "JudgeError",
    "LeakageError",
    "Metric",
    "ModelLoadError",
    "NoCandidateError",
    "NonFiniteError",
    "OrthogonalisationGap",
    "OrthogonalisationReport",
    "OutOfMemoryError",
    "Prompt",
    "PromptError",
    "PromptPair",
    "PromptSplits",
    "QuantisedModelError",
    "RankError",
    "RefusalTokens",
    "Rule",
    "RunConfig",
    "RunFailure",
    "RunFolderError",
    "RunResult",
    "RunSummary",
    "Selection",
    "SiteReport",
    "Sites",
    "StorageError",
    "StreamParameter",
    "TooFewPromptsError",
    "UnsupportedModelError",
    "UsageError",
    "Verdict",
    "choose",
    "collect",
    "compare",
    "control_directions",
    "difference_in_means",
    "evaluate",
    "export_direction",
    "export_lora",
    "export_model",
    "find_parameters",
    "find_sites",
    "inspect_model",
    "kl_divergence",
    "load",
    "load_prompts",
    "make_config",
    "orthogonalisation_gap",
    "orthogonalise",
    "orthogonalised",
    "paper_substring_match",
    "refusal_metric",
    "refusal_verdict",
    "run",
    "select",
    "show_progress",
    "tokens_for",
    "write_comparison",
    "write_report",
]
