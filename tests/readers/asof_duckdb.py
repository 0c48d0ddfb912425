"""Answers as-of questions with DuckDB alone: the rule is written out in SQL over all versions.

Reads {"path to metadata of silver": ..., "gold": ..., "questions": [...]} as JSON from stdin, each
question {"system": µs, "valid": µs or null, "running": bool, "table": "silver" or "gold",
"select": SQL, "where": SQL, "tail": SQL}, and prints the rows of each as JSON.
"""

import decimal
import json
import sys

import read_duckdb


def cell(value):
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    return f"double {value!r}" if isinstance(value, float) else value


def main():
    asked = json.load(sys.stdin)
    db = read_duckdb.connect()
    for table in ("silver", "gold"):
        db.execute(f"create table {table} as select * from iceberg_scan('{asked[table]}')")
    answers = []
    for q in asked["questions"]:
        rule = [f"epoch_us(sys_from) <= {q['system']} and {q['system']} < epoch_us(sys_to)"]
        if q["valid"] is not None:
            rule.append(f"epoch_us(valid_from) <= {q['valid']} and {q['valid']} < epoch_us(valid_to)")
            if q["table"] == "silver" and not q["running"]:
                rule.append(f"epoch_us(bar_end) <= {q['valid']}")
        where = " and ".join(f"({r})" for r in [*rule, q["where"]])
        select = q["select"].replace("MICROS(", "epoch_us(")
        rows = db.execute(f"{select} from {q['table']} where {where} {q['tail']}").fetchall()
        answers.append([[cell(c) for c in row] for row in rows])
    json.dump(answers, sys.stdout)


main()
