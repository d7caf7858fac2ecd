"""A map as a user writes it, for ntkdist to import."""

import numpy as np


class Waves:
    """Cosines of some directions, for rows of six numbers."""

    n_components = 9

    def __init__(self) -> None:
        self.directions = np.random.default_rng(0).standard_normal((6, self.n_components))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.cos(x.reshape(len(x), -1) @ self.directions)


phi = Waves()
of_another_shape = Waves
