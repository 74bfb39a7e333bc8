"""F55: every route, asked by everybody, answers as the table beside this file says.

The routes come from the application: one without a line in the table fails. After a change that is
meant, ``DSV2_WRITE_ROUTES=1 pytest tests/service/platform/test_routes_by_role.py`` writes the
table anew, to be read before it is committed. A route that needs a body has it in ``BODIES``, a
part of a path its value in ``World.parts``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastapi.routing
import pytest

from dsv2.service.platform.office import Office
from dsv2.service.site import make_operations_app
from dsv2.service.store import (
    chat_answers,
    chat_messages,
    chats,
    codes,
    open_store,
    presets,
    reservations,
)
from dsv2.service.store.chat_answers import Outcome, Progress
from dsv2.service.store.chat_messages import AnswerUsage, Lease
from dsv2.service.store.prices import Usage
from dsv2.service.store.reservations import Ask
from dsv2.service.web.metrics import Metrics
from tests.service.platform.site import (
    ORIGIN,
    PASSWORD,
    Person,
    Site,
    add_person,
    make_models,
    make_whole_app,
)

TABLE = Path(__file__).with_name("routes_by_role.txt")
HEAD = """\
# What each route answers whom. The ids in the paths are those of "user"; "other" is somebody else.
# Written by test_routes_by_role.py; every change here is a change of who may do what.
"""
ROLES = (
    "nobody", "wrong-key", "user-key", "other-key", "admin-key",
    "session", "other-session", "admin-session", "guest",
)  # fmt: skip

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
COMPLETION = {"model": "tiny", "prompt": "x", "max_tokens": 4}
MESSAGE = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
RESPONSE = {"model": "tiny", "input": "x", "max_output_tokens": 4}
BODIES: dict[str, Any] = {
    **{f"POST {base}/responses": RESPONSE for base in ("", "/v1")},
    **{
        f"POST {base}/v1/messages{more}": MESSAGE
        for base in ("", "/anthropic")
        for more in ("", "/count_tokens")
    },
    **{f"POST {base}/chat/completions": CHAT for base in ("", "/v1", "/beta")},
    **{f"POST {base}/completions": COMPLETION for base in ("", "/v1", "/beta")},
    **{f"POST {base}/tokenize": {"prompt": "x"} for base in ("", "/v1")},
    **{f"POST {base}/detokenize": {"tokens": [1]} for base in ("", "/v1")},
    "POST /api/account/sign-up": {"email": "new@example.org", "password": PASSWORD},
    "POST /api/account/log-in": {"email": "user@example.org", "password": PASSWORD},
    "PUT /api/account/password": {"old_password": PASSWORD, "new_password": "battery staple"},
    "POST /api/account/keys": {"name": "second"},
    "PATCH /api/account/keys/{key_id}": {"max_concurrent": 3},
    "POST /api/account/redeem": {"code": "CODE"},
    "POST /api/admin/users": {"email": "new@example.org", "password": PASSWORD},
    "PUT /api/admin/users/{user_id}/status": {"status": "suspended"},
    "PUT /api/admin/users/{user_id}/role": {"role": "admin"},
    "POST /api/admin/users/{user_id}/deposit": {"amount": 1},
    "POST /api/admin/users/{user_id}/withdraw": {"amount": 1},
    "PUT /api/admin/prices": {"model": "tiny", "input": 2, "cached_input": 1, "output": 3},
    "POST /api/admin/codes": {"amount": 1},
    "PUT /api/admin/settings/{name}": {"value": False},
    "POST /api/chat/conversations/{conversation_id}/messages": {"parent_id": None, "content": "x"},
    "POST /api/chat/presets": {"name": "second"},
    "POST /api/chat/fill": {
        "model": "tiny",
        "prefix": "a",
        "suffix": "b",
        "params": {"max_tokens": 4},
    },
    "POST /api/chat/import": {"conversations": []},
}


@dataclass
class World:
    """People, and what there is of them; as it was at first before each change is tried.

    ``guest_site`` differs from ``site`` in that its operator allows a guest.
    """

    site: Site
    guest_site: Site
    file: Path
    people: dict[str, Person]
    cookies: dict[str, str]
    parts: dict[str, str]
    code: str

    def reset(self) -> None:
        self.site.office.store.close()
        shutil.copy(self.file.with_suffix(".first"), self.file)

    def ask(self, role: str, method: str, path: str) -> int:
        body = BODIES.get(f"{method} {path}", {} if method in ("POST", "PUT", "PATCH") else None)
        if body == {"code": "CODE"}:
            body = {"code": self.code}
        headers = {"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}
        name, _, kind = role.partition("-")
        if role == "wrong-key":
            headers["Authorization"] = "Bearer sk-" + "0" * 64
        elif kind == "key":
            headers["Authorization"] = f"Bearer {self.people[name].secret}"
        elif "session" in role:
            headers["Cookie"] = self.cookies[name if kind else "user"]
        client = (self.guest_site if role == "guest" else self.site).client()
        answer = client.ask(
            method, path.replace(":path}", "}").format(**self.parts), json=body, headers=headers
        )
        if method != "GET":
            client.site.run(client.site.app.state.runs.wait(5.0))
            self.reset()
        return answer.status_code


@pytest.fixture(scope="module")
def world(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = empty_database.with_name("by-role")
    folder.mkdir()
    file = folder / "platform.sqlite"
    shutil.copy(empty_database, file)
    store = open_store(f"sqlite:///{file}")
    offices = [Office(store, folder=folder, guest=guest) for guest in (False, True)]
    site, guest_site = (Site(office, make_whole_app(office)) for office in offices)
    people = {
        name: add_person(store, f"{name}@example.org", role=role, paid=1000)
        for name, role in (("user", "user"), ("other", "user"), ("admin", "admin"))
    }
    cookies = {
        name: f"dsv2-session={site.logged_in(person).http.cookies['dsv2-session']}"
        for name, person in people.items()
    }
    user = people["user"]
    with store.write() as db:
        code, secret = codes.create_code(db, amount=1, actor="test", now=1)
        ask = Ask("request_1", user.account_id, user.key_id, "tiny", 1, 1)
        reservations.reserve(db, ask, owner="test", now=1, expires_at=2)
        reservations.settle(db, "request_1", Usage(1, 0, 1), finish="stop", now=1)
        conversation = chats.create_conversation(db, user.id, now=1)
        _, answer = chat_messages.ask(
            db, user.id, conversation.id, parent_id=None, content="x", lease=Lease("test", 1), now=1
        )
        so_far = Progress("yes", AnswerUsage(), "tiny", "[]")
        chat_answers.finish(db, answer.id, "test", so_far, Outcome("stopped"), 3)
        preset = presets.create_preset(db, user.id, name="first", system="", params={}, now=1)
    store.close()
    shutil.copy(file, file.with_suffix(".first"))
    parts = {
        "key_id": user.key_id,
        "user_id": user.id,
        "code_id": code.id,
        "request_id": "request_1",
        "name": "sign_up_open",
        "model": "tiny",
        "conversation_id": conversation.id,
        "message_id": answer.id,
        "preset_id": preset.id,
    }
    yield World(site, guest_site, file, people, cookies, parts, secret)
    site.close()
    guest_site.close()
    store.close()


def routes_of(app: Any) -> list[tuple[str, str]]:
    # Newer releases of FastAPI keep included routers whole, older ones copy their routes.
    flat = getattr(fastapi.routing, "iter_route_contexts", iter)
    found = [
        (method, str(route.path))
        for route in flat(app.routes)
        for method in getattr(route, "methods", None) or ["*"]
    ]
    return sorted(found, key=lambda one: (one[1], one[0]))


def read_table() -> dict[tuple[str, str], list[int]]:
    lines = [line.split() for line in TABLE.read_text("utf-8").splitlines()]
    lines = [line for line in lines if line and line[0] != "#"]
    assert lines[0] == ["method", "path", *ROLES]
    return {(line[0], line[1]): [int(status) for status in line[2:]] for line in lines[1:]}


def write_table(found: dict[tuple[str, str], list[int]]) -> None:
    width = max(len(path) for _, path in found) + 1
    lines = [f"{'method':7}{'path':{width}}" + " ".join(ROLES)]
    for (method, path), statuses in found.items():
        cells = [f"{status:<{len(role)}}" for status, role in zip(statuses, ROLES, strict=True)]
        lines.append((f"{method:7}{path:{width}}" + " ".join(cells)).rstrip())
    TABLE.write_text(HEAD + "\n".join(lines) + "\n", "utf-8")


def test_every_route_answers_everybody_as_the_table_says(world: World) -> None:
    found = {
        (method, path): [world.ask(role, method, path) for role in ROLES]
        for method, path in routes_of(world.site.app)
    }
    if os.environ.get("DSV2_WRITE_ROUTES"):
        write_table(found)
    assert found == read_table()


def test_the_table_would_notice_another_route(office: Office) -> None:
    app = make_whole_app(office)
    app.add_api_route("/api/admin/new", lambda: None)
    assert set(routes_of(app)) - set(read_table()) == {("GET", "/api/admin/new")}
    office.close()


OPERATIONS = {
    ("GET", "/health"): 200, ("GET", "/ready"): 200, ("GET", "/version"): 200,
    ("GET", "/metrics"): 200, ("GET", "/load"): 200, ("GET", "/server_info"): 200,
    ("GET", "/health/generate"): 200, ("GET", "/openapi.json"): 200,
}  # fmt: skip
"""All that the loopback's own listener has, and what it answers whoever is on this machine."""


def test_the_operations_listener_has_what_the_table_says(office: Office) -> None:
    """F55, F57: it asks for no key, so nothing there may change anything, or tell of anybody."""
    models = make_models()
    app: Any = make_operations_app(models, Metrics(lambda: models.all), lambda: True)
    site = Site(office, app)
    anybody, rebound = site.client(), site.client(headers={"Host": "evil.com"})
    found = {}
    for method, path in routes_of(app):
        found[method, path] = anybody.ask(method, path).status_code
        assert rebound.ask(method, path).status_code == 421
    assert found == OPERATIONS
    for path in ("/v1/models", "/api/account/me", "/api/admin/users", "/", "/docs"):
        assert anybody.get(path).status_code == 404
    site.close()


def test_no_documentation_or_debugging_is_mounted(office: Office) -> None:
    """F57."""
    paths = {path for _, path in routes_of(make_whole_app(office))}
    assert not paths & {"/docs", "/redoc", "/debug"}
    table = read_table()
    assert table["GET", "/metrics"][:4] == [401, 401, 403, 403]
    assert table["GET", "/openapi.json"][:2] == [401, 401]
    office.close()
