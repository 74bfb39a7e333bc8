"""What ``/openapi.json`` promises of the whole server is kept, whatever an administrator sends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from dsv2 import __version__
from dsv2.service.platform.office import Office
from dsv2.service.store import open_store
from dsv2.service.web.openapi import schema_of
from tests.service.platform.site import ORIGIN, Client, Site, add_person, make_whole_app

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]
ELSEWHERE = ("/v1/", "/beta/", "/anthropic/")
"""The inference API has a test of its own, and is this one's at its bare addresses."""
QUICK = ("/api/account/usage", "/api/admin/codes", "/api/chat/presets", "/metrics", "/user")
"""What is tried in the default suite."""
ENDS_SESSION = ("/api/account/log-out", "/api/account/log-out-everywhere", "/api/account/password")


@pytest.fixture(scope="module")
def admin(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(empty_database, folder / "platform.sqlite")
    store = open_store(f"sqlite:///{folder / 'platform.sqlite'}")
    site = Site(office := Office(store, folder=folder))
    site.app = make_whole_app(office)
    person = add_person(store, "admin@example.org", role="admin", paid=10**9)
    client = site.logged_in(person)
    client.http.headers["Authorization"] = f"Bearer {person.secret}"
    yield client
    site.close()
    store.close()


def paths() -> list[str]:
    """Of the whole application, which need not run to be described."""
    office = Office(open_store("sqlite://"))
    try:
        found = schema_of(make_whole_app(office))["paths"]
    finally:
        office.close()
    return [path for path in found if not path.startswith(ELSEWHERE) and path not in ENDS_SESSION]


def keeps_its_word(client: Client, path: str, examples: int) -> None:
    schema = schemathesis.openapi.from_dict(schema_of(client.site.app))
    for found in schema.include(path=path).get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=examples, deadline=None, derandomize=True, database=None,
            phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            request = case.as_transport_kwargs(base_url=ORIGIN)
            request.pop("cookies", None)  # the session's is the client's
            if isinstance(request.get("data"), str | bytes):
                request["content"] = request.pop("data")
            answer = client.ask(request.pop("method"), request.pop("url"), **request)
            client.site.run(client.site.app.state.runs.wait(5.0))
            case.validate_response(Response.from_any(answer), checks=CHECKS)

        check()


def test_the_server_tells_what_it_is_and_does(admin: Client) -> None:
    assert admin.get("/version").json() == {"version": __version__}
    [(name, model)] = admin.get("/server_info").json()["models"].items()
    assert name == "tiny"
    assert model["max_context"] > 0 and model["description"] and model["aliases"] == []
    load = admin.get("/load").json()["models"]["tiny"]
    assert set(load) == {"running", "waiting", "used_blocks", "total_blocks"}


@pytest.mark.parametrize("path", [path for path in paths() if path.startswith(QUICK)])
def test_nothing_breaks_the_server(admin: Client, path: str) -> None:
    """Fault F23."""
    keeps_its_word(admin, path, 3)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("path", paths())
def test_nothing_breaks_the_server_at_length(admin: Client, path: str) -> None:
    """Fault F23."""
    keeps_its_word(admin, path, 8)


def test_the_balance_is_described_as_it_is_told(admin: Client) -> None:
    schema = schemathesis.openapi.from_dict(schema_of(admin.site.app))
    for path in ("/user/balance", "/v1/user/balance"):
        operation = schema[path]["GET"]
        assert operation.definition.raw["security"] == [{"key": []}]
        answer = Response.from_any(admin.get(path))
        operation.validate_response(answer)
        assert operation.is_valid_response(answer)
