"""Models and the tokenizer."""

from __future__ import annotations

from typing import Any

import pytest

from dsv2.tokenizer import special
from tests.service.asgi import ask
from tests.service.fakes import Site, make_site, pocket_tokenizer, words

TOKENIZER = pocket_tokenizer()
NARROW = {"authorization": "Bearer sk-narrow"}


@pytest.fixture(scope="module")
def site() -> Site:
    return make_site(words(TOKENIZER, "Hello"), TOKENIZER)


@pytest.mark.parametrize("start", ["", "/v1"])
def test_models_by_name_and_alias(site: Site, start: str) -> None:
    listed = ask(site.app, f"{start}/models", method="GET").json
    assert listed["object"] == "list"
    (card,) = listed["data"]
    assert (card["id"], card["object"], card["owned_by"]) == ("pocket", "model", "dsv2")
    for name in ("pocket", "gpt-4"):
        assert ask(site.app, f"{start}/models/{name}", method="GET").json == card
    reply = ask(site.app, f"{start}/models/a/b", method="GET")
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")


def test_a_key_sees_its_own_models(site: Site) -> None:
    assert ask(site.app, "/models", method="GET", headers=NARROW).json["data"] == []
    reply = ask(site.app, "/models/pocket", method="GET", headers=NARROW)
    assert reply.status == 404
    assert "allowed are pocket" not in reply.error["message"]


def test_text_to_tokens_and_back(site: Site) -> None:
    text = f"hé你{special.EOS}"
    found = ask(site.app, "/tokenize", {"prompt": text, "add_special_tokens": False}).json
    assert found["tokens"] == TOKENIZER.encode_with_specials(text)
    assert found["tokens"][-1] == TOKENIZER.eos_id
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 2048)
    assert ask(site.app, "/v1/detokenize", {"tokens": found["tokens"]}).json == {"prompt": text}
    whole = ask(site.app, "/v1/tokenize", {"prompt": special.BOS + text}).json["tokens"]
    assert whole == [TOKENIZER.bos_id, *found["tokens"]]


def test_a_conversation_to_tokens(site: Site) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
    found = ask(site.app, "/tokenize", body | {"return_token_strs": True}).json
    assert "".join(found["token_strs"]) == f"{special.BOS}{special.USER}Hi{special.ASSISTANT}"
    bare = ask(site.app, "/tokenize", body | {"add_generation_prompt": False}).json
    assert bare["tokens"] == found["tokens"][:-1]


def test_the_tokenizers_facts(site: Site) -> None:
    found = ask(site.app, "/tokenizer_info", method="GET").json
    assert (found["bos_token"], found["eos_token"]) == (special.BOS, special.EOS)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/tokenize", {}), ("/tokenize", {"prompt": "a", "messages": [{"role": "user"}]}),
     ("/tokenize", {"prompt": "x" * 3_900_000}), ("/detokenize", {"tokens": [-1]}),
     ("/detokenize", {"tokens": [8192]}), ("/detokenize", {"tokens": ["a"]}), ("/detokenize", {})],
)  # fmt: skip
def test_what_is_wrong(site: Site, path: str, body: Any) -> None:
    reply = ask(site.app, path, body)
    assert reply.status == 400
    assert reply.error["param"] in ("prompt", "tokens", "tokens[0]")


def test_everything_needs_a_key(site: Site) -> None:
    for path, method in (
        ("/models", "GET"), ("/models/pocket", "GET"), ("/tokenize", "POST"),
        ("/detokenize", "POST"), ("/tokenizer_info", "GET"), ("/openapi.json", "GET"),
    ):  # fmt: skip
        assert ask(site.app, path, {}, method=method, headers={}).status == 401
