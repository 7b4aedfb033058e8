"""Find the direction in a chat model that mediates refusal, show what it does, measure how robust refusal is.

model = refusal.load("embedded")
prompts = refusal.load_prompts("builtin")
candidates = refusal.difference_in_means(refusal.collect(model, prompts.train))
selection = refusal.select(model, candidates, prompts.val)
with model.apply(refusal.Ablate(selection.direction)):
    model.generate(["Describe the water cycle."])
"""

import refusal.notebook as _notebook  # noqa: F401 (tells the records how a notebook shows them)
from refusal.activations import collect
from refusal.candidates import difference_in_means
from refusal.compare import ComparedRow, Comparison, RunSummary, compare
from refusal.config import RunConfig, make_config
from refusal.display import show_progress
from refusal.errors import (
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
from refusal.evaluate import evaluate
from refusal.evaluate.controls import control_directions
from refusal.evaluate.detector import paper_substring_match, refusal_verdict
from refusal.inspection import Check, Inspection, inspect_model
from refusal.interventions import Ablate, Add
from refusal.metrics import kl_divergence, refusal_metric
from refusal.model import ChatModel, load
from refusal.prompts import load_prompts
from refusal.records import (
    Activations,
    Candidates,
    CandidateScore,
    Completion,
    Direction,
    Evaluation,
    Metric,
    Prompt,
    PromptPair,
    PromptSplits,
    RefusalTokens,
    Selection,
    Verdict,
)
from refusal.refusal_tokens import tokens_for
from refusal.report import write_comparison, write_report
from refusal.run import RunResult, run
from refusal.selection import Rule, choose, select
from refusal.sites import SiteReport, Sites, find_sites
from refusal.weights import (
    Exported,
    OrthogonalisationGap,
    OrthogonalisationReport,
    StreamParameter,
    export_direction,
    export_lora,
    export_model,
    find_parameters,
    orthogonalisation_gap,
    orthogonalise,
    orthogonalised,
)

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
