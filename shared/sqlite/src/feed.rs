//! The change feed for a file: notices changes of other processes by SQLite's count of writes, and by a counter that
//! triggers keep.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use matrix2acrobits_shared::flow::{
    Result,
    feed::{Changed, Feed},
};
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::{errors::from_sqlx, statements::meta};

/// How often to look for changes of other processes. A look costs one pragma and no lock.
const LOOK: Duration = Duration::from_millis(50);

/// Distinguishes this process' changes of tokens from those of others, so that our own changes need not empty the
/// caches.
#[derive(Debug, Clone, Default)]
pub(crate) struct Epoch(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    value: Option<i64>,
    /// Counts our own commits.
    commits: u64,
}

impl Epoch {
    /// Notes that our writer found the counter at `before` and left it at `after`. Returns whether another process had
    /// changed tokens before.
    pub(crate) fn committed(&self, before: i64, after: i64) -> bool {
        let mut known = self.lock();
        known.commits += 1;
        known
            .value
            .replace(after)
            .is_some_and(|value| value != before)
    }

    fn commits(&self) -> u64 {
        self.lock().commits
    }

    /// Notes that a reader found the counter at `value`, when our writer had made `commits` commits. Returns whether
    /// another process has changed tokens, or somebody restored an older file.
    fn found(&self, value: i64, commits: u64) -> bool {
        let mut known = self.lock();
        // If our writer committed meanwhile, the next look decides.
        known.commits == commits
            && known
                .value
                .replace(value)
                .is_some_and(|known| known != value)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notices writes to the database. It has its own connection, because SQLite counts the writes of all other connections
/// (<https://sqlite.org/pragma.html#pragma_data_version>).
#[derive(Debug)]
pub struct Watcher {
    connection: SqliteConnection,
    version: Option<i64>,
}

impl Watcher {
    pub(crate) async fn start(options: &SqliteConnectOptions) -> Result<Self> {
        let connection = SqliteConnection::connect_with(options)
            .await
            .map_err(from_sqlx)?;
        Ok(Self {
            connection,
            version: None,
        })
    }

    /// Whether another connection has written since the last call. True the first time.
    pub async fn changed(&mut self) -> Result<bool> {
        let version = sqlx::query_scalar("PRAGMA data_version")
            .fetch_one(&mut self.connection)
            .await
            .map_err(from_sqlx)?;
        Ok(self.version.replace(version) != Some(version))
    }
}

/// Tells the feed when another process has changed tokens. Runs forever.
pub(crate) async fn follow(options: SqliteConnectOptions, epoch: Epoch, feed: Feed) {
    let mut watcher: Option<Watcher> = None;
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let changed = async {
            let watcher = match &mut watcher {
                Some(watcher) => watcher,
                none => none.insert(Watcher::start(&options).await?),
            };
            if !watcher.changed().await? {
                return Ok(false);
            }
            let commits = epoch.commits();
            let value = meta::token_epoch(&mut watcher.connection).await?;
            if epoch.commits() != commits {
                // We can only tell who wrote if our own writer does not write meanwhile.
                watcher.version = None;
            }
            Ok(epoch.found(value, commits))
        };
        let changed: Result<bool> = changed.await;
        if changed.is_err() {
            watcher = None;
        }
        // A database that does not respond may hide a change.
        if changed.unwrap_or(true) {
            feed.tell(Changed::Everything);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_others_change_is_news() {
        let epoch = Epoch::default();
        assert!(!epoch.committed(3, 5));
        assert!(!epoch.found(5, epoch.commits()));
        // Another process went on to 7.
        assert!(epoch.found(7, epoch.commits()));
        assert!(!epoch.committed(7, 8));
        // And to 9, which our writer finds first.
        assert!(epoch.committed(9, 9));
        // Somebody restored an older file.
        assert!(epoch.found(2, epoch.commits()));
        // Our writer commits between the two looks.
        let commits = epoch.commits();
        assert!(!epoch.committed(2, 4));
        assert!(!epoch.found(2, commits));
    }
}
