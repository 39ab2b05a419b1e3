"""Trials as tasks of a Ray cluster. Each runs in a scratch folder of its worker, whose files are sent home.

The folder of the comparison is written by the command alone, so machines need not share a file system; data files must
be at the same path on each of them.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from labo import interrupts, machine, tasks
from labo.errors import UserError, first_line
from labo.experiment.executor import MAX_ATTEMPTS, Record, UpdateJob, WorkerDied, run_job
from labo.records.storage import write_bytes
from labo.records.trial import RECORD, Job, Trial, remove_unfinished
from labo.tasks import file_limits

# Ray's own attempts to connect take minutes, and can end the process; both together stay under 15 seconds.
SECONDS_TO_CONNECT, SECONDS_TO_JOIN = 3.0, 9.0
_JOIN = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""

Files = dict[str, bytes]


@dataclass(frozen=True)
class RayCluster:
    """Where the tasks run.

    Args:
        address: HOST:PORT of a cluster or "auto"; "" takes $RAY_ADDRESS, else a cluster on this machine that lasts as
            long as the command.
        gpus_per_trial: may be a fraction; with 0 trials run on CPUs.
    """

    address: str = ""
    gpus_per_trial: float = 0.0

    def __post_init__(self) -> None:
        gpus = self.gpus_per_trial
        if not (0 <= gpus < 1 or float(gpus).is_integer()) or gpus < 0:
            raise UserError(f"Expected --gpus-per-trial from 0 to 1 or a whole number, but got {gpus}.")


class RayExecutor:
    """Runs jobs as tasks of Ray; a context manager. If the caller has started Ray, that cluster is used and kept.

    Args:
        cluster: where.
        most: how many trials run at a time; 0 for as many as the cluster has room for.
    """

    def __init__(self, cluster: RayCluster, most: int = 0) -> None:
        self.cluster, self.most = cluster, most
        self._teachers: dict[str, Any] = {}
        self._own = False

    def __enter__(self) -> RayExecutor:
        import ray

        self._own = not ray.is_initialized()
        if self._own:
            address = self.cluster.address or os.environ.get("RAY_ADDRESS", "")
            if address and address != "local":
                check_address(address)
                options: dict[str, Any] = {"address": address}
            else:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
                options = {"address": "local", "num_cpus": self.most or machine.cores(), "include_dashboard": False}
            with _sigterm_kept(), interrupts.ignored_by_children():
                ray.init(**options, log_to_driver=False, configure_logging=False)
        try:
            self._check_gpus(ray.cluster_resources().get("GPU", 0.0))
        except UserError:
            self._stop()
            raise
        gpus, work = self.cluster.gpus_per_trial, _worker_function(_installed()())
        self._task = ray.remote(max_retries=0, num_gpus=gpus)(work)  # attempts are counted here, as those of processes
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        import ray

        if self._own:
            ray.shutdown()  # which ends the tasks too

    def _check_gpus(self, available: float) -> None:
        gpus = self.cluster.gpus_per_trial
        if gpus > available:
            raise UserError(f"--gpus-per-trial asks for {gpus:g}, but the Ray cluster has {available:g} GPUs.")

    def run(self, jobs: Iterable[Job], update: UpdateJob) -> Iterator[tuple[Job, Record | WorkerDied]]:
        """Run all jobs and yield (job, record) as they finish; `update` is not called.

        Raises:
            UserError: a trial was refused, its code raised, or a worker has another version of labo or other data.
        """
        import ray

        waiting = list(jobs)
        attempts = dict.fromkeys((job.folder for job in waiting), 0)
        running: dict[Any, Job] = {}
        with interrupts.flag() as interrupted:
            while waiting or running:
                while waiting and (not self.most or len(running) < self.most):
                    job = waiting.pop(0)
                    running[self._submit(job)] = job
                done, _ = ray.wait(list(running), timeout=0.2)
                if interrupted():
                    raise KeyboardInterrupt
                if done:
                    done, _ = ray.wait(list(running), num_returns=len(running), timeout=0)
                outcomes = [(job, _outcome(job, task)) for task, job in [(task, running.pop(task)) for task in done]]
                # Results before errors: what is finished is recorded, whatever else went wrong.
                for job, outcome in sorted(outcomes, key=lambda pair: isinstance(pair[1], UserError)):
                    if isinstance(outcome, UserError):
                        raise outcome
                    attempts[job.folder] += 1
                    if isinstance(outcome, WorkerDied) and attempts[job.folder] < MAX_ATTEMPTS:
                        waiting.append(job)
                    else:
                        yield job, outcome

    def _submit(self, job: Job) -> Any:
        import ray

        teacher = job.trial.teacher_folder
        if teacher and teacher not in self._teachers:
            self._teachers[teacher] = ray.put(_pack(Path(teacher)))
        variables = {name: os.environ[name] for name in (file_limits.VARIABLE, "LABO_DATA") if name in os.environ}
        request = pickle.dumps((job, _pack(job.folder), os.getcwd(), variables))
        return self._task.options(num_cpus=job.trial.threads).remote(request, self._teachers.get(teacher))


def _outcome(job: Job, task: Any) -> Record | WorkerDied | UserError:
    """What became of a finished task, whose files are brought home."""
    import ray
    from ray import exceptions

    try:
        reply: Any = ray.get(task)
    except exceptions.RayTaskError as error:
        return UserError(f"A Ray worker cannot run trials: {first_line(error.cause)}.")
    except exceptions.RayError:
        return WorkerDied()
    if isinstance(reply, str):
        return UserError(reply)
    _bring_home(reply["files"], job.folder)
    return UserError(reply["error"]) if reply["error"] else reply["record"]


def _worker_function(expected: str) -> Callable[[bytes, Files | None], dict[str, Any] | str]:
    """What a worker runs. Pickled by value, as inner functions are: it must not need the labo that it looks at."""
    installed = _installed()

    def work(request: bytes, teacher: Files | None) -> dict[str, Any] | str:
        import socket

        try:
            version = installed()
        except ImportError as error:
            return f"The Ray worker on {socket.gethostname()} cannot import labo: {error}."
        if version != expected:
            return (
                f"The Ray worker on {socket.gethostname()} has labo {version}, but this command is labo {expected}: "
                "install the same version on every machine, and leave it unchanged while trials run."
            )
        from labo.experiment.ray_executor import run_request

        return run_request(request, teacher)

    return work


def _installed() -> Callable[[], str]:
    """A function that gives the version of the labo it finds, with a digest of its sources."""

    def installed() -> str:
        import hashlib
        from pathlib import Path

        import labo

        digest = hashlib.sha256()
        for path in sorted(Path(str(labo.__file__)).parent.rglob("*.py")):
            digest.update(path.read_bytes())
        return f"{labo.__version__} (sources {digest.hexdigest()[:8]})"

    return installed


def run_request(request: bytes, teacher: Files | None) -> dict[str, Any]:
    """In a worker: run a job in a scratch folder; returns its "record", its "files", and an "error" or None."""
    job, files, working_directory, variables = pickle.loads(request)
    os.environ.update(variables)
    if os.path.isdir(working_directory):  # the names of data files may be relative
        os.chdir(working_directory)
    with tempfile.TemporaryDirectory(prefix="labo-") as scratch:
        folder, teacher_folder = Path(scratch) / "trial", Path(scratch) / "teacher"
        trial: Trial = job.trial
        _unpack(files, folder)
        if teacher is not None:
            _unpack(teacher, teacher_folder)
            trial = replace(trial, teacher_folder=str(teacher_folder))
        record, error = None, None
        try:
            _check_data(trial)
            record = run_job(Job(trial, folder), lambda fraction: None)
        except UserError as refusal:
            error = str(refusal).replace(str(folder), str(job.folder))
            error = error.replace(str(teacher_folder), job.trial.teacher_folder)
        return {"record": record, "files": _pack(folder), "error": error}


def _check_data(trial: Trial) -> None:
    """Refuse data that are not those of the command."""
    host = socket.gethostname()
    try:
        data = _fingerprint(trial.task, json.dumps(trial.task_options, sort_keys=True))
    except UserError as error:
        raise UserError(f"The Ray worker on {host} cannot read the data of '{trial.task}': {error}") from error
    if data != trial.data:
        raise UserError(
            f"The Ray worker on {host} has other data for '{trial.task}': put the same files at the same path on every "
            "machine."
        )


@cache
def _fingerprint(task: str, options: str) -> str:
    return tasks.create(task, **json.loads(options)).fingerprint()


def _pack(folder: Path) -> Files:
    """The files in a folder by their paths relative to it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _unpack(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / name, content)


def _bring_home(files: Files, folder: Path) -> None:
    """Write the files of a trial into its folder, the record last: with it the trial counts as finished."""
    _unpack({name: content for name, content in files.items() if name != RECORD}, folder)
    if RECORD in files:
        _unpack({RECORD: files[RECORD]}, folder)
        remove_unfinished(folder)


def check_address(address: str) -> None:
    """Refuse the address of a cluster that does not answer, within 15 seconds.

    Raises:
        UserError: it has another form, nothing answers there, or this machine cannot join the cluster.
    """
    host, _, port = address.rpartition(":")
    if address != "auto" and (not host or not port.isdecimal() or "/" in host):
        raise UserError(
            f"Expected --address HOST:PORT or auto, on a machine of the cluster, but got '{address}' (`ray start` and "
            "`ray job submit` run the command there)."
        )
    if address != "auto":
        try:
            socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"No Ray cluster answers at {address}: {first_line(error)}.") from error
    command = [sys.executable, "-c", _JOIN, address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_JOIN, check=False)
    except subprocess.TimeoutExpired as error:
        if b"InvalidAuthToken" in (error.stderr or b""):  # Ray tries again for minutes
            raise UserError(
                f"The Ray cluster at {address} does not accept this machine's token: set RAY_AUTH_TOKEN to that of the "
                "cluster."
            ) from error
        raise UserError(f"No Ray cluster answers at {address}: no reply in {SECONDS_TO_JOIN:g} seconds.") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"Cannot join the Ray cluster at {address}: {lines[-1].rstrip(' .')}.")


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself: give it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
