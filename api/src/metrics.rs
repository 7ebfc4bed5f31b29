//! All metrics of the api: names, help texts, label values, and the handles that count. All series exist from the
//! start, at zero. The metrics of the database are in `shared::process::metrics`.
//!
//! On the path of a notification, handles are kept, so that counting needs no lookup and no allocation.

use std::time::Duration;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use matrix2acrobits_shared::process;
use matrix2acrobits_store::Store;
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::{
    http::shares::Full,
    notify::{pnm::outcome::Outcome, trust::Marked},
};

const HTTP_REQUESTS: &str = "matrix2acrobits_http_requests_total";
const HTTP_DURATION: &str = "matrix2acrobits_http_request_duration_seconds";
const CONNECTIONS_REFUSED: &str = "matrix2acrobits_connections_refused_total";
const TOKEN_REPORTS: &str = "matrix2acrobits_token_reports_total";
const FORGOTTEN: &str = "matrix2acrobits_unclaimed_rows_forgotten_total";
const LOGINS: &str = "matrix2acrobits_logins_total";
const DEVICES: &str = "matrix2acrobits_notify_devices_total";
const TOLD: &str = "matrix2acrobits_notify_told_total";
const REJECTIONS: &str = "matrix2acrobits_rejections_total";
const GUARD: &str = "matrix2acrobits_mass_rejection_guard";
const UNKNOWN_GUARD: &str = "matrix2acrobits_mass_unknown_guard";
const MARKS: &str = "matrix2acrobits_notify_marks_total";
const PNM_REQUESTS: &str = "matrix2acrobits_pnm_requests_total";
const PNM_DURATION: &str = "matrix2acrobits_pnm_request_duration_seconds";
const PNM_IN_FLIGHT: &str = "matrix2acrobits_pnm_requests_in_flight";

const RECEIPTS: &str = "matrix2acrobits_push_receipts_total";
const ARRIVAL: &str = "matrix2acrobits_push_arrival_seconds";
const CANARY: &str = "matrix2acrobits_canary_pushes_total";
const CANARY_FAILING: &str = "matrix2acrobits_canary_failing";
const SILENT: &str = "matrix2acrobits_phones_silent";

/// Upper bounds of the time until a push arrives. A phone may be asleep for long.
const ARRIVAL_SECONDS: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
];

/// Starts collecting, and creates every series.
pub(crate) fn start() -> PrometheusHandle {
    let handle = process::metrics::init(&[(ARRIVAL, ARRIVAL_SECONDS)]);
    describe_counter!(
        HTTP_REQUESTS,
        "Requests by route and HTTP status; aborted: the client hung up, or the request took too long"
    );
    describe_histogram!(
        HTTP_DURATION,
        Unit::Seconds,
        "Time that they took, by route and class of status (2xx, 4xx, 5xx, aborted)"
    );
    let _ = Http::new();
    describe_counter!(
        CONNECTIONS_REFUSED,
        "Connections that were closed at once because too many were open, by limit: all, or one address"
    );
    let _ = Connections::new();
    describe_counter!(
        TOKEN_REPORTS,
        "Token and account removal reports, by result"
    );
    for result in ReportResult::ALL {
        counter!(TOKEN_REPORTS, "result" => result.as_str()).absolute(0);
    }
    describe_counter!(
        FORGOTTEN,
        "Phones without a mapping or login that were forgotten, by reason; old: no report for 30 days, surplus: too many"
    );
    let _ = Forgotten::new();
    describe_counter!(LOGINS, "Logins of reports, by result");
    for result in LoginResult::ALL {
        counter!(LOGINS, "result" => result.as_str()).absolute(0);
    }
    describe_counter!(
        DEVICES,
        "Devices in notifications, by outcome; dropped: PNM does not understand the message, retry: PNM was \
         in trouble, unavailable: we were, limited and forbidden: without our pusher's mark"
    );
    describe_counter!(
        TOLD,
        "Pushes that other apis at the same PostgreSQL database have told this one of, so that it does not repeat them"
    );
    told_of_pushes(0);
    describe_counter!(
        REJECTIONS,
        "Devices whose pushkey the homeserver was told to forget, by reason; unknown_unmarked: unknown, without our \
         pusher's mark"
    );
    let _ = Notify::new();
    describe_gauge!(
        GUARD,
        "Apps of which PNM calls so many tokens gone that none of these is rejected"
    );
    mass_guard().set(0.0);
    describe_gauge!(
        UNKNOWN_GUARD,
        "1 while so many pushkeys are unknown that none of these is rejected"
    );
    mass_unknown_guard().set(0.0);
    describe_counter!(
        MARKS,
        "Devices in notifications by the mark that their pusher carries: right, wrong or missing"
    );
    describe_counter!(PNM_REQUESTS, "Requests to PNM, by outcome");
    describe_histogram!(PNM_DURATION, Unit::Seconds, "Time that these took");
    describe_gauge!(PNM_IN_FLIGHT, "Those under way");
    Pnm::new().in_flight.set(0.0);
    describe_counter!(
        RECEIPTS,
        "Receipts of phones, by result; confirmed: with the id of a push of ours, noted: of a known phone, unknown: of none, \
         dropped: too many at a time, refused: wrong or not allowed, unavailable: not taken for another reason"
    );
    describe_histogram!(
        ARRIVAL,
        Unit::Seconds,
        "Time from PNM's answer to the phone's receipt, where that has the push's id"
    );
    let _ = Receipts::new();
    describe_gauge!(
        SILENT,
        "Phones that have sent receipts, and none for the pushes of a day"
    );
    phones_silent(0);
    describe_counter!(
        CANARY,
        "Test pushes of the canary, by result; taken: by PNM, and the phone sends no receipts, not_taken: PNM refused it"
    );
    describe_gauge!(CANARY_FAILING, "1 if the canary's last push failed");
    let _ = Canary::new();
    handle
}

/// `GET /metrics`. Values that the database does not provide stay as they were.
pub(crate) async fn render(State((store, handle)): State<(Store, PrometheusHandle)>) -> Response {
    process::metrics::ask(async {
        if let Ok((file, log)) = store.file_sizes().await {
            process::metrics::database_size(file, log);
        }
    })
    .await;
    (
        [("content-type", "text/plain; version=0.0.4")],
        handle.render(),
    )
        .into_response()
}

/// The number of apps whose rejections are stopped.
pub(crate) fn mass_guard() -> Gauge {
    gauge!(GUARD)
}

/// 1 while rejections of unknown pushkeys are stopped.
pub(crate) fn mass_unknown_guard() -> Gauge {
    gauge!(UNKNOWN_GUARD)
}

/// Counts deleted rows that nobody stood for.
#[derive(Debug)]
pub(crate) struct Forgotten {
    old: Counter,
    surplus: Counter,
}

impl Forgotten {
    pub(crate) fn new() -> Self {
        let [old, surplus] =
            ["old", "surplus"].map(|reason| counter!(FORGOTTEN, "reason" => reason));
        Self { old, surplus }
    }

    pub(crate) fn count(&self, gone: matrix2acrobits_store::Forgotten) {
        let number = |rows| u64::try_from(rows).unwrap_or(u64::MAX);
        self.old.increment(number(gone.old));
        self.surplus.increment(number(gone.surplus));
    }
}

/// Counts pushes that other apis have told us of.
pub(crate) fn told_of_pushes(count: usize) {
    counter!(TOLD).increment(u64::try_from(count).unwrap_or(u64::MAX));
}

/// Sets the number of silent phones.
pub(crate) fn phones_silent(count: i64) {
    gauge!(SILENT).set(f64::from(i32::try_from(count).unwrap_or(i32::MAX)));
}

/// The result of a test push of the canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CanaryResult {
    Received,
    Taken,
    NotReceived,
    NotTaken,
    NoPhone,
}

impl CanaryResult {
    const ALL: [Self; 5] = [
        Self::Received,
        Self::Taken,
        Self::NotReceived,
        Self::NotTaken,
        Self::NoPhone,
    ];

    /// The word for logs and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Taken => "taken",
            Self::NotReceived => "not_received",
            Self::NotTaken => "not_taken",
            Self::NoPhone => "no_phone",
        }
    }

    /// Whether the push went as it should.
    pub(crate) fn is_well(self) -> bool {
        matches!(self, Self::Received | Self::Taken)
    }
}

/// Counts the canary's pushes.
#[derive(Debug)]
pub(crate) struct Canary {
    results: ByLabel<CanaryResult, { CanaryResult::ALL.len() }>,
    failing: Gauge,
}

impl Canary {
    pub(crate) fn new() -> Self {
        let counter = |of: CanaryResult| counter!(CANARY, "result" => of.as_str());
        let failing = gauge!(CANARY_FAILING);
        failing.set(0.0);
        Self {
            results: ByLabel::new(CanaryResult::ALL, counter),
            failing,
        }
    }

    pub(crate) fn count(&self, result: CanaryResult) {
        self.results.add(result, 1);
        self.failing.set(if result.is_well() { 0.0 } else { 1.0 });
    }
}

/// The result of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReportResult {
    Changed,
    Unchanged,
    Removed,
    Refused,
    Unavailable,
}

impl ReportResult {
    const ALL: [Self; 5] = [
        Self::Changed,
        Self::Unchanged,
        Self::Removed,
        Self::Refused,
        Self::Unavailable,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Removed => "removed",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Counts a report.
pub(crate) fn report(result: ReportResult) {
    counter!(TOKEN_REPORTS, "result" => result.as_str()).increment(1);
}

/// The result of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoginResult {
    Good,
    Refused,
    NoChat,
    NoCredentials,
    Limited,
    Busy,
    Down,
    Unreadable,
}

impl LoginResult {
    const ALL: [Self; 8] = [
        Self::Good,
        Self::Refused,
        Self::NoChat,
        Self::NoCredentials,
        Self::Limited,
        Self::Busy,
        Self::Down,
        Self::Unreadable,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Refused => "refused",
            Self::NoChat => "no_chat",
            Self::NoCredentials => "no_credentials",
            Self::Limited => "limited",
            Self::Busy => "busy",
            Self::Down => "down",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Counts a login.
pub(crate) fn login(result: LoginResult) {
    counter!(LOGINS, "result" => result.as_str()).increment(1);
}

/// The result of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReceiptResult {
    Confirmed,
    Noted,
    Unknown,
    Dropped,
    Refused,
    Unavailable,
}

/// Counts receipts.
#[derive(Debug)]
pub(crate) struct Receipts {
    results: ByLabel<ReceiptResult, 6>,
    arrival: Histogram,
}

impl Receipts {
    pub(crate) fn new() -> Self {
        let results = [
            ReceiptResult::Confirmed,
            ReceiptResult::Noted,
            ReceiptResult::Unknown,
            ReceiptResult::Dropped,
            ReceiptResult::Refused,
            ReceiptResult::Unavailable,
        ];
        let word = |of| match of {
            ReceiptResult::Confirmed => "confirmed",
            ReceiptResult::Noted => "noted",
            ReceiptResult::Unknown => "unknown",
            ReceiptResult::Dropped => "dropped",
            ReceiptResult::Refused => "refused",
            ReceiptResult::Unavailable => "unavailable",
        };
        Self {
            results: ByLabel::new(results, |of| counter!(RECEIPTS, "result" => word(of))),
            arrival: histogram!(ARRIVAL),
        }
    }

    pub(crate) fn count(&self, result: ReceiptResult, count: u64) {
        self.results.add(result, count);
    }

    /// Counts a receipt that confirms a push, and how long ago the push was sent.
    pub(crate) fn confirmed(&self, took: Duration) {
        self.count(ReceiptResult::Confirmed, 1);
        self.arrival.record(took);
    }
}

/// The counters of one metric, one for each value of a label.
#[derive(Debug)]
struct ByLabel<K, const N: usize>([(K, Counter); N]);

impl<K: Copy + PartialEq, const N: usize> ByLabel<K, N> {
    fn new(keys: [K; N], counter: impl Fn(K) -> Counter) -> Self {
        Self(keys.map(|key| (key, counter(key))))
    }

    fn add(&self, key: K, count: u64) {
        if let Some((_, counter)) = self.0.iter().find(|(of, _)| *of == key) {
            counter.increment(count);
        }
    }
}

/// What became of a device of a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceOutcome {
    Delivered,
    Rejected,
    Dropped,
    Duplicate,
    Badge,
    CallOver,
    OddEventId,
    Retry,
    Unavailable,
    Limited,
    Forbidden,
}

impl DeviceOutcome {
    const ALL: [Self; 11] = [
        Self::Delivered,
        Self::Rejected,
        Self::Dropped,
        Self::Duplicate,
        Self::Badge,
        Self::CallOver,
        Self::OddEventId,
        Self::Retry,
        Self::Unavailable,
        Self::Limited,
        Self::Forbidden,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Rejected => "rejected",
            Self::Dropped => "dropped",
            Self::Duplicate => "duplicate",
            Self::Badge => "badge",
            Self::CallOver => "call_over",
            Self::OddEventId => "odd_event_id",
            Self::Retry => "retry",
            Self::Unavailable => "unavailable",
            Self::Limited => "limited",
            Self::Forbidden => "forbidden",
        }
    }
}

/// Why a device was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    UnknownPushkey,
    /// Unknown, and anybody may have made it up: there is no right mark beside it.
    UnknownUnmarked,
    DeadToken,
    TokenGone,
}

impl Reason {
    const ALL: [Self; 4] = [
        Self::UnknownPushkey,
        Self::UnknownUnmarked,
        Self::DeadToken,
        Self::TokenGone,
    ];

    /// The word for logs and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::UnknownPushkey => "unknown_pushkey",
            Self::UnknownUnmarked => "unknown_unmarked",
            Self::DeadToken => "dead_token",
            Self::TokenGone => "pnm_token_gone",
        }
    }
}

/// Counts what becomes of notifications.
#[derive(Debug)]
pub(crate) struct Notify {
    devices: ByLabel<DeviceOutcome, { DeviceOutcome::ALL.len() }>,
    rejections: ByLabel<Reason, { Reason::ALL.len() }>,
    marks: ByLabel<Marked, { Marked::ALL.len() }>,
}

impl Notify {
    pub(crate) fn new() -> Self {
        Self {
            devices: ByLabel::new(
                DeviceOutcome::ALL,
                |of| counter!(DEVICES, "outcome" => of.as_str()),
            ),
            rejections: ByLabel::new(
                Reason::ALL,
                |of| counter!(REJECTIONS, "reason" => of.as_str()),
            ),
            marks: ByLabel::new(Marked::ALL, |of| counter!(MARKS, "mark" => of.as_str())),
        }
    }

    pub(crate) fn devices(&self, outcome: DeviceOutcome, count: u64) {
        self.devices.add(outcome, count);
    }

    pub(crate) fn mark(&self, marked: Marked) {
        self.marks.add(marked, 1);
    }

    pub(crate) fn rejection(&self, reason: Reason) {
        self.rejections.add(reason, 1);
    }
}

/// Counts and times requests to PNM.
#[derive(Debug)]
pub(crate) struct Pnm {
    requests: ByLabel<Outcome, { Outcome::ALL.len() }>,
    duration: Histogram,
    in_flight: Gauge,
}

impl Pnm {
    pub(crate) fn new() -> Self {
        Self {
            requests: ByLabel::new(
                Outcome::ALL,
                |of| counter!(PNM_REQUESTS, "outcome" => of.as_str()),
            ),
            duration: histogram!(PNM_DURATION),
            in_flight: gauge!(PNM_IN_FLIGHT),
        }
    }

    /// Counts a request that begins. It ends when the returned value is dropped.
    pub(crate) fn begin(&self) -> InFlight<'_> {
        self.in_flight.increment(1.0);
        InFlight(&self.in_flight)
    }

    pub(crate) fn count(&self, outcome: Outcome, took: Duration) {
        self.duration.record(took);
        self.requests.add(outcome, 1);
    }
}

/// A request to PNM under way.
#[derive(Debug)]
pub(crate) struct InFlight<'a>(&'a Gauge);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Counts connections that are refused.
#[derive(Debug)]
pub(crate) struct Connections {
    refused: ByLabel<Full, 2>,
}

impl Connections {
    pub(crate) fn new() -> Self {
        let counter = |full| {
            let limit = match full {
                Full::All => "all",
                Full::Address => "address",
            };
            counter!(CONNECTIONS_REFUSED, "limit" => limit)
        };
        Self {
            refused: ByLabel::new([Full::All, Full::Address], counter),
        }
    }

    pub(crate) fn refused(&self, full: Full) {
        self.refused.add(full, 1);
    }
}

/// The routes that requests are counted by.
const ROUTES: [&str; 10] = [
    "notify",
    "report",
    "receipt",
    "removal",
    "appservice",
    "health",
    "metrics",
    "admin",
    "status_page",
    "other",
];
/// The statuses of our responses. We send no others, which would count as `other`.
const STATUSES: [&str; 15] = [
    "200", "400", "401", "403", "404", "405", "408", "413", "429", "500", "502", "503", "504",
    "other", "aborted",
];
const CLASSES: [&str; 4] = ["2xx", "4xx", "5xx", "aborted"];

/// The place of a path's route in [`ROUTES`].
fn route(path: &str) -> usize {
    let name = match path {
        "/_matrix/push/v1/notify" => "notify",
        "/api/client/push_token_report" => "report",
        "/api/client/push_received" => "receipt",
        "/api/client/account_removal_report" => "removal",
        "/health" | "/health/live" | "/health/ready" => "health",
        "/metrics" => "metrics",
        "/" | "/replay" | "/push-test" => "status_page",
        _ if path.starts_with("/_matrix/app/") => "appservice",
        _ if path.starts_with("/api/internal/") => "admin",
        _ => "other",
    };
    let index = ROUTES.iter().position(|of| *of == name);
    index.unwrap_or(ROUTES.len() - 1)
}

/// Counts and times incoming requests.
#[derive(Debug)]
pub(crate) struct Http(Vec<Route>);

#[derive(Debug)]
struct Route {
    requests: [Counter; STATUSES.len()],
    durations: [Histogram; CLASSES.len()],
}

impl Http {
    pub(crate) fn new() -> Self {
        let route = |route: &'static str| Route {
            requests: STATUSES
                .map(|status| counter!(HTTP_REQUESTS, "route" => route, "status" => status)),
            durations: CLASSES
                .map(|class| histogram!(HTTP_DURATION, "route" => route, "status" => class)),
        };
        Self(ROUTES.map(route).into())
    }

    /// Counts a request to `path`. Without a status, the client went away before the response.
    pub(crate) fn count(&self, path: &str, status: Option<u16>, took: Duration) {
        let Some(route) = self.0.get(route(path)) else {
            return;
        };
        let (status, class) = match status {
            None => ("aborted", "aborted"),
            Some(status) => (status_label(status), class(status)),
        };
        if let Some(index) = STATUSES.iter().position(|of| *of == status) {
            route.requests[index].increment(1);
        }
        if let Some(index) = CLASSES.iter().position(|of| *of == class) {
            route.durations[index].record(took);
        }
    }
}

fn status_label(status: u16) -> &'static str {
    match status {
        200 => "200",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        405 => "405",
        408 => "408",
        413 => "413",
        429 => "429",
        500 => "500",
        502 => "502",
        503 => "503",
        504 => "504",
        _ => "other",
    }
}

fn class(status: u16) -> &'static str {
    match status {
        500.. => "5xx",
        400.. => "4xx",
        _ => "2xx",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_few_whatever_is_asked_for() {
        assert_eq!(ROUTES[route("/_matrix/push/v1/notify")], "notify");
        assert_eq!(ROUTES[route("/api/internal/mappings/secret")], "admin");
        assert_eq!(ROUTES[route("/push-test")], "status_page");
        assert_eq!(ROUTES[route("/wp-login.php")], "other");
    }

    #[test]
    fn every_status_has_a_series() {
        for status in 100..1000 {
            assert!(STATUSES.contains(&status_label(status)), "{status}");
            assert!(CLASSES.contains(&class(status)), "{status}");
        }
    }
}
