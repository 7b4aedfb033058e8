"""The options of `refusal serve`: where it listens, and what it takes."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]


class ServeOptions(BaseModel):
    """Where a server listens, and its limits."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address to listen at; one that other machines reach needs a key in REFUSAL_API_KEY."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen at; 0 takes a free one."""
    name: Annotated[str, Field(pattern=r"^[^\s:]+$")] | None = None
    """What the model is called; its conditions are NAME:ablation and so on. By default the name of
    the run's folder, or the model's.
    """
    monitor: str | None = None
    """Folder of a monitor (`refusal monitor fit`), whose score answers can carry."""
    answer_tokens: Count = 256
    """Longest answer to a request that names no length."""
    most_tokens: Count = 4096
    """Longest answer that a request may ask for."""
    most_prompt_tokens: Count | None = None
    """Longest prompt; by default what the model's context holds."""
    most_waiting: Annotated[int, Field(ge=0)] = 256
    """Requests that may wait for room; one more is turned away with status 503."""
    requests_per_minute: Count | None = None
    """Requests that a client (an address) may send in a minute; one more is turned away with status
    429.
    """
    most_bytes: Annotated[int, Field(ge=1024)] = 2**20
    """Largest request."""
    grace_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    """How long answers that are being written may go on when the server is told to stop."""
