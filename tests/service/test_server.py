"""The server as an operator runs it, and what it survives (faults F25, F27 to F29 and F31)."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from dsv2.service.settings import ServeSettings
from dsv2.service.store import open_store
from dsv2.service.store.models import reservations
from dsv2.service.store.verify import verify_books
from tests.service.running import Running, events, running, until, usage, usage_beside_cache

LONG = {"max_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    names = ("--alias", "gpt-4=pocket", "--alias", "deepseek-chat=pocket", "--log-level", "debug")
    with running(tmp_path_factory.mktemp("server") / "data", *names) as one:
        one.crowd()
        yield one


def test_the_printed_curl_line_streams_an_answer(server: Running) -> None:
    done = subprocess.run(server.curl, shell=True, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    text = "".join(part["choices"][0]["delta"].get("content", "") for part in _chunks(lines))
    assert "42" in text


def _chunks(lines: list[str]) -> Iterator[dict[str, list[dict[str, dict[str, str]]]]]:
    for line in lines[:-1]:
        yield json.loads(line.removeprefix("data: "))


def test_the_sites_address_is_said_where_there_is_one(server: Running) -> None:
    page = server.client.get("/", headers={"accept": "text/html"}).text
    is_said = f"chat in a browser: {server.address}/" in server.said
    assert is_said == ('<div id="app">' in page)
    assert is_said or "the chat site is not part of this build" in server.said


def test_health_readiness_metrics_and_a_token_from_every_model(server: Running) -> None:
    assert server.client.get("/health").json() == {"status": "ok"}
    assert server.client.get("/ready").json() == {"status": "ready"}
    assert server.client.get("/metrics").status_code == 403  # the guest is no administrator
    key = {"Authorization": f"Bearer {server.key}"}
    assert server.client.get("/health/generate", headers=key).json() == {"status": "ok"}
    assert "dsv2_engine_up" in server.client.get("/metrics", headers=key).text
    assert server.gauge("engine_up") == 1
    assert httpx.get(server.operations + "/health/generate").json() == {"status": "ok"}


def test_a_page_of_another_name_gets_nothing(server: Running) -> None:
    for place in (server.address, server.operations):
        answer = httpx.get(place + "/ready", headers={"Host": "evil.example"})
        assert answer.status_code == 421


def test_names_and_aliases(server: Running) -> None:
    assert server.chat(model="gpt-4").json()["model"] == "pocket"
    missing = server.chat(model="nothing")
    assert missing.status_code == 404
    assert "pocket" in missing.json()["error"]["message"]


def test_clients_that_leave_cost_nothing_more(server: Running) -> None:
    """Fault F25."""
    before, pids = server.canary(), (server.process.pid, server.engine_pid)
    server.crowd()  # what is opened once and kept, as of the database, is open then
    files = [usage(pid)[0] for pid in pids]
    for _ in range(10):
        with server.streaming(**LONG) as stream:
            next(stream)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            server.address + "/v1/chat/completions", timeout=0.3,
            json={"model": "pocket", "messages": [{"role": "user", "content": "x"}], **LONG},
        )  # fmt: skip
    server.check_idle()
    assert server.canary() == before
    assert [usage(pid)[0] <= count + 3 for pid, count in zip(pids, files, strict=True)] == [
        True
    ] * 2
    check_books(server.data)


def test_a_storm_of_clients_that_leave_costs_nothing(server: Running) -> None:
    """Fault F25: at once, at the first byte or with half of the connection; a third each."""
    before, pids = server.canary(), (server.process.pid, server.engine_pid)
    host, _, port = server.address.removeprefix("http://").rpartition(":")
    body = json.dumps({"model": "pocket", "prompt": "x", "stream": True, **LONG}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"

    def leave(number: int) -> None:
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            if number % 3:
                assert connection.recv(16) == b"HTTP/1.1 200 OK\r\n"[:16]
            if number % 3 == 2:
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    continue
            else:  # with a reset, where a client has crashed
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def storm() -> list[tuple[int, float]]:
        with ThreadPoolExecutor(30) as threads:
            list(threads.map(leave, range(120)))
        server.check_idle()
        server.crowd()
        return [usage_beside_cache(pid) for pid in pids]

    used = storm()  # once before: buffers take memory at their first use
    steps = server.gauge("engine_steps_total")
    now = storm()
    assert server.gauge("engine_steps_total") - steps < LONG["max_tokens"], "they ran to the end"
    assert server.canary() == before
    for (files, memory), (files_now, memory_now) in zip(used, now, strict=True):
        assert files_now <= files + 3
        assert memory_now < memory + 16
    check_books(server.data)


@pytest.mark.slow
def test_clients_that_read_nothing_hold_nobody_up(server: Running) -> None:
    """Fault F26: what they do not read is joined, and the others are served."""
    before = server.canary()
    server.crowd()  # what is opened and reserved once is there then
    files, memory = usage(server.process.pid)
    host, _, port = server.address.removeprefix("http://").rpartition(":")
    body = json.dumps(
        {"model": "pocket", "prompt": "x", "stream": True, "logprobs": 5}
        | LONG
        | {"max_tokens": 800}
    )
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
    stalled = []
    for _ in range(8):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
        stalled.append(connection)
    until(lambda: server.gauge("engine_running") == 8, 20.0)
    assert server.canary() == before
    until(lambda: server.gauge("engine_running") == 0, 110.0)
    assert usage(server.process.pid)[1] < memory + 64
    for connection in stalled:
        connection.close()
    server.check_idle()
    assert server.canary() == before
    assert usage(server.process.pid)[0] <= files + 3
    check_books(server.data)


def check_books(data: Path) -> None:
    """Soon no reservation is open, and all books agree.

    The accounts here pay nothing, so money that is held would always be none.
    """
    store = open_store(ServeSettings(data=data).database_url)
    is_open = select(func.count()).where(reservations.c.state == "open")
    try:

        def nothing_open() -> bool:
            with store.read() as db:
                return not db.execute(is_open).scalar_one()

        until(nothing_open, 5.0)
        with store.read() as db:
            assert db.execute(select(func.count()).select_from(reservations)).scalar_one() > 0
            assert verify_books(db) == []
    finally:
        store.close()


def test_no_secret_is_left_anywhere(server: Running) -> None:
    """Fault F53: in no log, even of all that can be logged, no metric, no process, no file."""
    canary = "canary-9d41"
    talk = [{"role": "user", "content": f"{canary} question"}]
    admin = {"Authorization": f"Bearer {server.key}"}
    wrong = {"Authorization": f"Bearer sk-{canary}"}
    before = server.client.get("/v1/models", headers=admin)
    assert before.status_code == 200
    assert server.chat(messages=talk, max_tokens=2, user=canary).status_code == 200
    with server.streaming(messages=talk, max_tokens=2) as stream:
        assert list(stream)[-1] == "[DONE]"
    for body in ({"temperature": -1}, {"max_tokens": 10**9}, {"stop": [canary, ""]},
                 {"regex": f"(({canary}"}, {"model": canary}, {canary: canary}):  # fmt: skip
        server.chat(messages=talk, **{"max_tokens": 2} | body)
    refused = [
        server.client.get("/v1/models", headers=wrong),
        server.client.post("/api/account/log-in", json={"email": "a@b.c", "password": canary}),
        server.client.post("/v1/chat/completions", content=f'{{"messages": "{canary}'.encode()),
        server.client.get(f"/nothing/{canary}?key={canary}"),
    ]
    assert [answer.status_code // 100 for answer in refused] == [4] * 4
    assert server.client.get("/health", headers={"x-request-id": canary}).status_code == 200
    places = {"the log": server.errors.read_bytes(),
              "the metrics": httpx.get(server.operations + "/metrics").content}  # fmt: skip
    for pid in (server.process.pid, server.engine_pid):
        for name in ("cmdline", "environ"):
            places[f"{name} of {pid}"] = Path(f"/proc/{pid}/{name}").read_bytes()
    for file in server.data.rglob("*"):
        if file.is_file():
            places[str(file)] = file.read_bytes()
    assert len(places["the log"]) > 1000 and any("sqlite" in name for name in places)
    for name, content in places.items():
        for secret in (canary, server.key, server.key.removeprefix("sk-")[:16]):
            assert secret.encode() not in content, (name, secret)


def test_the_api_process_has_no_torch(server: Running) -> None:
    def has(pid: int) -> bool:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()

    assert (has(server.engine_pid), has(server.pid)) == (True, False)


def test_nothing_else_is_listening(server: Running) -> None:
    """Fault F56: neither process opens anything but its two ports."""
    for pid in (server.process.pid, server.engine_pid):
        inodes = set()
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
        ports = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    ports.add(int(fields[1].rpartition(":")[2], 16))
        ours = {int(place.rpartition(":")[2]) for place in (server.address, server.operations)}
        assert ports == (ours if pid == server.process.pid else set())


@pytest.mark.slow
def test_an_engine_that_is_killed_comes_back(server: Running) -> None:
    """Fault F27."""
    before, first = server.canary(), server.engine_pid
    server.crowd()  # then and now as many connections of the client's own are kept
    files = usage(server.process.pid)[0]
    with ThreadPoolExecutor(4) as threads, server.streaming(**LONG) as stream:
        whole = [threads.submit(server.chat, **LONG) for _ in range(4)]
        until(lambda: server.gauge("engine_running") == 5, 10.0)
        next(stream)
        os.kill(first, signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: server.client.get("/health").status_code == 503, 2.0)
        assert time.monotonic() - killed < 2
        *_, last = stream
    assert last["error"]["type"] == "overloaded_error", last
    assert [answer.result().status_code for answer in whole] == [503] * 4
    assert server.chat().status_code == 503
    until(lambda: server.client.get("/ready").status_code == 200, 60.0)
    assert server.engine_pid != first
    assert server.canary() == before
    server.crowd()
    server.check_idle()
    assert usage(server.process.pid)[0] <= files + 3
    check_books(server.data)


@pytest.mark.slow
def test_an_engine_that_hangs_is_replaced(server: Running) -> None:
    """Fault F29."""
    before, first = server.canary(), server.engine_pid
    server.crowd()  # then and now as many connections of the client's own are kept
    files = usage(server.process.pid)[0]
    os.kill(first, signal.SIGSTOP)
    until(lambda: server.client.get("/health").status_code == 503, 10.0)
    until(lambda: server.client.get("/ready").status_code == 200, 60.0)
    assert server.engine_pid != first
    assert server.canary() == before
    server.check_idle()
    assert usage(server.process.pid)[0] <= files + 3


@pytest.mark.slow
def test_a_server_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    """Fault F28: the engine goes with it, and the next server settles what was open."""
    with running(tmp_path / "data") as server:
        before, engine = server.canary(), server.engine_pid
        with server.streaming(**LONG) as stream:
            next(stream)
            server.process.kill()
            with pytest.raises(httpx.HTTPError):
                list(stream)
        until(lambda: not Path(f"/proc/{engine}").exists(), 5.0)
    with running(tmp_path / "data") as server:
        assert "shown this once" not in "\n".join(server.said)
        assert server.canary() == before
        assert server.stop() == 0
    # Its reservation runs out a minute after its last sign of life.
    store = open_store(ServeSettings(data=tmp_path / "data").database_url)
    with store.read() as db:
        assert verify_books(db) == []
    store.close()


@pytest.mark.slow
def test_sigterm_lets_answers_end(tmp_path: Path) -> None:
    """Fault F31: nothing new begins, what runs ends, and the status says so."""
    with running(tmp_path / "data") as server:

        def read(number: int) -> object:
            words = [{"role": "user", "content": str(number)}]
            with server.streaming(messages=words, max_tokens=60, ignore_eos=True) as stream:
                *_, last = stream
                return last

        with ThreadPoolExecutor(50) as threads:
            answers = threads.map(read, range(50))
            until(lambda: server.gauge("engine_running") == 50, 20.0)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: server.client.get("/ready").status_code == 503, 5.0)
            late = httpx.post(server.address + "/v1/chat/completions", json={})
            assert late.status_code == 503
            assert late.headers["connection"] == "close"
            assert late.json()["error"]["code"] == "server_is_stopping"
            assert list(answers) == ["[DONE]"] * 50
        assert server.process.wait(20) == 0
        check_books(server.data)


@pytest.mark.slow
def test_sigterm_cuts_off_what_does_not_end(tmp_path: Path) -> None:
    with running(tmp_path / "data", "--drain-seconds", "0.5") as server:
        found: list[object] = []

        def read() -> None:
            with server.streaming(**LONG) as stream:
                found.extend(stream)

        readers = [threading.Thread(target=read) for _ in range(5)]
        for reader in readers:
            reader.start()
        until(lambda: server.gauge("engine_running") == 5, 20.0)
        assert server.stop() == 3
        for reader in readers:
            reader.join()
        assert "[DONE]" not in found
        assert sum("error" in event for event in found if isinstance(event, dict)) == 5
        check_books(server.data)


@pytest.mark.slow
def test_an_engine_that_cannot_come_back_ends_the_server(tmp_path: Path) -> None:
    with running(tmp_path / "data", "--max-restarts", "0") as server:
        os.kill(server.engine_pid, signal.SIGKILL)
        assert server.process.wait(20) == 1


@pytest.mark.parametrize("client", ["openai", "langchain_openai"])
def test_the_readmes_programs_run(
    server: Running, client: str, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    programs = re.findall(r"```python\n(.*?)```", readme, re.S)
    (program,) = [one for one in programs if f"from {client} import" in one]
    program = program.replace("http://127.0.0.1:8000", server.address)
    exec(compile(program.replace("sk-...", server.key), "README", "exec"), {})
    assert "42" in capsys.readouterr().out


def test_small_answers_do_not_wait_for_the_client_to_acknowledge(server: Running) -> None:
    """Nagle's algorithm and delayed acknowledgements would make it 40 ms, every time."""

    def seconds() -> float:
        begun = time.perf_counter()
        assert server.client.get("/v1/models").status_code == 200
        return time.perf_counter() - begun

    assert min(seconds() for _ in range(20)) < 0.03


@pytest.mark.slow
def test_what_cannot_be_served_is_said_in_one_line(server: Running, tmp_path: Path) -> None:
    port = server.address.rpartition(":")[2]
    for arguments, words in (
        (("--port", port), f"port {port}: Address already in use"),
        (("--database", "postgresql+psycopg://nobody@127.0.0.1:1/none"), "127.0.0.1"),
    ):
        other = Running(tmp_path / "other", *arguments)
        assert other.process.wait(60) == 2
        assert words in other.words
        assert "Traceback" not in other.words
        other.end()


def test_events_end_with_done(server: Running) -> None:
    body = {"model": "pocket", "messages": [{"role": "user", "content": "Hi"}], "stream": True,
            "stream_options": {"include_usage": True}, "max_tokens": 4}  # fmt: skip
    with server.client.stream("POST", "/chat/completions", json=body) as answer:
        *_, usage, done = events(answer)
    assert done == "[DONE]"
    assert usage["usage"]["completion_tokens"] <= 4
    assert usage["choices"] == []
