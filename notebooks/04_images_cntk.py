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
# # Images: a convolutional kernel as features
#
# An infinitely wide convolutional network is a kernel on images, the CNTK, whose exact form costs the square of the
# pixels for every pair of images.  `CNTKRandomFeatures` is a network of random filters whose pooled outputs have that
# kernel: linear in the pixels.  Here on scikit-learn's digits, 8 × 8 pixels; `jobs/fashion.toml` and
# `jobs/cifar10.toml` are the same on real benchmarks.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import ntkdist as nd

place = Path(tempfile.mkdtemp())
digits = load_digits()
images = digits.images[..., None].astype("uint8")  # (n, height, width, channels)
test = np.arange(len(images)) % 4 == 0
for name, rows in (("train", ~test), ("test", test)):
    np.savez(place / f"{name}.npz", x=images[rows], y=digits.target[rows])
    nd.convert(str(place / f"{name}.npz"), str(place / f"{name}.zarr"), classes=True)

figure, axes = plt.subplots(1, 8, figsize=(10, 1.5))
for axis, image in zip(axes, images, strict=False):
    axis.imshow(image[..., 0], cmap="gray_r")
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Three kernels
#
# A line on the pixels; the NTK of the pixels, for which a picture is a list of numbers in any order; and the CNTK,
# which knows that pixels have neighbours, with 2 × 2 cells averaged apart.

# %%
dataset = nd.Dataset(str(place / "train.zarr"))
maps = {
    "linear": nd.Linear(64),
    "NTK of the pixels": nd.ZonalFeatures(1024, kernel=nd.NTK(depth=2)),
    "CNTK": nd.CNTKRandomFeatures(1024, depth=2, grid=2),
}
models = {}
for name, features in maps.items():
    models[name] = nd.fit(nd.Job(dataset=dataset, features=features)).model
    accuracy = nd.evaluate(models[name], str(place / "test.zarr"))["accuracy"]
    print(f"{name:<20}{features.n_components:>6} features   test accuracy {accuracy:.2%}")

# %% [markdown]
# ## How near the features are to the exact kernel
#
# On a few images the exact kernel can be had; the error falls like the root of the number of features.

# %%
few = images[:40].astype(float) / 16
exact = nd.CNTK(depth=2, filter_size=3, grid=2)(few)
counts = [256, 1024, 4096]
errors = []
for m in counts:
    z = nd.CNTKRandomFeatures(m, depth=2, grid=2, width=m // 8)(few)
    errors.append(np.linalg.norm(z @ z.T - exact) / np.linalg.norm(exact))
figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
axis.loglog(counts, errors, "o-", label="measured")
axis.loglog(counts, errors[0] * np.sqrt(counts[0] / np.array(counts)), color="0.6", dashes=(4, 3), label="root of m")
axis.set(xlabel="features", ylabel="relative error of the kernel matrix")
axis.legend()
plt.show()

# %% [markdown]
# ## What it gets wrong

# %%
scores = models["CNTK"](images[test])
guess = scores.argmax(axis=1)
wrong = np.flatnonzero(guess != digits.target[test])
figure, axes = plt.subplots(1, max(len(wrong), 2), figsize=(1.4 * max(len(wrong), 2), 1.8))
for axis in axes:
    axis.axis("off")
for axis, i in zip(axes, wrong, strict=False):
    axis.imshow(images[test][i, ..., 0], cmap="gray_r")
    axis.set_title(f"{digits.target[test][i]} → {guess[i]}", fontsize=9)
plt.show()
