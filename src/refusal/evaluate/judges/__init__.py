"""Judges: what says of a completion whether it refuses, is safe, or helps, and how far several of them agree.

for judgement in make_judge("endpoint-refusal=my-model", JudgeOptions(judge_url="http://127.0.0.1:8000/v1")).judge(rows):
    ...
"""

from refusal.endpoint import Usage
from refusal.evaluate.judges.agreement import Agreement, agreement
from refusal.evaluate.judges.classifier import ClassifierJudge
from refusal.evaluate.judges.endpoint import EndpointJudge
from refusal.evaluate.judges.make import KINDS, make_judge, make_judges
from refusal.evaluate.judges.options import JudgeOptions
from refusal.evaluate.judges.protocol import Judge, JudgeKind, Judgement, JudgementLabel
from refusal.evaluate.judges.rates import judge_metrics
from refusal.evaluate.judges.reading import check_completions, match_judgements, read_judgements, unjudged

__all__ = [
    "KINDS",
    "Agreement",
    "ClassifierJudge",
    "EndpointJudge",
    "Judge",
    "JudgeKind",
    "JudgeOptions",
    "Judgement",
    "JudgementLabel",
    "Usage",
    "agreement",
    "check_completions",
    "judge_metrics",
    "make_judge",
    "make_judges",
    "match_judgements",
    "read_judgements",
    "unjudged",
]
