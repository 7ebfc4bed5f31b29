//! A pool of connections that only read. A connection whose response did not come is closed.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use matrix2acrobits_shared::flow::{Result, StoreError};
use sqlx::{
    Connection as _, PgConnection, PgPool, Postgres, pool::PoolConnection, postgres::PgPoolOptions,
};

use crate::{
    access::Access,
    errors::{NoAnswer, from_sqlx, within},
    feed::Hearing,
};

/// The longest wait for a connection. The pool retries refused connections meanwhile.
pub(crate) const ACQUIRE: Duration = Duration::from_secs(2);

/// A pool, and the longest wait for a response.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    connections: PgPool,
    most: u32,
    limit: Duration,
    hearing: Option<Hearing>,
    useless: Useless,
}

/// Why the latest new connection could not be used, unless it could. The pool itself only says that there was none.
type Useless = Arc<Mutex<Option<String>>>;

/// New connections could not be used.
#[derive(Debug, thiserror::Error)]
#[error("no connection within {ACQUIRE:?}: {0}")]
struct NoConnection(String);

impl Pool {
    /// Makes a pool, which connects when it is first used.
    pub(crate) fn new(access: Access, most: u32, limit: Duration) -> Self {
        let options = access.options().clone();
        let useless = Useless::default();
        let noted = useless.clone();
        let connections = PgPoolOptions::new()
            .max_connections(most)
            .acquire_timeout(ACQUIRE)
            // Testing a connection would cost as much as the query. A read that meets a dead connection takes another
            // one.
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                let (access, noted) = (access.clone(), noted.clone());
                Box::pin(async move {
                    let set_up = access.set_up(connection).await;
                    *lock(&noted) = set_up.as_ref().err().map(ToString::to_string);
                    set_up
                })
            })
            .connect_lazy_with(options);
        Self {
            connections,
            most,
            limit,
            hearing: None,
            useless,
        }
    }

    /// Gives answers up as soon as the change feed finds that the server does not respond: a long limit is for a server
    /// that works.
    pub(crate) fn watched(mut self, hearing: Hearing) -> Self {
        self.hearing = Some(hearing);
        self
    }

    /// Waits for an answer as long as it may take.
    pub(crate) async fn wait<T>(&self, answer: impl Future<Output = Result<T>>) -> Result<T> {
        let Some(hearing) = &self.hearing else {
            return within(self.limit, answer).await;
        };
        tokio::select! {
            answer = within(self.limit, answer) => answer,
            waited = hearing.silence() => Err(StoreError::Unavailable(Arc::new(NoAnswer(waited)))),
        }
    }

    /// How often to try a read, because all connections may have died when the server restarted.
    pub(crate) fn tries(&self) -> u32 {
        self.most + 1
    }

    pub(crate) async fn lease(&self) -> Result<Lease> {
        let connection = self.connections.acquire().await.map_err(|error| {
            let useless =
                matches!(error, sqlx::Error::PoolTimedOut).then(|| lock(&self.useless).take());
            match useless.flatten() {
                Some(reason) => StoreError::Unavailable(Arc::new(NoConnection(reason))),
                None => from_sqlx(error),
            }
        })?;
        Ok(Lease {
            connection: Some(connection),
            pool: self.clone(),
        })
    }
}

fn lock(useless: &Useless) -> MutexGuard<'_, Option<String>> {
    useless.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection that goes back to its pool after its response. If the response did not come in time, the connection is
/// closed. Otherwise sqlx would wait for the rest of the response, without a timeout, before the next caller gets the
/// connection.
#[derive(Debug)]
pub(crate) struct Lease {
    connection: Option<PoolConnection<Postgres>>,
    pool: Pool,
}

impl Lease {
    /// Gives the connection back, unless the result means that it cannot be used any more.
    pub(crate) fn end<T>(mut self, answer: Result<T>) -> Result<T> {
        if let Some(connection) = self.connection.take()
            && answer.as_ref().is_err_and(StoreError::is_environment)
        {
            drop(connection.detach());
        }
        answer
    }
}

/// The caller has gone away, but the server goes on with the statement. Until it is done, its process counts as one of
/// ours. Otherwise callers that ask again and again, while somebody has locked a table, would get one process each.
impl Drop for Lease {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            drop(connection.detach());
            return;
        };
        let pool = self.pool.clone();
        runtime.spawn(async move {
            // It comes after the rest of the statement's response.
            let done = async { connection.ping().await.map_err(from_sqlx) };
            if pool.wait(done).await.is_err() {
                drop(connection.detach());
            }
        });
    }
}

impl Deref for Lease {
    type Target = PgConnection;

    #[expect(clippy::expect_used, reason = "it is taken by `end` and `drop` alone")]
    fn deref(&self) -> &PgConnection {
        self.connection
            .as_ref()
            .expect("a connection until its end")
    }
}

impl DerefMut for Lease {
    #[expect(clippy::expect_used, reason = "it is taken by `end` and `drop` alone")]
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection
            .as_mut()
            .expect("a connection until its end")
    }
}

/// Calls a statement's function on a connection of a pool. A read changes nothing, so if its connection turns out to be
/// dead, it is retried on another one.
macro_rules! read {
    ($pool:expr, $($function:ident)::+ ( $($argument:expr),* )) => {{
        let pool = $pool;
        let mut tries = pool.tries();
        loop {
            let mut lease = pool.lease().await?;
            let answer = pool.wait($($function)::+(&mut lease $(, $argument)*)).await;
            let answer = lease.end(answer);
            tries -= 1;
            match answer {
                Err(error) if tries > 0 && $crate::errors::is_hang_up(&error) => {}
                answer => break answer,
            }
        }
    }};
}
pub(crate) use read;
