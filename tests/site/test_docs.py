"""The page about the API: its examples work, and its routes are told with their parameters."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from playwright.sync_api import Page, expect

from tests.service.running import Running
from tests.site.conftest import Open

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def examples(page: Page) -> list[str]:
    blocks = page.get_by_role("region", name="Examples").locator("pre")
    expect(blocks).to_have_count(3)
    return [block.inner_text() for block in blocks.all()]


def test_its_examples_run_as_they_are(server: Running, visit: Open) -> None:
    page = visit(server.address).open("/docs")
    shell, *programs = examples(page)
    told = subprocess.run(
        ["/bin/sh", "-ec", shell], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert told.rstrip().endswith("data: [DONE]")
    for program in programs:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.strip()


def test_every_route_is_told_with_its_parameters(server: Running, visit: Open) -> None:
    here = visit(server.address)
    page = here.open("/docs")
    chat = page.get_by_role("group").filter(has_text="Answers a conversation, whole")
    expect(chat.get_by_role("table")).to_be_hidden()
    chat.locator("summary").press("Enter")
    expect(chat.get_by_role("row", name="temperature number 0 to 2")).to_be_visible()
    expect(chat.get_by_role("row", name="messages required object[]")).to_be_visible()
    with page.expect_download() as coming:
        page.get_by_role("link", name="OpenAPI").click()
    described = json.loads(coming.value.path().read_bytes())
    assert "/v1/chat/completions" in described["paths"]
