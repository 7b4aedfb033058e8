"""Who writes the completions of a run: the hooks of this process, vLLM, a server.

The model under hooks can be under every condition. A server has the unedited model and the one that
an export has orthogonalised: it writes for the baseline and for ablation.
"""

from refusal.core.registry import Registry

ENGINES = Registry(
    "engine",
    {
        "own": "refusal.engines.hooks:Hooks",
        "paged": "refusal.engines.paged:Paged",
        "openai": "refusal.engines.openai:Server",
        "vllm": "refusal.engines.vllm:Vllm",
    },
)
