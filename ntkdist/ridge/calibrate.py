"""Calibration of a run's model: one more pass over the rows that it was fitted to, by the models of the other folds."""

from dataclasses import replace

import msgspec

from ntkdist.cluster import Client
from ntkdist.cluster.connect import connect, resources
from ntkdist.cluster.progress import Watch
from ntkdist.errors import DataError, SpecError
from ntkdist.planning.plan import Plan, by_fold
from ntkdist.ridge import earlier, run_directory
from ntkdist.ridge.model import RidgeModel
from ntkdist.ridge.residuals import CALIBRATION_ROWS, calibration, fold_models, out_of_fold
from ntkdist.solvers.uncertainty import Factor
from ntkdist.spec import decode


def calibrate(
    run: str,
    *,
    keep_factor: bool = False,
    client: Client | None = None,
    scheduler: str = "",
    watch: Watch | None = None,
) -> RidgeModel:
    """Return the model of a run with what intervals and calibrated probabilities need.

    About 65,536 of the rows that it was fitted to, all if they are fewer, are predicted by the models of the other
    folds, in one pass over the data.  `ntkdist.save` writes the model; the run is not changed.

    Parameters
    ----------
    run : str
        Directory of a complete run with equations and several folds, whose dataset is where it was.
    keep_factor : bool
        Also compute the factor that `RidgeModel.std` needs, m² numbers.
    client, scheduler, watch
        As in `fit`.

    Raises
    ------
    DataError
        If the run has no equations, or its dataset is gone or has other content.
    SpecError
        If the run has a single fold.
    StoreError
        If there is no complete run.
    """
    model, cv, report, equations = run_directory.read_run(run)
    if equations is None:
        raise DataError(f"{run} has no equations: its solver kept no Gram; fit again, with other alphas or solver")
    if cv is None:
        raise SpecError(f"{run} has a single fold, and so no error out of fold; fit with more folds")
    p: Plan = decode(report.plan, Plan, f"{run}/report.json")
    p.check_data()
    if keep_factor:
        model = replace(model, factor=Factor.of(equations.total, model.alpha, cv.chosen))
    models = fold_models(p.solver, equations, cv)
    with connect(p.job.cluster, scheduler, client) as client:
        source, shards = by_fold(msgspec.structs.replace(p, threads=resources(client).threads))
        source = earlier.matched(source, model.preprocessing)
        source = source._replace(share=min(1.0, CALIBRATION_ROWS / p.layout.rows))
        values = out_of_fold(source, shards, models, client, watch).values
    return replace(model, calibration=calibration(model, values))
