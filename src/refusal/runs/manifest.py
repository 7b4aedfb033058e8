"""What ``manifest.json`` of a run holds; what later versions add to it is left alone."""

from typing import Annotated

from pydantic import ConfigDict, Field

from refusal.core.strict_files import Saved

Number = Annotated[int, Field(ge=0, le=10**30)]
Amount = Annotated[float, Field(ge=0)]


class _Open(Saved):
    model_config = ConfigDict(extra="ignore")


class _Model(_Open):
    name: str
    revision: str | None = None
    weight_hash: str
    dtype: str
    template_hash: str
    system: str | None = None


class _Prompts(_Open):
    name: str
    counts: dict[str, Number]
    sha256: dict[str, str]


class Stage(_Open):
    """What the manifest says of a finished stage; older versions wrote less of it."""

    inputs: str
    files: dict[str, str]
    seconds: Amount | None = None
    forward_tokens: Number | None = None
    flops: Number | None = None
    device_seconds: Amount | None = None
    cost: Amount | None = None
    needed_memory_bytes: Number | None = None
    peak_memory_bytes: Number | None = None
    direction: str | None = None


class _Judge(_Open):
    inputs: dict[str, str]


class Sizes(_Open):
    """The sizes that were chosen to fit ``minutes``, beside those that were given."""

    minutes: Amount
    given: dict[str, Number | None]
    sizes: dict[str, Number | None]
    said: list[str]


class _Thinking(_Open):
    mode: str
    block: str
    tokens: Number | None = None


class Manifest(_Open):
    """What every run has in its ``manifest.json``, and what some have."""

    model: _Model
    prompts: _Prompts
    seed: int
    versions: dict[str, str | int | None]
    hardware: dict[str, str | int | None]
    command: list[str] | None = None
    started: str
    date: str | None = None
    files_hash: str | None = None
    stages: dict[str, Stage]
    judges: dict[str, _Judge] = Field(default_factory=dict)
    fitted: Sizes | None = None
    thinking: _Thinking | None = None
