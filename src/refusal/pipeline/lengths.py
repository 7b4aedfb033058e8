"""How long a run's prompts are in tokens."""

from transformers import PreTrainedTokenizerBase

from refusal.core.day import Day
from refusal.core.records import PromptSplits
from refusal.core.work import Lengths
from refusal.model.chat_template import ALONE, AS_WRITTEN, Around, Thinking, render, tokenize

SAMPLE = 64  # prompts of a class whose length is looked at


def lengths_of(
    tokenizer: PreTrainedTokenizerBase,
    system: str | None,
    prompts: PromptSplits,
    begins: int,
    day: Day | None = None,
    thinking: Thinking = AS_WRITTEN,
    around: Around = ALONE,
) -> Lengths:
    """Means over the first prompts of each pool; ``begins`` is how many tokens all begin with."""
    found = []
    for pair in (prompts.train, prompts.val, prompts.test):
        some = (*pair.harmful[:SAMPLE], *pair.harmless[:SAMPLE])
        about = (system, day, thinking, around)
        rendered = [render(tokenizer, prompt.question, *about) for prompt in some]
        tokens = [len(tokenize(tokenizer, text)) - begins for text in rendered]
        found.append(sum(tokens) / max(1, len(tokens)))
    return Lengths(found[0], found[1], found[2], float(begins))
