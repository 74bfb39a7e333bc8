"""The routes, one file per subject."""

from __future__ import annotations

from fastapi import APIRouter

from dsv2.service.inference.context import Inference
from dsv2.service.routes import chat, completions, messages, models, responses, tokenize


def inference_routers(inference: Inference) -> list[APIRouter]:
    """The routes of the inference API, in OpenAI's forms and in Anthropic's."""
    subjects = (chat, completions, messages, models, responses, tokenize)
    return [one.router(inference) for one in subjects]
