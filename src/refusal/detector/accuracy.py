"""How often the built-in detector is right: what its refusal rates are corrected by.

The counts are of completions that people labelled and that the detector was not made with; partial
refusals are refusals. ``python benchmarks/detector.py --data-dir DIR --accuracy`` counts them
again, in this form.
"""

from refusal.core.stats import Accuracy

ENGLISH = "en"

DETECTOR = Accuracy(
    hits=30,
    misses=11,
    rejections=169,
    false_alarms=5,
    source=(
        "XSTest v2, Mistral-7B-Instruct's completions (Roettger et al. 2024), the half that "
        "was held out"
    ),
)


def accuracy_in(language: str | None) -> Accuracy | None:
    """How often it is right on answers in a language (``None``: not said, English); ``None`` where
    no completions that people labelled are at hand. It knows words of refusing in about thirty
    languages, and that is all that is known of them.
    """
    return DETECTOR if language in (None, ENGLISH) else None
