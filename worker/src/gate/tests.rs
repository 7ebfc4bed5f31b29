//! When the gate shuts, opens and tries.

use super::*;

const LONG: Duration = Duration::from_mins(5);

fn unwell() -> Sign {
    Sign::Unwell("HTTP 502".into())
}

#[test]
fn begins_with_one_and_opens_when_it_works() {
    let now = Instant::now();
    let mut state = State::new(16, LONG);
    assert_eq!(state.permits(now), 1);
    assert_eq!(state.record(&Sign::Well, now), Some(Change::Up(None)));
    assert_eq!(state.permits(now), 16);
    assert_eq!(state.next_step(now), None);
}

#[test]
fn failures_in_a_row_shut_it_and_one_success_between_does_not() {
    let now = Instant::now();
    let mut state = State::new(16, LONG);
    state.record(&Sign::Well, now);
    for _ in 0..20 {
        assert_eq!(state.record(&unwell(), now), None);
        assert_eq!(state.record(&unwell(), now), None);
        assert!(state.permits(now) <= CAUTIOUS);
        assert_eq!(state.record(&Sign::Well, now), None);
        assert_eq!(state.permits(now), 16);
    }
    for _ in 1..FAILURES_TO_SHUT {
        assert_eq!(state.record(&unwell(), now), None);
    }
    assert_eq!(
        state.record(&unwell(), now),
        Some(Change::Down("HTTP 502".into()))
    );
    assert_eq!(state.permits(now), 0);
    assert_eq!(state.next_step(now), Some((now, Step::Probe)));
}

#[test]
fn a_failed_trial_is_no_news_and_the_outage_is_measured_from_its_beginning() {
    let start = Instant::now();
    let mut state = State::new(16, LONG);
    assert!(matches!(
        state.record(&unwell(), start),
        Some(Change::Down(_))
    ));
    state.try_one();
    assert_eq!(state.permits(start), 1);
    assert_eq!(
        state.record(&unwell(), start + Duration::from_secs(5)),
        None
    );
    assert_eq!(state.permits(start), 0);
    state.try_one();
    let end = start + Duration::from_mins(1);
    let up = state.record(&Sign::Well, end);
    assert_eq!(up, Some(Change::Up(Some(Duration::from_mins(1)))));
    assert_eq!(state.permits(end), 16);
}

#[test]
fn a_wrong_token_waits_long_and_says_so_once() {
    let now = Instant::now();
    let mut state = State::new(16, LONG);
    let wrong = Sign::Misconfigured("no".into());
    assert_eq!(
        state.record(&wrong, now),
        Some(Change::Misconfigured("no".into()))
    );
    assert_eq!(state.next_step(now), Some((now + LONG, Step::Try)));
    assert_eq!(state.record(&wrong, now), None);
    state.try_one();
    assert_eq!(state.record(&wrong, now), None);
    assert_eq!(state.permits(now), 0);
}

#[test]
fn a_token_that_is_wrong_after_an_outage_or_a_limit_is_news() {
    let now = Instant::now();
    let mut state = State::new(16, LONG);
    let wrong = Sign::Misconfigured("no".into());
    let said = Some(Change::Misconfigured("no".into()));
    state.record(&unwell(), now);
    state.try_one();
    assert_eq!(state.record(&wrong, now), said);
    state.try_one();
    state.record(&Sign::Well, now);
    state.record(&Sign::Limited(Duration::from_secs(2)), now);
    assert_eq!(state.record(&wrong, now), said);
}

#[test]
fn a_limit_pauses_everybody_without_being_an_outage() {
    let now = Instant::now();
    let mut state = State::new(16, LONG);
    state.record(&Sign::Well, now);
    let wait = Duration::from_secs(2);
    assert_eq!(state.record(&Sign::Limited(wait), now), None);
    assert_eq!(state.next_step(now), Some((now + wait, Step::Try)));
    state.try_one();
    assert_eq!(
        state.record(&Sign::Well, now + wait),
        Some(Change::Up(None))
    );
}

#[test]
fn after_a_pause_it_is_careful_until_something_works() {
    let start = Instant::now();
    let mut state = State::new(16, LONG);
    state.record(&Sign::Well, start);
    let later = start + Duration::from_mins(1);
    assert_eq!(state.permits(later), CAUTIOUS);
    state.record(&Sign::Well, later);
    assert_eq!(state.permits(later), 16);
}

#[test]
fn an_outage_is_reported_through_its_trials_with_its_last_reason() {
    let now = Instant::now();
    let mut state = State::new(16, LONG);
    let said = |state: &State| (state.report().state, state.report().reason);
    assert_eq!(said(&state), (GateState::Untried, None));
    state.record(&Sign::Well, now);
    state.record(&unwell(), now);
    assert_eq!(said(&state), (GateState::Open, None));
    for _ in 1..FAILURES_TO_SHUT {
        state.record(&unwell(), now);
    }
    assert_eq!(said(&state), (GateState::Shut, Some("HTTP 502".into())));
    state.try_one();
    assert_eq!(said(&state), (GateState::Shut, Some("HTTP 502".into())));
    state.record(&Sign::Misconfigured("no".into()), now);
    assert_eq!(said(&state), (GateState::Shut, Some("no".into())));
    state.try_one();
    state.record(&Sign::Well, now);
    assert_eq!(said(&state), (GateState::Open, None));
    state.record(&Sign::Limited(LONG), now);
    assert!(state.report().reason.is_some_and(|why| why.contains("429")));
}

#[test]
fn a_homeserver_that_only_answers_probes_leaves_jobs_in_backoff() {
    let start = Instant::now();
    let mut state = State::new(16, LONG);
    // At the start nothing is known, so that one in backoff may try.
    assert_eq!(state.next_step(start), Some((start, Step::BringForward)));
    state.record(&unwell(), start);
    state.try_one();
    let quiet = Some((start + QUIET, Step::BringForward));
    assert_eq!(state.next_step(start), quiet);
    state.brought_forward(start + QUIET);
    let quiet = Some((start + QUIET * 2, Step::BringForward));
    assert_eq!(state.next_step(start + QUIET), quiet);
}

#[tokio::test]
async fn passes_are_counted() {
    let gate = Gate::new(State::new(2, LONG));
    let first = gate.enter().await;
    assert!(gate.try_enter().is_none());
    gate.record(&Sign::Well);
    let second = gate.enter().await;
    assert!(gate.try_enter().is_none());
    drop(first);
    assert!(gate.try_enter().is_some());
    drop(second);
}
