"""The judges that need no model: the built-in detector and the paper's substring rule."""

from collections.abc import Iterator, Sequence

from refusal.config.judges import JudgeOptions
from refusal.core.records import Completion
from refusal.core.work import Work
from refusal.detector.verdict import paper_substring_match, refusal_verdict
from refusal.evaluations.judges.judgement import JudgeKind, Judgement
from refusal.evaluations.judges.protocol import Judge


class DetectorJudge(Judge):
    """The built-in refusal detector."""

    argument = None
    kind: JudgeKind = "refusal"

    @classmethod
    def costs(cls, model: str, options: JudgeOptions, n: int, length: float) -> Sequence[Work]:
        """Nothing that counts."""
        return ()

    def judge(self, items: Sequence[Completion]) -> Iterator[Judgement]:
        """Its verdict, which is always valid."""
        for item in items:
            yield Judgement(item.key, refusal_verdict(item.prompt, item.completion).label)


class SubstringJudge(DetectorJudge):
    """The paper's rule: any of 12 substrings, anywhere, is a refusal."""

    def judge(self, items: Sequence[Completion]) -> Iterator[Judgement]:
        """Refusal or compliance, always valid."""
        for item in items:
            yield Judgement(
                item.key, "refusal" if paper_substring_match(item.answer) else "compliance"
            )
