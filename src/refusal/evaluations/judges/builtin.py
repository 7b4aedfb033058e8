"""The judges that need no model: the built-in detector and the paper's substring rule."""

from collections.abc import Iterator, Sequence

from refusal.core.records import Completion
from refusal.detector.verdict import paper_substring_match, refusal_verdict
from refusal.evaluations.judges.protocol import JudgeKind, Judgement


class DetectorJudge:
    """The built-in refusal detector."""

    name = "detector"
    kind: JudgeKind = "refusal"

    def judge(self, items: Sequence[Completion]) -> Iterator[Judgement]:
        """Its verdict, which is always valid."""
        for item in items:
            yield Judgement(item.prompt_id, refusal_verdict(item.prompt, item.completion).label)


class SubstringJudge:
    """The paper's rule: any of 12 substrings, anywhere, is a refusal."""

    name = "substring"
    kind: JudgeKind = "refusal"

    def judge(self, items: Sequence[Completion]) -> Iterator[Judgement]:
        """Refusal or compliance, always valid."""
        for item in items:
            yield Judgement(
                item.prompt_id, "refusal" if paper_substring_match(item.answer) else "compliance"
            )
