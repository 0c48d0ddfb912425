"""What the readers share: their arguments, and one canonical form of a table's rows.

Each reader is an engine of its own (pyiceberg, DuckDB, Spark) that knows nothing of FinLake. It
loads the tables of a SQLite catalog, lets the engine do the counting, filtering and time travel,
and prints one JSON object:

    {"reader": "duckdb", "tables": {"silver.market_ohlcv": {
        "columns": ["close decimal(38,8)", ...], "count": 3, "hash": "...",
        "current": {"count": 2, "hash": "..."},
        "symbol":  {"count": 1, "hash": "..."},
        "as_of":   {"snapshot": 42, "count": 1, "hash": "..."},
        "rows": [{...}]}}}

"current" is where is_current holds, "symbol" only with --symbol, "as_of" only with --snapshot,
"rows" only with --rows. Hashes are equal if and only if the rows are, whatever their order and
whichever engine read them.
"""

import argparse
import datetime
import decimal
import hashlib
import json
import math
import re
import sys
import uuid

import pyarrow as pa

TABLES = ["bronze.market_ticks", "silver.market_ohlcv", "gold.market_metrics"]


def arguments(reader):
    """Arguments of every reader."""
    parser = argparse.ArgumentParser(description=f"Read FinLake's tables with {reader}.")
    parser.add_argument("catalog", help="catalog.db, the SQLite catalog")
    parser.add_argument("warehouse", help="the folder (or URL) the tables lie in")
    parser.add_argument("--name", default="finlake", help="the catalog's name")
    parser.add_argument("--table", action="append", default=[], help="namespace.table; repeatable")
    parser.add_argument("--symbol", help="also filter by this symbol")
    parser.add_argument(
        "--snapshot",
        action="append",
        default=[],
        metavar="TABLE=ID",
        help="also read this older snapshot; repeatable",
    )
    parser.add_argument("--rows", action="store_true", help="print the rows as well, sorted")
    args = parser.parse_args()
    args.table = args.table or TABLES
    args.snapshot = {name: int(n) for name, n in (s.split("=", 1) for s in args.snapshot)}
    return args


def report(reader, args, read, extra=None):
    """Reads every table through `read(table, symbol=, snapshot=, current=)`, which gives Arrow."""
    tables = {}
    for table in args.table:
        whole = read(table)
        entry = {"columns": sorted(f"{f.name} {type_name(f.type)}" for f in whole.schema)}
        entry.update(summary(whole))
        if "is_current" in whole.schema.names:
            entry["current"] = summary(read(table, current=True))
        if args.symbol is not None:
            entry["symbol"] = summary(read(table, symbol=args.symbol))
        if table in args.snapshot:
            snapshot = args.snapshot[table]
            entry["as_of"] = {"snapshot": snapshot, **summary(read(table, snapshot=snapshot))}
        if args.rows:
            entry["rows"] = rows(whole)
        if extra is not None:
            entry.update(extra(table))
        tables[table] = entry
    json.dump({"reader": reader, "tables": tables}, sys.stdout, indent=1)
    print()


def type_name(t):
    """Arrow's types, less the differences between engines that mean nothing."""
    if pa.types.is_decimal(t):
        return f"decimal({t.precision},{t.scale})"
    if pa.types.is_timestamp(t):
        return "timestamptz" if t.tz else "timestamp"
    if pa.types.is_string(t) or pa.types.is_large_string(t) or str(t) == "string_view":
        return "string"
    if pa.types.is_large_binary(t) or str(t) == "binary_view":
        return "binary"
    return str(t)


_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def plain(value):
    """One value as JSON, the same for every engine."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, decimal.Decimal):
        text = format(value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, uuid.UUID):
        return value.hex
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, str):
        return value.replace("-", "").lower() if _UUID.fullmatch(value) else value
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in sorted(value.items())}
    raise TypeError(f"no canonical form for {type(value)}")


def rows(table):
    """The rows as sorted dictionaries; timestamps are microseconds since 1970 UTC."""
    columns = {}
    for field, column in zip(table.schema, table.columns):
        if pa.types.is_timestamp(field.type):
            # As a number: Python's datetime would bring in time zones and its own limits.
            column = column.cast(pa.timestamp("us", field.type.tz)).cast(pa.int64())
        columns[field.name] = [plain(v) for v in column.to_pylist()]
    names = sorted(columns)
    made = [dict(zip(names, values)) for values in zip(*(columns[n] for n in names))]
    return sorted(made, key=line)


def line(row):
    return json.dumps(row, sort_keys=True, separators=(",", ":"))


def summary(table):
    digest = hashlib.sha256()
    for row in rows(table):
        digest.update(line(row).encode())
        digest.update(b"\n")
    return {"count": table.num_rows, "hash": digest.hexdigest()[:32]}
