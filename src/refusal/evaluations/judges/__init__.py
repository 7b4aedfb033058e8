"""Judges: what says of a completion whether it refuses, is safe, or helps, and how far several of
them agree.

for judgement in make_judge("endpoint-refusal=my-model", JudgeOptions(judge_url="http://127.0.0.1:8000/v1")).judge(rows):
    ...
"""

from refusal.core.registry import Registry

JUDGES = Registry(
    "judge",
    {
        "detector": "refusal.evaluations.judges.builtin:DetectorJudge",
        "substring": "refusal.evaluations.judges.builtin:SubstringJudge",
        "labels": "refusal.evaluations.judges.labels:LabelsJudge",
        "local-safety": "refusal.evaluations.judges.local_safety:LocalSafetyJudge",
        "llama-guard-2": "refusal.evaluations.judges.classifier:ClassifierJudge",
        "llama-guard-3": "refusal.evaluations.judges.classifier:ClassifierJudge",
        "harmbench": "refusal.evaluations.judges.classifier:ClassifierJudge",
        "wildguard": "refusal.evaluations.judges.classifier:ClassifierJudge",
        "wildguard-refusal": "refusal.evaluations.judges.classifier:ClassifierJudge",
        "strongreject": "refusal.evaluations.judges.classifier:ClassifierJudge",
        "endpoint-refusal": "refusal.evaluations.judges.endpoint:EndpointJudge",
        "endpoint-strongreject": "refusal.evaluations.judges.endpoint:EndpointJudge",
    },
)
