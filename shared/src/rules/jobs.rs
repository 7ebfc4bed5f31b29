//! How a job's row in the queue changes: woken, retried, given up, recovered, released.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often a worker reports that it is alive. Well within [`DEAD_AFTER`].
pub const HEARTBEAT: Duration = Duration::from_secs(2);
/// A worker without a heartbeat for this long counts as dead, and others get its jobs, in seconds.
pub const DEAD_AFTER: i64 = 10;
/// A job that had begun in this many workers when they died is the likely cause, and becomes a dead letter. One more
/// worker died earlier: only after that death do workers note when they begin the job.
const MAX_LOST: i64 = 4;
/// The longest that a job waits at the homeserver's request, in seconds.
pub const LONGEST_ASKED: i64 = 3600;
/// Jobs that are not in backoff are due within this time, in seconds. Recovered jobs wait for part of it.
pub const SOON: i64 = 15;
/// The most rows that one transaction of upkeep or replay touches.
pub const CHUNK: i64 = 500;
/// The error of a dead letter that killed its workers.
const KILLED_ITS_WORKERS: &str = "its job killed its worker again and again";
/// The error of a job whose worker died.
const WORKER_DIED: &str = "the worker that held this job died";

/// The payload of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPusher {
    /// The row of `pushers` that the homeserver should match.
    pub pusher_id: i64,
}

/// Where a job stands, in apalis' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Due, or recovered from a worker that died.
    Pending,
    /// In a worker's hands.
    Queued,
    /// In a worker's hands, and the worker has noted that it begins the job.
    Running,
    /// In backoff.
    Failed,
    /// A dead letter.
    Killed,
    /// A word that we do not use.
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
    /// The database's number for the row, valid within one transaction.
    pub key: i64,
    /// Where the job stands.
    pub status: Status,
    /// Attempts that failed or ended with the worker's death.
    pub attempts: i64,
    /// When the job is due, in seconds since 1970.
    pub run_at: i64,
    /// Nothing brings the job forward to before this time, because the homeserver asked to wait.
    pub not_before: Option<i64>,
    /// How many workers died with the job after they had begun it. 0 if a worker died with the job but perhaps had not
    /// begun it. None if no worker died with it.
    pub lost: Option<i64>,
    /// The job was woken while a worker held it.
    pub recalled: bool,
    /// The worker that holds the job.
    pub lock_by: Option<String>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// When the job was given up, in seconds since 1970.
    pub done_at: Option<i64>,
}

impl Job {
    /// Whether the job will run: it has not been given up, and its row makes sense.
    pub fn is_live(&self) -> bool {
        match self.status {
            Status::Pending | Status::Failed => true,
            Status::Queued | Status::Running => self.lock_by.is_some(),
            Status::Killed | Status::Foreign => false,
        }
    }

    /// Whether `worker` holds the job.
    pub fn is_held_by(&self, worker: &str) -> bool {
        self.lock_by.as_deref() == Some(worker)
    }

    /// Makes a live job run again. A job in backoff is brought forward, and a job in a worker's hands is marked as
    /// recalled. Returns whether that changes the job.
    pub fn wake(&mut self, now: i64) -> bool {
        match self.status {
            Status::Failed => {
                let due = now.max(self.not_before.unwrap_or(0));
                let sooner = due < self.run_at;
                if sooner {
                    self.run_at = due;
                }
                sooner
            }
            Status::Queued | Status::Running if self.is_live() => {
                !std::mem::replace(&mut self.recalled, true)
            }
            // A new job takes the place of one that is not live.
            Status::Pending
            | Status::Killed
            | Status::Foreign
            | Status::Queued
            | Status::Running => false,
        }
    }

    /// Starts from the beginning, at once.
    pub fn again(&mut self, now: i64) {
        self.status = Status::Pending;
        self.attempts = 0;
        self.run_at = now;
        self.not_before = None;
        self.lost = None;
        self.done_at = None;
        self.free();
    }

    /// The attempt failed, so retry at `run_at`. A recalled job is due now, or at `not_before` if the homeserver asked
    /// to wait until then.
    pub fn retry(&mut self, run_at: i64, not_before: Option<i64>, error: &str, now: i64) {
        self.status = Status::Failed;
        self.attempts += 1;
        let earliest = now.max(not_before.unwrap_or(0));
        self.run_at = if self.recalled {
            run_at.min(earliest)
        } else {
            run_at
        };
        self.not_before = not_before;
        self.lost = None;
        self.error = Some(error.to_owned());
        self.free();
    }

    /// Gives the job up.
    pub fn kill(&mut self, error: &str, now: i64) {
        self.status = Status::Killed;
        self.attempts += 1;
        self.done_at = Some(now);
        self.error = Some(error.to_owned());
        self.free();
    }

    /// The worker died. The more workers have died with the job, the longer it waits, so that other jobs come first.
    /// Returns whether the job was given up as the likely cause.
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

    /// A worker that stops gives the job back. This does not count as an attempt.
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
            (Status::Killed, Some(9000), 5000, false, Status::Killed),
            (Status::Pending, None, 5000, false, Status::Pending),
            (Status::Queued, None, 5000, true, Status::Queued),
            (Status::Running, None, 5000, true, Status::Running),
            (Status::Foreign, None, 5000, false, Status::Foreign),
        ] {
            let mut job = Job {
                not_before,
                ..job(status)
            };
            let before = job.clone();
            let changed = job.wake(NOW);
            assert_eq!(
                (job.run_at, job.recalled, job.status),
                (run_at, recalled, after),
                "{status:?} {not_before:?}"
            );
            assert_eq!(changed, job != before, "{status:?} {not_before:?}");
            assert!(!job.wake(NOW), "twice: {status:?} {not_before:?}");
        }
    }

    #[test]
    fn a_job_that_nobody_holds_is_not_in_a_workers_hands() {
        for status in [Status::Queued, Status::Running] {
            let mut job = Job {
                lock_by: None,
                ..job(status)
            };
            assert!(!job.is_live(), "{status:?}");
            assert!(!job.wake(NOW), "{status:?}");
        }
    }

    #[test]
    fn a_report_during_the_attempt_counts_as_the_next_one() {
        let mut failed = Job {
            recalled: true,
            ..job(Status::Queued)
        };
        failed.retry(7000, None, "no", NOW);
        assert_eq!((failed.run_at, failed.recalled), (NOW, false));
        for recalled in [true, false] {
            let mut limited = Job {
                recalled,
                ..job(Status::Queued)
            };
            limited.retry(7000, Some(2000), "429", NOW);
            let run_at = if recalled { 2000 } else { 7000 };
            assert_eq!((limited.run_at, limited.not_before), (run_at, Some(2000)));
            limited.wake(NOW);
            assert_eq!(limited.run_at, 2000, "the next report brings it forward");
        }
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
