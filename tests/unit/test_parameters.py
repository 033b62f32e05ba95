"""Shared parameters: concurrent pushes, and pushes whose process is killed half-way."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier, Event
from typing import Any

import pytest
import torch
from torch import Tensor

from minga.algorithm.codec import CHUNK, CODECS, encode_push, make_codec
from minga.ps import parameters as module
from minga.ps.parameters import SharedParameters, Update

WEIGHTS, BUFFERS = CHUNK + 1000, 7
STAGES = 3  # two chunks of weights, one of buffers
STORES_BEFORE_RECORD, STORES = 5, 6 + 2 * STAGES + 3
SLOT = 3


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload(["torch"])
    return chosen


def start_values() -> tuple[Tensor, Tensor]:
    return torch.arange(WEIGHTS, dtype=torch.float32), torch.zeros(BUFFERS)


def shared() -> SharedParameters:
    return SharedParameters.create(*start_values())


def payload_of(values: Tensor, codec: str = "none") -> Tensor:
    encoder = make_codec(codec, values.numel())
    payload = torch.zeros(encoder.nbytes, dtype=torch.uint8)
    encode_push(encoder, values, torch.zeros_like(values), torch.zeros_like(values), payload)
    return payload


def push(
    parameters: SharedParameters, value: float = 4.0, push_id: int = 1, slot: int = SLOT
) -> int:
    """Push ``value`` everywhere at scale 1/2; buffers of 8 at weight 1/4."""
    update = Update(
        payload=payload_of(torch.full((WEIGHTS,), value)),
        codec="none",
        scale=0.5,
        buffers=torch.full((BUFFERS,), 8.0),
        buffer_weight=0.25,
    )
    return parameters.apply(update, push_id=push_id, slot=slot)


def state(parameters: SharedParameters) -> str:
    """Say whether the push of :func:`push` is in the weights never, once, or in part."""
    weights, buffers, version = parameters.snapshot()
    before, buffers_before = start_values()
    applied = parameters.applied(SLOT)
    if torch.equal(weights, before) and torch.equal(buffers, buffers_before):
        return "never" if (version, applied) == (0, 0) else "never, but counted"
    if torch.equal(weights, before - 2) and torch.equal(buffers, buffers_before + 2):
        return "once" if (version, applied) == (1, 1) else "once, but not counted"
    return "half"


# In child processes


def push_and_die(parameters: SharedParameters, stores: int) -> None:
    """Push, and die by SIGKILL right after so many stores to the header.

    What a kill between two stores may have left behind is made so, as bad as it can be: half a
    chunk copied, or a scratch chunk full of rubbish.
    """
    done = 0
    store = parameters._store

    def store_and_count(word: int, value: int) -> None:
        nonlocal done
        store(word, value)
        done += 1
        if done == stores:
            if word == module._PROGRESS:
                damage(parameters, value)
            os.kill(os.getpid(), signal.SIGKILL)

    parameters._store = store_and_count
    push(parameters)


def damage(parameters: SharedParameters, progress: int) -> None:
    k, scratch_is_ready = divmod(progress, 2)
    if not scratch_is_ready:
        parameters._at.scratch.fill_(torch.nan)
    else:
        _, vector, start, stop = parameters._stages[k]
        half = (stop - start) // 2
        vector[start : start + half].copy_(parameters._at.scratch[:half])


def push_many(
    parameters: SharedParameters, together: Barrier, value: float, count: int, slot: int
) -> None:
    together.wait(30)
    for number in range(1, count + 1):
        push(parameters, value, number, slot)


def push_without_lock(
    parameters: SharedParameters, half_way: Event | None = None, go_on: Event | None = None
) -> None:
    """Push without the lock between processes; stop at the first progress until told."""
    fcntl.lockf = lambda *_: None
    store = parameters._store

    def store_and_wait(word: int, value: int) -> None:
        store(word, value)
        if half_way and go_on and (word, value) == (module._PROGRESS, 1):
            half_way.set()
            go_on.wait(30)

    parameters._store = store_and_wait
    push(parameters)


def hold_the_lock(parameters: SharedParameters, held: Event) -> None:
    with parameters.locked():
        held.set()
        signal.pause()


def take_the_lock_at_once(parameters: SharedParameters) -> None:
    try:
        fcntl.lockf(parameters.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os._exit(1)


def run(context: ForkServerContext, target: Callable[..., None], *arguments: Any) -> int | None:
    process = context.Process(target=target, args=arguments)
    process.start()
    process.join()
    return process.exitcode


# Tests


@pytest.mark.parametrize("codec", CODECS)
def test_a_push_moves_the_weights_by_scale_times_what_it_says(codec: str) -> None:
    torch.manual_seed(0)
    weights, moved, buffers = torch.randn(WEIGHTS), torch.randn(WEIGHTS), torch.randn(BUFFERS)
    parameters = SharedParameters.create(weights, torch.ones(BUFFERS))
    payload = payload_of(moved, codec)

    update = Update(payload=payload, codec=codec, scale=0.3, buffers=buffers, buffer_weight=0.2)
    version = parameters.apply(update, push_id=9, slot=1023)

    tolerance = {"none": 1e-6, "bf16": 2e-2, "int8": 2e-2}[codec]
    now, buffers_now, version_now = parameters.snapshot()
    torch.testing.assert_close(now, weights - 0.3 * moved, rtol=0, atol=tolerance)
    torch.testing.assert_close(buffers_now, 0.8 + 0.2 * buffers)
    assert version == version_now == parameters.version == 1
    assert (parameters.applied(1023), parameters.applied(0)) == (9, 0)


def test_how_far_a_chunk_is_ahead_is_of_one_moment_and_stays_when_a_push_follows() -> None:
    parameters = shared()
    before = parameters.ahead(CHUNK, torch.ones(WEIGHTS - CHUNK))
    push(parameters)
    assert torch.equal(before, start_values()[0][CHUNK:] - 1)
    assert torch.equal(parameters.ahead(0, torch.ones(CHUNK)), start_values()[0][:CHUNK] - 3)


def test_the_frozen_copy_is_of_one_version_whatever_is_pushed_later() -> None:
    parameters = shared()
    push(parameters)
    frozen_at = parameters.freeze()
    push(parameters, push_id=2)

    assert (frozen_at, parameters.version) == (1, 2)
    assert torch.equal(parameters.frozen_weights(), start_values()[0] - 2)
    assert torch.equal(parameters.frozen_buffers(), torch.full((BUFFERS,), 2.0))

    parameters.set_frozen_buffers(torch.ones(BUFFERS))
    assert torch.equal(parameters.frozen_buffers(), torch.ones(BUFFERS))
    assert torch.equal(parameters.read_buffers(), torch.full((BUFFERS,), 3.5))


def test_loading_a_checkpoint_sets_everything() -> None:
    parameters = shared()
    parameters.load(torch.ones(WEIGHTS), torch.ones(BUFFERS), 41)
    weights, buffers, version = parameters.snapshot()
    assert bool(weights.eq(1).all() and buffers.eq(1).all())
    assert version == 41
    assert push(parameters) == 42


def test_a_model_without_buffers_is_fine() -> None:
    parameters = SharedParameters.create(torch.zeros(5), torch.empty(0))
    update = Update(
        payload=payload_of(torch.ones(5)),
        codec="none",
        scale=1.0,
        buffers=torch.empty(0),
        buffer_weight=1.0,
    )
    parameters.apply(update, push_id=1, slot=0)
    assert parameters.snapshot()[0].tolist() == [-1.0] * 5


def test_two_processes_push_at_once_and_nothing_is_lost(context: ForkServerContext) -> None:
    parameters, together = shared(), context.Barrier(2)
    processes = [
        context.Process(target=push_many, args=(parameters, together, value, 40, slot))
        for slot, value in enumerate((2.0, 4.0))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    weights, _, version = parameters.snapshot()
    assert version == 80
    assert torch.equal(weights, start_values()[0] - 40 * (1 + 2))
    assert (parameters.applied(0), parameters.applied(1)) == (40, 40)


def test_without_the_lock_a_push_amid_another_would_spoil_it(context: ForkServerContext) -> None:
    """The control of the test above."""
    parameters, half_way, go_on = shared(), context.Event(), context.Event()
    process = context.Process(target=push_without_lock, args=(parameters, half_way, go_on))
    process.start()
    assert half_way.wait(30)
    assert run(context, push_without_lock, parameters) == 0
    go_on.set()
    process.join()

    assert not torch.equal(parameters.snapshot()[0], start_values()[0] - 4)


@pytest.mark.parametrize("stores", range(1, STORES + 1))
def test_a_push_killed_after_any_store_is_there_once_or_never(
    stores: int, context: ForkServerContext
) -> None:
    parameters = shared()

    assert run(context, push_and_die, parameters, stores) == -signal.SIGKILL

    assert state(parameters) == ("never" if stores <= STORES_BEFORE_RECORD else "once")
    assert push(parameters, push_id=2) == parameters.version  # and the next push is as ever
    assert parameters.applied(SLOT) == 2


def test_there_is_no_store_after_the_last_one_tested(context: ForkServerContext) -> None:
    assert run(context, push_and_die, shared(), STORES + 1) == 0


@pytest.mark.parametrize("progress", range(1, 2 * STAGES))
def test_without_the_redo_a_killed_push_would_be_half_there(
    progress: int, context: ForkServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    parameters = shared()
    run(context, push_and_die, parameters, STORES_BEFORE_RECORD + 1 + progress)
    monkeypatch.setattr(SharedParameters, "_finish", lambda self: None)

    assert state(parameters) == "half"


def test_a_process_killed_while_it_completes_anothers_push_does_no_harm(
    context: ForkServerContext,
) -> None:
    parameters = shared()
    run(context, push_and_die, parameters, STORES_BEFORE_RECORD + 2)
    # The next one completes three more stores of the dead one's push and dies as well.
    run(context, push_and_die, parameters, 3)
    assert state(parameters) == "once"


def test_the_lock_is_free_at_once_when_its_holder_is_killed(context: ForkServerContext) -> None:
    parameters = shared()
    held = context.Event()
    process = context.Process(target=hold_the_lock, args=(parameters, held))
    process.start()
    assert held.wait(30)
    with pytest.raises(BlockingIOError):
        fcntl.lockf(parameters.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    process.kill()
    process.join()

    fcntl.lockf(parameters.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.lockf(parameters.fileno(), fcntl.LOCK_UN)
    assert push(parameters) == 1


def test_a_holder_may_take_the_lock_again_and_keeps_it_until_the_outermost_end(
    context: ForkServerContext,
) -> None:
    parameters = shared()
    with parameters.locked():
        assert push(parameters) == 1
        assert run(context, take_the_lock_at_once, parameters) == 1
    assert run(context, take_the_lock_at_once, parameters) == 0
