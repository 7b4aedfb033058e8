"""What the model can do, through EleutherAI's lm-evaluation-harness (docs/capability.md).

lm-eval is an extra (``pip install 'refusal[capability]'``) and is imported only when benchmarks are run.
"""

from refusal.evaluate.capability.rates import capability_metrics
from refusal.evaluate.capability.results import ItemResult, TaskRun
from refusal.evaluate.capability.run import load_benchmarks, run_benchmark
from refusal.evaluate.capability.tasks import Benchmark

__all__ = ["Benchmark", "ItemResult", "TaskRun", "capability_metrics", "load_benchmarks", "run_benchmark"]
