"""Empty databases for MLflow: copies, since to create one, its migrations included, takes a second.

Who shows that a run creates its own asks for none.
"""

import contextlib
import functools
import sqlite3
import tempfile
from pathlib import Path

from mlflow import MlflowClient

from raykb.runtime.tracking import default_uri


@functools.cache
def _empty():
    """Return the folder of a database that MLflow has created; it is kept to the end."""
    folder = tempfile.TemporaryDirectory(prefix="raykb-database-")
    MlflowClient(tracking_uri=default_uri(Path(folder.name))).search_experiments()
    return folder


def new_database(folder):
    """Put an empty database into a folder, where runs that are launched there look for it."""
    file = Path(_empty().name, "mlflow.db")
    with contextlib.closing(sqlite3.connect(file)) as source:
        source.execute("VACUUM INTO ?", [str(folder / "mlflow.db")])
    return default_uri(folder)
