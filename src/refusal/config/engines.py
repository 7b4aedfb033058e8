"""The options of the engines: who writes the completions of the baseline and of the ablated
model.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from refusal.core.secrecy import ServerArgument, Url

Count = Annotated[int, Field(ge=1)]


class EngineOptions(BaseModel):
    """Who writes completions, and how a server is reached."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    engine: str = "own"
    """own; paged: transformers' continuous batching; openai: a server that runs; vllm: a server
    started for it.
    """
    engine_url: Url = "http://127.0.0.1:8000/v1"
    """Address of the running server, up to and with /v1."""
    engine_model: str | None = None
    """What the server calls the model; by default as it is called here."""
    engine_ablated: str | None = None
    """What the server calls the edited model or adapter that `refusal export` has written."""
    engine_ablated_url: Url | None = None
    """Address of the edited model's server, if it is another one."""
    engine_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key; a local server may need none."""
    engine_concurrency: Count = 64
    """Most requests under way at once."""
    engine_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    """Seconds to wait for a completion, each try."""
    engine_arguments: tuple[ServerArgument, ...] = ()
    """Further arguments for `vllm serve`, without dashes: tensor-parallel-size=8 enforce-eager"""
