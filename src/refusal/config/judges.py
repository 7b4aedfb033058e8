"""The options of the judges: of an endpoint that is asked, and of a classifier that is loaded."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from refusal.core.secrecy import Url

OPENAI_URL = "https://api.openai.com/v1"
Count = Annotated[int, Field(ge=1)]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class JudgeOptions(BaseModel):
    """Further judges, and how they are asked or loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    judges: tuple[str, ...] = ()
    """Further judges: substring, llama-guard-3, harmbench, wildguard, strongreject,
    endpoint-refusal=MODEL, …
    """
    judge_url: Url = OPENAI_URL
    """Address of an OpenAI-compatible endpoint, up to and with /v1."""
    judge_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key; a local server may need none."""
    judge_concurrency: Count = 8
    """Most requests under way at once."""
    judge_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0
    """Seconds to wait for an answer, each try."""
    judge_retries: Annotated[int, Field(ge=0, le=20)] = 3
    """Further tries after a failed request, each after a longer pause (half a second to eight)."""
    judge_max_tokens: Count = 512
    """Longest answer of an endpoint's judge."""
    judge_price_in: Price | None = None
    """Price of a million tokens that the judge reads."""
    judge_price_out: Price | None = None
    """Price of a million tokens that the judge writes."""

    judge_dtype: Literal["auto", "bfloat16", "float32", "float16"] = "auto"
    """Precision of a local classifier."""
    judge_device: str = "auto"
    """Device of a local classifier: auto, cpu, cuda, cuda:1 or mps."""
    judge_device_map: str | None = None
    """As in transformers: `auto` spreads a local classifier over several devices."""
    judge_labels: str | None = None
    """Answers with people's labels (.csv, .jsonl: prompt, completion, safe/unsafe), to fit
    local-safety's threshold.
    """
    judge_batch_size: Count = 8
    """Most completions that a local classifier reads at once."""

    short_is_safe: bool = False
    """Safety judges count a completion of fewer than 15 words as safe without being asked, as the
    paper does.
    """
