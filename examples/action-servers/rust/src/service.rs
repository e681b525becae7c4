//! Keeps the obligations of the contract. Each call is one transaction: it remembers the epoch, has the effect, and marks the key with what it answers.

use std::sync::Arc;

use prost::Message;
use rusqlite::Transaction;
use tonic::{Request, Response, Status, Streaming};

use crate::action::{Action, Unsuccessful};
use crate::sec::action_server_server::ActionServer;
use crate::sec::do_response::Result as Outcome;
use crate::sec::{
    ActionDescription, BatchRequest, BatchResponse, Call, DescribeRequest, DescribeResponse,
    DoRequest, DoResponse, Error, UndoRequest, UndoResponse,
};
use crate::store::{
    DONE, Ended, FAILED, Store, UNDO_FAILED, UNDONE, known, remember, remember_epoch,
};

pub struct Service {
    pub actions: Vec<Arc<dyn Action>>,
    pub store: Arc<Store>,
}

#[tonic::async_trait]
impl ActionServer for Service {
    async fn describe(
        &self,
        _: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        let describe = |action: &Arc<dyn Action>| ActionDescription {
            name: action.name().into(),
            summary: action.summary().into(),
            schemas: None,
        };
        let actions = self.actions.iter().map(describe).collect();
        Ok(Response::new(DescribeResponse {
            server_name: "rust".into(),
            batches: false,
            actions,
        }))
    }

    type BatchStream = tonic::codegen::BoxStream<BatchResponse>;

    /// Optional. `describe` does not say that it is there.
    async fn batch(
        &self,
        _: Request<Streaming<BatchRequest>>,
    ) -> Result<Response<Self::BatchStream>, Status> {
        Err(Status::unimplemented("Calls come one by one here."))
    }

    async fn r#do(&self, message: Request<DoRequest>) -> Result<Response<DoResponse>, Status> {
        let message = message.into_inner();
        let (action, call) = self.offered(message.call.as_ref())?;
        // When the caller goes away meanwhile, this ends here: nothing has been done so far, and the call comes again.
        tokio::time::sleep(action.takes(&message)).await;
        self.blocking(move |store| {
            store.in_transaction(|tx| do_once(tx, action.as_ref(), &call, &message))
        })
        .await
    }

    async fn undo(&self, message: Request<UndoRequest>) -> Result<Response<UndoResponse>, Status> {
        let message = message.into_inner();
        let (action, call) = self.offered(message.call.as_ref())?;
        self.blocking(move |store| {
            store.in_transaction(|tx| undo_once(tx, action.as_ref(), &call, &message))
        })
        .await
    }
}

impl Service {
    fn offered(&self, call: Option<&Call>) -> Result<(Arc<dyn Action>, Call), Status> {
        let call = call.cloned().unwrap_or_default();
        match self
            .actions
            .iter()
            .find(|action| action.name() == call.action)
        {
            Some(action) => Ok((action.clone(), call)),
            None => Err(Status::unimplemented(format!(
                "The action \"{}\" is not offered here.",
                call.action
            ))),
        }
    }

    /// Runs on a thread that may block, and to its end, also when the caller goes away.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let store = self.store.clone();
        let ended = tokio::task::spawn_blocking(move || work(&store)).await;
        ended
            .map_err(|panic| Status::unavailable(panic.to_string()))?
            .map(Response::new)
    }
}

fn do_once(
    tx: &mut Transaction,
    action: &dyn Action,
    call: &Call,
    message: &DoRequest,
) -> Result<DoResponse, Ended> {
    remember_epoch(tx, call)?;
    if let Some((mark, stored)) = known(tx, &call.idempotency_key)? {
        return match mark.as_str() {
            UNDONE => {
                let error = Error {
                    message: "It was undone before.".into(),
                    code: "undone".into(),
                    data: None,
                };
                Ok(DoResponse {
                    result: Some(Outcome::Failure(error)),
                })
            }
            UNDO_FAILED => Err(Status::unavailable("Its undo has failed.").into()),
            _ => Ok(DoResponse::decode(stored.as_slice())
                .map_err(|error| Status::data_loss(error.to_string()))?),
        };
    }
    let effect = tx.savepoint()?; // taken back when it is dropped
    let (mark, outcome) = match action.run(&effect, message) {
        Ok(output) => {
            effect.commit()?;
            (DONE, Outcome::Output(output))
        }
        Err(Unsuccessful::Failed(error)) => {
            effect.finish()?;
            (FAILED, Outcome::Failure(error))
        }
        Err(Unsuccessful::Unknown(why)) => return Err(Status::unavailable(why).into()),
    };
    let answer = DoResponse {
        result: Some(outcome),
    };
    remember(tx, &call.idempotency_key, mark, &answer.encode_to_vec())?;
    Ok(answer)
}

fn undo_once(
    tx: &mut Transaction,
    action: &dyn Action,
    call: &Call,
    message: &UndoRequest,
) -> Result<UndoResponse, Ended> {
    remember_epoch(tx, call)?;
    let before = known(tx, &call.idempotency_key)?;
    let took_effect = match &before {
        Some((mark, _)) => mark == DONE || mark == UNDO_FAILED,
        None => message.output.is_some(),
    };
    if took_effect {
        let effect = tx.savepoint()?; // as above
        match action.undo(&effect, message) {
            Ok(()) => effect.commit()?,
            Err(Unsuccessful::Failed(error)) => {
                effect.finish()?;
                let stored = before.map(|(_, stored)| stored).unwrap_or_default();
                remember(tx, &call.idempotency_key, UNDO_FAILED, &stored)?;
                return Ok(UndoResponse {
                    failure: Some(error),
                });
            }
            Err(Unsuccessful::Unknown(why)) => return Err(Status::unavailable(why).into()),
        }
    }
    remember(tx, &call.idempotency_key, UNDONE, &[])?;
    Ok(UndoResponse { failure: None })
}
