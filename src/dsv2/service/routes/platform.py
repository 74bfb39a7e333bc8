"""The platform's routers, for :func:`dsv2.service.web.app.create_app`."""

from __future__ import annotations

from fastapi import APIRouter

from dsv2.service.routes import (
    admin,
    admin_users,
    chat_archive,
    chat_fill,
    chat_messages,
    chat_presets,
    chats,
    keys,
    money,
    sessions,
    site,
    usage,
)


def platform_routers() -> tuple[APIRouter, ...]:
    """Accounts, keys, money, usage and administration; ``desk.install`` gives them the office."""
    modules = (sessions, keys, money, usage, admin_users, admin)
    return tuple(module.router for module in modules)


def chat_routers() -> tuple[APIRouter, ...]:
    """The chat site's; ``desk.install`` gives them its answers under way."""
    modules = (site, chats, chat_messages, chat_presets, chat_fill, chat_archive)
    return tuple(module.router for module in modules)
