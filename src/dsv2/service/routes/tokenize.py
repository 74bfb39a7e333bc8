"""``POST /tokenize``, ``POST /detokenize``, ``GET /tokenizer_info``: the tokenizer as a service."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from dsv2.service.inference.answers import Detokenized, TokenizerInfo, TokenList, encode
from dsv2.service.inference.context import Inference, encoded
from dsv2.service.inference.conversation import conversation_ids
from dsv2.service.inference.logprobs import token_text
from dsv2.service.protocol import DetokenizeBody, TokenizeBody
from dsv2.service.protocol.base import MAX_PROMPT_TOKENS
from dsv2.service.serving import ServedModel
from dsv2.service.web.deps import SignedIn
from dsv2.service.web.errors import ApiError
from dsv2.service.web.json_body import json_body
from dsv2.service.web.openapi import described

Text = Annotated[TokenizeBody, Depends(json_body(TokenizeBody))]
Tokens = Annotated[DetokenizeBody, Depends(json_body(DetokenizeBody))]


def router(inference: Inference) -> APIRouter:
    """The routes, with and without ``/v1``."""
    made = APIRouter(tags=["tokenizer"])

    def model_of(name: str | None) -> ServedModel:
        return inference.models.all[0] if name is None else inference.find(name)

    async def tokenize(caller: SignedIn, body: Text) -> Response:
        """The tokens of a text or of a conversation."""
        model = model_of(body.model)
        ids = await _ids(model, body)
        names = [token_text(model.tokenizer, one) for one in ids]
        limit = model.engine.limits.max_context
        strings = names if body.return_token_strs else None
        return _answer(TokenList(len(ids), limit, ids, strings))

    async def detokenize(caller: SignedIn, body: Tokens) -> Response:
        """The text of tokens, control tokens included."""
        model = model_of(body.model)
        size = model.engine.limits.vocab_size
        if len(body.tokens) > MAX_PROMPT_TOKENS or any(not 0 <= one < size for one in body.tokens):
            raise ApiError(
                400, f"tokens: allowed are up to {MAX_PROMPT_TOKENS} ids from 0 to {size - 1}",
                param="tokens",
            )  # fmt: skip
        return _answer(Detokenized(model.tokenizer.decode(body.tokens, skip_special_tokens=False)))

    async def tokenizer_info(caller: SignedIn) -> Response:
        """What programs ask about the first model's tokenizer."""
        model = model_of(None)
        bos, eos = (token_text(model.tokenizer, one) for one in _ends(model))
        return _answer(
            TokenizerInfo(
                tokenizer_class="PreTrainedTokenizerFast",
                bos_token=bos,
                eos_token=eos,
                pad_token=eos,
                model_max_length=model.engine.limits.max_context,
                vocab_size=model.tokenizer.vocab_size,
                add_bos_token=True,
            )
        )

    for start in ("", "/v1"):
        made.add_api_route(
            f"{start}/tokenize", tokenize, methods=["POST"], **described(TokenizeBody, TokenList)
        )
        made.add_api_route(
            f"{start}/detokenize", detokenize, methods=["POST"],
            **described(DetokenizeBody, Detokenized),
        )  # fmt: skip
        made.add_api_route(
            f"{start}/tokenizer_info", tokenizer_info, methods=["GET"],
            **described(None, TokenizerInfo),
        )  # fmt: skip
    return made


def _ends(model: ServedModel) -> tuple[int, int]:
    return model.tokenizer.bos_id, model.tokenizer.eos_id


async def _ids(model: ServedModel, body: TokenizeBody) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "prompt: either this or messages must be there", param="prompt")
    if body.messages is not None:
        return await conversation_ids(
            model,
            body.messages,
            body.tools or (),
            add_generation_prompt=body.add_generation_prompt,
            continue_final=body.continue_final_message,
        )
    text, tokenizer = body.prompt or "", model.tokenizer

    def encode_text() -> list[int]:
        ids = tokenizer.encode_with_specials(text)
        start = [] if body.add_special_tokens is False else [tokenizer.bos_id]
        return ids if ids[:1] == start else start + ids

    # Twice the context may be looked at: who asks for tokens may want to cut.
    size = len(text.encode()) // 2
    return await encoded(encode_text, size, tokenizer, model.engine.limits, "prompt")


def _answer(value: object) -> Response:
    return Response(encode(value), media_type="application/json")
