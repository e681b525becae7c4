//! Books a trip.

use std::sync::Arc;

use rusqlite::{Connection, params};
use serde::Deserialize;

use crate::action::{Action, Unsuccessful, decoded, json_payload};
use crate::sec::{DoRequest, Payload, UndoRequest};

pub const TABLE: &str = "CREATE TABLE IF NOT EXISTS bookings (key TEXT PRIMARY KEY, what TEXT NOT NULL, guest TEXT NOT NULL);";

pub fn actions() -> Vec<Arc<dyn Action>> {
    vec![
        Arc::new(Booking("book_hotel", "Books a room.", "hotel")),
        Arc::new(Booking("rent_car", "Rents a car.", "car")),
        Arc::new(Booking("book_flight", "Books a seat.", "flight")),
        Arc::new(Booking("insure_trip", "Insures the guest.", "insurance")),
        Arc::new(Payment),
    ]
}

#[derive(Deserialize)]
struct Params {
    guest: String,
    price: i64,
    budget: i64,
}

/// Its name, its summary, and what is booked.
struct Booking(&'static str, &'static str, &'static str);

impl Action for Booking {
    fn name(&self) -> &'static str {
        self.0
    }

    fn summary(&self) -> &'static str {
        self.1
    }

    fn run(&self, db: &Connection, message: &DoRequest) -> Result<Payload, Unsuccessful> {
        let Params { guest, .. } = decoded(message.params.as_ref())?;
        book(db, message, self.2, &guest)?;
        json_payload(format!("{} for {guest}", self.2))
    }

    fn undo(&self, db: &Connection, message: &UndoRequest) -> Result<(), Unsuccessful> {
        give_back(db, message)
    }
}

struct Payment;

impl Action for Payment {
    fn name(&self) -> &'static str {
        "take_payment"
    }

    fn summary(&self) -> &'static str {
        "Charges the guest for the trip."
    }

    fn run(&self, db: &Connection, message: &DoRequest) -> Result<Payload, Unsuccessful> {
        let Params {
            guest,
            price,
            budget,
        } = decoded(message.params.as_ref())?;
        if price > budget {
            return Err(Unsuccessful::failed(
                format!("{guest} cannot pay {price}."),
                "too_expensive",
            ));
        }
        let mut booked: Vec<String> = message
            .inputs
            .values()
            .map(|input| decoded(Some(input)))
            .collect::<Result<_, _>>()?;
        booked.sort();
        book(db, message, "payment", &guest)?;
        json_payload(format!("{guest} paid {price} for: {}", booked.join(", ")))
    }

    fn undo(&self, db: &Connection, message: &UndoRequest) -> Result<(), Unsuccessful> {
        give_back(db, message)
    }
}

fn book(db: &Connection, message: &DoRequest, what: &str, guest: &str) -> rusqlite::Result<()> {
    let key = message.call.as_ref().map(|call| &call.idempotency_key);
    db.execute(
        "INSERT INTO bookings VALUES (?, ?, ?)",
        params![key, what, guest],
    )
    .map(drop)
}

fn give_back(db: &Connection, message: &UndoRequest) -> Result<(), Unsuccessful> {
    let key = message.call.as_ref().map(|call| &call.idempotency_key);
    db.execute("DELETE FROM bookings WHERE key = ?", params![key])?;
    Ok(())
}
