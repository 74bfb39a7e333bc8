"""What must hold of every page: WCAG as axe judges it, and nothing beside its width."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from playwright.sync_api import Page

from tests.site.conftest import WEB

_AXE = WEB / "node_modules" / "axe-core" / "axe.min.js"
_RUN = """async ([rules, but]) => {
  const all = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'];
  const { violations } = await axe.run({
    runOnly: rules.length ? rules : all,
    rules: Object.fromEntries(but.map((rule) => [rule, { enabled: false }])),
    resultTypes: ['violations'],
  });
  return violations.map(({ id, nodes }) =>
    `${id}: ${nodes.slice(0, 3).map((node) => node.target.join(' ')).join(' | ')}`);
}"""


def problems_of(page: Page, *rules: str, but: Sequence[str] = ()) -> list[str]:
    """What of WCAG 2.2 AA, or of some of axe's rules, the page breaks; how much it is too wide.

    Args:
        page: in its state.
        rules: only these.
        but: not these.
    """
    if not _AXE.is_file():
        pytest.fail("axe-core is missing: run `npm ci` in web/")
    if not page.evaluate("'axe' in window"):
        page.evaluate(_AXE.read_text())  # by the debugger, which the page's policy does not stop
    found: list[str] = page.evaluate(_RUN, [rules, but])
    over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return found + ([f"{over} px too wide"] if over > 0 else [])
