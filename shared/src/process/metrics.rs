//! Metrics: their setup at start, and the metrics of both processes, which are about the build and the database.
//!
//! Names follow Prometheus' conventions (base units, `_total` for counters). Labels take their values from
//! short fixed lists, never from what a phone or a homeserver sends.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

const BUILD_INFO: &str = "matrix2acrobits_build_info";
const COMMIT_DURATION: &str = "matrix2acrobits_db_commit_duration_seconds";
const WRITE_ERRORS: &str = "matrix2acrobits_db_write_errors_total";
const BUSY: &str = "matrix2acrobits_db_busy_total";
const SIZE: &str = "matrix2acrobits_db_size_bytes";
const WAL_SIZE: &str = "matrix2acrobits_db_wal_size_bytes";

/// Upper bounds of the duration histograms, in seconds.
const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0,
];

/// How long `/metrics` waits for the database. Prometheus gives up after ten seconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often recorded samples are folded into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);

/// Starts collecting metrics. Call it inside the runtime. The handle renders the metrics for `/metrics`. `buckets` has
/// the upper bounds of histograms that are not durations of requests.
pub fn init(buckets: &[(&str, &[f64])]) -> PrometheusHandle {
    // The exporter looks at full names first, and refuses only empty lists of bounds.
    let matchers = buckets
        .iter()
        .map(|&(name, bounds)| (Matcher::Full(name.into()), bounds))
        .chain([(Matcher::Suffix("_seconds".into()), SECONDS)]);
    let mut builder = PrometheusBuilder::new();
    for (matcher, bounds) in matchers {
        builder = builder
            .set_buckets_for_metric(matcher, bounds)
            .unwrap_or_else(|_| PrometheusBuilder::new());
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    let _ = metrics::set_global_recorder(recorder);
    register();
    // Without this task the exporter keeps every sample until a scrape.
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    handle
}

/// Names the build, and creates every series of the database at zero.
fn register() {
    describe_gauge!(BUILD_INFO, "Always 1; the version is in the label");
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    describe_histogram!(
        COMMIT_DURATION,
        Unit::Seconds,
        "Time that a write transaction of this process took, with whatever it waited for the lock"
    );
    let _ = histogram!(COMMIT_DURATION);
    describe_counter!(
        WRITE_ERRORS,
        "Write transactions of this process that failed"
    );
    describe_counter!(
        BUSY,
        "Those among them for which another connection held the lock longer than we wait"
    );
    counter!(WRITE_ERRORS).absolute(0);
    counter!(BUSY).absolute(0);
    describe_gauge!(SIZE, Unit::Bytes, "Size of the SQLite file");
    describe_gauge!(WAL_SIZE, Unit::Bytes, "Size of its write-ahead log");
    gauge!(SIZE).set(0.0);
    gauge!(WAL_SIZE).set(0.0);
}

/// Notes that a write transaction took this long.
pub fn committed(took: Duration) {
    histogram!(COMMIT_DURATION).record(took);
}

/// Notes that a write transaction failed.
pub fn write_failed(busy: bool) {
    counter!(WRITE_ERRORS).increment(1);
    if busy {
        counter!(BUSY).increment(1);
    }
}

/// Asks the database for the values that `/metrics` shows, for a limited time. A scrape must not fail because the
/// database does not respond: other metrics matter most at that moment.
pub async fn ask(asking: impl Future<Output = ()>) {
    // Values that were not read stay as they were.
    let _ = tokio::time::timeout(PATIENCE, asking).await;
}

/// Notes how large the database's file and its write-ahead log are, in bytes.
pub fn database_size(file: u64, log: u64) {
    gauge!(SIZE).set(to_f64(file));
    gauge!(WAL_SIZE).set(to_f64(log));
}

#[expect(
    clippy::cast_precision_loss,
    reason = "no file here reaches 2^52 bytes"
)]
fn to_f64(bytes: u64) -> f64 {
    bytes as f64
}
