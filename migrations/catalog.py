"""The steps that make the schema of `catalog.sqlite`. Step n leaves `PRAGMA user_version` n.

    log        one row for each operation, by its sequence number, with the snapshot that it added, if just one
    snapshots  those that came several at a time, and what is kept of expired ones
    state      everything else

`space` is one of `vstore.catalog.state.Space`, or 0 for the head; it says what `key` and `value` are. Every row ends
in a crc32c of all that it holds, because SQLite does not notice a flipped bit.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

MIGRATIONS = Migrations("vstore_catalog")


@MIGRATIONS()
def step_1_log_and_state(db: Database) -> None:
    """Make the tables."""
    db.execute(
        """
        CREATE TABLE log (
            sequence INTEGER PRIMARY KEY,
            txid BLOB NOT NULL,
            snapshot BLOB,
            body BLOB NOT NULL,
            crc INTEGER NOT NULL
        )
        """
    )
    # Partial, so that operations without a snapshot cost nothing in it.
    db.execute("CREATE UNIQUE INDEX log_snapshot ON log (snapshot) WHERE snapshot IS NOT NULL")
    for table in ("state", "snapshots"):
        db.execute(
            f"""
            CREATE TABLE {table} (
                space INTEGER NOT NULL,
                key BLOB NOT NULL,
                value BLOB NOT NULL,
                crc INTEGER NOT NULL,
                PRIMARY KEY (space, key)
            ) WITHOUT ROWID
            """
        )
    db.execute("PRAGMA user_version = 1")
