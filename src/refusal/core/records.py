"""The records that all rooms share, without a tensor in them: reading them needs no torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from refusal.core.errors import ConfigError
from refusal.core.frames import NotebookRecord, records_dataframe
from refusal.core.sampling import sample_key
from refusal.core.thinking import split
from refusal.core.turns import Question, Turns, asked, fingerprint

if TYPE_CHECKING:
    import pandas

Label = Literal["harmful", "harmless"]
VerdictLabel = Literal["refusal", "partial", "compliance", "degenerate", "unfinished"]


@dataclass(frozen=True)
class Prompt:
    """One instruction, as a user would type it; ``before``: the turns before it, if any."""

    id: str
    text: str
    label: Label
    category: str | None = None
    before: Turns = ()

    @property
    def fingerprint(self) -> str:
        """Tells prompts apart; it does not depend on the id, nor on case and spacing."""
        return fingerprint(self.text, self.before)

    @property
    def question(self) -> Question:
        """What a model is asked."""
        return asked(self.text, self.before)


@dataclass(frozen=True)
class PromptPair:
    """The harmful and the harmless prompts of one split, in drawing order."""

    harmful: tuple[Prompt, ...]
    harmless: tuple[Prompt, ...]


@dataclass(frozen=True)
class PromptSplits:
    """Train, validation and test pools, and what building them removed.

    ``counts`` is for the reader: pool sizes by ``<label>_<split>``, near-duplicates dropped by
    ``removed_<...>``, and by ``drawn_from_<...>`` how many of a pool are drawn from (the rest of it
    only guards against leakage). ``matched`` are harmless prompts written to match harmful ones in
    topic and form (built-in set only).
    """

    name: str
    train: PromptPair
    val: PromptPair
    test: PromptPair
    counts: dict[str, int] = field(default_factory=dict)
    matched: tuple[Prompt, ...] = ()


@dataclass(frozen=True)
class RefusalTokens:
    """The token set ``R`` of the refusal metric, and where it comes from.

    ``probabilities`` is the mean probability of each token as the first of a completion judged a
    refusal (``None`` for presets and tokens given by the user); ``auroc`` is that of the metric
    against judged completions.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    source: str
    probabilities: tuple[float, ...] | None = None
    auroc: float | None = None
    judged_refusals: int | None = None
    judged: int | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError unless the ids are a set of token ids, each with its text."""
        if fault := self._fault():
            raise ConfigError(f"Refusal tokens {list(self.ids)[:8]} cannot be used: {fault}.")

    def _fault(self) -> str | None:
        """The first thing that is wrong; ``None`` if nothing is."""
        ids, n = self.ids, len(self.ids)
        if not ids:
            return "there are none"
        if wrong := [i for i in ids if type(i) is not int or i < 0]:
            return f"{wrong[0]!r} is no token id"
        if len(set(ids)) < n:
            twice = next(i for i in ids if list(ids).count(i) > 1)
            return f"{twice} is named twice and would count twice"
        given = len(ids if self.probabilities is None else self.probabilities)
        if not len(self.texts) == given == n:
            return (
                f"ids, texts and probabilities are {n}, {len(self.texts)} and {given}, not one for "
                "each token"
            )
        return None


@dataclass(frozen=True)
class ClassCount:
    """How many prompts of a class were run, how many passed the filter, and their mean refusal
    metric (``None`` without refusal tokens).
    """

    drawn: int
    passed: int
    mean_metric: float | None


@dataclass(frozen=True)
class CandidateScore:
    """The selection scores of one candidate; a score that the decision did not need is ``None``.

    ``more`` are scores by name that only some methods have.
    """

    position: int
    layer: int
    bypass: float | None
    induce: float | None
    kl: float | None
    rejected_because: str | None = None
    more: Mapping[str, float | None] = field(default_factory=dict, hash=False)

    @property
    def by_name(self) -> dict[str, float | None]:
        """Every score."""
        return {"bypass": self.bypass, "induce": self.induce, "kl": self.kl, **self.more}

    def to_row(self) -> dict[str, Any]:
        """Flat, as files and tables have it."""
        row = {name: value for name, value in asdict(self).items() if name != "more"}
        return {**row, **self.more}


@dataclass(frozen=True)
class Win:
    """How often a candidate is chosen when the validation prompts are resampled."""

    position: int
    layer: int
    share: float


@dataclass(frozen=True)
class Stability:
    """The choice on resampled validation prompts.

    ``winners`` are the most frequent ones, ``cosines[i][j]`` is between winners ``i`` and ``j``. Of
    all candidates only ``contenders`` can be chosen: those that meet the thresholds or nearly do.
    """

    resamples: int
    contenders: int
    none_qualifies: float
    winners: tuple[Win, ...]
    cosines: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Choice:
    """What a selection decided, every score, and what each criterion rejected.

    ``qualified`` is False when no candidate satisfied the rule and the lowest bypass inside the KL
    and layer limits stands in. The counts hold the unmodified model's mean metrics on the
    validation prompts that passed the filter. ``risk`` is the probability that was taken of
    dropping the candidate which the rule would choose.
    """

    score: CandidateScore
    scores: tuple[CandidateScore, ...]
    qualified: bool
    rejected: dict[str, int]
    harmful_count: ClassCount
    harmless_count: ClassCount
    stability: Stability | None = None
    risk: float = 0.0

    def nearest_misses(self, n: int = 5) -> list[CandidateScore]:
        """The candidates with the highest induce score among those inside the KL and layer
        limits.
        """
        known = [s for s in self.scores if s.induce is not None]
        inside = [s for s in known if s.rejected_because in (None, "induce")]
        return sorted(inside, key=lambda s: -(s.induce or 0.0))[:n]


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one completion, and the words it rests on."""

    label: VerdictLabel
    evidence: str = ""

    @property
    def refused(self) -> bool:
        """Refusals and partial refusals count as refused; degenerate text and unfinished thoughts
        are neither.
        """
        return self.label in ("refusal", "partial")


@dataclass(frozen=True)
class Written:
    """What a model wrote, and ``earlier``, the text as it stood after so many of its ``tokens``."""

    text: str
    tokens: int
    earlier: Mapping[int, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Cut:
    """A completion as it stood after some ``tokens``, and the verdict on it.

    It was the whole's first ``characters`` and then ``rest``: nothing, as a rule; where a token
    ended inside a character, or a thought was not yet known to be one, what stood there instead.
    """

    tokens: int
    characters: int
    rest: str
    verdict: VerdictLabel


@dataclass(frozen=True)
class Completion:
    """One prompt, what the model wrote, and the verdict.

    Attributes:
        prompt: the last turn of the user's. before: the turns before it, if any.
        completion: the whole answer; where it was begun for the model (`--prefill`), with that.
        tokens: how many were written, without the one that ends a turn; ``None`` where that is not
            known (the engine gave none, or an older version), and then there are no ``cuts``.
        cuts: the completion at each of `reading_lengths` that is below ``tokens``.
        sample: its number among those drawn of the prompt; ``None`` where it is the greedy one.
    """

    prompt_id: str
    prompt: str
    completion: str
    verdict: VerdictLabel
    tokens: int | None = None
    cuts: tuple[Cut, ...] = ()
    before: Turns = ()
    sample: int | None = None

    @property
    def key(self) -> str:
        """The prompt's id, with the sample's number where there are samples."""
        return sample_key(self.prompt_id, self.sample)

    @property
    def answer(self) -> str:
        """The completion without its thoughts, and without turns that follow its own."""
        answer = split(self.completion).answer
        return self.completion if answer == self.completion.strip() else answer

    def text_at(self, cut: Cut) -> str:
        """The text as it stood at one of its ``cuts``."""
        return self.completion[: cut.characters] + cut.rest

    def verdict_after(self, tokens: int) -> VerdictLabel:
        """The verdict on what stood there after that many tokens; on all of it where it had ended.

        Raises:
            ValueError: it was not read at that length.
        """
        if self.tokens is None:
            raise ValueError(f"how long the completion of {self.prompt_id!r} is, is not known")
        if self.tokens <= tokens:
            return self.verdict
        for cut in self.cuts:
            if cut.tokens == tokens:
                return cut.verdict
        raise ValueError(f"the completion of {self.prompt_id!r} was not read after {tokens} tokens")


@dataclass(frozen=True)
class Metric:
    """One number with its interval: ``name`` on ``set`` under ``condition``, over ``n`` prompts or
    texts.

    A name that ends in ``_change`` is the difference from the baseline on the same prompts, one in
    ``_rise`` that of a completion's last length from a shorter one; ``p_value`` is then that of
    McNemar's exact test, where there is one. With fewer than two texts a mean has no interval
    (infinite).
    """

    name: str
    set: str
    condition: str
    value: float
    low: float
    high: float
    n: int
    p_value: float | None = None


@dataclass(frozen=True)
class Evaluation(NotebookRecord):
    """Completions by (set, condition), and the metrics computed from them."""

    completions: dict[tuple[str, str], tuple[Completion, ...]]
    metrics: tuple[Metric, ...]

    def rate(self, set_name: str, condition: str, name: str = "refusal_rate") -> Metric:
        """The metric of that name, e.g. ``rate("harmful", "ablation")``."""
        for metric in self.metrics:
            if (metric.name, metric.set, metric.condition) == (name, set_name, condition):
                return metric
        raise KeyError(f"no {name} for {set_name} prompts under {condition}")

    def to_dataframe(self) -> "pandas.DataFrame":
        """The metrics, one a row; ``completions`` are not in it.

        Raises:
            UsageError: pandas is not installed.
        """
        return records_dataframe(self.metrics, Metric)


def to_json(record: Any) -> Any:
    """A record, or a tuple of records, as plain JSON values; anything else is a TypeError."""
    if isinstance(record, (list, tuple)):
        return [to_json(item) for item in record]
    row = record.to_row() if isinstance(record, CandidateScore) else asdict(record)
    absent = {"before": (), "sample": None}  # of plain prompts, of greedy completions
    return {name: value for name, value in row.items() if absent.get(name, ...) != value}


def finite(value: Any) -> Any:
    """JSON values with ``None`` for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
