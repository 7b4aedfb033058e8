"""The options of monitors: which prompts, how one is fitted, what it is evaluated on."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from refusal.config.options import STRICT, Count


class MonitorPrompts(BaseModel):
    """Which prompts, and how many."""

    model_config = STRICT

    prompts: tuple[str, ...] = ("builtin",)
    """builtin, paper, or files: harmful=bad.txt harmless=good.txt all.csv"""
    data_dir: str | None = None
    """Folder of already downloaded source files."""
    column: str | None = None
    """Text column of your own csv or json files."""
    dedup: Literal["near", "exact"] = "near"
    """Drop near-duplicates of later splits and, of the calibration prompts, of the fit's; or only
    exact ones.
    """
    seed: int = 42
    """Shuffles the prompt pools."""
    n_train: Count = 128
    """Training prompts per class, which the directions come from."""
    n_val: Count = 48
    """Validation prompts per class, which layers and weights come from."""
    n_test: Count = 100
    """Test prompts per class."""


class MonitorFit(BaseModel):
    """How a monitor is fitted and calibrated."""

    model_config = STRICT

    eps: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.01
    """Share of harmless prompts that may fire; 0.01 needs 99 calibration prompts."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """Read at the input of this block; by default where the validation prompts are told apart
    best, or where a run's direction was found.
    """
    calibration: tuple[str, ...] = ()
    """Files of harmless prompts like those that are to be watched; by default harmless prompts of
    the set that the fit does not use.
    """
    n_calibration: Count = 500
    """Most calibration prompts."""


class MonitorSets(BaseModel):
    """What a monitor is evaluated on."""

    model_config = STRICT

    sets: tuple[str, ...] = ("test",)
    """Test sets, each a source of its own: test (the test split of the prompts), public ones by
    name (jailbreakbench jailbreakbench_benign harmbench_test strongreject; with --data-dir from
    there), or files: harmful=bad.txt harmless=good.txt
    """
    over_refusal: tuple[str, ...] = ()
    """Sets that only look harmful: xstest orbench-hard"""
    languages: tuple[str, ...] = ()
    """Harmful prompts in other languages, from the files in --data-dir (MultiJail, PolyRefuse):
    de zh
    """
    jailbreaks: tuple[str, ...] = ()
    """Files of jailbreak prompts, each a set."""
    n_most: Count | None = None
    """Most prompts of a set; by default all of them."""
