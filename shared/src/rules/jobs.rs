//! What becomes of a job: the queue's row of one pusher.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The queue's name in `Jobs.job_type`.
pub const QUEUE: &str = "sync_pusher";
/// How often a worker says that it lives; well within [`DEAD_AFTER`].
pub const HEARTBEAT: Duration = Duration::from_secs(2);
/// A worker that has not beaten for this long is dead and its jobs go to others, in seconds.
pub const DEAD_AFTER: i64 = 10;
/// A job that had begun in this many workers when they died is the likely cause: dead letter. One more died with
/// it before, which is how it came to say when it begins.
pub const MAX_LOST: i64 = 4;
/// The longest that a job waits because the homeserver asked for it, in seconds.
pub const LONGEST_ASKED: i64 = 3600;
/// No job that is not in backoff is due later than this, in seconds; recovered jobs wait some.
pub const SOON: i64 = 15;
/// Rows that one transaction of upkeep or replay touches at most.
pub const CHUNK: i64 = 500;
/// What a dead letter says that its workers did not survive.
pub const KILLED_ITS_WORKERS: &str = "its job killed its worker again and again";
/// What a job says whose worker died.
const WORKER_DIED: &str = "the worker that held this job died";

/// The payload of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPusher {
    /// The row of `pushers` to bring about at the homeserver.
    pub pusher_id: i64,
}

/// Where a job stands; apalis' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Due, or recovered from a worker that died.
    Pending,
    /// In a worker's hands.
    Queued,
    /// In a worker's hands, which has said that it begins with it.
    Running,
    /// In backoff.
    Failed,
    /// A dead letter.
    Killed,
    /// Not a word of ours.
    #[serde(other)]
    Foreign,
}

impl Status {
    /// The word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending | Self::Foreign => "Pending",
            Self::Queued => "Queued",
            Self::Running => "Running",
            Self::Failed => "Failed",
            Self::Killed => "Killed",
        }
    }
}

/// A job's row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The database's number for the row, good inside one transaction.
    pub key: i64,
    /// Where it stands.
    pub status: Status,
    /// Attempts that ended in failure or with the worker.
    pub attempts: i64,
    /// When it is due, in seconds since 1970.
    pub run_at: i64,
    /// Before this nothing brings it forward: the homeserver asked for it.
    pub not_before: Option<i64>,
    /// None: no worker has died with it. 0: one has, but it had perhaps not begun. Else how many died after it
    /// had begun.
    pub lost: Option<i64>,
    /// It was wanted again while a worker held it.
    pub recalled: bool,
    /// The worker that holds it.
    pub lock_by: Option<String>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// When it was given up, in seconds since 1970.
    pub done_at: Option<i64>,
}

impl Job {
    /// Whether it has not been given up.
    pub fn is_live(&self) -> bool {
        self.status != Status::Killed
    }

    /// Whether `worker` holds it.
    pub fn is_held_by(&self, worker: &str) -> bool {
        self.lock_by.as_deref() == Some(worker)
    }

    /// Something wants it to run: one in backoff is brought forward, a dead letter is revived, and one in a
    /// worker's hands remembers it.
    pub fn wake(&mut self, now: i64) {
        match self.status {
            Status::Failed => {
                self.run_at = self.run_at.min(now.max(self.not_before.unwrap_or(0)));
            }
            Status::Killed => self.again(now),
            Status::Queued | Status::Running => self.recalled = true,
            Status::Pending | Status::Foreign => {}
        }
    }

    /// Runs from the beginning, at once.
    pub fn again(&mut self, now: i64) {
        self.status = Status::Pending;
        self.attempts = 0;
        self.run_at = now;
        self.not_before = None;
        self.lost = None;
        self.done_at = None;
        self.free();
    }

    /// The attempt failed: run again at `run_at`. If `strict`, nothing brings it forward; else what recalled it
    /// meanwhile does.
    pub fn retry(&mut self, run_at: i64, error: &str, strict: bool, now: i64) {
        self.status = Status::Failed;
        self.attempts += 1;
        self.run_at = if self.recalled && !strict {
            now
        } else {
            run_at
        };
        self.not_before = strict.then_some(run_at);
        self.lost = None;
        self.error = Some(error.to_owned());
        self.free();
    }

    /// Gives it up.
    pub fn kill(&mut self, error: &str, now: i64) {
        self.status = Status::Killed;
        self.attempts += 1;
        self.done_at = Some(now);
        self.error = Some(error.to_owned());
        self.free();
    }

    /// Its worker died. The more it has seen die, the longer it waits, so that its neighbours come first.
    /// Returns whether it was given up as the likely cause.
    pub fn recover(&mut self, now: i64) -> bool {
        let began = i64::from(self.status == Status::Running);
        let lost = self.lost.unwrap_or(0) + began;
        if lost >= MAX_LOST {
            self.kill(KILLED_ITS_WORKERS, now);
        } else {
            self.status = Status::Pending;
            self.attempts += 1;
            self.run_at = now + 2 * lost;
            self.error = Some(WORKER_DIED.into());
            self.free();
        }
        self.lost = Some(lost);
        lost >= MAX_LOST
    }

    /// A worker that stops gives it back: nothing was lost, so nothing counts.
    pub fn release(&mut self) {
        if matches!(self.status, Status::Queued | Status::Running) {
            self.status = Status::Pending;
        }
        self.free();
    }

    fn free(&mut self) {
        self.lock_by = None;
        self.recalled = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1000;

    fn job(status: Status) -> Job {
        Job {
            key: 1,
            status,
            attempts: 3,
            run_at: 5000,
            not_before: None,
            lost: None,
            recalled: false,
            lock_by: matches!(status, Status::Queued | Status::Running).then(|| "w".into()),
            error: None,
            done_at: None,
        }
    }

    #[test]
    fn waking() {
        for (status, not_before, run_at, recalled, after) in [
            (Status::Failed, None, NOW, false, Status::Failed),
            (Status::Failed, Some(2000), 2000, false, Status::Failed),
            (Status::Failed, Some(500), NOW, false, Status::Failed),
            (Status::Killed, Some(9000), NOW, false, Status::Pending),
            (Status::Pending, None, 5000, false, Status::Pending),
            (Status::Queued, None, 5000, true, Status::Queued),
            (Status::Running, None, 5000, true, Status::Running),
        ] {
            let mut job = Job {
                not_before,
                ..job(status)
            };
            job.wake(NOW);
            assert_eq!(
                (job.run_at, job.recalled, job.status),
                (run_at, recalled, after),
                "{status:?} {not_before:?}"
            );
        }
    }

    #[test]
    fn a_report_during_the_attempt_counts_as_the_next_one() {
        let mut failed = Job {
            recalled: true,
            ..job(Status::Queued)
        };
        failed.retry(7000, "no", false, NOW);
        assert_eq!((failed.run_at, failed.recalled), (NOW, false));
        let mut limited = Job {
            recalled: true,
            ..job(Status::Queued)
        };
        limited.retry(7000, "429", true, NOW);
        assert_eq!((limited.run_at, limited.not_before), (7000, Some(7000)));
    }

    #[test]
    fn only_what_had_begun_is_lost() {
        let mut held = job(Status::Queued);
        for _ in 0..20 {
            held.status = Status::Queued;
            assert!(!held.recover(NOW));
            assert_eq!((held.lost, held.status), (Some(0), Status::Pending));
        }
        let mut began = job(Status::Running);
        for lost in 1..MAX_LOST {
            assert!(!began.recover(NOW));
            assert_eq!((began.lost, began.run_at), (Some(lost), NOW + 2 * lost));
            began.status = Status::Running;
        }
        assert!(began.recover(NOW));
        assert_eq!((began.status, began.done_at), (Status::Killed, Some(NOW)));
    }

    #[test]
    fn a_worker_that_stops_costs_its_jobs_nothing() {
        for status in [Status::Queued, Status::Running] {
            let mut held = job(status);
            held.release();
            assert_eq!(
                (held.status, held.lost, held.attempts),
                (Status::Pending, None, 3)
            );
            assert_eq!(held.lock_by, None);
        }
    }
}
