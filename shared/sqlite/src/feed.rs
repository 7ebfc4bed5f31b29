//! The change feed for a file: notices changes of other processes by SQLite's count of writes, and by a counter that
//! triggers keep.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use matrix2acrobits_shared::flow::{
    Result,
    feed::{Changed, Feed},
};
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::{errors::from_sqlx, statements::meta, write_ahead_log};

/// How often to look for changes of other processes. A look costs a system call, and after a write a pragma; no lock.
const LOOK: Duration = Duration::from_millis(50);
/// How often to ask SQLite, whatever the file system says of the log.
const ASK_ANYWAY: Duration = Duration::from_millis(200);
/// How long after the last write to the log there is nothing to come of it: a commit is seen when the disk has flushed what
/// was written. Far more than a step of the clock by which file systems time writes, too.
const SETTLED: Duration = Duration::from_millis(200);

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
    log: Log,
}

impl Watcher {
    pub(crate) async fn start(options: &SqliteConnectOptions) -> Result<Self> {
        let connection = SqliteConnection::connect_with(options)
            .await
            .map_err(from_sqlx)?;
        Ok(Self {
            connection,
            version: None,
            log: Log::of(options.get_filename()),
        })
    }

    /// Whether another connection has written since the last call. True the first time.
    pub async fn changed(&mut self) -> Result<bool> {
        if self.version.is_some() && self.log.is_untouched() {
            return Ok(false);
        }
        self.log.note();
        let version = sqlx::query_scalar("PRAGMA data_version")
            .fetch_one(&mut self.connection)
            .await
            .map_err(from_sqlx)?;
        Ok(self.version.replace(version) != Some(version))
    }

    /// Makes the next call report a change.
    fn forget(&mut self) {
        self.version = None;
    }
}

/// The write-ahead log, to which every commit writes. Its time tells in one system call that nobody has, where SQLite's
/// count takes two changes of threads.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    /// Its time when SQLite was last asked. None if what was written then could count later.
    time: Option<SystemTime>,
    /// When SQLite was last asked.
    asked: Instant,
}

impl Log {
    fn of(file: &Path) -> Self {
        Self {
            path: write_ahead_log(file),
            time: None,
            asked: Instant::now(),
        }
    }

    fn is_untouched(&self) -> bool {
        self.time.is_some() && self.asked.elapsed() < ASK_ANYWAY && self.modified() == self.time
    }

    /// Notes the time before SQLite is asked.
    #[expect(
        clippy::disallowed_methods,
        reason = "compared with the times of files, which a test's clock does not set"
    )]
    fn note(&mut self) {
        let now = SystemTime::now();
        self.asked = Instant::now();
        self.time = self.modified().filter(|time| is_settled(*time, now));
    }

    fn modified(&self) -> Option<SystemTime> {
        std::fs::metadata(&self.path).ok()?.modified().ok()
    }
}

/// Whether what was written at this time counts by now, and a write from now on gets a later time.
fn is_settled(time: SystemTime, now: SystemTime) -> bool {
    now.duration_since(time).is_ok_and(|age| age > SETTLED)
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
                watcher.forget();
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
    use std::io::Write as _;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any time will do")]
    fn a_time_tells_of_all_writes_once_it_has_settled() {
        let time = SystemTime::now();
        for (age_ms, settled) in [(0, false), (10, false), (200, false), (201, true)] {
            let now = time + Duration::from_millis(age_ms);
            assert_eq!(is_settled(time, now), settled, "{age_ms}");
        }
        // A clock that was set back.
        assert!(!is_settled(time, time - Duration::from_secs(1)));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "there is no runtime here")]
    fn no_write_after_a_look_is_missed() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::of(&folder.path().join("database"));
        assert!(!log.is_untouched());
        let mut file = std::fs::File::create(&log.path).unwrap();
        for write in 0..5 {
            while !log.is_untouched() {
                log.note();
                std::thread::sleep(Duration::from_millis(1));
            }
            file.write_all(b"frame").unwrap();
            assert!(!log.is_untouched(), "{write}");
            // It may count only when the disk has it.
            log.note();
            assert!(!log.is_untouched(), "{write}");
        }
    }

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
