"""The intervention baked into weights: which parameters write to the stream, the edit, and its exports."""

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
    "Exported",
    "OrthogonalisationGap",
    "OrthogonalisationReport",
    "StreamParameter",
    "export_direction",
    "export_lora",
    "export_model",
    "find_parameters",
    "orthogonalisation_gap",
    "orthogonalise",
    "orthogonalised",
]
