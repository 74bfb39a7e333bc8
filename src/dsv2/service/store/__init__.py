"""The store of the platform: who may ask, what it costs, and what was asked.

``open_store`` connects, ``migrations.upgrade`` makes the tables, and the other modules are
functions on a transaction: what belongs together goes into one ``with store.write() as db``.

| module | what it keeps |
|---|---|
| ``users`` | people, passwords, sessions |
| ``keys`` | API keys with their limits and budgets |
| ``ledger`` | the books of every account |
| ``prices`` | what tokens cost |
| ``reservations`` | money held for requests, charged once |
| ``leases`` | what becomes of the requests of a process that dies |
| ``outbox`` | settlements that wait for the database |
| ``idempotency`` | answers to requests that are sent again |
| ``codes`` | redemption codes |
| ``usage`` | what was used, per request and day |
| ``audit``, ``settings`` | who did what; what an operator may change |
| ``verify``, ``backup`` | whether the books agree; copies of all of it |

The functions block: an event loop calls them in threads.
"""

from dsv2.service.store.engine import Store, open_store
from dsv2.service.store.errors import StoreError

__all__ = ["Store", "StoreError", "open_store"]
