//! docs/openapi.json is what the api prints, and what it says of the endpoints is true: Schemathesis makes
//! requests from it, good and bad ones, and compares the answers.
#![expect(clippy::unwrap_used, reason = "tests outside of #[test] functions")]

use std::process::Stdio;

use matrix2acrobits_tests::app::{ADMIN_TOKEN, App};
use matrix2acrobits_tests::fixtures::{self, Phone};
use matrix2acrobits_tests::process::{Env, Program};
use matrix2acrobits_tests::python::python;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;

const CHECKED_IN: &str = include_str!("../../docs/openapi.json");
/// Requests of each kind for each endpoint; the same ones in every run.
const EXAMPLES: &str = "60";
/// Not that bad input is refused: what a homeserver or phone sends besides is ignored on purpose. Nor that all
/// good input is taken: a token needs its app id, which a schema cannot say.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,unsupported_method,ignored_auth";

#[tokio::test]
async fn the_description_is_checked_in() {
    let output = Program::Api.run(&["openapi"], &Env::new()).await;
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        printed == CHECKED_IN,
        "docs/openapi.json is out of date: matrix2acrobits-api openapi > docs/openapi.json"
    );
}

#[tokio::test]
async fn deleting_what_is_not_there_is_no_error_and_described_so() {
    let app = App::builder().without_worker().start().await;
    let description: Value = serde_json::from_str(CHECKED_IN).unwrap();
    for (path, removed) in [
        ("/api/internal/push_tokens/{selector}", json!(0)),
        ("/api/internal/mappings/{selector}", json!(false)),
    ] {
        let delete = &description["paths"][path]["delete"]["responses"];
        assert!(delete["200"].is_object(), "{path}: {delete}");
        assert!(delete["404"].is_null(), "{path}: {delete}");
        let path = path.replace("{selector}", "nobodys");
        let reply = app.admin(Method::DELETE, &path, None).await;
        assert_eq!(reply.expect_status(200).json()["removed"], removed);
    }
}

/// The number behind these words.
fn number_after(report: &str, words: &str) -> usize {
    let rest = report.split(words).nth(1).unwrap_or_default();
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Runs Schemathesis on some of the endpoints, so many methods of paths. Its report goes to the test's output.
async fn holds(url: &str, selection: &[&str], operations: usize, auth: Option<&str>) {
    let folder = fixtures::folder();
    let description = folder.path().join("openapi.json");
    std::fs::write(&description, CHECKED_IN).unwrap();
    let mut command = Command::new(python("schemathesis").with_file_name("schemathesis"));
    command
        .arg("run")
        .arg(&description)
        .args(["--url", url, "--checks", CHECKS, "--max-examples", EXAMPLES])
        .args(["--phases", "examples,coverage,fuzzing", "--seed", "1"])
        .args([
            "--generation-deterministic",
            "--warnings",
            "off",
            "--continue-on-failure",
            "--no-color",
        ])
        .args(selection)
        .current_dir(folder.path())
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("HOME", folder.path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if let Some(token) = auth {
        command.args(["--header", &format!("Authorization: Bearer {token}")]);
    }
    let output = command.output().await.unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{report}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(report.contains("No issues found"), "{report}");
    // It says so as well when it has found nothing to do.
    for said in ["Selected: ", "Tested: "] {
        assert_eq!(number_after(&report, said), operations, "{report}");
    }
    let generated = report.split(" generated, ").next();
    let generated =
        generated.and_then(|before| before.split_whitespace().next_back()?.parse().ok());
    assert!(
        generated >= Some(50 * operations),
        "{generated:?}: {report}"
    );
}

#[tokio::test]
async fn the_public_endpoints_are_as_described() {
    let app = App::builder()
        .api("NEW_SELECTORS_PER_HOUR", "0")
        .without_worker()
        .start()
        .await;
    // A database that has held a token; before, notifications are answered 503.
    let phone = Phone::seed();
    app.report(&phone.report()).await.expect_status(200);
    let selection = [
        "--include-tag",
        "phones",
        "--include-tag",
        "homeserver",
        "--include-path",
        "/health",
    ];
    holds(&app.api().public_url(), &selection, 8, None).await;
}

#[tokio::test]
async fn the_operators_endpoints_are_as_described() {
    let app = App::builder().without_worker().start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    let selection = [
        "--include-tag",
        "operator",
        "--include-path-regex",
        "^/health/",
    ];
    holds(&app.api().admin_url(), &selection, 13, Some(ADMIN_TOKEN)).await;
}
