"""Specs: equal values are equal however they were made, and bad values are refused by name."""

import math
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ntkdist as nd
from ntkdist.errors import SpecError
from ntkdist.features import AnyFeatureMap
from ntkdist.kernels import NNGP, NTK
from ntkdist.spec import Spec, decode, digest, encode, nearest, read_toml


class Zonal(Spec, frozen=True):
    """A spec within a spec, one of a union of two types."""

    kernel: NTK | NNGP
    n_components: int = 8


class Outer(Spec, frozen=True, tag=False):
    features: Zonal
    grid: tuple[float, ...] = ()
    folds: int = 5


DATA = {"store": "a.zarr"}
MAP = {"type": "NTKRandomFeatures", "n_components": 64}


def test_values_are_the_same_however_they_are_written() -> None:
    made = nd.NTKRandomFeatures(np.int64(64), depth=2, bias=np.float32(1), seed=0)
    other = nd.NTKRandomFeatures(64, 2, bias=1)
    decoded: Any = decode({"type": "NTKRandomFeatures", "n_components": 64, "depth": 2, "bias": 1}, AnyFeatureMap)
    for spec in (other, decoded):
        assert spec == made
        assert hash(spec) == hash(made)
        assert encode(spec) == encode(made)
        assert type(spec.bias) is float
        assert type(spec.n_components) is int
    assert made != nd.NTKRandomFeatures(64, 2, bias=1, seed=1)


def test_specs_are_frozen() -> None:
    with pytest.raises(AttributeError):
        nd.NTK(2).depth = 3


def test_what_a_spec_encodes_it_decodes() -> None:
    job = nd.Job(
        dataset=nd.Dataset("a.zarr", nan="drop"),
        features=nd.NTKRandomFeatures(64, bias=0.1, seed=2**40),
        alphas=np.array([1, 10]),
        plan=nd.PlanTable(folds=3, dtype="float64"),
        solver=nd.Eigh(),
        cluster=nd.Address("tcp://somewhere:8786"),
    )
    again: nd.Job = decode(msgspec.json.decode(encode(job)), nd.Job)
    assert again == job
    assert digest(again) == digest(job)
    assert job.alphas == (1.0, 10.0)


@given(bias=st.floats(allow_nan=False, allow_infinity=False), depth=st.integers(1, 3), seed=st.integers(0, 2**62))
def test_encoding_keeps_every_bit(bias: float, depth: int, seed: int) -> None:
    spec = nd.NTKRandomFeatures(64, depth=depth, bias=bias, seed=seed)
    assert decode(msgspec.json.decode(encode(spec)), AnyFeatureMap) == spec


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(SpecError, match=r"NTK\.bias is .*finite"):
        nd.NTK(1, bias=bad)
    with pytest.raises(SpecError, match=r"Job\.alphas is .*finite"):
        nd.Job(nd.Dataset("a.zarr"), nd.Linear(3), alphas=(1.0, bad))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nd.NTK(0), r"NTK\.depth is 0: expected `int` >= 1"),
        (lambda: nd.NTK("two"), r"NTK\.depth is 'two': expected `int`, got `str`"),
        (lambda: nd.NTK(1.5), r"NTK\.depth is 1\.5: expected `int`"),
        (lambda: nd.Dataset("a.zarr", nan="fill"), r"Dataset\.nan is 'fill'"),
        (lambda: nd.PlanTable(fan_in=1), r"PlanTable\.fan_in is 1: expected `int` >= 2"),
        (lambda: nd.NTKRandomFeatures(64, leverage_scores=True), 'needs variant = "paper"'),
        (lambda: nd.Job(nd.Dataset("a.zarr"), nd.Linear(3), plan=nd.PlanTable(folds=1)), "single alpha"),
        (lambda: nd.Job(nd.Dataset("a.zarr"), nd.Linear(3), alphas=()), "one or more"),
    ],
)
def test_a_constructor_checks_as_decoding_does(make: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        make()


@pytest.mark.parametrize(
    ("data", "type", "says"),
    [
        ({"dataset": DATA, "feature": MAP}, nd.Job, "unknown key 'feature'; did you mean 'features'?"),
        ({"dataset": DATA | {"nans": "drop"}, "features": MAP}, nd.Job, "'dataset.nans'; did you mean 'nan'?"),
        ({"dataset": DATA, "features": MAP | {"wide": 1}}, nd.Job, "'features.wide'; known: n_components, depth"),
        ({"dataset": DATA, "features": MAP, "plan": {"type": "x"}}, nd.Job, "unknown key 'plan.type'"),
        ({"dataset": DATA, "features": {"type": "NTK"}}, nd.Job, "unknown type 'NTK' in [features]"),
        ({"dataset": DATA, "features": MAP, "cluster": {}}, nd.Job, "[cluster] has no type; expected one of: local"),
        ({"features": {"kernel": {"type": "NTK", "deep": 2}}}, Outer, "'features.kernel.deep'; did you mean 'depth'?"),
        ({"features": {"kernel": {"type": "NKT"}}}, Outer, "'NKT' in [features.kernel]; did you mean 'NTK'?"),
        ({"features": {"kernel": {"depth": 1}}}, Outer, "[features.kernel] has no type; expected one of: N"),
        ({"features": {"type": "Zone"}}, Outer, "unknown type 'Zone' in [features]; did you mean 'Zonal'?"),
        ({"features": {"kernel": {"type": "NTK", "depth": 0}}}, Outer, ">= 1 - at `$.features.kernel.depth`"),
        ({"features": {"kernel": 3}}, Outer, "got `int` - at `$.features.kernel`"),
        ({}, Outer, "missing required field `features`"),
    ],
)
def test_decoding_names_the_key_and_the_nearest(data: Any, type: Any, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        decode(data, type, "job.toml")
    assert str(caught.value).startswith("job.toml: ")
    assert says in str(caught.value)


def test_a_type_that_can_only_be_one_may_be_named_or_not() -> None:
    kernel = {"type": "NTK", "depth": 2}
    one, other = ({"features": f} for f in ({"kernel": kernel}, {"type": "Zonal", "kernel": kernel}))
    assert decode(one, Outer) == decode(other, Outer) == Outer(Zonal(NTK(2)))


def test_nearest_names_what_is_close_or_all() -> None:
    assert nearest("fold", ["folds", "shards"]) == "; did you mean 'folds'?"
    assert nearest("zzz", ("folds", "shards")) == "; known: folds, shards"


def test_a_digest_changes_with_the_value() -> None:
    assert digest(NTK(1)) != digest(NTK(2)) != digest(NNGP(2))
    assert digest(NTK(1), NTK(2)) != digest(NTK(2), NTK(1))


def test_a_job_file(tmp_path: Any) -> None:
    path = tmp_path / "job.toml"
    path.write_text(
        'alphas_per_row = [1e-3, 1]\n[dataset]\nstore = "a.zarr"\n[features]\ntype = "Linear"\nn_components = 3\n'
        "[cluster]\nworkers = 2\n"
    )
    job = nd.Job.read(str(path))
    assert job == nd.Job(
        nd.Dataset("a.zarr"), nd.Linear(3), alphas_per_row=(1e-3, 1.0), cluster=nd.Local(workers=2)
    )  # a [cluster] without a type is a local one
    assert read_toml(str(path))["alphas_per_row"] == [1e-3, 1]


def test_the_example_job_has_every_key_with_its_default() -> None:
    path = Path(__file__).parents[1] / "jobs" / "example.toml"
    job, text = nd.Job.read(str(path)), path.read_text()
    assert (job.plan, job.preprocess, job.metric) == (nd.PlanTable(), nd.Preprocess(), nd.Metric())
    assert job.augment == nd.Augment()
    assert job.dataset == nd.Dataset("train.zarr")
    for table in (nd.Job, nd.Dataset, nd.Preprocess, nd.Metric, nd.Augment, nd.PlanTable):
        for field in msgspec.structs.fields(table):
            assert re.search(rf"^(# )?\[?{field.encode_name}\b", text, re.MULTILINE), f"{table.__name__}.{field.name}"
