#!/usr/bin/env python3
"""Loads traces into DuckDB or ClickHouse (chdb) in memory and prints each query's rows as JSON: query.py ENGINE TRACE..."""
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
engine, traces = sys.argv[1], sys.argv[2:]
queries = {file.stem: file.read_text() for file in sorted((HERE / engine).glob("*.sql"))}
table = queries.pop("table")
answers = {}
if engine == "duckdb":
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET VARIABLE traces = ?", [traces])
    connection.execute(table)
    for name, query in queries.items():
        cursor = connection.execute(query)
        columns = [column[0] for column in cursor.description]
        answers[name] = [dict(zip(columns, row)) for row in cursor.fetchall()]
else:
    from chdb import session

    connection = session.Session()
    for statement in table.split(";\n"):
        connection.query(statement)
    for trace in traces:
        quoted = trace.replace("\\", "\\\\").replace("'", "\\'")
        connection.query(f"INSERT INTO imds_records (line) SELECT line FROM file('{quoted}', LineAsString, 'line String')")
    settings = " SETTINGS output_format_json_quote_64bit_integers = 0"
    for name, query in queries.items():
        text = str(connection.query(query.rstrip().rstrip(";") + settings, "JSONEachRow"))
        answers[name] = [json.loads(line) for line in text.splitlines()]
print(json.dumps(answers, default=str, sort_keys=True))
