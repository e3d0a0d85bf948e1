"""scikit-learn's own checks."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from cupre_d2.clustering import GrowingNeuralGas, NeuralGas, OnlineKMeans

CLUSTERERS = [OnlineKMeans(), NeuralGas(), GrowingNeuralGas(), GrowingNeuralGas(compatible="fritzke")]


@parametrize_with_checks(CLUSTERERS)
def test_scikit_learn_s_checks(estimator: object, check: Callable[[object], None]) -> None:
    check(estimator)


@pytest.mark.parametrize("clusterer", CLUSTERERS, ids=str)
def test_in_a_pipeline_and_by_parameters(clusterer: OnlineKMeans) -> None:
    samples = np.random.default_rng(0).normal(size=(100, 3))
    copy = clone(clusterer).set_params(epochs=2, random_state=3)
    assert copy.get_params()["epochs"] == 2
    labels = make_pipeline(StandardScaler(), copy).fit_predict(samples)
    assert labels.shape == (100,) and np.array_equal(labels, copy.labels_)
    assert np.array_equal(copy.predict(StandardScaler().fit_transform(samples)), labels)
