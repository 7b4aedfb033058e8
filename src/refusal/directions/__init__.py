"""From prompts to a direction: activations, the refusal metric, the methods, the selection, the
controls.
"""

from refusal.core.registry import Registry

METHODS = Registry(
    "method",
    {
        "dim": "refusal.directions.difference_in_means:DifferenceInMeans",
        "cosmic": "refusal.directions.cosmic:Cosmic",
        "lda": "refusal.directions.lda:LinearDiscriminant",
        "probe": "refusal.directions.probe:Probe",
        "pca": "refusal.directions.pca:PrincipalComponent",
        "kmeans": "refusal.directions.kmeans:Centroids",
        "rdo": "refusal.directions.rdo:ByGradient",
        "harmfulness": "refusal.directions.harmfulness:Harmfulness",
        "false-refusal": "refusal.directions.false_refusal:FalseRefusal",
    },
)

# Scores of a candidate that are no method's own number, and stand beside those in its files.
FURTHER = ("pseudo_harmful_refused", "harmful_refused", "lambda")
