"""A finished run in a store of MLflow, beside those of other projects."""

import logging
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from .. import runs
from ..config import ConfigError, flat
from .read import Run

INSTALL = 'pip install -c constraints.txt -e ".[mlflow]"'
FILES = ("report.html", "report.md", "metrics.json", "run.json", "config.toml", "history.csv", "*.png")
"""What is copied into the store; model and predictions stay in the run's folder, and a tag says where that is."""
BATCH = 100
"""Parameters that MLflow takes at a time."""


def require() -> None:
    """Before there is work to lose.

    Raises:
        ConfigError: if MLflow is not installed.
    """
    if find_spec("mlflow") is None:
        raise ConfigError(f"train.track=mlflow needs MLflow, which is not installed: {INSTALL}")


def address(folder: Path) -> str:
    """Of the store: MLFLOW_TRACKING_URI, or a file beside the run.

    It is one of SQLite: MLflow's folders of files (`mlruns`) are no longer written by itself from 3.13 on.
    """
    beside = (folder.parent / "mlflow.db").absolute()
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{beside.as_posix()}"


def log(run: Run) -> None:
    """Settings as parameters, each column of history.csv by epoch, the scores, and `FILES`.

    The experiment is called as the data are. If the store cannot be written to, that is printed: the run is whole.

    Args:
        run: a finished one.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # or it tells its makers of each run
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # git need not be there
    where = address(run.folder)
    try:
        _log(run, where)
    except Exception as error:  # of a database, a server, a disk: whatever it is, the training was not in vain
        print(
            f"warning: MLflow was not told of this run, which is whole without it ({where}: {error})", file=sys.stderr
        )
    else:
        print(f"logged to MLflow: {where}")


def _log(run: Run, where: str) -> None:
    import mlflow
    from mlflow.entities import Metric, Param

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    client, name, now = mlflow.MlflowClient(where), run.columns()["data"], int(1000 * time.time())
    known = client.get_experiment_by_name(name)
    artifacts = (run.folder.parent / "mlartifacts").absolute().as_uri() if where.startswith("sqlite:") else None
    experiment = known.experiment_id if known else client.create_experiment(name, artifact_location=artifacts)
    made = client.create_run(experiment, run_name=run.folder.name, tags={"folder": str(run.folder.absolute())})
    number = made.info.run_id
    settings = [Param(key, str(value)) for key, value in (flat(run.config) if run.config else {}).items()]
    for start in range(0, len(settings), BATCH):
        client.log_batch(number, params=settings[start : start + BATCH])
    for row in run.history:
        epoch = int(row["epoch"])
        client.log_batch(number, [Metric(key, value, now, epoch) for key, value in row.items() if key != "epoch"])
    client.log_batch(number, [Metric(key, value, now, 0) for key, value in scores(run.folder).items()])
    for file in (file for pattern in FILES for file in sorted(run.folder.glob(pattern))):
        client.log_artifact(number, str(file))
    client.set_terminated(number)


def scores(folder: Path) -> dict[str, float]:
    """All scores of metrics.json that are defined, without intervals: `test/accuracy`, `val/macro_f1`, `seconds`."""
    metrics = runs.read_json(folder / "metrics.json")
    found = {"seconds": metrics["seconds"]["total"]}
    for part in ("test", "val"):
        for name, score in (metrics[part] or {}).items():
            if isinstance(score, dict) and score.get("value") is not None:
                found[f"{part}/{name}"] = score["value"]
    return found
