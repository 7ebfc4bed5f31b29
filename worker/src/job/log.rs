//! The log line for the end of a job.

use matrix2acrobits_shared::{
    flow::Held,
    rules::pushers::{Outcome, PusherTask},
};

use super::Ended;

/// The error of a dead letter whose job panicked.
pub(super) const PANICKED: &str = "the job panicked; see the log";

/// Logs one line for each outcome that matters. `reason` is a word to search and count by, and `error` is for people.
pub(super) fn log(held: &Held, row: &PusherTask, ended: &Ended) {
    let (user, app_id, pushkey, job, attempt) = (
        &row.user_id,
        &row.app_id,
        row.pushkey.log_id(),
        &held.job_id,
        held.attempts + 1,
    );
    match &ended.outcome {
        Outcome::Registered if !ended.changing => {
            tracing::debug!(%user, %app_id, %pushkey, job, attempt, "pusher held as wanted");
        }
        Outcome::Removed if !ended.changing => {
            tracing::debug!(%user, %app_id, %pushkey, job, attempt, "pusher was gone already");
        }
        Outcome::Registered => {
            tracing::info!(%user, %app_id, %pushkey, job, attempt, "pusher set");
        }
        Outcome::Removed => {
            tracing::info!(%user, %app_id, %pushkey, job, attempt, "pusher deleted");
        }
        Outcome::Nothing => {}
        Outcome::Outdone => {
            tracing::info!(%user, %app_id, %pushkey, job, "pusher left to the user who reported it later");
        }
        Outcome::Retry { error, .. } => {
            tracing::debug!(%user, %app_id, %pushkey, job, attempt, error, "pusher will be tried again");
        }
        Outcome::Dead { error } => {
            let reason = dead_reason(error);
            tracing::warn!(%user, %app_id, %pushkey, job, attempt, reason, error, "dead letter: tried again at the next report or replay");
        }
    }
}

/// The homeserver's errcode, or a word for what happened here.
fn dead_reason(error: &str) -> &str {
    if error == PANICKED {
        return "panic";
    }
    let mut words = error.split([' ', ':']);
    words
        .find(|word| word.starts_with("M_"))
        .unwrap_or("refused")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_has_a_reason_to_count_by() {
        assert_eq!(
            dead_reason("HTTP 403 M_FORBIDDEN: M_X has not registered"),
            "M_FORBIDDEN"
        );
        assert_eq!(dead_reason("HTTP 400"), "refused");
        assert_eq!(dead_reason(PANICKED), "panic");
    }
}
