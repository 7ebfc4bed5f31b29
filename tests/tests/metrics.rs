//! Metrics: their names and labels are pinned, every series is there from the start and no more come later, and
//! the dashboard and the alerts ask for none that do not exist.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on stops where it is"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::{BOB, MALLORY, Phone, message};
use matrix2acrobits_tests::homeserver::Fault;
use matrix2acrobits_tests::http::{segment, send};
use matrix2acrobits_tests::pnm::Answer;
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::{Value, json};

const PINNED: &str = include_str!("../fixtures/metrics.txt");
const PREFIX: &str = "matrix2acrobits_";

async fn scrape(app: &App) -> [(&'static str, String); 2] {
    let api = send(app.admin_bare(Method::GET, "/metrics")).await;
    let worker = send(app.worker_admin(Method::GET, "/metrics")).await;
    [
        ("api", api.expect_status(200).text),
        ("worker", worker.expect_status(200).text),
    ]
}

/// The labels of a sample, `le` left out, and its value.
fn sample(line: &str) -> (String, Vec<(String, String)>, f64) {
    let (series, value) = line.rsplit_once(' ').expect("a value");
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let labels = labels.trim_end_matches('}').split("\",");
    let labels = labels.filter_map(|label| {
        let (name, value) = label.split_once('=')?;
        Some((name.to_owned(), value.trim_matches('"').to_owned()))
    });
    let labels = labels.filter(|(name, _)| name != "le").collect();
    (name.to_owned(), labels, value.parse().expect("a number"))
}

/// Lines such as `api counter NAME outcome=badge|delivered`, one for each metric; every series has a type
/// and a help text.
fn inventory(process: &str, text: &str) -> Vec<String> {
    let comment = |kind: &str| -> BTreeMap<String, String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(kind));
        let pair = |line: &str| line.split_once(' ').map(|(a, b)| (a.into(), b.into()));
        lines.filter_map(pair).collect()
    };
    let (types, helps) = (comment("# TYPE "), comment("# HELP "));
    let mut labels: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for line in text
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        let (name, own, _) = sample(line);
        let name = base(&name, |name| types.contains_key(name));
        assert!(types.contains_key(&name), "no type: {line}");
        let known = labels.entry(name).or_default();
        for (label, value) in own {
            let value = if label == "version" {
                "*".into()
            } else {
                value
            };
            known.entry(label).or_default().insert(value);
        }
    }
    let lines = labels.into_iter().map(|(name, labels)| {
        assert!(helps.contains_key(&name), "no help: {name}");
        let join = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join("|");
        let labels = labels
            .iter()
            .map(|(l, values)| format!(" {l}={}", join(values)));
        format!(
            "{process} {} {name}{}",
            types[&name],
            labels.collect::<String>()
        )
    });
    lines.collect()
}

/// The metric that a series belongs to: a histogram has three kinds of series.
fn base(name: &str, exists: impl Fn(&str) -> bool) -> String {
    let suffixes = ["_bucket", "_sum", "_count"];
    let stripped = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
    let found = stripped.filter(|base| !exists(name) && exists(base));
    found.unwrap_or(name).to_owned()
}

async fn inventories(app: &App) -> String {
    let of_both = scrape(app)
        .await
        .map(|(process, text)| inventory(process, &text));
    of_both.concat().join("\n")
}

/// The value of the one series whose text begins so.
async fn value(app: &App, series: &str) -> f64 {
    let texts = scrape(app).await;
    let lines = texts.iter().flat_map(|(_, text)| text.lines());
    let found: Vec<_> = lines.filter(|line| line.starts_with(series)).collect();
    assert_eq!(found.len(), 1, "{series}: {found:?}");
    sample(found[0]).2
}

#[tokio::test]
async fn names_and_labels_are_pinned_and_complete_from_the_start() {
    let app = App::start().await;
    let now = inventories(&app).await;
    assert_eq!(
        now,
        PINNED.trim_end(),
        "if meant, change tests/fixtures/metrics.txt:\n{now}\n"
    );

    // Whatever happens and whoever asks for what, no series comes on top.
    let (good, bad, gone) = (
        Phone::seed(),
        Phone::new("bad").of(MALLORY),
        Phone::new("gone"),
    );
    app.enroll(&[&good, &bad, &gone]).await;
    app.pusher_set(&good).await;
    app.dead_letters(1).await;
    app.pnm.answer_for(&gone.token, Answer::Gone);
    let devices = [good.device(), gone.device()];
    app.notify(&message("$1", &devices))
        .await
        .expect_status(200);
    app.notify(&json!({})).await.expect_status(400);
    app.report(&json!({"selector": ""}))
        .await
        .expect_status(400);
    for path in ["/some-secret", "/api/internal/mappings/some-secret"] {
        send(app.public(Method::DELETE, path))
            .await
            .expect_status(404);
    }
    let path = format!("/api/internal/mappings/{}", segment(&good.selector));
    app.admin(Method::GET, &path, None).await.expect_status(200);
    app.settled().await;
    assert_eq!(inventories(&app).await, now);
}

#[tokio::test]
async fn what_happens_is_counted() {
    let app = App::start().await;
    let (phone, gone) = (Phone::seed(), Phone::new("gone"));
    app.enroll(&[&phone, &gone]).await;
    app.report(&phone.report()).await.expect_status(200);
    app.pushers_are(BOB, &[&phone, &gone]).await;
    app.pnm.answer_for(&gone.token, Answer::Gone);
    app.notify(&message("$1", &[phone.device(), gone.device()]))
        .await
        .expect_status(200);
    app.notify(&message("$1", &[phone.device()]))
        .await
        .expect_status(200);
    app.settled().await;
    for (series, count) in [
        (r#"http_requests_total{route="notify",status="200"}"#, 2.0),
        (r#"http_requests_total{route="report",status="200"}"#, 3.0),
        (
            r#"http_request_duration_seconds_count{route="notify",status="2xx"}"#,
            2.0,
        ),
        (r#"token_reports_total{result="changed"}"#, 2.0),
        (r#"token_reports_total{result="unchanged"}"#, 1.0),
        (r#"notify_devices_total{outcome="delivered"}"#, 1.0),
        (r#"notify_devices_total{outcome="rejected"}"#, 1.0),
        (r#"notify_devices_total{outcome="duplicate"}"#, 1.0),
        (r#"rejections_total{reason="pnm_token_gone"}"#, 1.0),
        (r#"pnm_requests_total{outcome="sent"}"#, 1.0),
        ("pnm_request_duration_seconds_count", 2.0),
        ("pnm_requests_in_flight", 0.0),
        ("outage_gate_shut", 0.0),
        ("registration_lag_seconds_count", 2.0),
        (r#"jobs_total{result="registered"}"#, 2.0),
        (
            r#"homeserver_requests_total{request="set",status="200"}"#,
            2.0,
        ),
        (r#"pushers{state="registered"}"#, 1.0),
    ] {
        let series = format!("{PREFIX}{series}");
        eventually(SOON, &format!("{series} {count}"), async || {
            // Exact: these are small whole numbers.
            (value(&app, &series).await - count).abs() < f64::EPSILON
        })
        .await;
    }
    let lag = value(&app, "matrix2acrobits_registration_lag_seconds_sum").await;
    assert!(lag > 0.0 && lag < SOON.as_secs_f64() * 2.0, "{lag}");
    for (_, text) in scrape(&app).await {
        let size = text
            .lines()
            .find(|line| line.starts_with("matrix2acrobits_db_size_bytes"));
        assert!(sample(size.unwrap_or_default()).2 > 0.0, "{text}");
        for secret in [&phone.token, &phone.selector, BOB] {
            assert!(!text.contains(secret), "{secret} in:\n{text}");
        }
    }
}

#[tokio::test]
async fn the_gate_counts_as_shut_until_the_homeserver_works() {
    let app = App::start().await;
    // Few phones, so that the gate mostly waits for a job to try with.
    let phones: Vec<_> = (0..6).map(|n| Phone::new(&format!("p{n}"))).collect();
    let all: Vec<_> = phones.iter().collect();
    let set = "/_matrix/client/v3/pushers/set";
    app.homeserver.break_path(set, Fault::Status(502));
    app.enroll(&all).await;
    let gauge = format!("{PREFIX}outage_gate_shut");
    let is_shut = async || value(&app, &gauge).await > 0.5;
    eventually(SOON, "the gate shuts", is_shut).await;
    app.homeserver.clear_calls();
    eventually(SOON, "the worker probes three times", async || {
        assert!(is_shut().await, "it is open while a job tries");
        let calls = app.homeserver.calls();
        calls.iter().filter(|call| is_probe(&call.path)).count() >= 3
    })
    .await;
    app.homeserver.repair().await;
    eventually(SOON, "the gate opens", async || !is_shut().await).await;
}

fn is_probe(path: &str) -> bool {
    path == "/_matrix/client/versions"
}

fn operations() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations").into()
}

fn read(name: &str) -> String {
    let path = operations().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The values that a text asks a label of a metric for, in its one form `metric{label="value|value"}`.
fn asked_for(text: &str) -> Vec<(String, String, String)> {
    let text = text.replace("\\\"", "\"");
    let mut found = Vec::new();
    for (at, _) in text.match_indices(PREFIX) {
        let word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
        let (name, rest) = text[at..].split_at(text[at..].find(word).unwrap_or_default());
        let Some((selector, _)) = rest.strip_prefix('{').and_then(|it| it.split_once('}')) else {
            continue;
        };
        let (label, values) = selector.split_once('=').expect("a label");
        let values = values.trim_matches(['~', '"']).split('|');
        let label = label.trim_end_matches('!');
        found.extend(values.map(|value| (name.to_owned(), label.to_owned(), value.to_owned())));
    }
    found
}

/// The words in a text that name a metric.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    // The network that Compose makes.
    let network = "matrix2acrobits_default";
    let words = words.filter(|word| *word != network);
    words.filter(|word| word.starts_with(PREFIX)).collect()
}

#[test]
fn what_the_operations_documents_name_exists() {
    let exists = |name: &str| PINNED.split_whitespace().any(|word| word == name);
    let files = std::fs::read_dir(operations()).expect("docs/operations");
    let files = files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file() && path.extension().is_none_or(|it| it != "png"));
    let readme = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"));
    for file in files.chain([readme]) {
        let text = std::fs::read_to_string(&file).unwrap();
        for name in named(&text) {
            assert!(exists(&base(name, exists)), "{}: {name}", file.display());
        }
    }
}

#[test]
fn what_alerts_and_the_dashboard_ask_labels_for_exists() {
    let exists = |name: &str| PINNED.split_whitespace().any(|word| word == name);
    for file in ["alerts.yml", "dashboard.json"] {
        for (name, label, value) in asked_for(&read(file)) {
            let metric = base(&name, exists);
            let line = PINNED.lines().find(|line| line.contains(&metric));
            let labels = line.unwrap_or_default().split(' ');
            let values = labels.filter_map(|it| it.strip_prefix(&format!("{label}=")));
            let known = values.flat_map(|it| it.split('|')).any(|it| it == value);
            // A class of statuses, and a variable of the dashboard.
            let pattern = value == "5.." || value.starts_with('$');
            assert!(known || pattern, "{file}: {name} {label}={value}");
        }
    }
}

/// Anybody can make pushkeys up.
#[test]
fn no_alert_rings_for_made_up_pushkeys() {
    let alerts = read("alerts.yml");
    let asks = |text: &str| alerts.matches(text).count();
    let all = asks("matrix2acrobits_rejections_total");
    let ours = asks("matrix2acrobits_rejections_total{reason!=\"unknown_unmarked\"}");
    assert!(all > 0 && all == ours, "{ours} of {all}");
    assert_eq!(asks("outcome=~\"delivered|dropped|rejected\""), 0);
}

#[test]
fn every_metric_is_on_the_dashboard() {
    let dashboard = read("dashboard.json");
    let shown = named(&dashboard);
    let names = PINNED
        .split_whitespace()
        .filter(|word| word.starts_with(PREFIX));
    for name in names {
        let bucket = format!("{name}_bucket");
        assert!(
            shown.contains(name) || shown.contains(bucket.as_str()),
            "{name} is not shown"
        );
    }
}

#[test]
fn the_dashboard_is_one() {
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_i64()).collect();
    assert_eq!(ids.len(), panels.len(), "panels have ids of their own");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().unwrap();
        let asks = |target: &Value| target["expr"].as_str().is_some_and(|e| e.contains(PREFIX));
        assert!(
            !targets.is_empty() && targets.iter().all(asks),
            "{}",
            panel["title"]
        );
    }
}

#[test]
fn every_alert_has_a_section_in_the_runbook() {
    let (alerts, runbook) = (read("alerts.yml"), read("runbook.md"));
    let names: Vec<_> = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(names.len() >= 7, "{names:?}");
    for name in names {
        assert!(
            runbook.contains(&format!("\n## {name}\n")),
            "no section {name}"
        );
        let anchor = format!("runbook.md#{}\n", name.to_lowercase());
        assert!(alerts.contains(&anchor), "no link {anchor}");
    }
}
