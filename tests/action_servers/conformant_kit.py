"""The conformance actions, made with the kit: `python -m sec_client.kit conformant_kit:server`.

With its data in a SQLite file, CONFORMANT_KIT_FILE, or in the PostgreSQL database that CONFORMANT_KIT_POSTGRES tells how to reach.
"""

import os
import time

import psycopg
from sec_client.kit import ActionFailed, ActionServer, Call, DbApiStore, Payload, SqliteStore, Store, Unavailable

DSN = os.environ.get("CONFORMANT_KIT_POSTGRES")
store: Store = (
    DbApiStore(lambda: psycopg.connect(DSN), driver=psycopg)
    if DSN
    else SqliteStore(os.environ.get("CONFORMANT_KIT_FILE", "kit.db"))
)
server = ActionServer("kit", store=store)
BALANCES = "CREATE TABLE IF NOT EXISTS balances (saga_uid TEXT PRIMARY KEY, balance INTEGER NOT NULL)"
BALANCE = "SELECT balance FROM balances WHERE saga_uid = ?"
CHANGE = "INSERT INTO balances VALUES (?, ?) ON CONFLICT (saga_uid) DO UPDATE SET balance = balances.balance + excluded.balance"
if DSN:
    BALANCES = f"SELECT pg_advisory_xact_lock(1); {BALANCES}"  # what makes a table in PostgreSQL waits for nobody
    BALANCE, CHANGE = BALANCE.replace("?", "%s"), CHANGE.replace("?", "%s")


def behave(call: Call, unavailable: str, fail: str) -> None:
    if call.attempt <= call.params.get(unavailable, 0):
        raise Unavailable("Not available, as it was told.")
    if call.attempt <= call.params.get(fail, 0):
        raise ActionFailed(call.params.get("message", "It failed, as it was told."), code="refused")


def balance_of(call: Call) -> int:
    call.db.execute(BALANCES)
    row = call.db.execute(BALANCE, (call.saga_uid,)).fetchone()
    return int(row[0]) if row else 0


@server.action("conformance.add")
def add(call: Call) -> int:
    time.sleep(call.params.get("sleep_ms", 0) / 1000)
    behave(call, "unavailable", "fail")
    call.db.execute(BALANCES)
    call.db.execute(CHANGE, (call.saga_uid, call.params["amount"]))
    return balance_of(call)


@add.undo
def take_off(call: Call) -> None:
    behave(call, "undo_unavailable", "undo_fail")
    if call.output_known:  # else it was not added: the output is kept in the transaction that adds
        call.db.execute(BALANCES)
        call.db.execute(CHANGE, (call.saga_uid, -call.params["amount"]))


@server.action("conformance.balance", undo=None)
def balance(call: Call) -> int:
    return balance_of(call)


@server.action("conformance.echo", undo=None)
def echo(call: Call) -> Payload:
    return call.inputs.payload("payload")
