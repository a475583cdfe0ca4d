"""One invocation of a script: arguments, configuration, run directory, Ray, tracker, signals.

A script hands :func:`launch` its function, its schema and what prepares it; the function gets a
:class:`Session` and calls :meth:`Session.train` and :meth:`Session.search` on it::

    arguments -> config, checked -> prepared, refused if it does not fit -> run directory, locked
        -> tracker (database, experiment, parent run) beside Ray -> the script -> closed, in order
"""

import argparse
import contextlib
import functools
import json
import os
import shlex
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray

from raykb import config as configuration
from raykb.config import Value, build
from raykb.data.download import refused
from raykb.engine.checkpoint import Damaged
from raykb.engine.faults import causes
from raykb.engine.foreign import parsed
from raykb.engine.names import check_part
from raykb.runtime import heir, resources
from raykb.runtime.command_line import Options, parser
from raykb.runtime.connection import JOB_ENVIRONMENT, check_shared, cluster_address, connected
from raykb.runtime.fence import LostLease
from raykb.runtime.head import watched_head
from raykb.runtime.lock import locked
from raykb.runtime.nodes import awaited, limit_s
from raykb.runtime.resources import LEFT_S, Phase, Plan, ResourceError
from raykb.runtime.run_files import RECORD
from raykb.runtime.secrets import HIDDEN, given_again, hidden, redacted
from raykb.runtime.session import Refused, Session
from raykb.runtime.signals import Interrupted, Stop
from raykb.runtime.storage import LocalStorage, Storage, StorageError, open_storage
from raykb.runtime.studies import LedgerError, SearchError
from raykb.runtime.tracking import LABEL, Run, Status, Tracker, environment_tags, resolve_uri
from raykb.runtime.ui import ui_command
from raykb.runtime.watch import Hung, Limits

EXIT_FAILED, EXIT_REFUSED, EXIT_HOLES = 1, 2, 3
_NO_BUGS = (SearchError, StorageError, LostLease, Hung, Damaged)  # said in a line, no traceback


class Ready(Protocol):
    """What a script prepares from its configuration, before anything starts."""

    @property
    def phases(self) -> Sequence[Phase]:
        """The parts of the run: how many pieces of work, and what each of them takes."""
        ...


class Expand(Protocol):
    """What a script's own options are short for."""

    def __call__(self, config: dict[str, Any], /, given: Mapping[str, str]) -> Sequence[str]:
        """Return overrides, ``key=value`` each."""
        ...


ReadyT = TypeVar("ReadyT", bound=Ready)


def launch(
    script: Callable[[Session, ReadyT], None],
    *,
    description: str,
    default: Path,
    schema: Mapping[str, Any],
    prepare: Callable[[dict[str, Any]], ReadyT],
    experiment: str = "raykb",
    may_change: Collection[str] = (),
    options: Options | None = None,
    expand: Expand | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a script from its command line; return the exit status.

    Args:
        script: the work; called with the session and what was prepared once all is set up.
        description: for ``--help``.
        default: the configuration used without ``--config``.
        schema: what :func:`raykb.config.check` takes, but for ``seed``, ``storage``,
            ``tracking`` and ``watch``.
        prepare: returns what the run is made of, its phases among it, from its configuration; may
            raise ValueError.
        experiment: where the tracker has the script's runs, unless the configuration says other.
        may_change: sections, or dotted keys, that a resumed run may have otherwise.
        options: the script's own, which are in ``--help``.
        expand: returns what these stand for as ``--set`` would say it, and what ``--set`` says
            wins; gets the configuration without either, and the values of those that are given.
        argv: the command line after the script's name.
    """
    name = Path(script.__code__.co_filename).stem
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = parser(name, description, options).parse_args(argv)
    tracking = functools.partial(Tracking, experiment=experiment)
    common = {"seed": Value(int, 0), "storage": Value(str, "runs"), "tracking": tracking}
    schema, may_change = common | {"watch": Limits} | dict(schema), [*may_change, "watch"]
    try:
        given = {own: getattr(arguments, own) for own in options or {}}
        given = {own: value for own, value in given.items() if value is not None}
        short = functools.partial(expand, given=given) if expand and given else None
        config = _config(arguments, default, schema, may_change, short)
        with refused() if arguments.dry_run else contextlib.nullcontext():
            ready = prepare(config)
        phases = ready.phases
        if arguments.dry_run:
            _show_plan(config, phases)
            return 0
        address = cluster_address()
        if address is None:
            resources.plan(phases, resources.this_host())
        where = _where(arguments, config, name)
        return _run(script, ready, name, config, address, where)
    except (ResourceError, Refused, LedgerError, ValueError, OSError) as error:
        remedy = "; see to its rights and its room, or name another directory by --out"
        said = f"{name}: {error}{remedy * isinstance(error, StorageError)}"
        print(redacted(said), file=sys.stderr)
        return EXIT_REFUSED
    except KeyboardInterrupt:  # while data are read, before there is a run that could go on
        print(f"\n{name}: stopped by SIGINT", file=sys.stderr)
        return 128 + signal.SIGINT


def _config(
    arguments: argparse.Namespace,
    default: Path,
    schema: Mapping[str, Any],
    may_change: Collection[str],
    expand: Callable[[dict[str, Any]], Sequence[str]] | None,
) -> dict[str, Any]:
    """Return the resolved configuration, of the run to be resumed if there is one."""
    if arguments.resume and arguments.out:
        raise Refused("--out and --resume: give one of them; --resume goes on in its own DIR")
    stored = _stored(arguments.resume) if arguments.resume else None
    if stored is not None and not (arguments.config or arguments.smoke):
        source = f"{arguments.resume}/{RECORD}"
        read = functools.partial(configuration.override, stored, schema, source=source)
    else:
        source = arguments.config or str(default)
        read = functools.partial(configuration.load, source, schema, smoke=arguments.smoke)
    short = [] if expand is None else expand(read())
    config: dict[str, Any] = read(overrides=[*short, *arguments.overrides])
    configuration.check(config, schema, source=source)
    config = given_again(config, leaving_out="storage" if arguments.resume else "")
    before = configuration.complete(stored, schema) if stored is not None else config
    changes = configuration.diff(hidden(before), hidden(config), leaving_out=may_change)
    if changes:
        *most, last = may_change or [""]
        may = " and ".join(filter(None, [", ".join(most), last]))
        allowed = f"; {may} may change" * bool(may)
        raise Refused(
            f"--resume {arguments.resume}: the configuration is not that of the run:\n  "
            + "\n  ".join(changes)
            + f"\nGive --resume alone, or start a new run in another directory{allowed}."
        )
    return config


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where metrics go; a section of the config.

    Args:
        uri: of the MLflow store; null for ``MLFLOW_TRACKING_URI``, or else one ``mlflow.db`` in
            the launch directory.
        experiment: name of the MLflow experiment.
    """

    uri: str | None = None
    experiment: str = "raykb"


def _stored(directory: str) -> dict[str, Any]:
    """Return the configuration of the run in ``directory``, which is without secrets."""
    if "://" in directory and HIDDEN in directory:
        raise Refused(
            f"--resume {directory}: {HIDDEN} stands for what is not shown or kept; give it whole, "
            "or leave it out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    storage = open_storage(_absolute(directory))
    try:
        record = parsed(storage.read(RECORD))
        check_part(record["key"], "key")  # it names a folder of this host
        config: dict[str, Any] = dict(record["config"])
    except FileNotFoundError as error:
        raise Refused(
            f"--resume {directory}: there is no {RECORD}, so no run began here; start one with "
            "--out, or name the directory that the run printed"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(
            f"--resume {directory}: {RECORD} is damaged ({error!r}); bring it back from a copy, or "
            "start a new run in another directory"
        ) from error
    return config


def home() -> Path:
    """Return the launch directory; inside a Ray job, where it is temporary, ``~/raykb``."""
    return Path.home() / "raykb" if JOB_ENVIRONMENT in os.environ else Path.cwd()


def _absolute(where: str) -> str:
    return where if "://" in where else str(home() / Path(where).expanduser())


def _where(arguments: argparse.Namespace, config: Mapping[str, Any], name: str) -> Storage:
    """Return the run directory, which is the one to resume or is empty."""
    if arguments.resume:
        return open_storage(_absolute(arguments.resume))
    folder = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if arguments.out:
        storage = open_storage(_absolute(arguments.out))
    else:
        storage = open_storage(_absolute(config["storage"])).below(folder)
    if storage.exists(RECORD):
        raise Refused(
            f"--out {storage.uri}: a run began here; go on with it by --resume {storage.uri}, or "
            "name another directory"
        )
    if isinstance(storage, LocalStorage) and storage.folder.exists():
        if not storage.folder.is_dir():
            raise Refused(f"--out {storage.uri}: is a file; name a directory")
        if any(storage.folder.iterdir()):
            raise Refused(f"--out {storage.uri}: is not empty; name another directory")
    return storage


def _show_plan(config: Mapping[str, Any], phases: Sequence[Phase]) -> None:
    """Print what a run would do; refuse what this host could not do."""
    print(configuration.dump(hidden(config)), end="")
    address = cluster_address()
    nodes = resources.this_host()
    print(f"\n# plan, on {redacted(address or '') or 'this host: ' + resources.describe(nodes)}")
    for phase in phases:
        print(f"#   {phase.name}: {phase.units} x {resources.needs(phase)}")
    if address is None:
        for name, count in resources.plan(phases, nodes).items():
            print(f"#   {name}: {count} at once")
    else:
        print("#   what fits is known once the run has connected")


def _run(
    script: Callable[[Session, ReadyT], None],
    ready: ReadyT,
    name: str,
    config: dict[str, Any],
    address: str | None,
    storage: Storage,
) -> int:
    """Set up everything around ``script``, run it, and close everything in order."""
    with locked(storage) as held, contextlib.ExitStack() as stack:
        for half in held.sweep():
            print(f"{name}: {half} was begun by a writer that died; removed", file=sys.stderr)
        record = _begin(held, name, config)
        uri, files = record["tracking_uri"], files_of(storage, record["key"])
        print(f"{name}: run directory {redacted(storage.uri)}", file=sys.stderr, flush=True)
        experiment = build(Tracking, config["tracking"]).experiment
        tracker = Tracker(uri, experiment, spool=files / "tracking", patience_s=heir.LIMIT_S)
        parent = _parent(tracker, record, name, config, storage)
        written: list[str] = []
        status: Status = "FAILED"
        code = EXIT_FAILED
        stop = Stop()
        told = threading.Lock()

        of_ray = JOB_ENVIRONMENT in os.environ  # which kills a job 3 s after it asked it to stop

        def close(status: Status) -> None:
            tracker.close(status, wait_s=2.0 if of_ray and status == "KILLED" else 10.0)

        def tell(code: int) -> None:
            if told.acquire(blocking=False):
                with _somebody_may_listen():
                    _last_words(name, storage, written, uri, code, parent.page())

        def begin_to_end() -> None:
            if of_ray:
                heir.appoint(files / "tracking", uri)

        def end_anyway(code: int) -> None:
            close("KILLED")
            tell(code)

        def head_lost(why: str) -> None:
            if not told.locked():
                parent.text(why, "error.txt")
                print(f"{name}: {why}", file=sys.stderr)
                close("FAILED")
                tell(EXIT_FAILED)
            sys.stdout.flush()
            os._exit(code)  # what it ends with, also if Ray's own end has no end

        stack.enter_context(stop.within(end_anyway, first=begin_to_end))
        look = stack.enter_context(watched_head(head_lost))
        try:
            with stop.handles():
                stack.enter_context(connected(address))
                look(ray.get_runtime_context().gcs_address)
                with stop.handles():  # again, since Ray sets its own
                    awaited(ready.phases)
                    patience_s = max(LEFT_S, limit_s())
                    parallel = Plan(ready.phases, say=_say, patience_s=patience_s)
                    check_shared(storage, RECORD, ray.util.get_node_ip_address(), ray.nodes())
                    session = Session(
                        config, record["config"], held, parallel, parent, tracker, files, written
                    )
                    script(session, ready)
            status, code = "FINISHED", EXIT_HOLES if session.holes else 0
        except (Interrupted, Exception) as error:
            if stop.signal:  # what Ray's own code makes of the interruption may have another name
                status, code = "KILLED", 128 + stop.signal.number
            elif isinstance(error, ResourceError | Refused | LedgerError):
                parent.text(str(error), "error.txt")
                raise
            else:
                parent.text(why := _failure(error, name), "error.txt")
                print(redacted(why), file=sys.stderr)
        finally:  # before Ray, which takes longer to end than a stopped job is given
            close(status)
        tell(code)
        return code


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parent(
    tracker: Tracker,
    record: Mapping[str, Any],
    name: str,
    config: Mapping[str, Any],
    storage: Storage,
) -> Run:
    """Return the run's own run in the tracker, which knows how it began and what changed since."""
    parent = tracker.run(
        record["key"],
        name=Path(storage.uri.partition("?")[0]).name,
        params=configuration.flatten(record["config"]),  # MLflow has them once and for all
        tags=environment_tags() | {"raykb.script": name, "raykb.storage": redacted(storage.uri)},
    )
    if changes := configuration.diff(hidden(record["config"]), hidden(config)):
        parent.tags({"raykb.changed": "; ".join(changes)})
    parent.text(configuration.dump(hidden(config)), "config.yaml")
    parent.view(LABEL)
    return parent


def _failure(error: BaseException, name: str) -> str:
    """Say why a run failed: in a line where that is known to be no bug, else with a traceback."""
    known = [each for each in causes(error) if isinstance(each, _NO_BUGS)]
    return f"{name}: {known[0]}" if known else "".join(traceback.format_exception(error)).rstrip()


@contextlib.contextmanager
def _somebody_may_listen() -> Iterator[None]:
    """Do without a terminal that is gone, also when Python flushes what is left at its end."""
    try:
        yield
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _last_words(
    name: str, storage: Storage, written: list[str], uri: str, code: int, page: str | None
) -> None:
    """Say how to go on if the run did not end, and where everything is."""
    where = redacted(storage.uri)
    if code > 128:
        print(f"\n{name}: stopped by {signal.Signals(code - 128).name}", file=sys.stderr)
    if code:
        python, script = shortened(sys.executable), shortened(sys.argv[0])
        resume = shlex.join([python, script, "--resume", where])
        left_out = f"\n({HIDDEN} is to be given again)" * (where != storage.uri)
        print(
            f"{name}: nothing finished is lost; go on with\n  {resume}{left_out}", file=sys.stderr
        )
    print(f"\nfiles           {', '.join(written) or 'none yet'}")
    print(f"run directory   {where}\nMLflow          {redacted(uri)}")
    program = Path(sys.executable).with_name("mlflow")  # the environment need not be activated
    command = ui_command(uri)
    if command.startswith("mlflow ") and program.exists():
        command = shortened(str(program)) + command.removeprefix("mlflow")
    print(f"open the UI     {command}")
    if page:
        print(f"its charts      {page}")


def shortened(path: str) -> str:
    """Return ``path`` as one would type it here: relative if it is below the launch directory."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _begin(storage: Storage, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Write the record of a new run, or read that of the resumed one; return it.

    A database is recorded, so that a run resumed from another folder goes on where it was; a
    server is not. No secret is: a resumed run takes them again from where the user gives them.
    """
    if not storage.exists(RECORD):
        record = {"schema": 1, "key": uuid.uuid4().hex, "script": name, "config": hidden(config)}
        uri = resolve_uri(config["tracking"].get("uri"), launch_dir=home())
        kept = uri.startswith("sqlite:") and redacted(uri) == uri
        record["tracking_uri"] = uri if kept else None
        storage.write(RECORD, json.dumps(record, indent=1).encode())
    stored: dict[str, Any] = parsed(storage.read(RECORD))
    stored["tracking_uri"] = stored["tracking_uri"] or resolve_uri(
        config["tracking"].get("uri"), launch_dir=home()
    )
    return stored


def files_of(storage: Storage, key: str) -> Path:
    """Return the folder of this host for the tracker: the run directory if it is one."""
    return (
        storage.folder
        if isinstance(storage, LocalStorage)
        else Path.home() / "raykb" / "remote" / key
    )
