"""A run of a ps without its processes: sessions are stand-ins, everything else is the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from minga import messages
from minga.algorithm.codec import make_codec
from minga.data.facts import DataFacts
from minga.data.leases import Span
from minga.observe.folder import RunFolder
from minga.ps import requests, sessions
from minga.ps.bookkeeper import Bookkeeper
from minga.ps.parameters import SharedParameters, Update
from minga.ps.run_state import RunState
from minga.ps.session import SessionSpec
from minga.ps.sessions import Handle, Sessions
from minga.settings.sources import resolve_settings

FACTS = DataFacts(train=1000, val=100, classes=10, class_hash="", image_size=8)
SPEC = SessionSpec("", "", 0, "127.0.0.1", "none", 1.0, None, 0, 0, identity=None)
HELLO = messages.Hello(protocol=0, uuid="ab", name="one")


class StandIn(Handle):
    """A session whose process ends when it is told to."""

    def start(self, parameters: SharedParameters) -> None:
        self.killed = False

    async def serve(self, answer: sessions.Answering) -> None:
        self.ready.set()
        await self.over.wait()

    def kill(self) -> None:
        super().kill()
        self.killed = True
        self.over.set()

    def reap(self) -> None:
        for end in (self._line, self._their_line, self._descriptors, self._their_descriptors):
            end.close()


class Run:
    """A run with one worker, which has been granted a push."""

    def __init__(self, folder: Path) -> None:
        settings = resolve_settings(None, {"model.name": "small-cnn"}, {}).settings
        self.folder = RunFolder.create(folder / "runs", "run")
        self.state = RunState(settings, self.folder, None)
        self.books: Bookkeeper = self.state.prepare(FACTS, 1)
        self.parameters = self.books.parameters

    async def grant(self) -> None:
        """Start a session and let its worker push once."""
        books = self.books
        self.sessions = Sessions(SPEC, self.parameters, books.answer_async, books.on_session_end)
        member = self.state.members.admit(HELLO, "127.0.0.1", 0.0)
        handle = await self.sessions.start(member)
        assert isinstance(handle, StandIn)
        self.handle = handle
        answer = books.answer(handle, requests.AskWork())
        lease = answer.work.leases[0]
        self.span = Span(lease.id, lease.epoch, lease.start, lease.stop)
        self.samples = self.span.samples
        message = messages.Push(sequence=1, base_version=0, progress=[self.span], loss=1.0)
        granted = books.answer(handle, requests.Admit(push=message))
        assert isinstance(granted, requests.Grant)
        self.push = granted.push

    def apply(self) -> None:
        """Do what the session's process would."""
        codec = make_codec("none", self.parameters.weights)
        update = Update(
            payload=torch.zeros(codec.nbytes, dtype=torch.uint8),
            codec="none",
            scale=1.0,
            buffers=torch.zeros(self.parameters.buffers),
            buffer_weight=0.5,
        )
        self.parameters.apply(update, push_id=self.push, slot=self.handle.spec.slot)

    def die_in_mid_apply(self) -> None:
        """Leave the record of a push that counts and is not in the weights yet."""
        self.parameters._finish = lambda: None
        self.apply()
        del self.parameters._finish

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.folder.path / "events.jsonl").read_text().splitlines()
        return [event for line in lines if (event := json.loads(line))["kind"] == kind]

    def journal(self) -> int:
        return len((self.folder.path / "journal.jsonl").read_text().splitlines())
