"""What the model can do, through EleutherAI's lm-evaluation-harness (docs/capability.md).

lm-eval is an extra (``pip install 'refusal[capability]'``) and is imported only when benchmarks are
run.
"""
