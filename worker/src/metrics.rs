//! All metrics of the worker: names, help texts, label values, and the functions that count. All series exist from the
//! start, at zero. The metrics of the database are in `shared::process::metrics`.

use std::time::Duration;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use matrix2acrobits_shared::{
    flow::{GateReport, GateState, QueueState},
    process,
    rules::{
        outcome::Reply,
        pushers::{self, Outcome},
    },
};
use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::admin::Admin;

const JOBS: &str = "matrix2acrobits_jobs_total";
const JOB_ATTEMPTS: &str = "matrix2acrobits_job_attempts";
const JOB_DURATION: &str = "matrix2acrobits_job_duration_seconds";
const LAG: &str = "matrix2acrobits_registration_lag_seconds";
const GATE: &str = "matrix2acrobits_outage_gate_shut";
const REQUESTS: &str = "matrix2acrobits_homeserver_requests_total";
const REQUEST_DURATION: &str = "matrix2acrobits_homeserver_request_duration_seconds";
const HEARTBEAT: &str = "matrix2acrobits_worker_heartbeat_timestamp_seconds";
const QUEUE_JOBS: &str = "matrix2acrobits_queue_jobs";
const OLDEST_READY: &str = "matrix2acrobits_queue_oldest_ready_seconds";
const PUSHERS: &str = "matrix2acrobits_pushers";

/// Upper bounds of the time until a pusher was set, including outages of the homeserver.
const LAG_BOUNDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
    14_400.0, 86_400.0,
];
/// Upper bounds of the number of attempts of a job.
const ATTEMPT_BOUNDS: &[f64] = &[1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0];

const RESULTS: [&str; 6] = [
    "registered",
    "removed",
    "nothing",
    "outdone",
    "retry",
    "dead",
];
const REQUEST_KINDS: [&str; 5] = ["set", "delete", "list", "probe", "device"];
/// The usual statuses of homeservers and reverse proxies. Any other status counts as `other`.
const STATUSES: [&str; 14] = [
    "200", "400", "401", "403", "404", "408", "413", "429", "500", "502", "503", "504", "none",
    "other",
];

/// Starts collecting, and creates every series.
pub(crate) fn start() -> PrometheusHandle {
    let handle = process::metrics::init(&[(LAG, LAG_BOUNDS), (JOB_ATTEMPTS, ATTEMPT_BOUNDS)]);
    describe_counter!(
        JOBS,
        "Jobs that ran, by what became of them; retry: they wait for another attempt, dead: dead letter"
    );
    for result in RESULTS {
        counter!(JOBS, "result" => result).absolute(0);
    }
    describe_histogram!(
        JOB_ATTEMPTS,
        "Attempts that jobs took until they were done or a dead letter"
    );
    let _ = histogram!(JOB_ATTEMPTS);
    describe_histogram!(
        JOB_DURATION,
        Unit::Seconds,
        "Time that one attempt of a job took, without the wait for its turn"
    );
    let _ = histogram!(JOB_DURATION);
    describe_histogram!(
        LAG,
        Unit::Seconds,
        "Time from the report, or whatever else made the job, until the homeserver held the pusher"
    );
    let _ = histogram!(LAG);
    describe_gauge!(
        GATE,
        "1 while jobs wait because the homeserver is down, refuses us, or asks everybody to wait"
    );
    gate(&GateReport::default());
    describe_counter!(
        REQUESTS,
        "Requests to the homeserver, by kind and HTTP status; none: no answer"
    );
    describe_histogram!(REQUEST_DURATION, Unit::Seconds, "Time that these took");
    for kind in REQUEST_KINDS {
        for status in STATUSES {
            counter!(REQUESTS, "request" => kind, "status" => status).absolute(0);
        }
        let _ = histogram!(REQUEST_DURATION, "request" => kind);
    }
    describe_gauge!(
        HEARTBEAT,
        Unit::Seconds,
        "When the worker's loop last showed that it lives, in seconds since 1970"
    );
    gauge!(HEARTBEAT).set(0.0);
    describe_gauge!(
        QUEUE_JOBS,
        "Jobs in the queue, by state; failed: waiting for their next try, killed: dead letters"
    );
    describe_gauge!(
        OLDEST_READY,
        Unit::Seconds,
        "Time that the oldest job that could run has waited"
    );
    publish_queue(QueueState::default());
    describe_gauge!(PUSHERS, "Pushers, by state");
    publish_pushers(&[]);
    handle
}

/// `GET /metrics`. Values that the database does not provide stay as they were.
pub(crate) async fn render(State(admin): State<Admin>) -> Response {
    let store = &admin.store;
    process::metrics::ask(Box::pin(async {
        if let Ok(state) = store.queue_state().await {
            publish_queue(state);
        }
        if let Ok(pushers) = store.count_pushers().await {
            publish_pushers(&pushers);
        }
        if let Ok((file, log)) = store.file_sizes().await {
            process::metrics::database_size(file, log);
        }
    }))
    .await;
    if let Some(age) = admin.beat.age() {
        gauge!(HEARTBEAT).set(to_f64(store.clock().unix()) - age.as_secs_f64());
    }
    (
        [("content-type", "text/plain; version=0.0.4")],
        admin.metrics.render(),
    )
        .into_response()
}

fn publish_queue(state: QueueState) {
    let states = [
        ("pending", state.pending),
        ("queued", state.queued),
        ("failed", state.failed),
        ("killed", state.killed),
    ];
    for (name, count) in states {
        gauge!(QUEUE_JOBS, "state" => name).set(to_f64(count));
    }
    gauge!(OLDEST_READY).set(to_f64(state.oldest_ready));
}

fn publish_pushers(counts: &[(String, i64)]) {
    for state in pushers::State::ALL.map(pushers::State::as_str) {
        let found = counts.iter().find(|(name, _)| name == state);
        gauge!(PUSHERS, "state" => state).set(to_f64(found.map_or(0, |(_, count)| *count)));
    }
}

/// Sets whether the gate is shut. A job that tries during an outage does not end it.
pub(crate) fn gate(report: &GateReport) {
    let shut = report.state == GateState::Shut;
    gauge!(GATE).set(f64::from(u8::from(shut)));
}

/// Counts a request to the homeserver. `kind` is one of [`REQUEST_KINDS`].
pub(crate) fn request(kind: &'static str, reply: &Reply, took: Duration) {
    let status = match reply {
        Reply::Response(response) => known_status(response.status),
        Reply::Nothing { .. } => "none",
    };
    counter!(REQUESTS, "request" => kind, "status" => status).increment(1);
    histogram!(REQUEST_DURATION, "request" => kind).record(took);
}

fn known_status(status: u16) -> &'static str {
    let known = STATUSES
        .iter()
        .find(|known| known.parse() == Ok(status))
        .copied();
    known.unwrap_or("other")
}

/// Counts jobs that cannot be read.
pub(crate) fn unreadable_jobs(count: u64) {
    counter!(JOBS, "result" => "dead").increment(count);
}

/// Counts an attempt of a job: its outcome, the number of attempts so far, and the age of the job.
pub(crate) fn job(outcome: &Outcome, attempts: i64, age: Option<Duration>) {
    let result = match outcome {
        Outcome::Registered => "registered",
        Outcome::Removed => "removed",
        Outcome::Nothing => "nothing",
        Outcome::Outdone => "outdone",
        Outcome::Retry { .. } => "retry",
        Outcome::Dead { .. } => "dead",
    };
    counter!(JOBS, "result" => result).increment(1);
    if !matches!(outcome, Outcome::Retry { .. }) {
        histogram!(JOB_ATTEMPTS).record(to_f64(attempts));
    }
    if let (Outcome::Registered, Some(age)) = (outcome, age) {
        histogram!(LAG).record(age);
    }
}

/// Notes how long an attempt of a job took.
pub(crate) fn job_took(took: Duration) {
    histogram!(JOB_DURATION).record(took);
}

#[expect(
    clippy::cast_precision_loss,
    reason = "no count or time here reaches 2^52"
)]
fn to_f64(count: i64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unusual_status_is_no_new_label() {
        assert_eq!(known_status(503), "503");
        assert_eq!(known_status(599), "other");
    }
}
