"""Audits of the planted model, in seconds: what an attack must find is known."""

from pathlib import Path
from typing import Any

import planted

from refusal.config.audit import AuditConfig, AuditOptions, audit_config
from refusal.config.run_config import make_config
from refusal.evaluations.audit.result import Audited
from refusal.pipeline.audit import audit

PER_CLASS = 200
SIZES: dict[str, Any] = {
    "n_train": 24,
    "n_val": 12,
    "n_test": 40,
    "dedup": "exact",
    "max_new_tokens": 3,
    "dtype": "float32",
    "induce_threshold": -1000.0,
    "prune_layers": 0.5,  # behind the units there is the refusal itself, which is one direction
    "resamples": 0,
    "controls": 0,
    "drift_tokens": 2,
    "n_texts": 4,
    "figures": ("none",),
}


def planted_config(folder: Path, found: planted.Planted, **changes: Any) -> AuditConfig:
    """An audit of the planted model on its prompts."""
    m = changes.pop("kinds", len(found.rows))  # of marks in harmful prompts
    files = []
    for label, texts in zip(("harmful", "harmless"), planted.prompts(m, PER_CLASS), strict=True):
        path = folder / f"{label}.txt"
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        files.append(f"{label}={path}")
    refuses = found.model.tokenizer.convert_tokens_to_ids(planted.REFUSAL)
    own = AuditOptions.model_fields
    options = {name: changes.pop(name) for name in list(changes) if name in own}
    sizes = {**SIZES, **changes, "prompts": tuple(files), "refusal_tokens": (str(refuses),)}
    return audit_config(make_config(model="planted", **sizes), **options)


def audited(folder: Path, found: planted.Planted, **changes: Any) -> Audited:
    """The audit of the planted model."""
    return audit(planted_config(folder, found, **changes), folder / "run", model=found.model)
