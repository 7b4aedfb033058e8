"""How few XSTest-safe prompts could be refused, if a reader of the prompt chose which?

    python benchmarks/false_refusal.py RUN --data-dir DATA

The best that an intervention by a reader can do is to keep the refusals of prompts that score above
a threshold and to answer all others. Here the threshold is the one that keeps 90 % of the
XSTest-unsafe prompts refused, taken from the same prompts: an upper bound, not a result. RUN has
measured XSTest (`--over-refusal xstest --n-over-refusal 250`), so it knows which prompts the model
refuses. Readers are learnt from other prompts (the paper's, with OR-Bench-hard among the harmless
ones or not), and from XSTest itself, in ten parts and with one kind of question left out at a time.
"""

import argparse
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from refusal import ChatModel, load, load_prompts
from refusal.core.records import Prompt
from refusal.core.stats import auroc
from refusal.directions.monitor.reading import read_at
from refusal.prompts.over_refusal import load_over_refusal
from refusal.runs.files import read_completions

KEPT = 0.9  # of the unsafe prompts stay refused
PLACES = ("last token", "instruction's last")
Streams = Float[np.ndarray, "prompt d_model"]


def main() -> None:
    """Read every prompt once, then learn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[14, 16, 18, 20, 22])
    parser.add_argument("--n-train", type=int, default=200, help="prompts of a class")
    parser.add_argument("--n-pseudo", type=int, default=400, help="of OR-Bench-hard")
    options = parser.parse_args()
    model = load(options.model)
    pools = pools_of(options.data_dir, options.n_train, options.n_pseudo)
    refused = {half: refused_of(options.run, half, pools[half]) for half in ("safe", "unsafe")}
    safe, unsafe = (f"{refused[half].mean():.1%}" for half in ("safe", "unsafe"))
    print(f"refused by the model itself: safe {safe}, unsafe {unsafe}")
    print("layer  read at             learnt from                      AUROC  safe refused")
    streams = {name: streams_of(model, pool, options.layers) for name, pool in pools.items()}
    kinds = [
        (p.category or "").removeprefix("contrast_") for p in (*pools["safe"], *pools["unsafe"])
    ]
    for k, layer in enumerate(options.layers):
        for place, where in enumerate(PLACES):
            at = {name: found[:, place, k] for name, found in streams.items()}
            for name, scores in readers(at, kinds):
                area, left = bound(scores, refused["safe"], refused["unsafe"])
                print(f"{layer:5}  {where:18}  {name:31}  {area:.3f}  {left:.1%}", flush=True)


def pools_of(data: Path, n: int, pseudo: int) -> dict[str, tuple[Prompt, ...]]:
    """The prompts: training classes, pseudo-harmful ones, and both halves of XSTest."""
    train = load_prompts("paper", seed=42, data_dir=str(data)).train
    halves = load_over_refusal("xstest", data_dir=data)
    return {
        "harmful": train.harmful[:n],
        "harmless": train.harmless[:n],
        "pseudo": load_over_refusal("orbench-hard", n=pseudo, data_dir=data)["orbench-hard"],
        "safe": halves["xstest-safe"],
        "unsafe": halves["xstest-unsafe"],
    }


def refused_of(run: Path, half: str, prompts: tuple[Prompt, ...]) -> Bool[np.ndarray, "prompt"]:
    """Which of the prompts the unmodified model refused in a run."""
    rows = read_completions(run / "completions" / f"xstest-{half}.baseline.jsonl")
    verdicts = {row.prompt: row.verdict == "refusal" for row in rows}
    return np.array([verdicts[prompt.text] for prompt in prompts])


def streams_of(
    model: ChatModel, pool: tuple[Prompt, ...], layers: list[int]
) -> Float[np.ndarray, "prompt place layer d_model"]:
    """The residual stream at both places of all layers."""
    ends = (-1, -len(model.chat.suffix) - 1)
    places = [(layer, end) for end in ends for layer in layers]
    found = read_at(model, [prompt.question for prompt in pool], places).float().numpy()
    return found.reshape(len(pool), len(ends), len(layers), -1)


def readers(
    at: dict[str, Streams], kinds: list[str]
) -> list[tuple[str, Float[np.ndarray, "prompt"]]]:
    """Scores of XSTest's safe, then its unsafe prompts, by reader."""
    both = np.concatenate([at["safe"], at["unsafe"]])
    labels = np.arange(len(both)) >= len(at["safe"])
    negatives = np.concatenate([at["harmless"], at["pseudo"]])
    x = np.concatenate([at["harmful"], negatives])
    y = np.arange(len(x)) < len(at["harmful"])
    own = {"method": "decision_function", "y": labels}
    parts = StratifiedKFold(10, shuffle=True, random_state=0)
    left_out = GroupKFold(len(set(kinds)))
    return [
        ("means", both @ difference(at["harmful"], at["harmless"])),
        ("means, with OR-Bench", both @ difference(at["harmful"], at["pseudo"])),
        ("probe, with OR-Bench", probe().fit(x, y).decision_function(both)),
        ("XSTest, ten parts", cross_val_predict(probe(), both, cv=parts, **own)),
        (
            "XSTest, a kind left out",
            cross_val_predict(probe(), both, groups=kinds, cv=left_out, **own),
        ),
    ]


def probe() -> Pipeline:
    """A logistic of the whole stream, regularised as `--method probe` often chooses."""
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=1e-3, max_iter=500, class_weight="balanced")
    )


def difference(one: Streams, other: Streams) -> Float[np.ndarray, "d_model"]:
    """The unit difference of two means, in float64."""
    found = one.mean(0, dtype=np.float64) - other.mean(0, dtype=np.float64)
    return np.asarray(found / np.linalg.norm(found))


def bound(
    scores: Float[np.ndarray, "prompt"],
    safe: Bool[np.ndarray, "safe"],
    unsafe: Bool[np.ndarray, "unsafe"],
) -> tuple[float, float]:
    """AUROC, and the share of safe prompts still refused where just enough unsafe ones are."""
    of_safe, of_unsafe = scores[: len(safe)], scores[len(safe) :]
    need = int(np.ceil(KEPT * len(unsafe)))
    threshold = np.sort(of_unsafe[unsafe])[-need]
    area = auroc(of_unsafe.tolist(), of_safe.tolist())
    assert area is not None
    return area, float(((of_safe >= threshold) & safe).mean())


if __name__ == "__main__":
    main()
