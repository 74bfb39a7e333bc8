"""The routes, one file per subject."""

from __future__ import annotations

from fastapi import APIRouter

from dsv2.service.inference import Inference
from dsv2.service.routes import chat, completions, models, tokenize


def inference_routers(inference: Inference) -> list[APIRouter]:
    """The routes of the OpenAI-compatible API."""
    return [one.router(inference) for one in (chat, completions, models, tokenize)]
