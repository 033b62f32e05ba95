"""A minga worker whose local step is a wait: real join, session, TLS, trainer, exchange.

python -m lanbench.minga_worker ADDRESS PORT TOKEN RANK SUBJECT STEP_S
"""

from __future__ import annotations

import platform
import sys
import threading
import uuid

import torch

from lanbench.fake_device import SUBJECTS, Replica, Subject, image_data
from minga import __version__
from minga.messages import Hello
from minga.protocol import PROTOCOL_VERSION, loopback_id, machine_id
from minga.settings.schema import Settings
from minga.transport.dial import Join, Link, wait_for_ps
from minga.transport.identity import Secret
from minga.worker.trainer import Hooks, Trainer

BATCH = 128


def trainer_of(settings: Settings, subject: Subject, step_s: float) -> Trainer:
    """Return the product's trainer with the stand-ins in it."""
    return Trainer(
        settings,
        image_data(subject),
        replica=lambda: Replica(subject, step_s),
        batch_size=BATCH,
        hooks=Hooks(threading.Event(), progress=lambda loss, version: None, beat=lambda: None),
    )


def main(address: tuple[str, int], token: str, rank: int, subject: Subject, step_s: float) -> None:
    torch.set_num_threads(1)
    secret = Secret.parse(token)
    hello = Hello(
        protocol=PROTOCOL_VERSION,
        uuid=uuid.uuid4().hex,
        machine=machine_id(),
        loopback=loopback_id(),
        rank=rank,
        hostname=platform.node(),
        device="stand-in",
        minga=__version__,
        torch=str(torch.__version__),
    )
    wait_for_ps(address, 120, lambda reason, left_s: None)
    with Join(address, secret, hello) as join:
        settings = Settings.from_dict(join.terms.settings)
        trainer = trainer_of(settings, subject, step_s)
        data = image_data(subject)
        session = join.report_data(data.facts)
        with Link(address, secret, session, threading.Event(), print) as link:
            print(trainer.train(link))


if __name__ == "__main__":
    host, port, token, rank, subject, step_s = sys.argv[1:]
    main((host, int(port)), token, int(rank), SUBJECTS[subject], float(step_s))
