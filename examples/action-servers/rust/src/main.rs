//! Serves the actions until SIGTERM: action-server HOST:PORT FILE [ACTION…]

mod action;
mod conformance;
mod service;
mod store;
mod trip;

#[allow(dead_code)] // not every message is used
mod sec {
    tonic::include_proto!("sec.v1");
}

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tonic::transport::Server;

use sec::action_server_server::ActionServerServer;
use service::Service;
use store::Store;

const LARGEST_CALL: usize = 64 * 1024 * 1024; // the most that an SEC node sends
const GRACE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(file)) = (arguments.next(), arguments.next()) else {
        return Err("usage: action-server HOST:PORT FILE [ACTION…]".into());
    };
    let names: Vec<String> = arguments.collect();
    let mut actions = trip::actions();
    actions.extend(conformance::actions());
    actions.retain(|action| names.is_empty() || names.iter().any(|name| name == action.name()));

    let store = Store::open(&file, &(trip::TABLE.to_owned() + conformance::TABLE))?;
    let service = ActionServerServer::new(Service {
        actions,
        store: Arc::new(store),
    })
    .max_decoding_message_size(LARGEST_CALL);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ActionServerServer<Service>>().await;

    let (stop, stopped) = oneshot::channel::<()>();
    let server = Server::builder()
        .add_service(service)
        .add_service(health_service);
    let serving = server.serve_with_shutdown(address.parse()?, async { drop(stopped.await) });
    println!("The action server listens at {address}.");
    let mut terminate = signal(SignalKind::terminate())?;
    let until_stopped = async {
        terminate.recv().await;
        health
            .set_not_serving::<ActionServerServer<Service>>()
            .await; // no new calls
        drop(stop);
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        ended = serving => ended?,
        () = until_stopped => {}
    }
    Ok(())
}
