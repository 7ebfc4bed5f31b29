//! The stand-ins for the homeserver and PNM as a program of their own, for the demo in containers.
#![expect(
    clippy::print_stdout,
    reason = "shows the person at the terminal what arrives"
)]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use clap::Parser;
use matrix2acrobits_tests::homeserver::{Call, Homeserver};
use matrix2acrobits_tests::hook::Moment;
use matrix2acrobits_tests::pnm::Pnm;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

/// Stands in for the homeserver and for Acrobits' PNM, and prints what the bridge sends them.
#[derive(Debug, Parser)]
struct Args {
    /// Where the homeserver listens
    #[arg(long, env, default_value = "127.0.0.1:8008")]
    homeserver_addr: SocketAddr,
    /// Where PNM listens
    #[arg(long, env, default_value = "127.0.0.1:8009")]
    pnm_addr: SocketAddr,
    /// The application service token that the homeserver takes
    #[arg(long, env, hide_env_values = true)]
    matrix_as_token: String,
    /// The homeserver's users
    #[arg(
        long,
        env,
        value_delimiter = ',',
        default_value = "@alice:example.org,@bob:example.org"
    )]
    users: Vec<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let args = Args::parse();
    // As the first process of a container it would not be ended by a signal that it does not handle.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let homeserver = Homeserver::start_at(args.homeserver_addr, &args.matrix_as_token).await;
    let users: Vec<_> = args.users.iter().map(String::as_str).collect();
    homeserver.register(&users);
    let homeserver = Arc::new(homeserver);
    let calls = homeserver.clone();
    homeserver.hook().set(move |moment, request| {
        if moment == Moment::Done {
            let calls = calls.calls();
            let call = calls.iter().rfind(|call| call.at == request.at);
            if let Some(call) = call.filter(|call| call.is_set()) {
                println!("homeserver: {}", outcome(call));
            }
        }
        true
    });

    let pnm = Pnm::start_at(args.pnm_addr).await;
    pnm.hook().set(|moment, request| {
        if moment == Moment::Done {
            let body = String::from_utf8_lossy(&request.body);
            println!("PNM: push {body}");
        }
        true
    });

    println!("homeserver: listens on {}", args.homeserver_addr);
    println!("PNM: listens on {}", args.pnm_addr);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// What became of a call that sets or deletes a pusher.
fn outcome(call: &Call) -> String {
    let what = if call.body.get("kind").is_some_and(Value::is_null) {
        "deleted"
    } else {
        "set"
    };
    let user = call.user_id.as_deref().unwrap_or("nobody");
    let token = call.pushkey();
    match call.status {
        Some(200) => format!("pusher of {user} {what}, token {token}"),
        status => format!("pusher of {user} not {what}, token {token}: {status:?}"),
    }
}
