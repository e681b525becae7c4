"""Books trips: the action server of the tutorial."""

import hashlib
import json
from pathlib import Path

from sec_client.kit import ActionFailed, ActionServer, Call, SqliteStore

server = ActionServer("travel", store=SqliteStore("trips.db"))


@server.action()
def book_hotel(call: Call) -> str:
    """Books a room for the guest."""
    return book(call, "hotel")


@book_hotel.undo
def give_back(call: Call) -> None:
    """Takes a booking back, if there is one."""
    bookings(call)
    call.db.execute("DELETE FROM bookings WHERE key = ?", (call.key,))


def book(call: Call, what: str) -> str:
    """Writes a booking down, under the idempotency key of the call."""
    bookings(call)
    guest = call.params["guest"]
    call.db.execute("INSERT INTO bookings (key, what, guest) VALUES (?, ?, ?)", (call.key, what, guest))
    return f"{what} for {guest}"


def bookings(call: Call) -> None:
    """Sees to it that the table is there."""
    call.db.execute("CREATE TABLE IF NOT EXISTS bookings (key TEXT PRIMARY KEY, what TEXT, guest TEXT)")


@server.action(undo=give_back)
def rent_car(call: Call) -> str:
    """Rents a car."""
    return book(call, "car")


SEATS = 2


@server.action(undo=give_back)
def book_flight(call: Call) -> str:
    """Books a seat, while there are some."""
    bookings(call)
    (sold,) = call.db.execute("SELECT count(*) FROM bookings WHERE what = 'flight'").fetchone()
    if sold >= SEATS:
        raise ActionFailed("There is no seat left on this flight.", code="no_seat")
    return book(call, "flight")


class Bank:
    """An outside system: it knows nothing of sagas, but it takes a payment under a reference only once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def charge(self, reference: str, guest: str, amount: int) -> None:
        self._folder.mkdir(exist_ok=True)
        self._file(reference).write_text(json.dumps({"guest": guest, "amount": amount}))

    def refund(self, reference: str) -> None:
        self._file(reference).unlink(missing_ok=True)

    def _file(self, reference: str) -> Path:
        return self._folder / (hashlib.sha256(reference.encode()).hexdigest() + ".json")


bank = Bank(Path("bank"))


@server.action()
def take_payment(call: Call) -> str:
    """Charges the guest for the trip."""
    guest, price = call.params["guest"], call.params["price"]
    bank.charge(call.key, guest, price)
    return f"{guest} paid {price} for: {', '.join(sorted(call.inputs.values()))}"


@take_payment.undo
def pay_back(call: Call) -> None:
    """Gives the money back, if it was taken."""
    bank.refund(call.key)
