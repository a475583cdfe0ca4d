"""Ends what a killed run could not end itself; both hold its directory, so that no run is hurt."""

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from raykb.runtime.left import Left, Tracked, record_of, spool_of
from raykb.runtime.lock import locked
from raykb.runtime.secrets import redacted
from raykb.runtime.sender import brief
from raykb.runtime.storage import Storage
from raykb.runtime.tracking import replay


def clean(storage: Storage) -> list[str]:
    """Remove what writers that died have left half written; return the names.

    Raises:
        Refused: a process holds the run directory.
        ValueError: it is none.
    """
    record_of(storage)
    with locked(storage) as held:
        left = Left.of(held)
        names = left.half_written
        held.sweep()
        for training in left.trainings:  # links may lead to them
            training.folder.sweep()
            for name in training.uncommitted:
                training.folder.remove(name)
    return names


def close(storage: Storage, uri: str) -> list[str]:
    """End the runs of a killed run as KILLED in the tracking store; return their names.

    What the run could not send is sent first, if it is on this host, and that it was killed with
    it; where it is not, the store alone is told. A run that goes on does the same as it begins.

    Raises:
        Refused: a process holds the run directory.
        ValueError: it is none, or there is no such store.
        ConnectionError: the store does not take all.
    """
    spool = spool_of(storage)
    with locked(storage):
        before = {run.id for run in Tracked.of(storage, uri).runs if run.status == "RUNNING"}
        if (spool / "tracking.json").exists() and (left := replay(spool, uri=uri)):
            raise ConnectionError(
                f"{redacted(uri)}: {left} records could not be sent; not all is closed, try again "
                "when it answers"
            )
        now = Tracked.of(storage, uri).runs
        try:
            for run in now:
                if run.status == "RUNNING":
                    MlflowClient(tracking_uri=uri).set_terminated(run.id, "KILLED")
        except MlflowException as error:
            raise ConnectionError(f"{redacted(uri)}: {brief(error)}") from error
    killed = ("RUNNING", "KILLED")
    return [run.name for run in now if run.id in before and run.status in killed]
