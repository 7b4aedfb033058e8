"""The judge `local-safety` and published judges against people's labels of harm.

    python benchmarks/safety_judge.py --data-dir ../shared/data                   # the embedded model
    python benchmarks/safety_judge.py --data-dir ../shared/data --model FOLDER    # a stronger one

The data folder holds `labelled/jbb_judge_comparison_half.csv` (JailbreakBench's judge comparison,
Chao et al. 2024): answers, the majority of three people, and the verdicts of published judges. No
completion is printed or written.
"""

import argparse
import csv
import time
from pathlib import Path

from refusal import load
from refusal.config.judges import JudgeOptions
from refusal.core.stats import auroc, wilson_interval
from refusal.evaluations.judges.agreement import agreement
from refusal.evaluations.judges.calibration import fit, read_labelled
from refusal.evaluations.judges.judgement import Judgement
from refusal.evaluations.judges.local_safety import RUBRIC_VERSION, LocalSafetyJudge

PUBLISHED = {
    "harmbench_cf": "HarmBench's classifier",
    "gpt4_cf": "GPT-4",
    "llamaguard2_cf": "Llama Guard 2",
    "llama3_cf": "Llama-3-70B",
}


def row(name: str, said: list[bool], people: list[bool]) -> str:
    """A line of the table: agreement with its interval, kappa, sensitivity, specificity."""
    judgements = [
        [Judgement(str(i), "unsafe" if unsafe else "safe") for i, unsafe in enumerate(side)]
        for side in (people, said)
    ]
    pair = agreement("people", judgements[0], name, judgements[1])
    confusion = pair.confusion
    shares = []
    for label in ("unsafe", "safe"):
        n = sum(confusion[label].values())
        low, high = wilson_interval(confusion[label][label], n)
        shares.append(f"{confusion[label][label] / n:.1%} ({low:.0%} to {high:.0%})")
    assert pair.share is not None
    assert pair.kappa is not None
    return (
        f"| {name} | {pair.share:.1%} ({pair.low:.0%} to {pair.high:.0%}) | {pair.kappa:.2f} | "
        f"{' | '.join(shares)} |"
    )


def main() -> None:
    """Print the table, and the calibration as it stands in local_safety.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    path = options.data_dir / "labelled" / "jbb_judge_comparison_half.csv"
    labelled = read_labelled(path)
    people = [answer.unsafe for answer in labelled]
    with path.open(encoding="utf-8", newline="") as lines:
        published = list(csv.DictReader(lines))
    print(
        "| judge | agreement | kappa | sensitivity | specificity |\n| --- | ---: | ---: | ---: | "
        "---: |"
    )
    for column, name in PUBLISHED.items():
        print(row(name, [line[column] == "1" for line in published], people))

    judge = LocalSafetyJudge("local-safety", "", JudgeOptions())
    model = load(options.model, dtype=options.dtype)
    judge.use(model)
    before, start = model.forward_tokens, time.perf_counter()
    odds = judge.odds([answer.item for answer in labelled])
    seconds, tokens = time.perf_counter() - start, model.forward_tokens - before
    values = [value for value, _ in odds]
    found = fit(
        values, people, [answer.item.prompt for answer in labelled], path.name, RUBRIC_VERSION
    )
    said = [True] * found.unsafe_found + [False] * (found.unsafe - found.unsafe_found)
    said += [False] * found.safe_found + [True] * (found.safe - found.safe_found)
    print(row(f"local-safety, {options.model}", said, sorted(people, reverse=True)))
    unsafe = [value for value, harm in zip(values, people, strict=True) if harm]
    safe = [value for value, harm in zip(values, people, strict=True) if not harm]
    print(
        f"\nAUROC {auroc(unsafe, safe):.3f}; least probability of yes and no "
        f"{min(mass for _, mass in odds):.3f}"
    )
    print(f"{tokens:,} tokens in {seconds:.0f} s for {len(odds)} answers")
    print(found)


if __name__ == "__main__":
    main()
