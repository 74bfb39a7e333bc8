"""A platform as it is after a month: people, keys, money, usage, and what was said."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
from sqlalchemy import Connection

from dsv2.service.settings import ServeSettings
from dsv2.service.store import Store, codes, keys, ledger, open_store, reservations, users
from dsv2.service.store.checks import now_ms
from dsv2.service.store.keys import KeyLimits
from dsv2.service.store.prices import Usage
from dsv2.service.store.reservations import Ask
from dsv2.service.store.settings import load_settings
from tests.service.running import Running

PASSWORD = "correct horse battery"
ADMIN = "root@example.org"
RESIDENT = "mei@example.org"
DAY = 86_400_000
DOLLAR = 1_000_000

MAIN = "What is MLA?"
CHATS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("What is 84 - 37?", "Thanks!"), ("arithmetic",)),
    (("Hello!", "How large are you?"), ()),
    (("Write a Python function that reverses a string.",), ("python",)),
    (("What is DeepSeek-V2-Lite?", "What is YaRN?"), ()),
    ((MAIN, "Write a Python function that checks if a number is prime.", "What is 17 + 25?"), ()),
)
"""What is asked in each conversation, and its tags; the last is the newest."""

STORED = "MLA 的键值缓存"
_COMPARISON = r"""每个 token 要缓存的元素数（$n_h$ 个头，每头 $d_h$ 维，$l$ 层；GQA 分 $n_g$ 组）：

| 注意力 | 每个 token 的键值缓存 | 能力 |
|---|:-:|:-:|
| MHA | $2 n_h d_h l$ | 强 |
| GQA | $2 n_g d_h l$ | 中 |
| MQA | $2 d_h l$ | 弱 |
| MLA | $(d_c + d_h^R)\, l \approx \frac{9}{2} d_h l$ | 更强 |

MLA 只保存低秩潜向量 $c_t^{KV}$ 和解耦的 RoPE 键 $k_t^R$：

$$
\begin{aligned}
c_t^{KV} &= W^{DKV} h_t \\
k_t^R &= \mathrm{RoPE}(W^{KR} h_t)
\end{aligned}
$$

DeepSeek-V2 中 $d_c = 512$，$d_h^R = 64$，因此每层每个 token 只有 **576** 个元素。"""


@contextmanager
def opened(server: Running) -> Iterator[Store]:
    """The database of a server."""
    store = open_store(ServeSettings(data=server.data).database_url)
    try:
        yield store
    finally:
        store.close()


def hashed_password(store: Store) -> str:
    """Of everybody here."""
    with store.read() as db:
        return users.hash_password(load_settings(db), PASSWORD)


@dataclass(frozen=True)
class World:
    """Where a resident's things are.

    Attributes:
        chats: addresses of conversations by what was asked first.
        user: address of another user's page.
    """

    chats: dict[str, str] = field(default_factory=dict)
    user: str = ""


def settled(server: Running) -> World:
    """Let a resident, who is an administrator too, have been here for a month."""
    with opened(server) as store:
        hashed, now = hashed_password(store), now_ms()
        with store.write() as db:
            resident = users.add_user(
                db, RESIDENT, now=now - 31 * DAY, password_hash=hashed, role="admin"
            )
            ines, _, yuki = (
                users.add_user(db, email, now=now - 34 * DAY, password_hash=hashed)
                for email in ("ines@example.org", "omar@example.org", "yuki@example.org")
            )
            users.set_status(db, yuki.id, "suspended", actor="cli", now=now)
            for one, seed in ((resident, 7), (ines, 8)):
                _money(db, one.account_id, now)
                made = _keys(db, one.id, one.account_id, now)
                _usage(db, one.account_id, made, now, random.Random(seed))
            for uses in (1, 25):
                codes.create_code(db, amount=5 * DOLLAR, actor="cli", now=now, max_uses=uses)
    return World(_chats(server), f"/admin/users/{ines.id}")


def _stored() -> dict[str, object]:
    """A conversation as somebody brings it in, of what the shipped model does not write."""
    asked = "用表格比较 MHA、GQA、MQA 和 MLA 的键值缓存。"
    question = {"id": "q", "parent_id": None, "role": "user", "content": asked}
    answer = {"id": "a", "parent_id": "q", "role": "assistant", "content": _COMPARISON}
    day = now_ms() - DAY
    return {
        "title": STORED, "tags": ["中文"], "created_at": day, "updated_at": day,
        "messages": [question, answer],
    }  # fmt: skip


def _money(db: Connection, account: str, now: int) -> None:
    for days, book, dollars, memo in (
        (31, "granted", 5, "Welcome"),
        (29, "paid", 50, "Invoice 2041"),
        (8, "paid", 25, "Invoice 2107"),
    ):
        ledger.deposit(
            db, account, book=book, amount=dollars * DOLLAR, cause=f"{memo} {account}",
            actor="cli", now=now - days * DAY, memo=memo,
        )  # fmt: skip


def _keys(db: Connection, user: str, account: str, now: int) -> list[str]:
    ids = []
    month = KeyLimits(budget=20 * DOLLAR, budget_period="month", requests_per_minute=600)
    for name, limits in (("editor", None), ("evaluation", month), ("old notebook", None)):
        key, _ = keys.create_key(
            db, account_id=account, user_id=user, name=name, now=now - 30 * DAY, limits=limits
        )
        ids.append(key.id)
    keys.revoke_key(db, account, ids[-1], actor="cli", now=now)
    return ids[:2]


def _usage(db: Connection, account: str, made: list[str], now: int, chance: random.Random) -> None:
    for day in range(29, 0, -1):
        for number in range(chance.randint(1, 5) if day % 7 else 1):
            at = now - day * DAY + number * 60_000
            name = f"{chance.getrandbits(128):032x}"
            prompt, answer = chance.randint(20_000, 400_000), chance.randint(10_000, 120_000)
            key = made[0] if number % 3 else made[1]
            ask = Ask(name, account, key, "pocket", prompt, answer)
            reservations.reserve(db, ask, owner="test", now=at, expires_at=at + 60_000)
            used = Usage(prompt, int(prompt * chance.uniform(0.2, 0.8)), answer)
            reservations.settle(db, name, used, finish="stop", now=at + 4_000)


def _chats(server: Running) -> dict[str, str]:
    """Real answers of the shipped model, and one conversation from elsewhere."""
    found = {}
    with httpx.Client(
        base_url=server.address, headers={"Origin": server.address}, timeout=60
    ) as person:
        done = person.post("/api/account/log-in", json={"email": RESIDENT, "password": PASSWORD})
        assert done.status_code == 200, done.text
        for asked, tags in CHATS:
            body = {"params": {"temperature": 0, "logprobs": True}, "tags": list(tags)}
            made = person.post("/api/chat/conversations", json=body).json()["id"]
            parent = None
            for content in asked:
                sent = person.post(
                    f"/api/chat/conversations/{made}/messages",
                    json={"parent_id": parent, "content": content},
                )
                assert sent.status_code == 201, sent.text
                parent = sent.json()["answer"]["id"]
                person.get(f"/api/chat/messages/{parent}/events")  # until it is whole
            found[asked[0]] = f"/c/{made}"
        brought = person.post("/api/chat/import", json={"conversations": [_stored()]})
        assert brought.status_code == 200, brought.text
        [one] = brought.json()["conversations"]
        found[STORED] = f"/c/{one['id']}"
    return found
