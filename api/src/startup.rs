//! Starts `serve`: settings, logs, database, the two listeners; and stops them in order.

use std::{net::SocketAddr, sync::Arc};

use matrix2acrobits_shared::{
    clock::Clock,
    process::{
        go_proxy, logs,
        settings::{Exposed, SettingError},
        shutdown,
    },
};
use matrix2acrobits_store::{Role, Store};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    app,
    cli::{Cli, Failure},
    http::{bodies::Bodies, listener::serve},
    identity::Auth,
    metrics,
    notify::{
        cache::Tokens,
        delivery::{Deliverer, Rules},
        pnm::client::PnmClient,
        trust::{self, Trust},
    },
    operator::servers::Servers,
    reports::{Reports, tokenless::Tokenless, upkeep::Upkeep},
};

/// Enough for the connections of both listeners, those to PNM and the database.
const FILES: u64 = 10_000;

pub(crate) async fn run(cli: &Cli, exposed: &Exposed) -> Result<(), Failure> {
    let settings = cli.serve.parse(&cli.shared)?;
    let admin_addr = cli.admin.addr()?;
    let admin_token = cli.shared.admin_token()?;
    let servers = Servers::new(&cli.shared)?;
    let database = cli.shared.database()?;
    logs::init_logs(&cli.shared.log_filter(), cli.shared.log_format()?)?;
    exposed.warn();
    go_proxy::log_notes(&cli.shared, true);
    raise_file_limit();
    let metrics = metrics::start();
    let auth = Auth::new(&settings).map_err(Failure::other)?;

    let listener = bind("LISTEN_ADDR", settings.listen_addr).await?;
    let admin_listener = bind("ADMIN_LISTEN_ADDR", admin_addr).await?;
    let store = Store::open(&database, Role::Ahead, Clock::system()).await?;
    let stop = shutdown::on_signals().map_err(Failure::other)?;
    let tokens = Tokens::new(store.clone());
    let pnm = PnmClient::new(
        settings.pnm_url.clone(),
        settings.pnm_timeout,
        &settings.outgoing,
    )
    .map_err(Failure::other)?;
    let keys = store.mark_keys().await.map_err(Failure::other)?;
    let trust = Trust::new(settings.notify_auth, keys, store.clock().clone());
    let trust = Arc::new(trust);
    let answers = pnm.answers();
    let deliveries = TaskTracker::new();
    let deliverer = Deliverer::new(
        tokens.clone(),
        pnm,
        Rules {
            fallback: settings.fallback_text.clone(),
            trust: trust.clone(),
        },
        deliveries.clone(),
        stop.clone(),
    );
    tokio::spawn(trust::follow_keys(trust, store.clone()));
    tokio::spawn(tokens.clone().warm_up());
    let upkeep = Arc::new(Upkeep::default());
    tokio::spawn(upkeep.clone().run(store.clone()));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen_addr = %listener.local_addr().map_err(Failure::other)?,
        admin_addr = %admin_listener.local_addr().map_err(Failure::other)?,
        pnm = %settings.pnm_url,
        %database,
        "listening"
    );
    if admin_token.is_none() {
        tracing::warn!(
            "ADMIN_TOKEN is not set: the admin endpoints answer 403, so no selector can be mapped to a user"
        );
    }

    let vital = store.clone();
    tokio::spawn(end_with(vital.clone(), stop.clone()));
    let tokenless = Arc::new(Tokenless::new(Clock::system()));
    let admin = app::admin(
        store.clone(),
        admin_token,
        servers,
        answers,
        tokenless.clone(),
        metrics,
        stop.clone(),
    );
    let public = app::public(
        Reports {
            store,
            auth: auth.clone(),
            tokenless,
            upkeep,
        },
        deliverer,
        settings.hs_token.clone(),
        &Bodies::new(settings.trusted_proxies.clone()),
    );
    // Health stays reachable until the last delivery is done.
    let admin_stop = CancellationToken::new();
    let admin_task = tokio::spawn(serve(
        admin_listener,
        admin,
        settings.trusted_proxies.clone(),
        admin_stop.clone(),
    ));
    serve(listener, public, settings.trusted_proxies, stop).await;
    deliveries.close();
    deliveries.wait().await;
    auth.finish().await;
    admin_stop.cancel();
    let _ = admin_task.await;
    if vital.has_died() {
        return Err(Failure::other("a task of the store ended by a panic"));
    }
    tracing::info!("stopped");
    Ok(())
}

/// Without the store this process is of no use; its supervisor starts it anew.
async fn end_with(store: Store, stop: CancellationToken) {
    store.died().await;
    stop.cancel();
}

/// Many shells and service managers start programs with 1,024 file descriptors, which the listener's connections
/// would use up, and allow more to those that ask.
fn raise_file_limit() {
    match rlimit::increase_nofile_limit(FILES) {
        Ok(files) if files < FILES => {
            tracing::warn!(
                files,
                needed = FILES,
                "the limit on open files is low: under many connections new ones will fail; raise LimitNOFILE or \
                 ulimit -n"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit on open files could not be raised"),
    }
}

async fn bind(name: &'static str, addr: SocketAddr) -> Result<TcpListener, SettingError> {
    TcpListener::bind(addr)
        .await
        .map_err(|error| SettingError::new(name, format!("cannot listen on {addr}: {error}")))
}
