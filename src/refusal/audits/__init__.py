"""What is asked of a checkpoint before or without a run."""

from refusal.core.registry import Registry

# What ``inspect_model`` runs, in this order: functions of a loaded model that give a ``Check``, or
# ``None`` where it cannot be made.
CHECKS = Registry(
    "check",
    {
        "additive": "refusal.audits.self_checks:check_additive",
        "ablation": "refusal.audits.self_checks:check_ablation",
        "rows": "refusal.audits.self_checks:check_rows",
        "cache": "refusal.audits.self_checks:check_cache",
        "weights": "refusal.audits.self_checks:check_weights",
    },
)
