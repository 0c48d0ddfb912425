"""Reads FinLake's tables with DuckDB, by the metadata file that the catalog names.

The extensions come as wheels and are loaded from there; DuckDB must not fetch any by itself.
"""

import glob
import importlib
import os
import sqlite3

import duckdb

import common


def connect():
    db = duckdb.connect(
        config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    )
    for name in ("avro", "httpfs", "iceberg"):  # in this order: iceberg needs the others
        folder = os.path.dirname(importlib.import_module(f"duckdb_extension_{name}").__file__)
        (path,) = glob.glob(f"{folder}/extensions/*/{name}.duckdb_extension")
        db.execute(f"load '{path}'")
    # Timestamps must not pass through the machine's time zone.
    db.execute("set timezone = 'UTC'") if has_icu(db) else None
    return db


def has_icu(db):
    found = db.sql("select loaded from duckdb_extensions() where extension_name = 'icu'").fetchall()
    return bool(found and found[0][0])


def main():
    args = common.arguments("DuckDB")
    catalog = sqlite3.connect(f"file:{args.catalog}?mode=ro", uri=True)
    db = connect()

    def metadata(table):
        namespace, name = table.rsplit(".", 1)
        found = catalog.execute(
            "select metadata_location from iceberg_tables"
            " where catalog_name = ? and table_namespace = ? and table_name = ?",
            (args.name, namespace, name),
        ).fetchone()
        if found is None:
            raise SystemExit(f"{args.catalog} has no table {table} under the name {args.name}")
        return found[0].removeprefix("file://").removeprefix("file:")

    def read(table, symbol=None, snapshot=None, current=None):
        scan = f"iceberg_scan('{metadata(table)}'"
        scan += f", snapshot_from_id = {snapshot})" if snapshot is not None else ")"
        where, values = "", []
        if symbol is not None:
            where, values = " where symbol = ?", [symbol]
        if current is not None:
            where, values = " where is_current = ?", [current]
        return db.execute(f"select * from {scan}{where}", values).to_arrow_table()

    common.report("duckdb", args, read)


if __name__ == "__main__":
    main()
