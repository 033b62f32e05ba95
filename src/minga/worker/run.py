"""A worker process: find the ps, join, train; rejoin when the link breaks."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from minga import __version__
from minga.console import Console
from minga.data.dataset import open_data
from minga.data.facts import DataFacts
from minga.errors import INTERRUPTED, Hint, MingaError, Refused
from minga.messages import Admission, Hello, Leave, Problem, Terms
from minga.observe.folder import RunFolder, utc_now, write_json
from minga.protocol import DONE, PROTOCOL_VERSION, loopback_id, machine_id
from minga.settings.options import WorkerOptions
from minga.settings.schema import Settings
from minga.tasks import zoo
from minga.timing import KEEP_PREPARING_S, RANK_HELD_S, WORKER_FAREWELL_S
from minga.transport import sandbox
from minga.transport.dial import Join, Link, NoAnswer, PortTaken, not_a_ps, wait_for_ps
from minga.transport.identity import Secret
from minga.watchdog import Watchdog
from minga.worker.diagnostics import bad_images, out_of_memory_explained
from minga.worker.replica import Replica, pick_device
from minga.worker.trainer import Hooks, Trainer

_BACK_OFF_S = (0.2, 1.0, 2.0, 5.0)
_SHOW_S = 10.0
_STILL_S = 30.0
"""Without a step, a turn or a probe of the ps; then the worker says where it stands."""


def run_worker(options: WorkerOptions) -> int:
    """Train in a run until it is done; return the exit status.

    Raises:
        MingaError: a failure that the user can fix (see docs/troubleshooting.md).
    """
    for name in ("RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)  # webdataset reads them
    with contextlib.closing(Worker(options)) as worker:
        return worker.run()


class Worker:
    """One worker process; rejoins after every failure of the link or the ps."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._secret = self._current_secret()
        self._address = (options.address, options.port)
        self._device = pick_device(options.device)
        self._uuid = uuid.uuid4().hex
        self._leaving = threading.Event()
        self._trainer: Trainer | None = None
        self._terms: Terms | None = None
        self._facts: DataFacts | None = None
        self._console = Console("worker")
        self._watchdog = Watchdog(_STILL_S, self._show_stall)
        self._started_s = time.monotonic()
        self._shown_s = 0.0
        self._silent_since_s: float | None = None
        """Since when the address accepts connections but does not answer."""

    def run(self) -> int:
        """Join, train, rejoin; return the exit status."""
        signal.signal(signal.SIGINT, self._leave)
        signal.signal(signal.SIGTERM, self._leave)
        if not (found := sandbox.available()).complete:
            self._console.warn(f"{sandbox.OPEN} ({found})")
        self._watchdog.start()
        failures = 0
        while True:
            wait_for_ps(self._address, self._options.wait_s, self._waiting)
            began_s = time.monotonic()
            try:
                outcome = self._session()
                failures = 0
            except PortTaken:
                continue
            except NoAnswer as error:
                self._wait_silent(error, began_s)
                continue
            except (OSError, ConnectionError) as error:
                if self._leaving.is_set():
                    outcome = "left"
                else:
                    pause_s = _BACK_OFF_S[min(failures, len(_BACK_OFF_S) - 1)]
                    failures += 1
                    self._console.line(lost=str(error), rejoin_in_s=pause_s)
                    self._leaving.wait(pause_s * random.uniform(0.8, 1.2))
                    continue
            if outcome == DONE:
                return self._end("done", 0)
            if outcome == "left":
                return self._end("left", INTERRUPTED)
            self._console.line(ps="stopped", waiting_s=self._options.wait_s)
            self._leaving.wait(_BACK_OFF_S[-1])

    def _wait_silent(self, error: NoAnswer, began_s: float) -> None:
        """Wait for a silent address; raise Unreachable after ``wait_s``."""
        self._silent_since_s = self._silent_since_s or began_s
        left_s = self._options.wait_s - (time.monotonic() - self._silent_since_s)
        if error.other or left_s <= 0:
            raise not_a_ps(self._address, error) from error
        self._waiting(str(error), left_s)
        self._leaving.wait(min(_BACK_OFF_S[-1], left_s))

    def _session(self) -> str:
        """Join once and train until this session ends; return why it ended."""
        with contextlib.ExitStack() as join:  # open for as long: the ps sees at once if we die
            return self._train(self._join(join))

    def _train(self, session: Admission) -> str:
        lost = threading.Event()
        reasons: list[str] = []

        def on_lost(reason: str) -> None:
            reasons.append(reason)
            lost.set()

        with Link(self._address, self._secret, session, lost, on_lost) as link:
            assert self._trainer is not None, "joining prepares the trainer"
            self._console.say(f"Worker {self._joined.rank} started...")
            try:
                with out_of_memory_explained(self._device, self._batch_size()):
                    return self._trainer.train(link)
            except ConnectionError as error:
                raise ConnectionError(reasons[0] if reasons else str(error)) from error
            except MingaError as error:
                with contextlib.suppress(OSError):  # the ps may be gone, too
                    failed = Problem(code=error.code, what=error.what)
                    link.call(Leave(failed=failed), timeout_s=WORKER_FAREWELL_S)
                raise

    def _join(self, keep: contextlib.ExitStack) -> Admission:
        """Join; ``keep`` holds the stream open. Waits for a held rank."""
        deadline = time.monotonic() + RANK_HELD_S
        while True:
            self._secret = self._current_secret()
            try:
                with contextlib.ExitStack() as stack:
                    join = stack.enter_context(Join(self._address, self._secret, self._hello()))
                    self._silent_since_s = None
                    self._accept(join.terms)
                    try:
                        memory = out_of_memory_explained(self._device, self._batch_size())
                        with self._preparing(join), memory:
                            self._prepare()
                    except MingaError as error:
                        join.fail(error)
                        raise
                    assert self._facts is not None, "_prepare() opened the data"
                    session = join.report_data(self._facts)
                    keep.push(stack.pop_all())
                    return session
            except Refused as error:
                if error.code != "rank-held" or time.monotonic() > deadline:
                    raise
                self._console.line(refused=error.what, retry_s=1)
                self._leaving.wait(1.0)

    def _current_secret(self) -> Secret:
        """Return the token; a file's may have been replaced."""
        if (path := self._options.token_file) is not None:
            return Secret.read(path)
        return Secret.parse(self._options.token)

    @property
    def _joined(self) -> Terms:
        assert self._terms is not None, "the ps welcomed this worker"
        return self._terms

    def _hello(self) -> Hello:
        options = self._options
        return Hello(
            protocol=PROTOCOL_VERSION,
            uuid=self._uuid,
            machine=machine_id(),
            loopback=loopback_id(),
            rank=self._terms.rank if self._terms is not None else options.rank,
            name=options.name,
            hostname=platform.node(),
            device=str(self._device),
            batch_size=options.batch_size,
            minga=__version__,
            torch=str(torch.__version__),
        )

    def _accept(self, terms: Terms) -> None:
        """Store the ps's terms; warn about those that differ from this worker's options."""
        options = self._options
        if self._terms is not None and terms.run_id != self._terms.run_id:
            self._drop_trainer()
        self._terms = terms
        epochs = terms.settings["train"]["epochs"]
        if options.epochs is not None and options.epochs != epochs:
            self._console.warn(f"EPOCHS={options.epochs} here, {epochs} at the ps: the ps decides")
        if options.world_size is not None and options.world_size != terms.world_size:
            self._console.warn(
                f"WORLD_SIZE={options.world_size} here, {terms.world_size} at the ps: "
                "it only sets how many the ps expects"
            )

    def _prepare(self) -> None:
        """Open the data and build the model, once per run."""
        if self._trainer is not None:
            return
        options, settings = self._options, self._settings()
        data_config = replace(
            settings.data,
            path=options.data or settings.data.path,
            val_path=options.val_data or settings.data.val_path,
            format=options.data_format or settings.data.format,
        )
        data = open_data(data_config, leaving=self._leaving.is_set)
        self._facts = data.facts
        self._trainer = Trainer(
            settings,
            data,
            replica=lambda: self._replica(settings, len(data.classes), data.image_size),
            batch_size=self._batch_size(),
            hooks=Hooks(self._leaving, self._progress, self._watchdog.beat),
        )

    def _settings(self) -> Settings:
        try:
            return Settings.from_dict(self._joined.settings)
        except TypeError as error:
            raise Refused(
                f"the ps has settings unknown to minga {__version__} on this PC: {error}",
                code="protocol-differs",
                hints=(Hint("the same version on both?", "minga --version"),),
            ) from error

    def _batch_size(self) -> int:
        return self._options.batch_size or int(self._joined.settings["train"]["batch_size"])

    def _replica(self, settings: Settings, classes: int, image_size: int) -> Replica:
        model = zoo.build_model(
            settings.model.name,
            classes,
            image_size,
            stem=settings.model.stem,
            seed=settings.train.seed,
        )
        return Replica(model, settings.optimizer, self._device)

    @contextlib.contextmanager
    def _preparing(self, join: Join) -> Iterator[None]:
        """Send keepalives to the ps while this worker prepares."""
        ready = threading.Event()

        def keep() -> None:
            with contextlib.suppress(OSError):
                while not ready.wait(KEEP_PREPARING_S):
                    join.keep()

        keeper = threading.Thread(target=keep, name="preparing", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ready.set()
            keeper.join()

    def _progress(self, loss: float, version: int) -> None:
        now_s = time.monotonic()
        if now_s - self._shown_s < _SHOW_S or self._trainer is None:
            return
        self._shown_s = now_s
        totals = self._trainer.totals
        self._console.line(
            version=version,
            samples=totals.samples,
            loss=round(loss, 4),
            samples_per_s=round(totals.samples / max(1e-9, totals.compute_s + totals.wait_s), 1),
            refused=totals.refused,
        )

    def _show_stall(self, place: str, seconds: float) -> None:
        self._console.line(still_in=place, for_s=round(seconds))

    def _waiting(self, reason: str, left_s: float) -> None:
        self._watchdog.beat()
        if self._leaving.is_set():
            raise KeyboardInterrupt
        host, port = self._address
        self._console.line(waiting_for=f"{host}:{port}", reason=reason, give_up_in_s=round(left_s))

    def _leave(self, *_: object) -> None:
        if self._leaving.is_set():
            os._exit(INTERRUPTED)  # the second time: now
        self._leaving.set()
        self._console.say("Leaving after this window; press Ctrl-C again to quit now.")

    def _end(self, outcome: str, status: int) -> int:
        if self._trainer is not None:
            try:
                where = f"Statistics: {self._write_stats(outcome, self._trainer)}"
            except OSError as error:  # a full or read-only disk; the ps has them, too
                self._console.warn(f"no statistics on this PC: {error}")
                where = "Statistics: at the ps"
            self._console.say(f"Worker {self._joined.rank}: {outcome}. {where}")
        self._drop_trainer()
        return status

    def _write_stats(self, outcome: str, trainer: Trainer) -> str:
        folder = RunFolder.create(self._options.runs, self._joined.run_id)
        path = folder.stats_file(f"worker{self._joined.rank}")
        facts: dict[str, Any] = {
            "schema": "minga.worker/1",
            "time": utc_now(),
            "run_id": self._joined.run_id,
            "role": "worker",
            "rank": self._joined.rank,
            "name": self._joined.name,
            "hostname": platform.node(),
            "device": str(self._device),
            "outcome": outcome,
            "wall_s": time.monotonic() - self._started_s,
            **asdict(trainer.totals),
            "bad_images": bad_images(trainer.data),
        }
        write_json(path, facts)
        return str(path)

    def close(self) -> None:
        """Stop this worker's threads, also after an error."""
        self._watchdog.close()
        self._drop_trainer()

    def _drop_trainer(self) -> None:
        if self._trainer is not None:
            self._trainer.close()
            self._trainer = None
