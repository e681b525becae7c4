//! What an action is.

use std::time::Duration;

use rusqlite::Connection;

use crate::sec::{DoRequest, Error, Payload, UndoRequest};

/// Has its effect in the transaction that it gets, and nowhere else.
pub trait Action: Send + Sync {
    fn name(&self) -> &'static str;
    fn summary(&self) -> &'static str;
    fn run(&self, db: &Connection, message: &DoRequest) -> Result<Payload, Unsuccessful>;

    fn undo(&self, _db: &Connection, _message: &UndoRequest) -> Result<(), Unsuccessful> {
        Ok(())
    }

    /// How long a do takes, before and outside of its transaction: what is slow would go there.
    fn takes(&self, _message: &DoRequest) -> Duration {
        Duration::ZERO
    }
}

pub enum Unsuccessful {
    /// Of an action: it has no effect, and never will. Of an undo: it cannot be done.
    Failed(Error),
    /// The outcome is unknown, and the call comes again.
    Unknown(String),
}

impl Unsuccessful {
    pub fn failed(message: impl Into<String>, code: &str) -> Self {
        Self::Failed(Error {
            message: message.into(),
            code: code.into(),
            data: None,
        })
    }
}

impl<E: std::error::Error> From<E> for Unsuccessful {
    fn from(error: E) -> Self {
        Self::Unknown(error.to_string())
    }
}

pub fn decoded<T: serde::de::DeserializeOwned>(payload: Option<&Payload>) -> serde_json::Result<T> {
    serde_json::from_slice(payload.map_or(b"null", |payload| &payload.data))
}

pub fn json_payload(value: impl serde::Serialize) -> Result<Payload, Unsuccessful> {
    Ok(Payload {
        content_type: "application/json".into(),
        data: serde_json::to_vec(&value)?,
    })
}
