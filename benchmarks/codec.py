"""What the int8 codec costs beside a plain copy of the bytes that each stage touches.

ResNet-50 sized vectors, one thread. Stages and copies are timed in turn, so that both see the
same machine; medians.

    .venv/bin/python benchmarks/codec.py         # writes benchmarks/results/codec.json
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from minga.algorithm.codec import encode_push, encode_reply, make_codec  # noqa: E402
from minga.ps.parameters import SharedParameters, Update  # noqa: E402

PARAMETERS, BUFFERS, ROUNDS = 25_557_032, 53_120, 25
_FP32 = 4
Stage = tuple[int, Callable[[], object]]


def stages() -> dict[str, Stage]:
    """Return each stage with the bytes that it reads and writes, every vector counted once.

    ``encode``         reads base, weights, residual; writes residual, payload
    ``decode+apply``   reads payload, weights; writes weights (at the ps, in shared memory)
    ``reply``          reads weights, reference; writes reference, payload
    """
    codec = make_codec("int8", PARAMETERS)
    base, local = torch.randn(PARAMETERS), torch.randn(PARAMETERS)
    residual, reference = torch.zeros(PARAMETERS), torch.randn(PARAMETERS)
    payload = torch.zeros(codec.nbytes, dtype=torch.uint8)
    reply = torch.zeros(codec.nbytes, dtype=torch.uint8)
    encode_push(codec, base, local, residual, payload)
    shared = SharedParameters.create(base, torch.zeros(BUFFERS))
    update = Update(
        payload=payload.clone(),
        codec="int8",
        scale=1e-3,
        buffers=torch.zeros(BUFFERS),
        buffer_weight=0.1,
    )
    vector = _FP32 * PARAMETERS
    return {
        "encode": (
            4 * vector + codec.nbytes,
            lambda: encode_push(codec, base, local, residual, payload),
        ),
        "decode+apply": (
            2 * vector + codec.nbytes,
            lambda: shared.apply(update, push_id=1, slot=0),
        ),
        "reply": (
            3 * vector + codec.nbytes,
            lambda: encode_reply(codec, shared.ahead, reference, reply),
        ),
    }


def copy_of(touched: int) -> Callable[[], object]:
    """Return a plain copy that touches so many bytes: it reads one half and writes the other."""
    source = torch.ones(touched // 2, dtype=torch.uint8)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def seconds(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


def main() -> None:
    torch.set_num_threads(1)
    pairs = {name: (call, copy_of(touched)) for name, (touched, call) in stages().items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
    for _ in range(ROUNDS + 1):
        for name, (call, copy) in pairs.items():
            times[name].append((seconds(call), seconds(copy)))
    rows = []
    for name, found in times.items():
        stage_s, copy_s = (statistics.median(each) for each in zip(*found[1:], strict=True))
        ratio = statistics.median(stage / copy for stage, copy in found[1:])
        rows.append({"stage": name, "stage_s": stage_s, "copy_s": copy_s, "ratio": ratio})
        print(f"{name:14} {1e3 * stage_s:6.1f} ms, a copy {1e3 * copy_s:6.1f} ms: {ratio:.2f} x")
    out = ROOT / "benchmarks" / "results" / "codec.json"
    out.parent.mkdir(exist_ok=True)
    about = {"model": "resnet50/1000", "codec": "int8", "threads": 1, "rounds": ROUNDS}
    about["load"] = os.getloadavg()[0]
    out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
