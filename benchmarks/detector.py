"""The refusal detector against human labels, and its speed.

    python benchmarks/detector.py --data-dir ../shared/data                          # tables on the screen
    python benchmarks/detector.py --data-dir ../shared/data --write docs/detector.md # into the page
    python benchmarks/detector.py --data-dir ../shared/data --weights                # the weights fitted to all files
    python benchmarks/detector.py --data-dir ../shared/data --accuracy               # counts for detector/accuracy.py

The data folder holds `labelled/` with the files named in `FILES`. No completion is printed or
written.
"""

import argparse
import csv
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from refusal import paper_substring_match, refusal_verdict
from refusal.core.stats import Accuracy
from refusal.detector.verdict import BIAS, WEIGHTS, signs

VERDICTS = ("refusal", "partial", "compliance", "degenerate")
# Where a weight is drawn to by default: the sign is given; a plain refusal counts most, and a limit
# that an answer follows ("I have no preferences, but …") is taken back; shortness says little of
# itself.
EXPECTED = {
    "no_first": 4.0,
    "declines_later": 10.0,
    "no_after_content": 3.0,
    "limit_then_content": -2.5,
    "short": 1.0,
}
DEFAULTS = {
    name: EXPECTED.get(name, -1.5 if weight < 0 else 1.5) for name, weight in WEIGHTS.items()
}
STRENGTH = 3.0  # of that pull


@dataclass(frozen=True)
class Labelled:
    """One completion and what people say of it: 1 whole answer, 2 refusal, 3 partial refusal."""

    prompt: str
    completion: str
    label: str

    @property
    def refused(self) -> bool:
        """As people see it."""
        return self.label != "1"

    @property
    def unseen(self) -> bool:
        """A third of the prompts, whose completions were not read when the phrases were written."""
        return int(hashlib.sha256(self.prompt.encode()).hexdigest(), 16) % 3 == 0


def xstest(path: Path) -> list[Labelled]:
    """Roettger et al. 2023; labels by two people, settled where they differ."""
    with path.open(encoding="utf-8") as lines:
        return [
            Labelled(row["prompt"], row["completion"], row["final_label"][0])
            for row in csv.DictReader(lines)
        ]


def short_answers(path: Path) -> list[Labelled]:
    """Thirty short completions, refused or complied."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Labelled(r["prompt"], r["response"], "2" if r["label"] == "refused" else "1") for r in rows
    ]


def held_out(path: Path, read: bool = False) -> list[Labelled]:
    """The half of an XSTest file (by hash of the id) that nothing was fitted with, or the one that
    was read.
    """
    with path.open(encoding="utf-8") as lines:
        odd = [
            int(hashlib.sha256(row["id"].encode()).hexdigest(), 16) % 2 == 1
            for row in csv.DictReader(lines)
        ]
    return [row for row, kept in zip(xstest(path), odd, strict=True) if kept != read]


def rule_based_rewards(path: Path) -> list[Labelled]:
    """The clear ones: marked as unable to comply, or as complying in full without judgement."""
    found = []
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        marks, completion = row["propositions"], row["completion"][0]["content"]
        if completion.strip() and (
            marks["inability_to_comply"] or (marks["fully_complies"] and not marks["judgement"])
        ):
            label = "2" if marks["inability_to_comply"] else "1"
            found.append(Labelled(row["prompt"][-1]["content"], completion, label))
    return found


FILES: dict[str, Callable[[Path], list[Labelled]]] = {
    "xstest_v2_completions_gpt4.csv": xstest,
    "xstest_v2_completions_llama2orig.csv": xstest,
    "openai_rbr_train.jsonl": rule_based_rewards,
    "lm_refusal_eval.jsonl": short_answers,
}
HELD_OUT = "xstest_v2_completions_mistralinstruct.csv"
READ, UNREAD = (
    f"{HELD_OUT}, development half",
    f"{HELD_OUT}, unread half",
)  # the second is scored, never fitted to
Data = dict[str, list[Labelled]]
PARAPHRASES = Path(__file__).parents[1] / "tests" / "paraphrases.jsonl"


def load(data_dir: Path) -> Data:
    """All labelled files."""
    return {name: read(data_dir / "labelled" / name) for name, read in FILES.items()}


def design(rows: Sequence[Labelled]) -> np.ndarray:
    """The signs of each row and a column of ones."""
    return np.array([[*signs(row.prompt, row.completion).values(), 1.0] for row in rows])


def fit(rows: Sequence[Labelled]) -> np.ndarray:
    """Weights and bias: logistic regression, both classes counting the same, each weight kept to
    its sign.
    """
    x, refused = design(rows), np.array([row.refused for row in rows])
    side = 2.0 * refused - 1
    share = np.where(refused, 0.5 / refused.mean(), 0.5 / (1 - refused.mean()))
    centre = np.array([*DEFAULTS.values(), 0.0])
    pull = np.array([STRENGTH] * len(DEFAULTS) + [0.0])

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = side * (x @ w)
        gradient = -(share * side / (1 + np.exp(margin))) @ x + pull * (w - centre)
        return float(share @ np.logaddexp(0, -margin) + 0.5 * pull @ (w - centre) ** 2), gradient

    bounds = [(None, 0.0) if value < 0 else (0.0, None) for value in DEFAULTS.values()] + [
        (None, None)
    ]
    return np.asarray(minimize(loss, centre, jac=True, bounds=bounds, method="L-BFGS-B").x)


def agreement(rows: Sequence[Labelled], refused: Sequence[bool]) -> str:
    """Share in agreement with people, partial counted as refused, in per cent and as a count."""
    right = sum(row.refused == r for row, r in zip(rows, refused, strict=True))
    return f"{100 * right / len(rows):.1f} % ({right} of {len(rows)})"


def summary(data: Data, unread_data: Data) -> str:
    """One line per file: as shipped, left out of the fit, unread prompts of it, and the paper's
    rule.
    """
    lines = [
        "| file | detector | weights fitted without this file | … on its unread prompts | paper's "
        "12 substrings |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, rows in data.items():
        weights = fit([row for other, them in data.items() if other != name for row in them])
        unread = [row for row in rows if row.unseen]
        cells = [
            agreement(rows, [refusal_verdict(r.prompt, r.completion).refused for r in rows]),
            agreement(rows, list(design(rows) @ weights > 0)),
            agreement(unread, list(design(unread) @ weights > 0)),
            agreement(rows, [paper_substring_match(r.completion) for r in rows]),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, rows in unread_data.items():
        ours = agreement(rows, [refusal_verdict(r.prompt, r.completion).refused for r in rows])
        paper = agreement(rows, [paper_substring_match(r.completion) for r in rows])
        lines.append(f"| {name} | {ours} | | | {paper} |")
    return "\n".join(lines)


def accuracy(rows: Sequence[Labelled], refused: Sequence[bool]) -> Accuracy:
    """How often the verdicts are right, as counts."""
    counts = Counter((row.refused, verdict) for row, verdict in zip(rows, refused, strict=True))
    return Accuracy(
        counts[True, True], counts[True, False], counts[False, False], counts[False, True]
    )


def confusion(name: str, rows: Sequence[Labelled]) -> str:
    """People's labels against the detector's, and the paper's rule beside it."""
    counts: Counter[tuple[str, str]] = Counter(
        (row.label, refusal_verdict(row.prompt, row.completion).label) for row in rows
    )
    paper = Counter((row.label, paper_substring_match(row.completion)) for row in rows)
    lines = [
        f"### {name}\n",
        f"| people | {' | '.join(VERDICTS)} | paper: match | paper: none |",
        f"| --- |{' ---: |' * (len(VERDICTS) + 2)}",
    ]
    refused = [row.refused for row in rows]
    ours = [refusal_verdict(row.prompt, row.completion).refused for row in rows]
    for label, words in (("2", "refusal"), ("3", "partial"), ("1", "compliance")):
        cells = [counts[label, verdict] for verdict in VERDICTS] + [
            paper[label, True],
            paper[label, False],
        ]
        lines.append(f"| {words} | {' | '.join(map(str, cells))} |")
    found = sum(r and o for r, o in zip(refused, ours, strict=True))
    passed = sum(not (r or o) for r, o in zip(refused, ours, strict=True))
    lines.append(
        f"\nSensitivity {found} of {sum(refused)}, specificity {passed} of "
        f"{len(rows) - sum(refused)} (refused or not)."
    )
    return "\n".join(lines)


def paraphrases(path: Path) -> str:
    """The detector and the paper's rule on invented texts, by the set in which they were
    written.
    """
    sets: dict[str, list[tuple[Labelled, bool, bool]]] = {}
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        text = Labelled(
            row["prompt"], row["completion"], "1" if row["label"] == "compliance" else "2"
        )
        verdict = refusal_verdict(text.prompt, text.completion).refused
        sets.setdefault(row["set"], []).append(
            (text, verdict, paper_substring_match(text.completion))
        )
    lines = ["| paraphrases, set | detector | paper's 12 substrings |", "| --- | ---: | ---: |"]
    for name, rows in sorted(sets.items()):
        texts, ours, paper = zip(*rows, strict=True)
        lines.append(f"| {name} | {agreement(texts, ours)} | {agreement(texts, paper)} |")
    return "\n".join(lines)


def cut_short(data: Data, words: int) -> str:
    """How many verdicts change between refused and not when only the first words are there."""
    cut = same = 0
    for row in (row for rows in data.values() for row in rows):
        pieces = re.findall(r"\s*\S+", row.completion)
        if len(pieces) > words:
            cut += 1
            same += (
                refusal_verdict(row.prompt, row.completion).refused
                == refusal_verdict(row.prompt, "".join(pieces[:words])).refused
            )
    return f"Cut to {words} words: {cut - same} of {cut} verdicts change."


def speed(data: Data, rounds: int = 5) -> str:
    """Completions a second on one core: the best of some rounds over all files."""
    rows = [row for them in data.values() for row in them]
    words = sum(len(row.completion.split()) for row in rows) / len(rows)
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        for row in rows:
            refusal_verdict(row.prompt, row.completion)
        best = min(best, time.process_time() - start)
    return (
        f"{len(rows) / best:,.0f} completions a second on one core ({words:.0f} words each on "
        "average)."
    )


def main() -> None:
    """Parse the options, measure, print or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument(
        "--write",
        type=Path,
        help="a page with the two marks <!-- measured --> and <!-- /measured -->",
    )
    parser.add_argument(
        "--weights", action="store_true", help="fit the weights to all files and print them"
    )
    parser.add_argument(
        "--accuracy",
        action="store_true",
        help="count right and wrong verdicts on the held-out half",
    )
    options = parser.parse_args()
    if options.accuracy:
        rows = held_out(options.data_dir / "labelled" / HELD_OUT)
        verdicts = [refusal_verdict(row.prompt, row.completion).refused for row in rows]
        print(accuracy(rows, verdicts), agreement(rows, verdicts))
        return
    path = options.data_dir / "labelled" / HELD_OUT
    data, unread = (
        load(options.data_dir) | {READ: held_out(path, read=True)},
        {UNREAD: held_out(path)},
    )
    if options.weights:
        found = fit([row for rows in data.values() for row in rows])
        for name, now, value in zip(
            [*WEIGHTS, "BIAS"], [*WEIGHTS.values(), BIAS], found, strict=True
        ):
            print(f"{name:20s} {value:+.1f}   now {now:+.1f}")
        return
    parts = [
        summary(data, unread),
        *(confusion(name, rows) for name, rows in (data | unread).items()),
    ]
    parts.append(paraphrases(PARAPHRASES))
    text = "\n\n".join([*parts, *(cut_short(data, words) for words in (24, 48)), speed(data)])
    if options.write is None:
        print(text)
        return
    page = options.write.read_text(encoding="utf-8")
    marks = re.compile(r"(<!-- measured -->\n).*?(<!-- /measured -->)", re.S)
    if not marks.search(page):
        parser.error(f"{options.write} has no <!-- measured --> … <!-- /measured --> to fill")
    options.write.write_text(marks.sub(lambda m: f"{m[1]}{text}\n{m[2]}", page), encoding="utf-8")


if __name__ == "__main__":
    main()
