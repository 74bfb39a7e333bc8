"""The platform's routers, for :func:`dsv2.service.app.create_app`."""

from __future__ import annotations

from fastapi import APIRouter

from dsv2.service.routes import admin, admin_users, keys, money, sessions, usage


def platform_routers() -> tuple[APIRouter, ...]:
    """Accounts, keys, money, usage and administration; ``desk.install`` gives them the office."""
    modules = (sessions, keys, money, usage, admin_users, admin)
    return tuple(module.router for module in modules)
