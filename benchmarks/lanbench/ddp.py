"""One worker of torch DDP over Gloo: a step, then the flat fp32 gradient averaged in buckets.

The buckets are those of DistributedDataParallel (25 MB). As there, they become ready one after the
other while the backward pass still runs, and are in flight together.

python -m lanbench.ddp MASTER RANK WORLD SUBJECT STEP_S
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from lanbench.fake_device import SUBJECTS, Subject
from lanbench.steps import told

BUCKET_BYTES = 25 * 1024 * 1024
BACKWARD = 2 / 3
"""Share of a step that is the backward pass."""


def average(buckets: Sequence[Tensor], began_s: float, step_s: float) -> None:
    """Average each bucket over all workers, from when it is ready in a step that began then."""
    works = []
    for number, bucket in enumerate(buckets, 1):
        ready_s = step_s * (1 - BACKWARD + BACKWARD * number / len(buckets))
        while (left_s := began_s + ready_s - time.monotonic()) > 0:
            time.sleep(left_s)
        works.append(dist.all_reduce(bucket, async_op=True))
    for work in works:
        work.wait()
    for bucket in buckets:
        bucket.div_(dist.get_world_size())


def main(rank: int, world: int, subject: Subject, step_s: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(minutes=10))
    gradient = torch.randn(subject.parameters)
    buckets = gradient.split(BUCKET_BYTES // 4)

    told(lambda: average(buckets, time.monotonic(), step_s))


if __name__ == "__main__":
    master, rank, world, subject, step_s = sys.argv[1:]
    os.environ.update(MASTER_ADDR=master, MASTER_PORT="29500")
    main(int(rank), int(world), SUBJECTS[subject], float(step_s))
