//! The change feed: a connection that listens to the messages of other processes, and regularly proves that it still
//! receives them.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use matrix2acrobits_shared::{
    clock::Clock,
    flow::{
        Result, StoreError,
        feed::{Changed, Freshness},
    },
};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::watch;

use crate::{
    access::NOTICE_LOSS,
    connection::Process,
    errors::{NoAnswer, from_sqlx, within},
    pool::{ACQUIRE, Pool, read},
    statements::{meta, session},
};

const CHANNEL: &str = "matrix2acrobits";
/// How often the connection has to prove that it still receives messages.
const PROVE: Duration = Duration::from_millis(300);
/// How long the proof may take.
const ANSWER: Duration = Duration::from_millis(600);
/// How long cached data may be served after the last proof.
const FRESH: Duration = Duration::from_secs(1);
/// The pause before the next attempt to listen.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a short attempt may take, and how long the patient one is alone.
const HASTE: Duration = Duration::from_millis(600);

/// The state of the feed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hearing(Arc<Mutex<Heard>>);

#[derive(Debug, Default)]
struct Heard {
    /// The feed has reported all commits before this time.
    until: Option<Instant>,
    /// Whether the server has been found not to respond at all since the last proof.
    silent: bool,
}

impl Hearing {
    /// Whether cached data may be served.
    pub(crate) fn freshness(&self) -> Freshness {
        let heard = self.lock();
        if heard.until.is_some_and(|until| until.elapsed() < FRESH) {
            Freshness::Fresh
        } else if heard.silent {
            Freshness::NoDatabase
        } else {
            Freshness::Unknown
        }
    }

    /// Ends when the server does not respond at all, and says how long it took to find that.
    pub(crate) async fn silence(&self) -> Duration {
        let begin = Instant::now();
        while self.freshness() != Freshness::NoDatabase {
            tokio::time::sleep(PAUSE).await;
        }
        begin.elapsed()
    }

    fn heard_until(&self, until: Instant) {
        let mut heard = self.lock();
        heard.until = Some(until);
        heard.silent = false;
    }

    fn set_silent(&self, silent: bool) {
        self.lock().silent = silent;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notices that there may be work for a worker.
#[derive(Debug)]
pub struct Watcher {
    work: watch::Receiver<u64>,
    first: bool,
}

impl Watcher {
    pub(crate) fn new(process: &Process) -> Self {
        Self {
            work: process.work.subscribe(),
            first: true,
        }
    }

    /// Whether a message about work has come since the last call. True the first time.
    pub fn changed(&mut self) -> bool {
        let changed = self.work.has_changed().unwrap_or_default();
        self.work.mark_unchanged();
        std::mem::take(&mut self.first) || changed
    }
}

/// Handles the messages of other processes. With `spare`, two attempts to connect may run at once. Runs forever.
pub(crate) async fn follow(
    options: PgConnectOptions,
    spare: bool,
    process: Arc<Process>,
    hearing: Hearing,
    clock: Clock,
    readers: Pool,
) {
    loop {
        let mut listener = tokio::select! {
            listener = reach(&options, &process, spare) => listener,
            never = watch_server(&readers, &hearing) => match never {},
        };
        let Err(error) = hear(&mut listener, &process, &hearing, &clock).await;
        cut_off(&process, &error).await;
    }
}

async fn cut_off(process: &Process, error: &StoreError) {
    tracing::debug!(%error, "the change feed was cut off");
    // Messages about work may have been missed meanwhile.
    process.wake();
    tokio::time::sleep(PAUSE).await;
}

/// Listens as soon as possible. TCP sends packets again after longer and longer pauses if the network was down, so short
/// attempts run alongside the one that waits for a slow server, if there is a connection to spare.
async fn reach(options: &PgConnectOptions, process: &Process, spare: bool) -> PgListener {
    let patient = keep_trying(options, process, 2 * ACQUIRE);
    if !spare {
        return patient.await;
    }
    let hasty = async {
        tokio::time::sleep(HASTE).await;
        keep_trying(options, process, HASTE).await
    };
    tokio::select! {
        listener = patient => listener,
        listener = hasty => listener,
    }
}

async fn keep_trying(options: &PgConnectOptions, process: &Process, limit: Duration) -> PgListener {
    loop {
        match within(limit, listen(options)).await {
            Ok(listener) => return listener,
            Err(error) => cut_off(process, &error).await,
        }
    }
}

async fn listen(options: &PgConnectOptions) -> Result<PgListener> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ACQUIRE)
        .after_connect(|connection, _| {
            Box::pin(async { session::set(connection, &NOTICE_LOSS).await.map(drop) })
        })
        .connect_lazy_with(options.clone());
    let mut listener = PgListener::connect_with(&pool).await.map_err(from_sqlx)?;
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await.map_err(from_sqlx)?;
    Ok(listener)
}

/// Checks whether other connections work while this one does not. Runs forever.
async fn watch_server(readers: &Pool, hearing: &Hearing) -> Infallible {
    loop {
        // If they do, caches are not used until the feed works again.
        let asked: Result<i64> = async { read!(readers, meta::now_ms()) }.await;
        hearing.set_silent(asked.is_err_and(|error| error.is_environment()));
        tokio::time::sleep(PAUSE).await;
    }
}

/// Handles messages until the connection fails.
async fn hear(
    listener: &mut PgListener,
    process: &Process,
    hearing: &Hearing,
    clock: &Clock,
) -> Result<Infallible> {
    let mut first = true;
    let mut ticks = tokio::time::interval(PROVE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            told = listener.try_recv() => match told.map_err(from_sqlx)? {
                Some(told) => process.hear(told.payload()),
                None => return Err(StoreError::Unavailable(Arc::new(NoAnswer(Duration::ZERO)))),
            },
            _ = ticks.tick() => {
                // Messages about commits before this query arrive before its response.
                let asked = Instant::now();
                clock.follow(within(ANSWER, prove(listener)).await?);
                while let Some(told) = listener.next_buffered() {
                    process.hear(told.payload());
                }
                if std::mem::take(&mut first) {
                    // Earlier messages are lost.
                    process.feed.tell(Changed::Everything);
                    process.wake();
                }
                hearing.heard_until(asked);
            }
        }
    }
}

async fn prove(listener: &mut PgListener) -> Result<i64> {
    let connection = sqlx::Acquire::acquire(listener).await.map_err(from_sqlx)?;
    meta::now_ms(connection).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_proved_for_a_second_is_not_fresh() {
        let hearing = Hearing::default();
        assert_eq!(hearing.freshness(), Freshness::Unknown);
        let now = Instant::now();
        hearing.heard_until(now);
        assert_eq!(hearing.freshness(), Freshness::Fresh);
        hearing.heard_until(now.checked_sub(FRESH).unwrap());
        assert_eq!(hearing.freshness(), Freshness::Unknown);
        hearing.set_silent(true);
        assert_eq!(hearing.freshness(), Freshness::NoDatabase);
        hearing.heard_until(now);
        assert_eq!(hearing.freshness(), Freshness::Fresh);
    }

    /// The server must notice a machine that is lost, from the feed's connection as from the others.
    #[tokio::test]
    async fn the_server_is_to_notice_a_lost_machine() {
        let Some(server) = matrix2acrobits_test_postgres::Server::shared() else {
            return;
        };
        let database = server.database();
        let database: crate::DatabaseUrl = database.url().parse().unwrap();
        let access = crate::access::Access::new(&database, "1s");
        let mut listener = listen(access.options()).await.unwrap();
        let listening = sqlx::Acquire::acquire(&mut listener).await.unwrap();
        let mut other = access.connect().await.unwrap();
        for connection in [listening, &mut other] {
            let set = "SELECT current_setting('tcp_keepalives_idle') || ' ' || current_setting('tcp_user_timeout')";
            let set: String = sqlx::query_scalar(set).fetch_one(connection).await.unwrap();
            assert_eq!(set, "30 60000");
        }
    }
}
