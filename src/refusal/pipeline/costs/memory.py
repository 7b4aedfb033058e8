"""What a stage holds in memory: weights, activations of a pass, keys and values, logits."""

from dataclasses import dataclass, replace

from refusal.config.run_config import RunConfig
from refusal.core import parallel
from refusal.directions.refusal_tokens import CHOOSE_NEW_TOKENS, CHOOSE_PROMPTS
from refusal.evaluations.drift import CHUNK, MOST_TOKENS
from refusal.interventions.conditions import BASELINE
from refusal.model.batch_size import MOST_SCORED, row_budget
from refusal.model.chat_model import ChatModel
from refusal.model.generation import cache_bytes_per_token
from refusal.model.sizes import ModelSize, activation_bytes, held_bytes, size_of

LONG_PROMPT = 64  # tokens
# bitsandbytes: half a byte or one for a number, and in 4 bits a float32 scale for every 64.
QUANTISED_BYTES = {"4bit": 0.5 + 4 / 64, "8bit": 1.0}


@dataclass(frozen=True)
class Memory:
    """Bytes that a stage needs at its peak, by what they hold; the interpreter and its libraries
    come on top.
    """

    weights: int
    activations: int = 0
    cache: int = 0
    logits: int = 0

    @property
    def working(self) -> int:
        """All but the weights."""
        return self.activations + self.cache + self.logits

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.working


def weights_of(size: ModelSize, itemsize: int, quantize: str | None = None) -> int:
    """One copy of the weights; quantised are those of linear layers alone."""
    quantised = size.linear if quantize is not None else 0
    each = QUANTISED_BYTES[quantize] if quantize is not None else 0.0
    return (size.weights - quantised) * itemsize + int(quantised * each)


def reading(size: ModelSize, weights: int, itemsize: int, tokens: int) -> Memory:
    """A pass over ``tokens`` prompt tokens: copies of the stream and the widest MLP tensors of one
    block.
    """
    return Memory(
        weights, activations=tokens * activation_bytes(size.d_model, size.inner, itemsize)
    )


def choosing(
    size: ModelSize, reading: Memory, itemsize: int, tokens: int | float, prompts: int
) -> Memory:
    """Passes of the selection beside what it keeps of the unmodified model on so many harmless
    prompts.

    Kept are every block's inputs, of ``tokens`` tokens in all (counted as cache), and next-token
    probabilities.
    """
    kept = int(tokens) * size.layers * size.d_model * itemsize
    return replace(reading, cache=kept, logits=prompts * 8 * (size.head // size.d_model))


def writing(size: ModelSize, weights: int, itemsize: int, rows: int, length: int) -> Memory:
    """``rows`` completions side by side of ``length`` tokens with their prompts.

    Keys and values count three times: growing, they are copied, and the allocator keeps what was
    freed. Logits are those of one token a row, in float32 and twice more.
    """
    cache = rows * 3 * length * size.cache * itemsize
    return Memory(weights, cache=cache, logits=rows * 3 * 4 * (size.head // size.d_model))


def forcing(size: ModelSize, weights: int, itemsize: int, tokens: int) -> Memory:
    """Texts of ``tokens`` tokens in all, read for the logits of each: at most some at once, a few
    in float64.
    """
    vocabulary = size.head // size.d_model
    return Memory(
        weights, logits=vocabulary * (min(tokens, MOST_TOKENS) * 2 * itemsize + CHUNK * 3 * 8)
    )


def scoring(size: ModelSize, reading: Memory, itemsize: int) -> Memory:
    """Passes for the log-likelihoods of a benchmark's answers: logits as they come and once in
    float32.
    """
    return replace(reading, logits=MOST_SCORED * (size.head // size.d_model) * (itemsize + 4))


def forced_tokens(config: RunConfig, prompt: int | float) -> int:
    """Tokens of the texts that drift is measured on, prompts of ``prompt`` tokens with answers
    among them.
    """
    answers = min(config.n_texts, config.n_test) * (prompt + config.max_new_tokens)
    return int(max(answers, config.n_texts * config.text_tokens if config.texts else 0))


def stage_memory(model: ChatModel, config: RunConfig, stage: str) -> Memory | None:
    """What a stage of a run will hold with the batch sizes that were chosen; ``None`` where no
    model is run here.

    Args:
        stage: its name in the manifest: ``extract``, ``generate harmful.ablation``, …
    """
    kind, _, about = stage.partition(" ")
    served = config.engine in ("openai", "vllm") and about.partition(".")[2] in (
        BASELINE,
        "ablation",
    )
    if kind == "evaluate" or (kind == "generate" and served):
        return None
    size, itemsize = size_of(model.hf, model.hf.config), model.hf.dtype.itemsize
    weights = sum(map(held_bytes, model.hf.parameters()))
    part = replace(size, cache=size.cache // parallel.parts())
    read = reading(size, weights, itemsize, model.token_budget.value)

    def write(n: int, new: int) -> Memory:
        length = LONG_PROMPT + new
        fits = row_budget(model.device, length * cache_bytes_per_token(model))
        return writing(part, weights, itemsize, min(n, model.batch_size.value, fits), length)

    def choose() -> Memory:
        if model.device.type != "cpu":  # what is kept is in main memory, not on the device
            return read
        return choosing(size, read, itemsize, config.n_val * LONG_PROMPT, config.n_val)

    if kind == "tokens":
        return _larger(read, write(2 * CHOOSE_PROMPTS, CHOOSE_NEW_TOKENS))
    if kind == "select":
        return choose()
    if kind == "generate":
        n = config.n_control * (config.controls + 2) if ".controls-" in stage else config.n_test
        return write(n, config.max_new_tokens)
    if kind == "drift":
        return forcing(size, weights, itemsize, forced_tokens(config, LONG_PROMPT))
    if kind == "capability":
        return _larger(
            scoring(size, read, itemsize), write(model.batch_size.value, config.task_tokens or 256)
        )
    if kind == "seed":
        return _larger(choose(), write(config.n_test, config.max_new_tokens))
    return read  # extract, projections, controls


def _larger(*needs: Memory) -> Memory:
    return max(needs, key=lambda need: need.total)
