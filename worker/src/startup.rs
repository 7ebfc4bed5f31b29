//! Starts `run`: settings, logs, database, admin listener, then the loop.

use std::sync::Arc;

use matrix2acrobits_shared::{
    clock::Clock,
    ids::log_id,
    matrix::{client::Homeserver, pushers::PusherSettings},
    process::{
        go_proxy, logs,
        settings::Exposed,
        shutdown::{self, Stopping},
    },
};
use matrix2acrobits_store::{Database, Role, Store};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    admin::{self, Admin},
    beat::Beat,
    commands::{Cli, Failure},
    gate::Gate,
    job::{Jobs, Turns},
    metrics, run,
    settings::Settings,
};

pub(crate) async fn run(cli: &Cli, exposed: &Exposed) -> Result<(), Failure> {
    let settings = cli.run.parse(&cli.shared)?;
    let admin_addr = cli.admin.addr()?;
    let database = Database::of(&cli.shared)?;
    cli.shared.admin_token()?;
    logs::init_logs(&cli.shared.log_filter()?, cli.shared.log_format()?);
    exposed.warn();
    go_proxy::log_notes(&cli.shared, false);
    let metrics = metrics::start();

    let listener = TcpListener::bind(admin_addr)
        .await
        .map_err(|error| Failure::cannot_listen("ADMIN_LISTEN_ADDR", admin_addr, &error))?;
    let store = Store::open(&database, Role::Behind, Clock::system()).await?;
    let stopping = shutdown::on_signals_with_work().map_err(Failure::other)?;
    let stop = stopping.stop.clone();
    let name = format!("worker-{}", ulid::Ulid::generate());
    let beat = Beat::default();
    // Starting is a sign of life. The loop has to give the next one.
    beat.now();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        admin_addr = %listener.local_addr().map_err(Failure::other)?,
        homeserver = %settings.homeserver_url,
        %database,
        worker = %log_id(&name),
        concurrency = settings.concurrency,
        "listening"
    );
    let admin = Admin {
        store: store.clone(),
        beat: beat.clone(),
        metrics,
        stop: stop.clone(),
    };
    let admin = store
        .vital()
        .spawn("admin listener", admin::serve(listener, admin));

    let ended = if let Some(pusher) = settings.pusher.clone() {
        work(&store, settings, pusher, &name, beat, &stopping).await
    } else {
        tracing::warn!(
            "PROXY_URL is not set: no pusher is set or deleted until it is; what is reported waits in the queue"
        );
        admin::idle(&store, &beat, &stop).await
    };
    stop.cancel();
    let _ = admin.await;
    // What stays in the log is not lost, if this takes longer.
    let _ = tokio::time::timeout(shutdown::WRAP_UP, store.wrap_up()).await;
    ended?;
    if stopping.is_hurried() {
        return Err(Failure::other("ended by a second signal"));
    }
    tracing::info!("stopped");
    Ok(())
}

/// Sets and deletes pushers until the worker is asked to stop.
async fn work(
    store: &Store,
    settings: Settings,
    pusher: PusherSettings,
    name: &str,
    beat: Beat,
    stopping: &Stopping,
) -> Result<(), Failure> {
    let homeserver = Homeserver::new(
        settings.homeserver_url.clone(),
        settings.as_token.clone(),
        settings.homeserver_timeout,
        &settings.outgoing,
        metrics::request,
    )
    .map_err(Failure::other)?;
    let gate = Arc::new(Gate::new(
        store.clone(),
        name,
        settings.concurrency,
        settings.retry.max,
    ));
    let keys = run::patiently(&stopping.stop, || store.mark_keys()).await;
    let Some(keys) = keys.map_err(Failure::other)? else {
        return Ok(());
    };
    let jobs = Jobs {
        store: store.clone(),
        homeserver,
        settings,
        pusher,
        key: watch::Sender::new(keys.current),
        gate,
        turns: Turns::default(),
        stopping: stopping.clone(),
    };
    run::run(jobs, name, beat).await.map_err(|error| {
        if !error.is_logged() {
            tracing::error!(%error, "ending with an error");
        }
        Failure::other(error)
    })
}
