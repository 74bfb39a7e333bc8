"""What somebody makes a model, a file, a title or a user say runs nothing, loads nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.service.running import Running
from tests.site.conftest import WEB, Open
from tests.site.scripted import Scripted
from tests.site.visiting import answers, begin, choose, composer, ended, words_of

pytestmark = pytest.mark.slow

_PROBLEMS = """() => {
  const problems = [];
  const own = 'script[src^="/assets/"], script[src="/theme.js"], link[href^="/"], meta, ' +
    `link[href^="${location.origin}/assets/"], form.composer, textarea, input, select`;
  const never = 'script, iframe, object, embed, form, input, textarea, select, link, meta, base, ' +
    'style, img, video, audio, source, frame, frameset, template, portal, marquee, ' +
    'foreignObject, use, animate, set, math > maction';
  for (const node of document.querySelectorAll(never))
    if (!node.matches(own) && !node.closest('.katex')) problems.push(node.outerHTML.slice(0, 200));
  for (const node of document.querySelectorAll('article *, nav *, h1, h1 *, dialog *')) {
    for (const { name, value } of node.attributes) {
      if (/^on/.test(name)) problems.push(`${name}=${value}`);
      if (/^(xlink:)?href$/.test(name) && !/^(https?:|mailto:|\\/)/i.test(value))
        problems.push(`${name}=${value}`);
      if (name === 'style' && /url|expression|import/i.test(value)) problems.push(value);
    }
  }
  if (window.hostile) problems.push('a script has run');
  return problems;
}"""

# Answers far above are plain text until they come near.
_DRAW_ALL = """async () => {
  for (let plain; (plain = document.querySelector('article > .plain')); ) {
    plain.scrollIntoView();
    await new Promise(requestAnimationFrame);
  }
}"""

_CRIMES = """() => {
  const make = (name, what) => Object.assign(document.createElement(name), what);
  document.querySelector('h1').append(
    make('iframe', { srcdoc: 'x' }),
    make('a', { href: 'javascript:1' }),
    make('img', { src: 'https://evil.example/x.png' }),
  );
  document.body.append(make('script', { textContent: 'window.hostile = 1' }));
  alert(1);
  setTimeout(() => { throw Error('crime'); });
  setTimeout(() => document.body.append(make('i', { id: 'done' })), 50);
}"""


def corpus(page: Page) -> list[str]:
    """Hostile texts of the site's unit tests, which call ``alert``, each of which we watch."""
    source = (WEB / "tests" / "markdown" / "xss.ts").read_text()
    script = re.search(r"^const SCRIPT = .*$", source, re.MULTILINE)
    array = re.search(r"^export const XSS: string\[\] = (\[.*?^\]);", source, re.M | re.S)
    assert script and array
    found: list[str] = page.evaluate(f"() => {{ {script[0]}; return {array[1]}; }}")
    assert len(found) > 150
    return found + [text.replace("alert(1)", "window.hostile=1") for text in found[:60]]


@pytest.fixture
def texts(browser: Browser) -> list[str]:
    page = browser.new_page()
    try:
        return corpus(page)
    finally:
        page.close()


def conversation(title: str, said: list[str]) -> dict[str, object]:
    """One in which everything is hostile: both sides' texts, and names and content of files."""
    messages: list[dict[str, object]] = []
    for place, text in enumerate(said):
        parent = f"a{place - 1}" if place else None
        file = {"name": text[:190].replace("\x00", "") or "x", "text": text}
        messages.append({
            "id": f"u{place}", "parent_id": parent, "role": "user", "content": text,
            "attachments": [file], "created_at": place,
        })  # fmt: skip
        messages.append({
            "id": f"a{place}", "parent_id": f"u{place}", "role": "assistant", "content": text,
            "finish": "stop", "created_at": place,
        })  # fmt: skip
    return {"title": title, "messages": messages, "system": said[0], "tags": [said[0][:50]]}


def test_conversations_that_are_imported(
    scripted: Scripted, visit: Open, texts: list[str], tmp_path: Path
) -> None:
    page = visit(scripted.address).open()
    texts = [text.replace("\x00", "") for text in texts]  # which JSON of ours refuses
    titles = [text[:200] for text in texts if "\n" not in text][:40]
    made = [conversation(titles[0], texts), *(conversation(title, [title]) for title in titles[1:])]
    kept = tmp_path / "hostile.json"
    kept.write_text(json.dumps({"conversations": made}))
    with page.expect_file_chooser() as chooser:
        choose(page, "Import and export", "Import chats")
    chooser.value.set_files(kept)
    expect(page.get_by_text(f"{len(made)} chats imported")).to_be_visible()
    assert page.evaluate(_PROBLEMS) == []
    page.get_by_role("link", name=titles[0], exact=True).first.click()
    expect(answers(page)).to_have_count(len(texts))
    page.evaluate(_DRAW_ALL)
    expect(page.locator("article > .plain")).to_have_count(0)
    assert page.evaluate(_PROBLEMS) == []
    page.get_by_role("list", name="Files").first.get_by_role("button").first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate(_PROBLEMS) == []


def test_answers_that_stream_with_tags_cut_anywhere(
    scripted: Scripted, visit: Open, texts: list[str]
) -> None:
    page = visit(scripted.address).open()
    # A fence or a comment that is left open swallows what follows: three orders, three cuts.
    for size, said in ((1, texts[::5]), (3, texts[2::3]), (7, texts[::-2])):
        scripted.text, scripted.size, scripted.pause = "\n\n".join(said), size, 0.0005 * size
        page.goto("/")
        composer(page).fill(said[-1].replace("\x00", "") or "?")
        composer(page).press("Enter")
        answer = answers(page).last
        expect(answer).to_have_attribute("aria-busy", "true")
        while answer.get_attribute("aria-busy") == "true":
            assert page.evaluate(_PROBLEMS) == []
        assert page.evaluate(_PROBLEMS) == []
        assert (words_of(answer).text_content() or "").count("alert(1)") > 10  # shown as text


def test_what_watches_sees_what_it_is_to_see(server: Running, visit: Open) -> None:
    here = visit(server.address)
    page = here.open()
    page.evaluate(_CRIMES)
    assert len(page.evaluate(_PROBLEMS)) == 4
    assert not page.evaluate("window.hostile")  # the policy stops it where all else fails
    expect(page.locator("#done")).to_be_attached()
    for sign in ("script-src", "img-src", "alert was called", "uncaught: crime"):
        assert any(sign in problem for problem in here.problems), here.problems
    here.problems.clear()


def test_a_system_prompt_of_one_line_and_a_title_are_text(scripted: Scripted, visit: Open) -> None:
    page = visit(scripted.address).open()
    text = "<img src=x onerror=alert(1)>"
    ended(begin(page, text))
    expect(page.get_by_role("heading", level=1)).to_have_text(text)
    expect(page).to_have_title(re.compile(re.escape(text)))
    assert page.evaluate(_PROBLEMS) == []
