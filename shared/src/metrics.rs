//! Metrics that both processes have: the build, and the database. Their names, help texts and first values.
//!
//! Names follow Prometheus' conventions (base units, `_total` for counters). Labels take their values from
//! short fixed lists, never from what a phone or a homeserver sends.

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::store::Store;

const BUILD_INFO: &str = "matrix2acrobits_build_info";
const COMMIT_DURATION: &str = "matrix2acrobits_db_commit_duration_seconds";
const WRITE_ERRORS: &str = "matrix2acrobits_db_write_errors_total";
const BUSY: &str = "matrix2acrobits_db_busy_total";
const SIZE: &str = "matrix2acrobits_db_size_bytes";
const WAL_SIZE: &str = "matrix2acrobits_db_wal_size_bytes";

/// Names the build and makes every series of the database, at zero.
pub(crate) fn register() {
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
pub(crate) fn committed(took: std::time::Duration) {
    histogram!(COMMIT_DURATION).record(took);
}

/// Notes that a write transaction failed.
pub(crate) fn write_failed(busy: bool) {
    counter!(WRITE_ERRORS).increment(1);
    if busy {
        counter!(BUSY).increment(1);
    }
}

/// Measures the files of the database; to be called when somebody asks for `/metrics`.
pub async fn measure_files(store: &Store) {
    let (database, log) = store.file_sizes().await;
    gauge!(SIZE).set(to_f64(database));
    gauge!(WAL_SIZE).set(to_f64(log));
}

#[expect(
    clippy::cast_precision_loss,
    reason = "no file here reaches 2^52 bytes"
)]
fn to_f64(bytes: u64) -> f64 {
    bytes as f64
}
