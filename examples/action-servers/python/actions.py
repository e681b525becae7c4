"""The actions: a trip is booked, and those by which the server is checked against the contract."""

import json
import sqlite3
import time

from contract import Action, Failed
from sec_protos.v1 import action_server_pb2 as pb
from sec_protos.v1 import common_pb2

TABLES = """
    CREATE TABLE IF NOT EXISTS bookings (key TEXT PRIMARY KEY, what TEXT NOT NULL, guest TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS balances (saga_uid TEXT PRIMARY KEY, balance INTEGER NOT NULL);
"""


def value_of(payload: common_pb2.Payload):
    return json.loads(payload.data) if payload.data else None


def json_payload(value) -> common_pb2.Payload:
    return common_pb2.Payload(content_type="application/json", data=json.dumps(value).encode())


# A trip


def booking(name: str, summary: str, what: str) -> Action:
    def do(db: sqlite3.Connection, message: pb.DoRequest) -> common_pb2.Payload:
        guest = value_of(message.params)["guest"]
        db.execute("INSERT INTO bookings VALUES (?, ?, ?)", (message.call.idempotency_key, what, guest))
        return json_payload(f"{what} for {guest}")

    return Action(name, summary, do, give_back)


def give_back(db: sqlite3.Connection, message: pb.UndoRequest) -> None:
    db.execute("DELETE FROM bookings WHERE key = ?", (message.call.idempotency_key,))


def take_payment(db: sqlite3.Connection, message: pb.DoRequest) -> common_pb2.Payload:
    params = value_of(message.params)
    if params["price"] > params["budget"]:
        raise Failed(f"{params['guest']} cannot pay {params['price']}.", "too_expensive")
    booked = ", ".join(sorted(value_of(payload) for payload in message.inputs.values()))
    db.execute("INSERT INTO bookings VALUES (?, 'payment', ?)", (message.call.idempotency_key, params["guest"]))
    return json_payload(f"{params['guest']} paid {params['price']} for: {booked}")


TRIP = [
    booking("book_hotel", "Books a room.", "hotel"),
    booking("rent_car", "Rents a car.", "car"),
    booking("book_flight", "Books a seat.", "flight"),
    booking("insure_trip", "Insures the guest.", "insurance"),
    Action("take_payment", "Charges the guest for the trip.", take_payment, give_back),
]

# For `secctl conformance`


def wait(message: pb.DoRequest) -> None:
    time.sleep(value_of(message.params).get("sleep_ms", 0) / 1000)


def add(db: sqlite3.Connection, message: pb.DoRequest) -> common_pb2.Payload:
    params = value_of(message.params)
    behave(message.call, params, "unavailable", "fail")
    change(db, message.call.saga_uid, params["amount"])
    return json_payload(balance_of(db, message.call.saga_uid))


def take_off(db: sqlite3.Connection, message: pb.UndoRequest) -> None:
    params = value_of(message.params)
    behave(message.call, params, "undo_unavailable", "undo_fail")
    change(db, message.call.saga_uid, -params["amount"])


def behave(call: pb.Call, params: dict, unavailable: str, fail: str) -> None:
    if call.attempt <= params.get(unavailable, 0):
        raise RuntimeError("Not available, as it was told.")
    if call.attempt <= params.get(fail, 0):
        raise Failed(params.get("message", "It failed, as it was told."), "refused")


def change(db: sqlite3.Connection, saga_uid: str, amount: int) -> None:
    db.execute(
        "INSERT INTO balances VALUES (?1, ?2) ON CONFLICT (saga_uid) DO UPDATE SET balance = balance + ?2", (saga_uid, amount)
    )


def balance_of(db: sqlite3.Connection, saga_uid: str) -> int:
    row = db.execute("SELECT balance FROM balances WHERE saga_uid = ?", (saga_uid,)).fetchone()
    return row[0] if row else 0


CONFORMANCE = [
    Action("conformance.add", "Adds to the balance of a saga.", add, take_off, wait),
    Action(
        "conformance.balance",
        "Reads the balance of a saga.",
        lambda db, message: json_payload(balance_of(db, message.call.saga_uid)),
    ),
    Action("conformance.echo", "Answers what it gets.", lambda db, message: message.inputs["payload"]),
]
