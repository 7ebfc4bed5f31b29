//! Starts `serve`: settings, logs, database, the two listeners. Stops them in order.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use matrix2acrobits_shared::{
    clock::Clock,
    process::{
        go_proxy,
        logs::{self, Chain},
        settings::Exposed,
        shutdown,
    },
};
use matrix2acrobits_store::{Database, Role, Store};
use tokio::{
    net::TcpListener,
    task::JoinHandle,
    time::{timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    app,
    arrivals::Journal,
    cli::{Cli, Failure},
    http::{bodies::Bodies, listener::serve},
    identity::{Auth, Extensions},
    metrics,
    notify::{
        self,
        cache::Tokens,
        dedupe::Dedupe,
        delivery::{Deliverer, Rules, TIME_FOR_A_REQUEST},
        pnm::{answers::Answers, client::PnmClient},
        trust::{self, Trust},
    },
    operator::{Changes, Operator, canary::Canary, push_test::Tester, servers::Servers},
    repeats::Repeats,
    reports::{Reports, receipts::Receipts, tokenless::Tokenless, upkeep::Upkeep},
    settings::Settings,
};

/// Enough open files for the connections of both listeners, for those to PNM, and for the database.
const FILES: u64 = 10_000;
/// How long requests, pushes and logins under way may take from the moment when the process is told to stop.
const FINISH: Duration = Duration::from_secs(11);
/// How long the last commit may take after that. A PNM and a database that both hang must not use up the grace period.
const LAST_COMMIT: Duration = Duration::from_secs(2);
const _: () = assert!(
    FINISH.as_secs() + LAST_COMMIT.as_secs() + shutdown::WRAP_UP.as_secs()
        < shutdown::GRACE.as_secs()
);

pub(crate) async fn run(cli: &Cli, exposed: &Exposed) -> Result<(), Failure> {
    let settings = cli.serve.parse(&cli.shared)?;
    let admin_addr = cli.admin.addr()?;
    let admin_token = cli.shared.admin_token()?;
    let servers = Servers::new(&cli.shared)?;
    let database = Database::of(&cli.shared)?;
    logs::init_logs(&cli.shared.log_filter()?, cli.shared.log_format()?);
    exposed.warn();
    go_proxy::log_notes(&cli.shared, true);
    raise_file_limit();
    let metrics = metrics::start();
    let auth = Auth::new(&settings).map_err(Failure::other)?;

    let listener = bind("LISTEN_ADDR", settings.listen_addr).await?;
    let admin_listener = bind("ADMIN_LISTEN_ADDR", admin_addr).await?;
    let store = Store::open(&database, Role::Ahead, Clock::system()).await?;
    let stop = shutdown::on_signals().map_err(Failure::other)?;
    let repeats = Arc::new(Repeats::new(Instant::now()));
    let tokens = Tokens::new(store.clone(), repeats.clone());
    let Pushes {
        deliverer,
        deliveries,
        answers,
        journal,
        tester,
    } = pushes(&settings, tokens, &store, auth.extensions(), &stop).await?;
    let upkeep = Arc::new(Upkeep::default());
    let vital = store.vital();
    vital.spawn("upkeep", upkeep.clone().run(store.clone()));
    vital.spawn("extensions", auth.clone().refresh_extensions());
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

    tokio::spawn(end_with(store.clone(), stop.clone()));
    let tokenless = Arc::new(Tokenless::new(Clock::system()));
    let changes = Changes::default();
    let admin = app::admin(
        Operator {
            store: store.clone(),
            servers,
            answers,
            tokenless: tokenless.clone(),
            tester,
            changes: changes.clone(),
        },
        admin_token,
        metrics,
        stop.clone(),
    );
    let bodies = Bodies::new(settings.trusted_proxies.clone());
    let public = app::public(
        Reports {
            store: store.clone(),
            auth: auth.clone(),
            tokenless,
            upkeep,
            repeats,
            bodies: bodies.clone(),
        },
        Receipts::new(auth.clone(), journal.clone(), bodies.clone()),
        notify::Gateway { deliverer, bodies },
        settings.hs_token.clone(),
    );
    // Health stays reachable until the last delivery is done.
    let admin_stop = CancellationToken::new();
    let admin_task = vital.spawn(
        "admin listener",
        serve(
            admin_listener,
            admin,
            settings.trusted_proxies.clone(),
            admin_stop.clone(),
        ),
    );
    let serving = serve(listener, public, settings.trusted_proxies, stop.clone());
    let stopped = async {
        stop.cancelled().await;
        tokio::time::Instant::now()
    };
    let ((), stopped) = tokio::join!(serving, stopped);
    finish(&deliveries, &auth, stopped + FINISH).await;
    save(&journal, &store).await;
    admin_stop.cancel();
    finish_changes(admin_task, &changes, stopped + FINISH + LAST_COMMIT).await;
    // What stays in the log is not lost, if this takes longer.
    let _ = timeout(shutdown::WRAP_UP, store.wrap_up()).await;
    if store.has_died() {
        return Err(Failure::other("a task ended by a panic"));
    }
    tracing::info!("stopped");
    Ok(())
}

/// Waits for pushes and logins under way until `deadline`.
async fn finish(deliveries: &TaskTracker, auth: &Auth, deadline: tokio::time::Instant) {
    deliveries.close();
    let finished = futures::future::join(deliveries.wait(), auth.finish());
    if timeout_at(deadline, finished).await.is_err() {
        let pushes = deliveries.len();
        tracing::warn!(pushes, "stopped in the middle of work that took too long");
    }
}

/// Waits until `deadline` for what the operator has asked for.
async fn finish_changes(admin: JoinHandle<()>, changes: &Changes, deadline: tokio::time::Instant) {
    let finished = async {
        // An error would be a panic, which has said so.
        let _ = admin.await;
        changes.ended().await;
    };
    if timeout_at(deadline, finished).await.is_err() {
        tracing::warn!("stopped in the middle of what the operator has asked for: ask again");
    }
}

/// Saves the last pushes and receipts. This commit also tells the other apis about the pushes.
async fn save(journal: &Journal, store: &Store) {
    match timeout(LAST_COMMIT, journal.flush(store)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(error = %Chain(&error), "the last pushes and receipts could not be saved");
        }
        Err(_) => tracing::warn!("the last pushes and receipts could not be saved in time"),
    }
}

/// The parts that send pushes to PNM and remember them.
struct Pushes {
    deliverer: Deliverer,
    deliveries: TaskTracker,
    answers: Arc<Answers>,
    journal: Arc<Journal>,
    tester: Arc<Tester>,
}

/// Makes these parts, and starts their tasks.
async fn pushes(
    settings: &Settings,
    tokens: Tokens,
    store: &Store,
    extensions: Option<Extensions>,
    stop: &CancellationToken,
) -> Result<Pushes, Failure> {
    let (url, timeout) = (&settings.pnm_url, settings.pnm_timeout);
    let pnm = PnmClient::new(url, timeout, &settings.outgoing).map_err(Failure::other)?;
    let pnm = Arc::new(pnm);
    let keys = store.mark_keys().await.map_err(Failure::other)?;
    let trust = Trust::new(settings.notify_auth, keys, store.clock().clone());
    let trust = Arc::new(trust);
    let journal = Arc::new(Journal::new(store.clock().clone()));
    let tester = Arc::new(Tester::new(store.clone(), pnm.clone(), journal.clone()));
    let answers = pnm.answers();
    let deliveries = TaskTracker::new();
    let deliverer = Deliverer::new(
        tokens.clone(),
        Dedupe::shared(store, Instant::now()),
        pnm,
        Rules {
            texts: settings.texts.clone(),
            time: TIME_FOR_A_REQUEST,
            trust: trust.clone(),
            journal: journal.clone(),
            clock: store.clock().clone(),
            badge_updates: settings.badge_updates,
            extensions,
        },
        deliveries.clone(),
        stop.clone(),
    );
    store
        .vital()
        .spawn("mark keys", trust::follow_keys(trust, store.clone()));
    store.vital().spawn("guard", deliverer.run_guard());
    store
        .vital()
        .spawn("journal", journal.clone().run(store.clone()));
    // Not vital: a cache that is not filled at start fills with use.
    tokio::spawn(tokens.warm_up());
    if let Some(plan) = settings.canary.clone() {
        let canary = Canary {
            plan,
            tester: tester.clone(),
            journal: journal.clone(),
            store: store.clone(),
        };
        store.vital().spawn("canary", canary.run());
    }
    Ok(Pushes {
        deliverer,
        deliveries,
        answers,
        journal,
        tester,
    })
}

/// Stops the process when one of the tasks has died that it cannot work without. The supervisor restarts it.
async fn end_with(store: Store, stop: CancellationToken) {
    store.died().await;
    stop.cancel();
}

/// Raises the limit on open files. Many shells and service managers start programs with 1,024 file descriptors, too few
/// for the listener's connections, but allow a program to raise the limit.
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

async fn bind(name: &'static str, addr: SocketAddr) -> Result<TcpListener, Failure> {
    let listener = TcpListener::bind(addr).await;
    listener.map_err(|error| Failure::cannot_listen(name, addr, &error))
}
