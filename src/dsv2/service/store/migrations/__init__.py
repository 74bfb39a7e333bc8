"""The schema's history. A revision is a file in ``versions`` and is never changed afterwards."""

from __future__ import annotations

from importlib.resources import as_file, files

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text

from dsv2.service.store.engine import Store
from dsv2.service.store.errors import SchemaError

# Any constant will do, as long as nobody else on the server locks the same one.
_LOCK = 0x64737632


def _config(folder: str) -> Config:
    config = Config()
    # Percent signs are the configuration parser's own.
    config.set_main_option("script_location", folder.replace("%", "%%"))
    return config


def head() -> str:
    """The revision that this program works with."""
    with as_file(files(__name__)) as folder:
        return str(ScriptDirectory.from_config(_config(str(folder))).get_current_head())


def knows(name: str) -> bool:
    """Whether this program has a revision, and so can bring its tables to its own."""
    with as_file(files(__name__)) as folder:
        script = ScriptDirectory.from_config(_config(str(folder)))
        return name in {one.revision for one in script.walk_revisions()}


def revision(connection: Connection) -> str | None:
    """The revision of a database, None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def upgrade(store: Store, target: str = "head") -> None:
    """Bring the tables to a revision, in one transaction: afterwards all is done or nothing.

    Processes that start together may all call it; the first does the work.

    Raises:
        SchemaError: the database was made by a newer program.
        UnavailableError: it cannot be written now.
    """
    with as_file(files(__name__)) as folder, store.write() as connection:
        if not store.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        config = _config(str(folder))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, target)
        except CommandError as error:
            raise SchemaError(
                f"the database is at revision {revision(connection)}, which this program does "
                f"not know; its own is {head()}"
            ) from error


def check(store: Store) -> None:
    """Make sure that program and database fit.

    Raises:
        SchemaError: naming both revisions.
    """
    with store.read() as connection:
        found = revision(connection)
    if found != head():
        raise SchemaError(f"the database is at revision {found}, this program needs {head()}")
