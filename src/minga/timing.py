"""Timing constants that ps, sessions and workers must agree on, in seconds.

``tests/unit/test_timing.py`` holds the inequalities between them. A constant that concerns one
module alone stays in that module.
"""

from __future__ import annotations

# -- connecting
PROBE_S = 3.0
"""A worker's TCP probe of the ps's port."""
RETRY_S = 2.0
"""Between two probes."""
HANDSHAKE_S = 5.0
"""For preamble, TLS handshake and token, before the client has proved anything."""
STREAM_S = 30.0
"""For the handshake of a session's stream: its owner proved the token, and may be a busy PC."""

# -- joining
KEEP_PREPARING_S = 3.0
"""Between two messages of a worker that opens its data."""
PREPARE_S = 15.0
"""The ps drops a joining worker that is silent for longer."""
RPC_JOIN_S = 30.0
"""For both agents of a session to find each other."""
SESSION_UP_S = 60.0
"""The ps kills a session that is not in use by then; its worker waits no longer either."""
RANK_HELD_S = 20.0
"""A worker retries a held rank for so long: its holder may be dead and not yet noticed."""

# -- training
BEAT_S = 2.0
"""Between two heartbeats on a session's stream."""
SILENCE_S = 10.0
"""A peer without a heartbeat for so long is dead."""
REPORT_S = 5.0
"""Between two progress reports of a busy worker; they renew its leases."""
ACTIVE_S = 15.0
"""A worker heard from within this time counts as active (N_active)."""
ROUND_S = 1.0
"""A session that waits for its round asks again this often: it is alive."""
CAPTURE_S = 30.0
"""A checkpoint's capture waits for the ps's event loop for so long."""
CONTROL_S = 60.0
"""A session waits for the coordinator's answer for so long, then ends."""
CALL_S = 300.0
"""For one call of a worker: a slow link may need it; the heartbeat finds a dead peer sooner."""

# -- leaving
WORKER_FAREWELL_S = 5.0
"""For a failing worker's last call."""
PS_FAREWELL_S = 10.0
"""The ps waits for its sessions to end for so long."""
