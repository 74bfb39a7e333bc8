"""What ``/openapi.json`` promises is kept, whatever is sent."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.service.asgi import ask
from tests.service.fakes import HEADERS, make_site, pocket_tokenizer, words

SITE = make_site(words(pocket_tokenizer(), "Hello"), pocket_tokenizer(), schema_is_public=True)
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance,
    response_schema_conformance,
]  # fmt: skip
schema = schemathesis.openapi.from_asgi("/openapi.json", SITE.app)


def quick(examples: int) -> Any:
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


# The beta and bare addresses are the same routes. Making up conversations takes seconds, which is
# for the slow test.
@schema.include(path_regex="^/v1/(comp|det|mod|tokenizer)").parametrize()
@quick(6)
def test_nothing_breaks_the_server(case: Any) -> None:
    """Fault F23."""
    case.call_and_validate(headers=HEADERS, checks=CHECKS)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@schema.include(path_regex="^/v1/").parametrize()
@quick(300)
def test_nothing_breaks_the_server_at_length(case: Any) -> None:
    """Fault F23."""
    case.call_and_validate(headers=HEADERS, checks=CHECKS)


def test_every_address_and_status_is_described() -> None:
    found = ask(SITE.app, "/openapi.json", method="GET", headers={}).json
    assert set(found["paths"]) >= {
        "/chat/completions", "/v1/chat/completions", "/beta/chat/completions", "/completions",
        "/v1/completions", "/beta/completions", "/models", "/v1/models", "/v1/models/{model}",
        "/tokenize", "/v1/tokenize", "/detokenize", "/tokenizer_info",
        "/v1/messages", "/v1/messages/count_tokens", "/anthropic/v1/messages", "/responses",
        "/v1/responses",
    }  # fmt: skip
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            statuses = set(operation["responses"])
            assert {"200", "400", "401", "429", "500", "503"} <= statuses, (method, path)
            assert "422" not in statuses
    body = found["components"]["schemas"]["ChatBody"]
    assert set(body["required"]) == {"model", "messages"}
    assert "schema" in found["components"]["schemas"]["JsonSchema"]["properties"]
    refused = found["paths"]["/v1/messages"]["post"]["responses"]["400"]["content"]
    name = refused["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert name == "AnthropicError"
    assert set(found["components"]["schemas"][name]["required"]) == {"type", "error"}
