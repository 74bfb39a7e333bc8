"""Events, errors and addresses."""

from __future__ import annotations

import pytest

from dsv2.service.load.connection import Address, AddressError
from dsv2.service.load.events import MAX_LINE_BYTES, EventReader, MalformedError, error_message


def test_events_are_cut_anywhere() -> None:
    text = b': hi\r\n\r\nevent: x\r\ndata: {"a":\r\ndata:1}\r\n\r\nid: 7\n\ndata: [DONE]\n\nda'
    expected = [b'{"a":\n1}', b"[DONE]"]
    for size in range(1, len(text)):
        reader, found = EventReader(), []
        for place in range(0, len(text), size):
            found += reader.feed(text[place : place + size])
        assert found == expected
    reader = EventReader()
    assert reader.feed(b"x" * MAX_LINE_BYTES) == []
    with pytest.raises(MalformedError, match="a line is longer"):
        reader.feed(b"x")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "m", "code": 1}}', "m"),
        (b'{"error": "Unauthorized"}', "Unauthorized"),
        (b'{"message": "m"}', "m"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"object": "error", "code": 4}', '{"object": "error", "code": 4}'),
        (b"\xff plain", "\ufffd plain"),
    ],
)
def test_errors_in_the_shapes_of_several_servers(body: bytes, message: str) -> None:
    assert error_message(body) == message


def test_addresses() -> None:
    address = Address.parse("http://localhost:8000")
    assert (address.host, address.port, address.base) == ("localhost", 8000, "/v1")
    address = Address.parse("https://[::1]/some/v1/")
    assert (address.host, address.port, address.base) == ("::1", 443, "/some/v1")
    assert (address.authority, address.is_secure) == ("[::1]", True)
    for url in ("localhost:8000", "ftp://a", "http://", "http://a:port", "http://u:p@a",
                "http://a?b=c", "http://a b"):  # fmt: skip
        with pytest.raises(AddressError, match="url"):
            Address.parse(url)
