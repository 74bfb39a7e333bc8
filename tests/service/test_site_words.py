"""The site has a text in each language for every word that the server sends it."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import get_args

import pytest

import dsv2.service
from dsv2.cli.admin.common import ACTOR
from dsv2.service.chats.run import FAILURES
from dsv2.service.platform.office import Office
from dsv2.service.serving import Finish
from dsv2.service.store import models, open_store
from dsv2.service.store.audit import ACTIONS, SYSTEM
from dsv2.service.store.leases import RECOVERED
from dsv2.service.store.settings import Settings
from dsv2.service.web.openapi import BODIES, schema_of
from tests.service.platform.site import make_whole_app

I18N = Path(__file__).parents[2] / "web" / "src" / "lib" / "i18n"
SOURCES = Path(dsv2.service.__file__).parent


def causes() -> set[str]:
    """What the names of movements of money begin with."""
    text = "".join(path.read_text() for path in SOURCES.rglob("*.py"))
    return set(re.findall(r'\bcause ?= ?f"([a-z-]+):', text))


def routes() -> set[str]:
    """The API's routes for programs, by the names under which the site's page of it tells them."""
    office = Office(open_store("sqlite://"))
    try:
        paths = schema_of(make_whole_app(office))["paths"]
    finally:
        office.close()
        office.store.close()
    return {
        route["summary"].lower().replace(" ", "_")
        for path, methods in paths.items()
        if not path.startswith("/api/")
        for route in methods.values()
    }


def parameters() -> set[str]:
    """Of their bodies."""
    return {field.alias or name for body in BODIES for name, field in body.model_fields.items()}


WORDS: dict[str, Collection[str]] = {
    "action": ACTIONS,
    "actor": (SYSTEM, ACTOR),
    "docs.op": routes(),
    "docs.param": parameters(),
    "balance": [book for book in models.BOOKS if book != "issued"],
    "failure": FAILURES,
    "finish": (*get_args(Finish), RECOVERED),
    "keys.period": models.PERIODS,
    "origin": causes(),
    "role": models.ROLES,
    "setting": Settings.model_fields,
    "transfer": models.TRANSFER_KINDS,
    "users": models.STATUSES,
}
"""By what their texts' names begin with."""


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("group", WORDS)
def test_each_word_has_a_text(language: str, group: str) -> None:
    text = "".join(path.read_text() for path in (I18N / language).glob("*.ts"))
    known = set(re.findall(r"^  '([\w.-]+)':", text, re.M))
    assert WORDS[group]
    assert {f"{group}.{word}" for word in WORDS[group]} - known == set()
