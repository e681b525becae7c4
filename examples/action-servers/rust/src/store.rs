//! A SQLite file with the effects and what is known of the calls.

use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use tonic::Status;

use crate::sec::Call;

const TABLES: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS epochs (saga_uid TEXT PRIMARY KEY, epoch INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS marks (key TEXT PRIMARY KEY, mark TEXT NOT NULL, answer BLOB NOT NULL);
";

pub const DONE: &str = "done";
pub const FAILED: &str = "failed";
pub const UNDO_FAILED: &str = "undo failed";
pub const UNDONE: &str = "undone";

/// How a transaction ends that has no answer.
pub enum Ended {
    /// An answer like any other, which commits: the epoch must stay.
    Refused(Status),
    /// Everything is rolled back.
    Fault(rusqlite::Error),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

impl From<rusqlite::Error> for Ended {
    fn from(error: rusqlite::Error) -> Self {
        Self::Fault(error)
    }
}

/// One transaction at a time.
pub struct Store(Mutex<Connection>);

impl Store {
    pub fn open(file: &str, tables: &str) -> rusqlite::Result<Self> {
        let db = Connection::open(file)?;
        db.execute_batch(TABLES)?;
        db.execute_batch(tables)?;
        Ok(Self(Mutex::new(db)))
    }

    pub fn in_transaction<T>(
        &self,
        work: impl FnOnce(&mut Transaction) -> Result<T, Ended>,
    ) -> Result<T, Status> {
        // A panic has rolled its transaction back: the connection is good.
        let mut db = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = |error: rusqlite::Error| Status::unavailable(error.to_string());
        let mut transaction = db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(fault)?;
        let answer = match work(&mut transaction) {
            Ok(answer) => Ok(answer),
            Err(Ended::Refused(status)) => Err(status),
            Err(Ended::Fault(error)) => return Err(fault(error)),
        };
        transaction.commit().map_err(fault)?;
        answer
    }
}

/// Refuses a call whose epoch is below the highest seen for its saga.
pub fn remember_epoch(db: &Connection, call: &Call) -> Result<(), Ended> {
    let highest: Option<i64> = db
        .query_row(
            "SELECT epoch FROM epochs WHERE saga_uid = ?",
            [&call.saga_uid],
            |row| row.get(0),
        )
        .optional()?;
    if let Some(highest) = highest.filter(|highest| *highest > call.epoch) {
        let text = format!("Epoch {} is stale: {highest} has been seen.", call.epoch);
        return Err(Status::failed_precondition(text).into());
    }
    db.execute(
        "INSERT OR REPLACE INTO epochs VALUES (?, ?)",
        params![call.saga_uid, call.epoch],
    )?;
    Ok(())
}

/// The mark of a key, and what its do answered. None for a key that was never seen, or had no effect so far.
pub fn known(db: &Connection, key: &str) -> rusqlite::Result<Option<(String, Vec<u8>)>> {
    db.query_row(
        "SELECT mark, answer FROM marks WHERE key = ?",
        [key],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
    .optional()
}

pub fn remember(db: &Connection, key: &str, mark: &str, answer: &[u8]) -> rusqlite::Result<()> {
    db.execute(
        "INSERT OR REPLACE INTO marks VALUES (?, ?, ?)",
        params![key, mark, answer],
    )
    .map(drop)
}
