"""How often the built-in detector is right: what its refusal rates are corrected by.

The counts are of completions that people labelled and that the detector was not made with; partial
refusals are refusals. ``python benchmarks/detector.py --data-dir DIR --accuracy`` counts them
again, in this form.
"""

from refusal.core.stats import Accuracy

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
