"""What the model can do, through EleutherAI's lm-evaluation-harness (docs/capability.md).

lm-eval is an extra (``pip install 'refusal[capability]'``) and is imported only when benchmarks are run.
"""

from refusal.evaluate.capability.results import ItemResult, TaskRun
from refusal.evaluate.capability.run import run_tasks

__all__ = ["ItemResult", "TaskRun", "run_tasks"]
