"""Run folders for the report's tests: one with everything that a tiny model gives, and what can be
broken in them.
"""

import json
from pathlib import Path
from typing import Any

import saved

from refusal import run
from refusal.config.run_config import RunConfig

# Nothing of these may do anything: markup, scripts, terminal escapes, right-to-left overrides,
# sheer length.
NASTY = (
    "</div></article><script>document.title = 'owned'</script><img src=x "
    "onerror=\"document.title='owned'\">\x1b[2J\x1b[31mred\x07 \u202eevil\u202c \u2067x\u2069 "
    "שלום مرحبا {{ 7 * 7 }} {% raw %} &amp; ' \" ` \x00\x85\u2028\ufeff end"
)
LONG = "word<b> " * 1300  # 10,400 characters


def full_config(base: Path, **changes: Any) -> RunConfig:
    """Every kind of measurement that a tiny model gives, over all layers."""
    model, prompts = saved.save_model(base / "model"), saved.write_prompts(base)
    everything: dict[str, Any] = {
        "controls": 2, "n_control": 2, "drift_tokens": 2, "n_texts": 2, "text_tokens": 12, "seeds": 2, "full_map": True,
        "layer_step": 1, "resamples": 50, "figures": ("none",),
    }  # fmt: skip
    return saved.small_config(model, prompts, **{**everything, **changes})


def make(base: Path, **changes: Any) -> Path:
    """A finished run."""
    run(full_config(base, **changes), base / "run")
    return base / "run"


def rewrite(run: Path, file: str, **changes: list[Any]) -> None:
    """Put other values into the rows of a file of completions, one for each row."""
    path = run / "completions" / file
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    for name, values in changes.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rates(run: Path, **shares: tuple[float, float, float]) -> None:
    """Put other rates into ``metrics.json``: ``harmful_ablation=(value, low, high)``, for the
    refusal rate.
    """
    path = run / "metrics.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    for key, (value, low, high) in shares.items():
        set_name, _, rest = key.partition("_")
        condition, _, change = rest.partition("_")
        name = "refusal_rate_change" if change else "refusal_rate"
        row = next(
            r for r in rows if (r["name"], r["set"], r["condition"]) == (name, set_name, condition)
        )
        row.update(value=value, low=low, high=high, n=100)
    path.write_text(json.dumps(rows), encoding="utf-8")
