"""What a replica says besides :class:`dsv2.service.worker.wire.Batch`; all as MessagePack."""

from __future__ import annotations

import msgspec

from dsv2.service.worker.wire import Batch, Stats, Welcome, refusing


class Taken(msgspec.Struct, tag="taken", array_like=True, frozen=True):
    """First of each stream: the request has reached a replica, the process ``pid``."""

    replica: str
    pid: int


class Lost(msgspec.Struct, tag="lost", array_like=True, frozen=True):
    """Last of a stream whose engine process is gone."""

    reason: str


class Beat(msgspec.Struct, array_like=True, frozen=True):
    """A replica lives, and its engine is healthy or not."""

    replica: str
    pid: int
    is_healthy: bool
    stats: Stats


class Description(msgspec.Struct, array_like=True, frozen=True):
    """What a replica runs, and the files of its tokenizer, by name."""

    welcome: Welcome
    files: dict[str, bytes]


FromReplica = Batch | Taken | Lost

decode_from_replica = refusing(msgspec.msgpack.Decoder(FromReplica).decode)
decode_beat = refusing(msgspec.msgpack.Decoder(Beat).decode)
decode_description = refusing(msgspec.msgpack.Decoder(Description).decode)
