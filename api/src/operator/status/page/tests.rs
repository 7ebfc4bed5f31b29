//! What the page shows for given facts.

use super::*;
use crate::notify::pnm::outcome::Trouble;

fn worker(silent: i64, state: GateState, reason: Option<&str>) -> WorkerStatus {
    WorkerStatus {
        name: "worker-1".into(),
        silent,
        gate: Some(GateStatus {
            state,
            seconds: 300,
            reason: reason.map(str::to_owned),
        }),
    }
}

fn page(workers: Vec<WorkerStatus>, dead: Vec<DeadLetter>, pnm: Summary) -> String {
    let queue = QueueState {
        killed: 60,
        ..QueueState::default()
    };
    let view = View {
        now: 1_800_000_000,
        facts: Some(Facts {
            workers,
            pushers: vec![("registered".into(), 7)],
            queue,
            dead,
            silent_phones: 0,
            silent: vec![],
            phones: vec![],
            next: None,
        }),
        pnm,
        tokenless: vec![(30, vec!["selector".into(), "<b>".into()])],
        form_token: "form-token",
    };
    view.render().into_string()
}

#[test]
fn what_is_not_ours_is_escaped_and_a_pushkey_never_shown() {
    let letter = DeadLetter {
        user_id: Some("@<i>:example.org".into()),
        app_id: Some("\"><b>".into()),
        pushkey: Some("push-key".into()),
        attempts: 1,
        reason: Some("<script>alert(1)</script> no push-key here".into()),
        seconds: Some(7_300),
    };
    let gate = worker(0, GateState::Shut, Some("<script>2"));
    let page = page(vec![gate], vec![letter], Summary::default());
    for forbidden in ["<script", "<i>", "<b>\"", "\"><b>", "push-key"] {
        assert!(!page.contains(forbidden), "{forbidden} in {page}");
    }
    for expected in [
        "&lt;script&gt;alert(1)",
        "&lt;script&gt;2",
        "2 h ago",
        "And 59 more",
        "2027-01-15T08:00:00Z",
    ] {
        assert!(page.contains(expected), "no {expected} in {page}");
    }
}

#[test]
fn workers_and_the_homeserver() {
    let open = || worker(1, GateState::Open, None);
    let shut = |silent| worker(silent, GateState::Shut, Some("HTTP 502"));
    let cases = [
        (vec![], Mood::Bad, Mood::Open),
        (vec![open()], Mood::Good, Mood::Good),
        (vec![open(), shut(2)], Mood::Good, Mood::Bad),
        (vec![open(), shut(60)], Mood::Good, Mood::Good),
        (vec![shut(60)], Mood::Bad, Mood::Open),
        (
            vec![worker(0, GateState::Untried, None)],
            Mood::Good,
            Mood::Open,
        ),
    ];
    for (workers, alive, homeserver) in cases {
        assert_eq!(worker_line(&workers).1, alive, "{workers:?}");
        assert_eq!(homeserver_line(&workers).1, homeserver, "{workers:?}");
    }
}

#[test]
fn pnm_is_as_well_as_its_last_answer() {
    let summary = |outcome| Summary {
        counts: vec![(outcome, 3)],
        last: vec![(5, outcome)],
    };
    assert_eq!(pnm_line(&Summary::default()).1, Mood::Open);
    assert_eq!(pnm_line(&summary(Outcome::TokenGone)).1, Mood::Good);
    let timeout = summary(Outcome::Trouble(Trouble::Timeout));
    assert_eq!(pnm_line(&timeout).1, Mood::Bad);
    let page = page(vec![], vec![], timeout);
    assert!(page.contains("timeout 5 s ago"), "{page}");
}
