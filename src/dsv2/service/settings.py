"""How an installation serves: models, addresses, folders, limits. Read once, then frozen.

What an operator may change while it runs is in :mod:`dsv2.service.store.settings` instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dsv2.checkpoint.hub import HUBS
from dsv2.service.platform.folders import data_folder

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_NAME = re.compile(r"[A-Za-z0-9][\w.:/-]{0,127}")
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?)$")]
"""Of a web site, without a path; or ``*``."""


class SettingsError(ValueError):
    """A setting is unknown or not allowed; the message names it, its value and what is allowed."""


class ModelSettings(BaseModel):
    """One model and how it is run; everything but the names is as for :class:`dsv2.LLM`.

    Attributes:
        model: a folder, a release such as ``v2-lite-chat``, any ``owner/model`` of a hub, or
            ``pocket``.
        name: in the API; by default the last part of ``model``.
        aliases: other names that mean it.
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: of the weights.
        cache_dtype: of the latent cache.
        cache_tokens: tokens of cache for all requests together.
        max_sequences: most sequences computed at once.
        max_step_tokens: most tokens per step.
        threads: of the CPU backend.
        deterministic: see :class:`dsv2.LLM`.
        speculate: tokens to guess per step.
        pull: fetch a model that is not on this machine.
        hub: where from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str = "pocket"
    name: str = ""
    aliases: tuple[str, ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    cache_dtype: str = "auto"
    cache_tokens: int | None = Field(default=None, ge=64)
    max_sequences: int = Field(default=64, ge=1, le=4096)
    max_step_tokens: int = Field(default=2048, ge=16, le=1_048_576)
    threads: int | None = Field(default=None, ge=1)
    deterministic: bool | None = None
    speculate: int = Field(default=0, ge=0, le=16)
    pull: bool = True
    hub: str = "huggingface"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.name:
            object.__setattr__(self, "name", Path(self.model).name)
        for name in (self.name, *self.aliases):
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"model name {name!r} is not allowed: up to 128 letters, digits, _ . : / -"
                )
        if self.hub not in HUBS:
            raise ValueError(f"hub is {self.hub!r}, allowed are {', '.join(HUBS)}")
        return self


class ServeSettings(BaseModel):
    """An installation.

    Attributes:
        models: at least one.
        host: address to listen on.
        port: to listen on; 0 for any free one.
        allowed_hosts: names that a request's ``Host`` may have, besides the loopback's and
            ``host`` itself; ``*`` for any, behind a proxy that checks.
        allowed_origins: web sites, such as ``https://app.example.org``, whose pages may ask with a
            key and read answers; ``*`` for any.
        data: folder of the database, the outbox and the engines' sockets.
        database: a SQLAlchemy URL; by default SQLite in ``data``.
        guest: let anybody on this machine use the models without an account; only where ``host``
            is the loopback.
        secure_cookies: whether sessions' cookies are for TLS alone.
        operations_port: another listener on the loopback, without keys, for ``/metrics`` and deep
            health checks; None for none.
        max_waiting: most requests in line for one engine; more get 503. In a full line the account
            that has most in it gives way to those that have less.
        queue_seconds: longest wait for the first token before 503.
        drain_seconds: how long answers under way may go on after SIGTERM.
        max_body_bytes: longest request.
        start_seconds: longest that loading a model may take.
        hang_seconds: a step that takes longer counts as a hang: the engine is killed and restarted.
        max_restarts: of an engine within ten minutes, before the server gives up.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.
        log_format: ``json``, ``text``, or ``auto`` for text on a terminal and JSON elsewhere.
        trace: send traces by OpenTelemetry, as its own environment variables say.
        ray: run the engines as replicas of Ray Serve.
        ray_address: ``local`` for a Ray of our own on this machine, ``auto`` for the one that runs
            on it, or ``HOST:PORT`` of a cluster.
        ray_app: begins the names of the applications in Ray Serve; two servers on one cluster need
            different ones.
        ray_min_replicas: of each model, that always run.
        ray_max_replicas: of each model.
        ray_target_requests: under way per replica, that the autoscaler aims at; None for three
            quarters of ``max_sequences``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    models: tuple[ModelSettings, ...] = Field(default=(ModelSettings(),), min_length=1)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[Origin, ...] = ()
    data: Path = Field(default_factory=data_folder)
    database: str = ""
    guest: bool = True
    secure_cookies: bool = False
    operations_port: int | None = Field(default=None, ge=0, le=65535)
    max_waiting: int = Field(default=1024, ge=1, le=100_000)
    queue_seconds: float = Field(default=600.0, gt=0, le=86_400)
    drain_seconds: float = Field(default=30.0, ge=0, le=86_400)
    max_body_bytes: int = Field(default=4 << 20, ge=1024, le=1 << 30)
    start_seconds: float = Field(default=1800.0, gt=0)
    hang_seconds: float = Field(default=120.0, gt=0)
    max_restarts: int = Field(default=5, ge=0, le=1000)
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    log_format: str = Field(default="auto", pattern="^(auto|json|text)$")
    trace: bool = False
    ray: bool = False
    ray_address: str = Field(default="local", min_length=1, max_length=256)
    ray_app: str = Field(default="dsv2", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    ray_min_replicas: int = Field(default=1, ge=1, le=1000)
    ray_max_replicas: int = Field(default=1, ge=1, le=1000)
    ray_target_requests: int | None = Field(default=None, ge=1, le=100_000)

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.ray_min_replicas > self.ray_max_replicas:
            raise ValueError(
                f"ray_min_replicas is {self.ray_min_replicas}, allowed is up to ray_max_replicas, "
                f"which is {self.ray_max_replicas}"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the listener."""
        return self.host in LOOPBACK

    @property
    def allows_guest(self) -> bool:
        """Whether requests without a key may be served."""
        return self.guest and self.is_loopback

    @property
    def database_url(self) -> str:
        """Where the store is."""
        return self.database or f"sqlite:///{self.data / 'platform.sqlite'}"

    @property
    def host_names(self) -> frozenset[str] | None:
        """What ``Host`` may say; None for anything."""
        if "*" in self.allowed_hosts:
            return None
        return frozenset((*LOOPBACK, "[::1]", self.host, *self.allowed_hosts))


def read_settings(
    file: Path | None = None,
    given: Mapping[str, Any] | None = None,
    *,
    models: Sequence[str] = (),
    aliases: Sequence[str] = (),
    for_models: Mapping[str, Any] | None = None,
) -> ServeSettings:
    """The settings of a YAML file and of a command line, which goes first.

    Args:
        file: settings by their names, ``models`` as a list of :class:`ModelSettings`.
        given: settings that go before the file's.
        models: in place of the file's: ``MODEL`` or ``NAME=MODEL`` each.
        aliases: ``ALIAS=NAME`` each, besides those of the file.
        for_models: settings of every model, which go before the file's.

    Raises:
        SettingsError: naming the first setting that is unknown or not allowed.
    """
    values = {**_read(file), **(given or {})}
    listed = [_named(model) for model in models] or values.get("models", [{}])
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise SettingsError("models must be a list of settings, one entry per model")
    values["models"] = [{**one, **(for_models or {})} for one in listed]
    settings = _checked(values)
    if aliases:
        more = _with_aliases(settings.models, aliases)
        settings = _checked(values | {"models": [model.model_dump() for model in more]})
    names = [name for model in settings.models for name in (model.name, *model.aliases)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(f"models: the name {twice[0]!r} is given twice, allowed is once")
    return settings


def _read(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{file} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{file} holds a {type(values).__name__}, allowed are settings")
    return values


def _named(model: str) -> dict[str, Any]:
    name, sign, folder = model.partition("=")
    return {"name": name, "model": folder} if sign else {"model": model}


def _with_aliases(models: Sequence[ModelSettings], aliases: Sequence[str]) -> list[ModelSettings]:
    found = {model.name: model for model in models}
    for alias in aliases:
        new, sign, name = alias.partition("=")
        if not sign or name not in found:
            raise SettingsError(
                f"alias is {alias!r}, allowed is ALIAS=NAME with a name of {', '.join(found)}"
            )
        found[name] = found[name].model_copy(update={"aliases": (*found[name].aliases, new)})
    return list(found.values())


def _checked(values: dict[str, Any]) -> ServeSettings:
    try:
        # YAML has lists where the settings have tuples, and strings for paths.
        return ServeSettings.model_validate(values, strict=False)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        raise SettingsError(f"{name} is {first['input']!r:.80}: {first['msg']}") from error
