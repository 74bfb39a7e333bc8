from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dsv2.cli.main import app
from dsv2.service import server
from dsv2.service.settings import ModelSettings, ServeSettings, SettingsError, read_settings


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ServeSettings]:
    """What ``dsv2 serve`` would have started."""
    found: list[ServeSettings] = []

    def run(settings: ServeSettings) -> int:
        found.append(settings)
        return 0

    monkeypatch.setattr(server, "run", run)
    return found


def serve(*arguments: str, **environment: str) -> str:
    result = CliRunner().invoke(app, ["serve", *arguments], env=environment, terminal_width=400)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_without_anything_pocket_is_served_to_this_machine(started: list[ServeSettings]) -> None:
    serve()
    (settings,) = started
    assert settings == ServeSettings()
    assert [(one.model, one.name) for one in settings.models] == [("pocket", "pocket")]
    assert settings.allows_guest
    assert settings.database_url.startswith("sqlite:///")


def test_options_go_before_the_environment_and_both_before_the_file(
    started: list[ServeSettings], tmp_path: Path
) -> None:
    file = tmp_path / "serve.yaml"
    values = {"port": 1, "max_waiting": 2, "drain_seconds": 3, "models": [
        {"model": "pocket", "name": "one", "aliases": ["deepseek-chat"], "threads": 7},
        {"model": "v2-lite-chat", "dtype": "int8"},
    ]}  # fmt: skip
    file.write_text(yaml.safe_dump(values))
    serve("--config", str(file), "--port", "11", "--dtype", "int4", "--alias", "gpt-4=v2-lite-chat",
          DSV2_SERVE_PORT="21", DSV2_SERVE_MAX_WAITING="22")  # fmt: skip
    (settings,) = started
    assert (settings.port, settings.max_waiting, settings.drain_seconds) == (11, 22, 3)
    first, second = settings.models
    assert (first.name, first.aliases, first.threads, first.dtype) == (
        "one", ("deepseek-chat",), 7, "int4",
    )  # fmt: skip
    assert (second.name, second.aliases, second.dtype) == ("v2-lite-chat", ("gpt-4",), "int4")


def test_every_setting_has_an_option_that_help_lists() -> None:
    text = re.sub(r"\x1b\[[0-9;]*m", "", serve("--help", COLUMNS="400"))
    for name in (*ServeSettings.model_fields, *ModelSettings.model_fields):
        if name in ("models", "model", "name", "aliases"):
            continue  # the argument NAME=MODEL and --alias
        assert f"--{name.replace('_', '-')}" in text
        assert f"DSV2_SERVE_{name.upper()}" in text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"port": 70000}, r"port is 70000.*65535"),
        ({"prot": 1}, r"prot is 1"),
        ({"models": []}, r"models"),
        ({"models": "pocket"}, r"models must be a list"),
        ({"models": [{"model": "pocket", "dtyp": "int8"}]}, r"models\.0\.dtyp"),
        ({"models": [{"name": "a b"}]}, r"'a b' is not allowed"),
        ({"models": [{"name": "a"}, {"name": "b", "aliases": ["a"]}]}, r"'a' is given twice"),
        ({"models": [{"hub": "nowhere"}]}, r"nowhere.*huggingface"),
        ({"log_format": "xml"}, r"log_format is 'xml'"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, values: object, words: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(SettingsError, match=words):
        read_settings(file)


@pytest.mark.parametrize("text", ["- 1", "a: [", "\udcff"])
def test_a_file_that_is_no_settings(tmp_path: Path, text: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SettingsError, match=re.escape(str(file))):
        read_settings(file)


@pytest.mark.parametrize("alias", ["gpt-4", "gpt-4=nobody"])
def test_an_alias_of_nothing(alias: str) -> None:
    with pytest.raises(SettingsError, match="allowed is ALIAS=NAME"):
        read_settings(aliases=[alias])


def test_a_guest_is_for_the_loopback_alone() -> None:
    assert not ServeSettings(host="0.0.0.0").allows_guest
    assert not ServeSettings(guest=False).allows_guest
    assert ServeSettings(host="0.0.0.0", allowed_hosts=("*",)).host_names is None
    assert "api.example.org" in (ServeSettings(allowed_hosts=("api.example.org",)).host_names or ())


@pytest.mark.parametrize("origin", ["https://app.example.org", "http://localhost:3000", "*"])
def test_sites_that_may_read(origin: str) -> None:
    assert ServeSettings(allowed_origins=(origin,)).allowed_origins == (origin,)


@pytest.mark.parametrize("origin", ["example.org", "https://a.org/", "null", "https://*.org", ""])
def test_what_is_no_site(origin: str) -> None:
    with pytest.raises(SettingsError, match="allowed_origins"):
        read_settings(None, {"allowed_origins": [origin]})


def test_fewer_replicas_than_always_run_are_refused() -> None:
    settings = read_settings(given={"ray": True, "ray_min_replicas": 2, "ray_max_replicas": 3})
    assert (settings.ray, settings.ray_address) == (True, "local")
    with pytest.raises(SettingsError, match="ray_min_replicas is 2, allowed is up to"):
        read_settings(given={"ray_min_replicas": 2})
