"""The workers of a run: ranks, generations, which are alive, which are active.

A worker process has a uuid and its PC a machine id. It takes a rank over only when the
holder is dead; a rank that a live worker holds is refused, naming the holder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from minga.algorithm.pacing import FIRST_STEPS, RecentPaces
from minga.errors import Hint, Refused
from minga.messages import Hello
from minga.observe.events import Thinned
from minga.timing import ACTIVE_S
from minga.transport.tokens import SHARED, Token

JOINING, TRAINING, LOST, LEFT = "joining", "training", "lost", "left"

_KEPT = ("rank", "uuid", "name", "host", "hostname", "device", "generation", "token")
_ACTIVE_WINDOWS = 3
_LEAST_WINDOW_S = 0.01
"""No worker is believed to push more often."""


@dataclass(slots=True)
class Totals:
    """Totals of one rank over all its generations."""

    samples: int = 0
    pushes: int = 0
    refused: int = 0
    staleness_sum: int = 0
    staleness_max: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    compute_s: float = 0.0
    wait_s: float = 0.0
    session_cpu_s: float = 0.0
    joins: int = 0


@dataclass(slots=True)
class Member:
    """One worker process as the ps knows it."""

    rank: int
    uuid: str
    name: str
    host: str
    hostname: str
    device: str
    generation: int
    token: str = SHARED
    """The name of the token that it proved."""
    token_id: str = ""
    """Empty before it rejoins a resumed run."""
    state: str = JOINING
    heard_s: float = 0.0
    window_s: float = 0.0
    last_loss: float | None = None
    batch_size: int | None = None
    steps: int = FIRST_STEPS
    """H of its next windows."""
    paces: RecentPaces = field(default_factory=RecentPaces)
    """Measured times of its last windows; empty before the second push."""
    rate: float = 0.0
    """Samples per second over the last pushes."""
    totals: Totals = field(default_factory=Totals)
    pushed: Thinned = field(default_factory=Thinned)
    refused: Thinned = field(default_factory=Thinned)
    """Which of its pushes are written as events."""
    misfits: int = 0
    """Malformed messages."""
    spoilt: int = 0
    """Pushes in a row that were refused for their content."""

    @property
    def identity(self) -> dict[str, Any]:
        """Name, rank and host, as the events about this worker have them."""
        return {"worker": self.name, "rank": self.rank, "host": self.host}

    @property
    def owner(self) -> str:
        """The name under which the ledger knows this generation's leases."""
        return f"{self.rank}.{self.generation}"


class Members:
    """All workers that ever joined, by rank. Not thread-safe."""

    def __init__(self) -> None:
        self._by_rank: dict[int, Member] = {}
        self._sent_away: dict[str, str] = {}
        self._generation = 0

    def __iter__(self) -> Iterator[Member]:
        """Iterate in the order of ranks."""
        return iter([self._by_rank[rank] for rank in sorted(self._by_rank)])

    def admit(self, hello: Hello, host: str, now_s: float, token: Token | None = None) -> Member:
        """Give a joining worker its rank.

        Args:
            hello: its description of itself.
            host: its address.
            now_s: on the monotonic clock.
            token: that it proved; None stands for the shared one.

        Raises:
            Refused: ``rank-held`` by a live worker, ``rank-invalid``, ``sent-away``, or
                ``uuid-held`` by a worker with another PC's token.
        """
        token_name = token.name if token else SHARED
        self._require_own(hello.uuid, token_name)
        if (why := self._sent_away.get(hello.uuid)) is not None:
            raise Refused(
                f"the ps sent this worker away: {why}",
                code="sent-away",
                hints=(
                    Hint("the same version on both?", "minga --version"),
                    Hint("its device, memory and data are sound? then", "start it again"),
                ),
            )
        rank = self._rank_of(hello.uuid, hello.rank)
        holder = self._by_rank.get(rank)
        if holder is not None and holder.uuid != hello.uuid and self._alive(holder):
            raise Refused(
                f"rank {rank} is held by {holder.name} on {holder.host}, which is alive",
                code="rank-held",
                hints=(Hint("take another", "leave WORKER_RANK empty: the ps assigns a free one"),),
            )
        self._generation += 1
        member = Member(
            rank=rank,
            uuid=hello.uuid,
            name=hello.name or f"worker-{rank:02d}",
            host=host,
            hostname=hello.hostname,
            device=hello.device,
            generation=self._generation,
            token=token_name,
            token_id=token.id if token else "",
            heard_s=now_s,
            batch_size=hello.batch_size,
            totals=holder.totals if holder else Totals(),
        )
        member.totals.joins += 1
        member.pushed = Thinned(member.totals.pushes)
        member.refused = Thinned(member.totals.refused)
        self._by_rank[rank] = member
        return member

    def send_away(self, member: Member, why: str) -> None:
        """Refuse this worker process from now on."""
        self._sent_away[member.uuid] = why

    def state(self) -> list[dict[str, Any]]:
        """Return each member's part of a checkpoint (plain types)."""
        return [
            {name: getattr(member, name) for name in _KEPT} | {"totals": asdict(member.totals)}
            for member in self
        ]

    def restore(self, state: list[dict[str, Any]], now_s: float) -> None:
        """Continue from :meth:`state`: each member is lost until it rejoins."""
        for kept in state:
            totals = Totals(**kept["totals"])
            member = Member(**{**kept, "totals": totals}, state=LOST, heard_s=now_s)
            self._by_rank[member.rank] = member
            self._generation = max(self._generation, member.generation)

    def pushes_per_s(self) -> float:
        """Return the pushes per second of all training workers together."""
        windows = [each.window_s for each in self if each.state == TRAINING and each.window_s]
        return sum(1 / max(window_s, _LEAST_WINDOW_S) for window_s in windows)

    def current(self, member: Member) -> bool:
        """Whether this generation still holds its rank."""
        return self._by_rank.get(member.rank) is member

    def active(self, now_s: float) -> int:
        """Return N_active: workers with a message in the last max(15 s, 3 windows); at least 1."""
        heard = sum(
            member.state == TRAINING
            and now_s - member.heard_s <= max(ACTIVE_S, _ACTIVE_WINDOWS * member.window_s)
            for member in self
        )
        return max(1, heard)

    def _require_own(self, uuid: str, token: str) -> None:
        for member in self:
            if member.uuid == uuid and member.token != token:
                raise Refused(
                    f"this worker process joined before with the token of {member.token}",
                    code="uuid-held",
                    hints=(Hint("start it again", "it then is a new worker"),),
                )

    def _rank_of(self, uuid: str, wanted: int | None) -> int:
        if wanted is not None:
            if wanted < 1:
                raise Refused(f"rank {wanted!r} is not 1, 2, 3 ...", code="rank-invalid")
            return wanted
        for member in self:
            if member.uuid == uuid:
                return member.rank
        rank = 1
        while (holder := self._by_rank.get(rank)) is not None and self._alive(holder):
            rank += 1
        return rank

    @staticmethod
    def _alive(member: Member) -> bool:
        return member.state in (JOINING, TRAINING)
