"""Stands in for an engine process where only its life matters: no model, no torch, up at once.

Each request gets one token, and nothing more until its engine dies.

Its options' ``model`` says what it does: ``serves``, ``ends N`` with that status after it was
ready, ``fails N`` before it, ``never`` gets ready, ``stubborn`` does not stop, ``chatters`` first,
``goodbye``: gives a hundred tokens more and exits.
"""

from __future__ import annotations

import os
import sys
import time

import msgspec
import zmq

from dsv2.service.worker.heartbeat import Beats
from dsv2.service.worker.main import Lifeline, Reports
from dsv2.service.worker.process import WorkerOptions, addresses
from dsv2.service.worker.wire import (
    Batch,
    FromEngine,
    Stats,
    Submit,
    Tokens,
    Welcome,
    decode_to_engine,
    encode,
)


class Loop:
    """A step loop that does nothing."""

    age = 0.0
    stats = Stats(steps=1)


def main() -> None:
    lifeline, report = Lifeline(0), Reports(1)
    options = msgspec.json.decode(lifeline.line() or b"", type=WorkerOptions)
    act, _, status = options.model.partition(" ")
    if act == "fails":
        report("failed", "it was told to")
        os._exit(int(status))
    if act == "never":
        time.sleep(60)
    if act == "chatters":
        os.write(1, b"not a report\n")
    where = addresses(options.folder, options.name)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(where.requests)
    with Beats(context, where.heartbeat, Loop()):
        report("ready")
        if act == "ends":
            time.sleep(0.1)
            os._exit(int(status))
        if act != "stubborn":
            lifeline.watch(lambda seconds: os._exit(0))
        while True:
            identity, frame = router.recv_multipart()
            message = decode_to_engine(frame)
            answer: FromEngine = Welcome("nothing", 512, 512, 20, os.getpid())
            if isinstance(message, Submit):
                answer = Batch([Tokens(message.id, [5])])
            router.send_multipart([identity, encode(answer)])
            if isinstance(message, Submit) and act == "goodbye":
                for _ in range(100):
                    router.send_multipart([identity, encode(answer)])
                last = Batch([Tokens(message.id, [6], finish_reason="stop")])
                router.send_multipart([identity, encode(last)])
                break
    router.close(linger=2000)
    context.term()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
