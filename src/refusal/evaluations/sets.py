"""What a run is measured on, and what can be said of its inputs before anything slow is done with
them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from refusal.config.run_config import RunConfig
from refusal.core.errors import PromptError
from refusal.core.records import Prompt, PromptSplits
from refusal.evaluations.texts import Corpus, read_corpus
from refusal.model.chat_model import ChatModel
from refusal.model.contexts import check_rows, context_length, vocabulary
from refusal.prompts.over_refusal import load_over_refusal

OWN_ANSWERS = "own-answers"
WITH_CONTROLS = " with controls"  # how the stage of a text's controls is told from the text's own
TAKEN = (OWN_ANSWERS, "harmful", "harmless", "direction", "judges")  # sets of other metrics

SLACK = 16  # tokens that a template may write around the text beside what all prompts share


@dataclass(frozen=True)
class Sets:
    """What is measured beside the test prompts; read before anything slow, so that a wrong name
    stops a run at once.
    """

    over_refusal: dict[str, tuple[Prompt, ...]]
    corpora: tuple[Corpus, ...]


def load_sets(config: RunConfig, prompts: PromptSplits) -> Sets:
    """The over-refusal prompts and the texts that a configuration names.

    Raises:
        PromptError: a file is missing or cannot be used.
    """
    folder = Path(config.data_dir).expanduser() if config.data_dir is not None else None
    used = [p for pair in (prompts.train, prompts.val) for p in (*pair.harmful, *pair.harmless)]
    sets: dict[str, tuple[Prompt, ...]] = {}
    for name in dict.fromkeys(config.over_refusal):
        sets |= load_over_refusal(
            name, n=config.n_over_refusal, seed=config.seed, data_dir=folder, apart_from=used
        )
    corpora = tuple(
        read_corpus(name, config.n_texts, config.seed, folder)
        for name in dict.fromkeys(config.texts)
    )
    check_names([corpus.name for corpus in corpora], config.texts)
    return Sets(sets, corpora)


def check_names(names: Sequence[str], files: Sequence[str]) -> None:
    """Make sure that each file's results have a name of their own.

    Raises:
        PromptError: two are called the same, where case does not count either, or one like another
            set.
    """
    taken = dict.fromkeys(TAKEN, "what is measured under that name anyway")
    for name, file in zip(names, dict.fromkeys(files), strict=True):
        key = name.casefold().removesuffix(WITH_CONTROLS)
        if key in taken:
            raise PromptError(
                f"The results of --texts {file} would be called {name!r}, like {taken[key]}. "
                "Rename the file."
            )
        taken[key] = f"those of {file}"


def check_inputs(config: RunConfig, model: ChatModel, prompts: PromptSplits, sets: Sets) -> None:
    """Make sure that some layer is eligible, and that every prompt and text fits into the model.

    Raises:
        ConfigError: ``prune_layers`` leaves no layer.
        PromptError: a prompt or text is too long.
        ModelLoadError: one has a token that the model's embedding does not have.
    """
    config.rule.check(model.sites.n_layers)
    foreign = max(model.tokenizer.get_vocab().values(), default=0) >= vocabulary(model.hf)
    for pool, new_tokens in _pools(config, prompts, sets):
        some = pool if foreign else _long(model, pool, new_tokens)
        check_rows(model, model.tokenize([p.text for p in some]), new_tokens, [p.id for p in some])
    for corpus in sets.corpora if config.drift_tokens else ():
        _check_corpus(model, corpus, config.text_tokens)


def _pools(
    config: RunConfig, prompts: PromptSplits, sets: Sets
) -> Iterator[tuple[Sequence[Prompt], int]]:
    """Prompts that are read, and those that are completed with how much is written."""
    for pair in (prompts.train, prompts.val):
        yield from ((pair.harmful, 0), (pair.harmless, 0))
    for pool in (prompts.test.harmful, prompts.test.harmless):
        yield pool[: config.n_test], config.max_new_tokens
    yield from ((pool, config.max_new_tokens) for pool in sets.over_refusal.values())


def _long(model: ChatModel, pool: Sequence[Prompt], new_tokens: int) -> list[Prompt]:
    """Prompts that may be too long: a token is at least a byte of the text, and tokenising all of
    them takes long.
    """
    context = context_length(model.hf.config)
    if context is None:
        return []
    room = context - new_tokens - len(model.chat.prefix) - len(model.chat.suffix) - SLACK
    return [prompt for prompt in pool if len(prompt.text.encode("utf-8", "replace")) > room]


def _check_corpus(model: ChatModel, corpus: Corpus, tokens: int) -> None:
    """Texts as they will be cut; the instruction before an answer is not."""
    try:
        texts = corpus.forced(model, tokens)
        check_rows(model, [text.ids for text in texts], 0, [text.id for text in texts])
    except PromptError as error:
        raise PromptError(
            f"{corpus.name}: {error} What is read of a text is limited with --text-tokens."
        ) from error
