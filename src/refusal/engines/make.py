"""Engines: who writes the completions under a condition.

The model itself under hooks (``Own``, ``Paged``) can be under every condition. A server
(``Server``, ``Vllm``) has the unedited model and the one that an export has orthogonalised: it
writes for the baseline and for ablation.
"""

from pathlib import Path

from refusal.config.engines import EngineOptions
from refusal.engines.hooks import OWN, Own, Paged
from refusal.engines.openai import Server
from refusal.engines.protocol import Engine, Job
from refusal.engines.vllm import Vllm

__all__ = ["OWN", "Engine", "EngineOptions", "Job", "Own", "Paged", "Server", "Vllm", "make_engine"]


def make_engine(options: EngineOptions, scratch: Path) -> Engine:
    """The engine that the options name; ``scratch`` is where an edited model may be written for a
    while.

    Raises:
        ConfigError: a name, a package or a key that it needs is missing.
    """
    if options.engine == "openai":
        return Server(options)
    if options.engine == "vllm":
        return Vllm(options, scratch)
    return Paged() if options.engine == "paged" else OWN
