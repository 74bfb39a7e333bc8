"""``dsv2 serve``: the API, the platform and the site on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dsv2.service.settings import ModelSettings, ServeSettings


def _option(help: str, name: str, kind: type = ServeSettings, **more: Any) -> Any:
    """An option whose default and environment variable stand in the help."""
    default = kind.model_fields[name].default  # type: ignore[attr-defined]
    shown = more.pop("shown", str(default))
    variable = f"DSV2_SERVE_{name.upper()}"
    return typer.Option(help=help, show_default=shown, envvar=variable, **more)


def _of_model(help: str, name: str, **more: Any) -> Any:
    return _option(help, name, ModelSettings, rich_help_panel="Every model", **more)


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL|NAME=MODEL]...",
            show_default="pocket",
            envvar="DSV2_SERVE_MODELS",
            help="Folders, releases such as v2-lite-chat, or owner/model of a hub.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            envvar="DSV2_SERVE_CONFIG",
            help="YAML with any of these settings by name (max_waiting: 64), and `models` as a "
            "list of model, name, aliases and the options of every model.",
        ),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ALIAS=NAME",
            envvar="DSV2_SERVE_ALIAS",
            show_default="none",
            help="Another name of a model, such as deepseek-chat=pocket; may be repeated.",
        ),
    ] = None,
    host: Annotated[str | None, _option("Address to listen on.", "host")] = None,
    port: Annotated[int | None, _option("To listen on; 0 for any free one.", "port")] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        _option(
            "A name that a request's Host may have besides this machine's; may be repeated; "
            "* for any.",
            "allowed_hosts",
            shown="none",
        ),
    ] = None,
    allowed_origins: Annotated[
        list[str] | None,
        _option(
            "A web site, such as https://app.example.org, whose pages may ask with a key; may be "
            "repeated; * for any.",
            "allowed_origins",
            shown="none",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        _option("Folder of database, outbox and sockets.", "data", shown="~/.local/share/dsv2"),
    ] = None,
    database: Annotated[
        str | None,
        _option("sqlite:///FILE or postgresql+psycopg://…", "database", shown="SQLite in --data"),
    ] = None,
    guest: Annotated[
        bool | None,
        _option(
            "Serve requests of this machine without a key; only on the loopback.",
            "guest",
        ),
    ] = None,
    secure_cookies: Annotated[
        bool | None, _option("Cookies for TLS alone.", "secure_cookies")
    ] = None,
    operations_port: Annotated[
        int | None,
        _option("Loopback port for /metrics without a key.", "operations_port", shown="none"),
    ] = None,
    max_waiting: Annotated[int | None, _option("Most requests in line.", "max_waiting")] = None,
    queue_seconds: Annotated[
        float | None, _option("Longest wait for a first token before 503.", "queue_seconds")
    ] = None,
    drain_seconds: Annotated[
        float | None, _option("For answers under way after SIGTERM.", "drain_seconds")
    ] = None,
    max_body_bytes: Annotated[int | None, _option("Longest request.", "max_body_bytes")] = None,
    start_seconds: Annotated[
        float | None, _option("Longest that loading may take.", "start_seconds")
    ] = None,
    hang_seconds: Annotated[
        float | None, _option("A step that takes longer is a hang.", "hang_seconds")
    ] = None,
    max_restarts: Annotated[
        int | None, _option("Of an engine within ten minutes.", "max_restarts")
    ] = None,
    log_level: Annotated[str | None, _option("debug, info, warning or error.", "log_level")] = None,
    log_format: Annotated[
        str | None, _option("json, text; auto: text on a terminal.", "log_format")
    ] = None,
    trace: Annotated[
        bool | None, _option("Traces by OpenTelemetry (extra `otel`).", "trace")
    ] = None,
    ray: Annotated[
        bool | None, _option("Engines as replicas of Ray Serve (extra `ray`).", "ray")
    ] = None,
    ray_address: Annotated[
        str | None,
        _option("local for a Ray of its own, auto, or HOST:PORT of a cluster.", "ray_address"),
    ] = None,
    ray_app: Annotated[
        str | None, _option("Begins the names of applications in Ray Serve.", "ray_app")
    ] = None,
    ray_min_replicas: Annotated[
        int | None, _option("Of each model, always.", "ray_min_replicas")
    ] = None,
    ray_max_replicas: Annotated[
        int | None, _option("Of each model, under load.", "ray_max_replicas")
    ] = None,
    ray_target_requests: Annotated[
        int | None,
        _option(
            "Requests per replica to aim at.", "ray_target_requests", shown="3/4 of max_sequences"
        ),
    ] = None,
    device: Annotated[str | None, _of_model("auto, cpu or cuda.", "device")] = None,
    dtype: Annotated[
        str | None,
        _of_model("float32, bfloat16, int8, int4, fp8; auto: the widest that fits.", "dtype"),
    ] = None,
    cache_dtype: Annotated[
        str | None,
        _of_model("float32, bfloat16, int8, int6, fp8; auto: as weights.", "cache_dtype"),
    ] = None,
    cache_tokens: Annotated[
        int | None,
        _of_model(
            "Tokens of cache.",
            "cache_tokens",
            shown="what fits, in equal parts for several models",
        ),
    ] = None,
    max_sequences: Annotated[
        int | None, _of_model("Most computed at once.", "max_sequences")
    ] = None,
    max_step_tokens: Annotated[
        int | None, _of_model("Most tokens per step.", "max_step_tokens")
    ] = None,
    threads: Annotated[
        int | None, _of_model("Of the CPU backend.", "threads", shown="one per core")
    ] = None,
    deterministic: Annotated[
        bool | None,
        _of_model("Answers do not depend on other requests.", "deterministic", shown="on a CPU"),
    ] = None,
    speculate: Annotated[
        int | None, _of_model("Tokens to guess and verify per step.", "speculate")
    ] = None,
    pull: Annotated[bool | None, _of_model("Fetch a model that is not here.", "pull")] = None,
    hub: Annotated[str | None, _of_model("huggingface or modelscope.", "hub")] = None,
) -> None:
    """Serve models through an OpenAI-compatible API, with accounts, keys and a ledger.

    An option goes before its environment variable, and both before the configuration file.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    from dsv2.service.server import run
    from dsv2.service.settings import read_settings

    of_models = {name: given[name] for name in ModelSettings.model_fields if name in given}
    own = {
        name: value
        for name, value in given.items()
        if name in ServeSettings.model_fields and name != "models"
    }
    settings = read_settings(
        config, own, models=models or (), aliases=alias or (), for_models=of_models
    )
    raise typer.Exit(run(settings))
