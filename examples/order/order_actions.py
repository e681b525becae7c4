"""Sells one lamp: the action server of an order that needs approval."""

from sec_client.kit import ActionFailed, ActionServer, Call, SqliteStore

server = ActionServer("shop", store=SqliteStore("shop.db"))


@server.action()
def reserve_stock(call: Call) -> str:
    """Puts the lamp aside."""
    reservations(call)
    (taken,) = call.db.execute("SELECT count(*) FROM reservations").fetchone()
    if taken:
        raise ActionFailed("The lamp is taken.", code="sold_out")
    call.db.execute("INSERT INTO reservations VALUES (?)", (call.key,))
    return "a lamp"


@reserve_stock.undo
def put_back(call: Call) -> None:
    """Puts the lamp back, if it was taken."""
    reservations(call)
    call.db.execute("DELETE FROM reservations WHERE key = ?", (call.key,))


def reservations(call: Call) -> None:
    """Sees to it that the table is there."""
    call.db.execute("CREATE TABLE IF NOT EXISTS reservations (key TEXT PRIMARY KEY)")


@server.action(undo=None)
def charge_card(call: Call) -> str:
    """Takes the money. There is no way back from here."""
    return "paid"


@server.action(undo=None)
def send_parcel(call: Call) -> str:
    """Hands the lamp to the post."""
    return f"{call.inputs['stock']}, approved by {call.inputs['approval']['by']}"
