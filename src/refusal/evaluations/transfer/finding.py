"""The direction of a context: refusal tokens, extraction and selection as in any run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refusal.config.run_config import RunConfig
from refusal.core.direction import Direction
from refusal.core.errors import NoCandidateError, TooFewPromptsError
from refusal.core.records import PromptPair, RefusalTokens, finite
from refusal.core.storage import file_sha256, write_json
from refusal.core.strict_files import Saved, read_one
from refusal.directions.refusal_tokens import preset_tokens, tokens_for
from refusal.evaluations.transfer.contexts import Context, in_context
from refusal.model.chat_model import ChatModel
from refusal.runs.finding import method_of, named, plain
from refusal.runs.folder import prompts_hash
from refusal.runs.stage import Run


@dataclass(frozen=True)
class Found:
    """What a context has given: a direction and its file's hash, or why there is none.

    Attributes:
        tokens: found there; ``None`` where none were.
    """

    direction: Direction | None = None
    sha256: str | None = None
    tokens: RefusalTokens | None = None
    why: str | None = None


class _Summary(Saved):
    tokens: RefusalTokens | None
    why: str | None


@dataclass(frozen=True)
class Search:
    """A search in a context, as a step of a run: its inputs, its files and its work."""

    context: Context
    train: PromptPair
    val: PromptPair
    folder: Path

    @property
    def summary(self) -> Path:
        """The tokens, and why there is no direction."""
        return self.folder / f"{self.context.name}.json"

    @property
    def file(self) -> Path:
        """The direction."""
        return self.folder / f"{self.context.name}.direction.safetensors"

    def inputs(self, run: Run) -> dict[str, Any]:
        """All that the direction depends on."""
        config, pairs = run.config, (self.train, self.val)
        return {
            "context": context_key(self.context),
            "given": config.refusal_tokens,
            "options": [config.n_train, config.n_val, _filter(config), config.layer_step],
            "rule": asdict(config.rule),
            "risk": config.selection_risk,
            "seed": config.seed,
            "prompts": prompts_hash([p for pair in pairs for p in (*pair.harmful, *pair.harmless)]),
            **named(config),
        }

    def work(self, model: ChatModel, config: RunConfig) -> None:
        """Leave the summary and, where there is one, the direction."""
        options = {"resamples": 0, "full_map": False, "strict": False, "filter": _filter(config)}
        once, method = config.model_copy(update=options), method_of(config)
        wanted, tokens, why = config.refusal_tokens, None, None
        self.file.unlink(missing_ok=True)
        with in_context(model, self.context):
            try:
                needed = method.needs_tokens or bool(wanted)
                tokens = tokens_for(model, self.train, wanted) if needed else preset_tokens(model)
                candidates = method.extract(model, self.train, tokens, once)
                chosen = method.select(model, candidates, self.val, once).direction
                if chosen.norm == 0:
                    raise NoCandidateError("The best candidate is the zero vector.")
                chosen.save(self.file)
            except (NoCandidateError, TooFewPromptsError) as error:
                why = str(error)
        write_json(self.summary, finite({"tokens": plain(tokens), "why": why}))

    def read(self) -> Found:
        """What the work has left."""
        summary: _Summary = read_one(self.summary, _Summary)
        if summary.why is not None:
            return Found(tokens=summary.tokens, why=summary.why)
        direction = Direction.load(self.file)
        return Found(direction, file_sha256(self.file), summary.tokens)


def _filter(config: RunConfig) -> str:
    """Prompts are filtered by the metric of the context's own tokens, unless nothing is."""
    return "none" if config.filter == "none" else "metric"


def context_key(context: Context) -> Sequence[Any]:
    """What of a context changes prompts."""
    return [context.system, context.turns, context.language]
