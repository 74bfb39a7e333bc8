"""What a chat is told besides its messages: system prompt, sampling, files; what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.service.running import Running
from tests.site.conftest import Open
from tests.site.judging import problems_of
from tests.site.scripted import Scripted, scripted_site
from tests.site.visiting import (
    ENDLESS,
    WISH,
    answers,
    ask,
    begin,
    composer,
    configure,
    ended,
    has_words,
    questions,
)

pytestmark = pytest.mark.slow

PRIME = "Write a Python function that checks if a number is prime."

_DROP = """([name, text]) => {
  const data = new DataTransfer();
  data.items.add(new File([text], name));
  for (const type of ['dragover', 'drop'])
    window.dispatchEvent(new DragEvent(type, { dataTransfer: data, cancelable: true }));
}"""


def test_a_system_prompt_and_parameters_reach_the_model(scripted: Scripted, visit: Open) -> None:
    page = visit(scripted.address).open()
    configure(
        page, System_prompt="You are a duck.", Temperature="0.7", Top_k="5", Seed="3",
        Most_tokens="99", Stop_strings="END\n\\n\\n",
    )  # fmt: skip
    ask(page, "Who are you?")
    expect(page.get_by_role("button", name="You are a duck.")).to_be_visible()
    [request] = scripted.engine.requests
    assert "You are a duck." in scripted.tokenizer.decode(request.prompt_ids)
    params = request.params
    assert (params.temperature, params.top_k, params.seed) == (0.7, 5, 3)
    assert params.max_tokens == 99
    page.reload()
    sheet = settings(page)
    for label, value in {"Temperature": "0.7", "Top k": "5", "Stop strings": "END\n\\n\\n"}.items():
        expect(sheet.get_by_label(label, exact=True)).to_have_value(value)
    expect(sheet.get_by_label("Top k", exact=True)).to_be_visible()  # for it holds something


def test_a_model_is_chosen_and_kept(built: Path, visit: Open, tmp_path: Path) -> None:
    with scripted_site(tmp_path, models=("small", "large")) as site:
        page = visit(site.address).open()
        ask(page, "Who are you?")
        menu = page.get_by_role("button", name="Model")
        expect(menu).to_contain_text("small")
        menu.click()
        assert problems_of(page) == []
        page.get_by_role("menuitemradio", name="large").click()
        expect(menu).to_contain_text("large")
        answer = ask(page, "And you?")
        answer.get_by_role("button", name="Tokens and speed").click()
        expect(answer.get_by_role("listitem").last).to_have_text("large")
        expect(answers(page).first.get_by_role("listitem").last).to_have_text("small")
        page.reload()
        expect(menu).to_contain_text("large")
        page.get_by_role("link", name="New chat").click()
        expect(menu).to_contain_text("large")  # chosen last, and so the next one's


def test_presets_are_kept_used_and_deleted(scripted: Scripted, visit: Open) -> None:
    here = visit(scripted.address)
    page = here.open()
    sheet = settings(page)
    sheet.get_by_label("System prompt").fill("Be brief.")
    sheet.get_by_label("Temperature", exact=True).fill("0.3")
    sheet.get_by_role("button", name="Save as a preset").click()
    page.get_by_role("dialog").last.get_by_label("Name").fill("brief")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Preset saved")).to_be_visible()
    page = here.open()
    sheet = settings(page)
    expect(sheet.get_by_label("System prompt")).to_have_value("")
    sheet.get_by_label("Preset", exact=True).select_option("brief")
    expect(sheet.get_by_label("System prompt")).to_have_value("Be brief.")
    expect(sheet.get_by_label("Temperature", exact=True)).to_have_value("0.3")
    sheet.get_by_role("button", name="Delete the preset").click()
    page.get_by_role("dialog").last.get_by_role("button", name="Delete").click()
    expect(sheet.get_by_role("option", name="brief")).to_have_count(0)


def test_a_section_stays_open_while_one_writes_in_it(scripted: Scripted, visit: Open) -> None:
    page = visit(scripted.address).open()
    sheet = settings(page)
    sheet.get_by_text("More parameters").click()
    sheet.get_by_label("Temperature", exact=True).fill("0.3")
    sheet.get_by_label("Temperature", exact=True).blur()
    expect(sheet.get_by_label("Seed", exact=True)).to_be_visible()


def test_files_are_dropped_seen_and_read_by_the_model(
    scripted: Scripted, visit: Open, tmp_path: Path
) -> None:
    page = visit(scripted.address).open()
    page.evaluate(_DROP, ["notes 备注.txt", "The duck is 鸭子 green."])
    page.evaluate(_DROP, ["picture.png", "\x89PNG\x00\x00"])
    expect(page.get_by_text("picture.png is not a text file")).to_be_visible()
    (tmp_path / "more.py").write_text("DUCKS = 2\n")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add text files").click()
    chooser.value.set_files([tmp_path / "more.py"])
    files = page.get_by_role("list", name="Files")
    expect(files.get_by_role("listitem")).to_have_text(["notes 备注.txt", "more.py"])
    ask(page, "What colour is it?")
    prompt = scripted.tokenizer.decode(scripted.engine.requests[-1].prompt_ids)
    for words in ("notes 备注.txt", "The duck is 鸭子 green.", "DUCKS = 2", "What colour is it?"):
        assert words in prompt
    questions(page).last.get_by_role("button", name="notes 备注.txt").click()
    shown = page.get_by_role("dialog", name="notes 备注.txt")
    expect(shown).to_contain_text("The duck is 鸭子 green.")


def test_usage_and_probabilities_are_shown(server: Running, visit: Open) -> None:
    page = visit(server.address).open()
    sheet = settings(page)
    sheet.get_by_label("Keep token probabilities").check()
    sheet.get_by_role("button", name="Save", exact=True).click()
    configure(page, **ENDLESS | {"Frequency_penalty": "", "Most_tokens": "200"})
    answer = ask(page, PRIME)
    answer.get_by_role("button", name="Tokens and speed").click()
    facts = answer.get_by_role("listitem")
    expect(facts.filter(has_text=re.compile(r"^\d+ prompt tokens$"))).to_be_visible()
    expect(facts.filter(has_text="0% from the cache")).to_be_visible()
    expect(facts.filter(has_text=re.compile(r"^[\d.]+ tokens/s$"))).to_be_visible()
    answer.get_by_role("button", name="Colour tokens by probability").click()
    tokens = answer.get_by_role("group", name=re.compile("^Tokens"))
    assert tokens.inner_text().startswith("```python\ndef ")
    tokens.press("ArrowRight")
    expect(answer.get_by_text("instead:")).to_be_visible()
    expect(answer.locator(".detail strong")).to_have_text(re.compile(r"^\d+(\.\d)?%$"))
    colours = tokens.locator("span").evaluate_all(
        "(all) => [...new Set(all.map((one) => getComputedStyle(one).backgroundColor))]"
    )
    assert len(colours) > 1
    ask(page, PRIME)  # what was asked is kept in whole blocks of tokens: the next finds some
    again = ask(page, PRIME)
    cached = again.get_by_role("listitem").filter(has_text="from the cache").inner_text()
    assert int(cached.partition("%")[0]) > 0
    configure(page, **ENDLESS)
    has_words(begin(page, WISH), 200)
    expect(answers(page).last.get_by_text("tokens/s")).to_be_visible()  # while it runs
    composer(page).press("Escape")
    ended(answers(page).last)


def settings(page: Page) -> Locator:
    page.get_by_role("button", name="Chat settings").first.click()
    return page.get_by_role("dialog", name="Chat settings")
