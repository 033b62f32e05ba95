"""The coordinator's side of the session processes: start, requests, connections, end."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerProcess

from minga.messages import Push
from minga.ps import session as session_process
from minga.ps.members import Member
from minga.ps.parameters import SLOTS, SharedParameters
from minga.ps.requests import Reply, Request, decode_request
from minga.ps.session import SessionSpec
from minga.timing import SESSION_UP_S
from minga.transport.door import JoinStream
from minga.transport.stream import (
    SESSION_ID_CHARS,
    encode_frame,
    read_frame,
)

FROZEN_LOOKS = 10
"""Consecutive checks, a second apart, at which a session holds the lock before it is killed."""

Answering = Callable[["Handle", Request], Awaitable[Reply]]


@dataclass(slots=True)
class Pending:
    """An admitted push without a report so far."""

    push: int
    message: Push


class Handle:
    """The coordinator's handle of one session process."""

    def __init__(self, spec: SessionSpec, member: Member) -> None:
        self.spec = spec
        self.member = member
        self.pending: Pending | None = None
        self.port = 0
        self.ready = asyncio.Event()
        """The RPC agent listens."""
        self.in_use = asyncio.Event()
        """The worker has called."""
        self.over = asyncio.Event()
        """The process is gone, or about to be killed."""
        self.failure = ""
        """Why the coordinator ended it."""
        self.process: ForkServerProcess
        self._line, self._their_line = socket.socketpair()
        self._descriptors, self._their_descriptors = socket.socketpair()
        self._descriptors.setblocking(False)  # a frozen session must not stop the event loop

    def start(self, parameters: SharedParameters) -> None:
        """Fork the process (blocking: the first one waits for torch to load)."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([session_process.__name__])
        self.process = context.Process(
            target=session_process.main,
            args=(self.spec, parameters, self._their_line, self._their_descriptors),
            name=f"session-{self.member.rank}.{self.member.generation}",
            daemon=True,
        )
        self.process.start()
        self._their_line.close()
        self._their_descriptors.close()

    def pass_on(self, raw: socket.socket) -> None:
        """Give the process a worker's connection. Raises OSError when it is gone or frozen."""
        socket.send_fds(self._descriptors, [b"\0"], [raw.fileno()])
        raw.close()

    async def serve(self, answer: Answering) -> None:
        """Answer the process's requests until it ends."""
        reader, writer = await asyncio.open_unix_connection(sock=self._line)
        with contextlib.suppress(OSError, EOFError), contextlib.closing(writer):
            while True:
                asked = decode_request(await read_frame(reader))
                writer.write(encode_frame(await answer(self, asked)))
                await writer.drain()

    @property
    def pid(self) -> int | None:
        """The process, or None."""
        with contextlib.suppress(ValueError, AttributeError):
            return self.process.pid
        return None

    def peers(self) -> list[str]:
        """Return who is connected to the process's RPC port on loopback (blocking)."""
        import psutil

        found = set()
        with contextlib.suppress(psutil.Error, OSError):
            for each in psutil.net_connections("tcp"):
                if each.raddr and each.raddr.port == self.port and each.pid != self.pid:
                    found.add(f"process {each.pid or 'of another user'}")
        return sorted(found)

    def kill(self) -> None:
        """End the process now."""
        with contextlib.suppress(ValueError, AttributeError):
            self.process.kill()

    def reap(self) -> None:
        """Free what the ended process leaves: its zombie, and this side of its sockets."""
        self.kill()
        with contextlib.suppress(ValueError, AttributeError):
            self.process.join(timeout=5)
            self.process.close()
        self._descriptors.close()


class Sessions:
    """All session processes by id.

    Args:
        template: common to all sessions; without id, key, slot and host.
        answer: answers a session's request.
        ended: called on the event loop when a session's process is gone and its unfinished
            push is complete.
    """

    def __init__(
        self,
        template: SessionSpec,
        parameters: SharedParameters,
        answer: Answering,
        ended: Callable[[Handle], None],
    ) -> None:
        self._template = template
        self._parameters = parameters
        self._answer = answer
        self._ended = ended
        self._handles: dict[str, Handle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._seen = (0, 0)
        self._looks = 0

    def handles(self) -> list[Handle]:
        """Return the live sessions."""
        return list(self._handles.values())

    async def start(self, member: Member) -> Handle:
        """Start a session for this worker and return when its RPC agent listens.

        Raises:
            TimeoutError: it was not up within SESSION_UP_S, and was killed.
        """
        used = {handle.spec.slot for handle in self._handles.values()}
        spec = replace(
            self._template,
            id=secrets.token_hex(SESSION_ID_CHARS // 2),
            key=secrets.token_hex(32),
            slot=next(slot for slot in range(SLOTS) if slot not in used),
            host=member.host,
        )
        handle = Handle(spec, member)
        self._handles[spec.id] = handle
        task = asyncio.create_task(self._live(handle))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await self.reached(handle, handle.ready)
        return handle

    async def reached(
        self, handle: Handle, point: asyncio.Event, join: JoinStream | None = None
    ) -> None:
        """Wait until a session reaches ``point``; else kill it and raise.

        Args:
            handle: of the session.
            point: one of its events.
            join: of its worker, which keeps it open until it uses the session.

        Raises:
            TimeoutError: after SESSION_UP_S.
            ConnectionError: the session's process ended, or its worker did.
        """
        waits = [point.wait(), handle.over.wait(), *([join.ended()] if join is not None else [])]
        tasks = [asyncio.ensure_future(each) for each in waits]
        try:
            await asyncio.wait(tasks, timeout=SESSION_UP_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if point.is_set():
            return
        ended = handle.over.is_set()
        handle.kill()
        if ended:
            raise ConnectionError("the session's process ended")
        if join is not None and not tasks[-1].cancelled():
            raise ConnectionError("the worker ended before it used its session")
        raise TimeoutError(f"the session was not in use after {SESSION_UP_S:g} s")

    def pass_on(self, session: str, raw: socket.socket, host: str) -> bool:
        """Pass a connection to its session; False for an unknown session or another host."""
        handle = self._handles.get(session)
        if handle is None or host != handle.spec.host:
            return False
        try:
            handle.pass_on(raw)
        except OSError:
            return False
        return True

    async def all_ended(self, timeout_s: float) -> None:
        """Return when no session is left, or after ``timeout_s``."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    def kill_frozen(self) -> Handle | None:
        """Kill a session that is frozen inside the lock, for which all others wait.

        Checks are counted, not seconds: on a PC that slept, all processes were frozen alike.
        """
        holder = self._parameters.holder()
        self._looks = self._looks + 1 if holder == self._seen and holder[0] else 0
        self._seen = holder
        if self._looks < FROZEN_LOOKS:
            return None
        self._looks = 0
        frozen = next((each for each in self.handles() if each.pid == holder[0]), None)
        if frozen is not None:
            frozen.kill()
        return frozen

    def kill_all(self) -> None:
        """End every session process now."""
        for handle in self.handles():
            handle.kill()

    async def _live(self, handle: Handle) -> None:
        try:
            await asyncio.to_thread(handle.start, self._parameters)
            await handle.serve(self._answer)
        except (ValueError, MemoryError) as error:
            handle.failure = str(error)
        finally:
            handle.over.set()
            await asyncio.to_thread(self._clean_up, handle)
            # settled in the same step: until then a capture finds the handle
            del self._handles[handle.spec.id]
            self._ended(handle)

    def _clean_up(self, handle: Handle) -> None:
        """Free the process's resources, including its lock; blocks while others hold the lock."""
        handle.reap()
        self._parameters.repair()
