"""A linear probe: the weights of a logistic regression that tells the classes apart, with a ridge
penalty chosen by cross-validation.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from refusal.config.run_config import RunConfig
from refusal.core.errors import TooFewPromptsError
from refusal.directions.from_activations import FromActivations, Rows
from refusal.directions.packages import from_sklearn

STRENGTHS = np.logspace(-1, 5, 7)  # inverse penalties, for rows of mean square norm 1
FOLDS = 5


class Probe(FromActivations):
    """The penalty has the lowest cross-entropy on folds that the regression was not fitted to."""

    def find(self, harmful: Rows, harmless: Rows, config: RunConfig) -> Float[Tensor, "1 d_model"]:
        """The weights of one place.

        The weights are a combination of the rows, so the regression is fitted to the rows'
        coordinates in their own span, as many as there are prompts: the same solution, sooner.

        Raises:
            TooFewPromptsError: fewer than two prompts of a class.
        """
        folds = min(FOLDS, len(harmful), len(harmless))
        if folds < 2:
            raise TooFewPromptsError(
                "--method probe needs two prompts of each class, one to fit and one to test on. "
                "Raise --n-train."
            )
        rows = torch.cat([harmful, harmless])
        centred = rows - rows.mean(0)
        left, singular, right = torch.linalg.svd(centred, full_matrices=False)
        scale = float(singular.square().sum() / len(rows)) ** -0.5
        labels = np.arange(len(rows)) < len(harmful)
        linear, chosen = from_sklearn("linear_model"), from_sklearn("model_selection")
        regression = linear.LogisticRegressionCV(
            Cs=STRENGTHS,
            cv=chosen.StratifiedKFold(folds, shuffle=True, random_state=config.seed),
            scoring="neg_log_loss",
            l1_ratios=(0.0,),  # a ridge
            tol=1e-6,
            max_iter=1000,
            use_legacy_attributes=False,
        )
        fitted = regression.fit((left * singular * scale).numpy(), labels)
        weights: Tensor = torch.from_numpy(np.atleast_2d(fitted.coef_)) @ right
        return weights
