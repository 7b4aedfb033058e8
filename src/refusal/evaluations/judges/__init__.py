"""Judges: what says of a completion whether it refuses, is safe, or helps, and how far several of
them agree.

for judgement in make_judge("endpoint-refusal=my-model", JudgeOptions(judge_url="http://127.0.0.1:8000/v1")).judge(rows):
    ...
"""
