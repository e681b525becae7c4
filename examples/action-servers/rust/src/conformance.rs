//! Called by `secctl conformance`; docs/action-servers.md specifies them.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};
use serde::Deserialize;

use crate::action::{Action, Unsuccessful, decoded, json_payload};
use crate::sec::{Call, DoRequest, Payload, UndoRequest};

pub const TABLE: &str =
    "CREATE TABLE IF NOT EXISTS balances (saga_uid TEXT PRIMARY KEY, balance INTEGER NOT NULL);";

pub fn actions() -> Vec<Arc<dyn Action>> {
    vec![Arc::new(Add), Arc::new(Balance), Arc::new(Echo)]
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Params {
    amount: i64,
    sleep_ms: u64,
    unavailable: u32,
    fail: u32,
    message: Option<String>,
    undo_unavailable: u32,
    undo_fail: u32,
}

struct Add;

impl Action for Add {
    fn name(&self) -> &'static str {
        "conformance.add"
    }

    fn summary(&self) -> &'static str {
        "Adds to the balance of a saga."
    }

    fn takes(&self, message: &DoRequest) -> Duration {
        Duration::from_millis(
            decoded(message.params.as_ref()).map_or(0, |params: Params| params.sleep_ms),
        )
    }

    fn run(&self, db: &Connection, message: &DoRequest) -> Result<Payload, Unsuccessful> {
        let params: Params = decoded(message.params.as_ref())?;
        let call = message.call.clone().unwrap_or_default();
        behave(&call, params.unavailable, params.fail, params.message)?;
        change(db, &call, params.amount)?;
        json_payload(balance(db, &call)?)
    }

    fn undo(&self, db: &Connection, message: &UndoRequest) -> Result<(), Unsuccessful> {
        let params: Params = decoded(message.params.as_ref())?;
        let call = message.call.clone().unwrap_or_default();
        behave(&call, params.undo_unavailable, params.undo_fail, None)?;
        Ok(change(db, &call, -params.amount)?)
    }
}

struct Balance;

impl Action for Balance {
    fn name(&self) -> &'static str {
        "conformance.balance"
    }

    fn summary(&self) -> &'static str {
        "Reads the balance of a saga."
    }

    fn run(&self, db: &Connection, message: &DoRequest) -> Result<Payload, Unsuccessful> {
        json_payload(balance(db, &message.call.clone().unwrap_or_default())?)
    }
}

struct Echo;

impl Action for Echo {
    fn name(&self) -> &'static str {
        "conformance.echo"
    }

    fn summary(&self) -> &'static str {
        "Answers what it gets."
    }

    fn run(&self, _: &Connection, message: &DoRequest) -> Result<Payload, Unsuccessful> {
        let payload = message.inputs.get("payload");
        payload
            .cloned()
            .ok_or_else(|| Unsuccessful::failed("There is no payload.", "refused"))
    }
}

fn behave(
    call: &Call,
    unavailable: u32,
    fail: u32,
    message: Option<String>,
) -> Result<(), Unsuccessful> {
    if call.attempt <= unavailable {
        return Err(Unsuccessful::Unknown(
            "Not available, as it was told.".into(),
        ));
    }
    if call.attempt <= fail {
        return Err(Unsuccessful::failed(
            message.unwrap_or("It failed, as it was told.".into()),
            "refused",
        ));
    }
    Ok(())
}

fn change(db: &Connection, call: &Call, amount: i64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO balances VALUES (?1, ?2) ON CONFLICT (saga_uid) DO UPDATE SET balance = balance + ?2";
    db.execute(sql, params![call.saga_uid, amount]).map(drop)
}

fn balance(db: &Connection, call: &Call) -> rusqlite::Result<i64> {
    let sum = db.query_row(
        "SELECT balance FROM balances WHERE saga_uid = ?",
        [&call.saga_uid],
        |row| row.get(0),
    );
    Ok(sum.optional()?.unwrap_or(0))
}
