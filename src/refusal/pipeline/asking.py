"""What a configuration asks for: prompts in pools, and those that are measured."""

from pathlib import Path

from refusal.config.run_config import RunConfig
from refusal.core.records import PromptSplits
from refusal.prompts.load import load_prompts
from refusal.prompts.over_refusal import load_over_refusal
from refusal.runs.stage import Asked


def ask(config: RunConfig, folder: Path, prompts: PromptSplits | None = None) -> Asked:
    """What a configuration asks for: its prompts, read and split.

    Args:
        prompts: the pools, where they were read before.

    Raises:
        PromptError: a file is missing or cannot be used.
    """
    prompts = prompts or prompts_of(config)
    data = Path(config.data_dir).expanduser() if config.data_dir is not None else None
    pairs = (prompts.train, prompts.val)
    used = [prompt for pair in pairs for prompt in (*pair.harmful, *pair.harmless)]
    measured = {
        "harmful": prompts.test.harmful[: config.n_test],
        "harmless": prompts.test.harmless[: config.n_test],
    }
    for name in dict.fromkeys(config.over_refusal):
        measured |= load_over_refusal(
            name, n=config.n_over_refusal, seed=config.seed, data_dir=data, apart_from=used
        )
    return Asked(config, prompts, measured, folder)


def prompts_of(config: RunConfig) -> PromptSplits:
    """The prompt pools that a configuration names.

    Raises:
        PromptError: a file is missing or cannot be used.
    """
    return load_prompts(
        config.prompts,
        seed=config.seed,
        dedup=config.dedup,
        data_dir=config.data_dir,
        column=config.column,
        system=config.system,
    )
