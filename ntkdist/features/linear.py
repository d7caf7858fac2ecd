"""The identity as a feature map: ridge regression on the columns, the baseline of every kernel."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ntkdist.errors import SpecError
from ntkdist.features.base import FeatureMap, Params, flat


class Linear(FeatureMap, frozen=True):
    """The linear map φ(x) = x, flattened; k(x, y) = ⟨x, y⟩.  Exact.

    Parameters
    ----------
    n_components : int
        Must be the number of input values of a row.
    """

    takes_sparse: ClassVar[bool] = True

    def draw(self, input_shape: tuple[int, ...]) -> Params:
        d = int(np.prod(input_shape))
        if d != self.n_components:
            raise SpecError(f"Linear.n_components is {self.n_components} but a row has {d} values; set it to {d}")
        return {}

    def apply(self, params: Params, x: NDArray[Any] | csr_array) -> NDArray[Any]:
        return x.toarray() if isinstance(x, csr_array) else flat(x)

    def runs_on_gpu(self, input_shape: tuple[int, ...]) -> bool:
        return True

    def kernel(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> NDArray[np.float64]:
        x = flat(np.asarray(x, np.float64))
        return x @ (x if y is None else flat(np.asarray(y, np.float64))).T

    @property
    def has_gradient(self) -> bool:
        return True

    def gradient_weights(self, params: Params, coef: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        return coef.T.astype(dtype)

    def gradient_of(self, params: Params, x: NDArray[Any] | csr_array, weights: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(weights[None], x.shape[0], axis=0)

    def gradient_bytes(self, input_shape: tuple[int, ...], dtype: Any, t: int) -> int:
        return t * self.row_bytes(input_shape, dtype)

    def gradient_weights_bytes(self, input_shape: tuple[int, ...], dtype: Any, t: int) -> int:
        return t * self.row_bytes(input_shape, dtype)

    def row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        return self.n_components * np.dtype(dtype).itemsize
