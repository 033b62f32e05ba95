"""A plain two-way TCP copy: what the links carry when nothing else is in the way.

python -m lanbench.plain listen PEERS            one stream to each, both ways at once
python -m lanbench.plain ADDRESS
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

PORT, SECONDS, WARM_S = 29600, 4.0, 1.0
_PIECE = bytes(256 * 1024)


def both_ways(stream: socket.socket, received: list[int]) -> None:
    """Send and receive until the other side ends."""

    def send() -> None:
        try:
            while True:
                stream.sendall(_PIECE)
        except OSError:
            return

    threading.Thread(target=send, daemon=True).start()
    buffer = memoryview(bytearray(len(_PIECE)))
    try:
        while count := stream.recv_into(buffer):
            received[0] += count
    except OSError:
        return


def count(received: list[list[int]]) -> None:
    """Print bytes per second that came in, after a second of warming up."""
    time.sleep(WARM_S)
    before, began_s = sum(each[0] for each in received), time.monotonic()
    time.sleep(SECONDS)
    took_s = time.monotonic() - began_s
    print(json.dumps({"bytes_per_s": (sum(each[0] for each in received) - before) / took_s}))


def main(words: list[str]) -> None:
    if words[0] == "listen":
        with socket.create_server(("", PORT)) as listener:
            streams = [listener.accept()[0] for _ in range(int(words[1]))]
    else:
        deadline = time.monotonic() + 30
        while True:
            try:
                streams = [socket.create_connection((words[0], PORT), timeout=5)]
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        streams[0].settimeout(None)
    received = [[0] for _ in streams]
    for stream, into in zip(streams, received, strict=True):
        threading.Thread(target=both_ways, args=(stream, into), daemon=True).start()
    count(received)
    time.sleep(WARM_S)  # the others count still


if __name__ == "__main__":
    main(sys.argv[1:])
