//! The window, and the guard around it.

use super::*;

const MINUTE: Duration = Duration::from_mins(1);
const A: App = App(1);
const B: App = App(2);

fn window() -> (Window, Instant) {
    let start = Instant::now();
    (Window::new(start), start)
}

/// Notes tokens `from..to` of app A, and says whether the last one left its rejection stopped.
fn note(window: &mut Window, tokens: std::ops::Range<u64>, seen: Seen, now: Instant) -> bool {
    for token in tokens {
        window.note(token, A, seen, now);
    }
    window.tripped(A, seen)
}

/// What makes a wrong mass of each kind, and what is well.
const KINDS: [(Seen, Seen); 2] = [(Seen::Gone, Seen::Sent), (Seen::Unknown, Seen::Known)];

#[test]
fn trips_at_the_twentieth_if_more_than_half_are_bad() {
    let cases = [
        // well, bad, tripped
        (0, 19, false),
        (0, 20, true),
        (1, 19, false),
        (19, 20, true),
        (20, 20, false),
        (20, 21, true),
        (500, 400, false),
    ];
    for (bad, well) in KINDS {
        for (wells, bads, tripped) in cases {
            let (mut window, now) = window();
            note(&mut window, 0..wells, well, now);
            assert_eq!(
                note(&mut window, 500..500 + bads, bad, now),
                tripped,
                "{wells} {well:?} {bads} {bad:?}"
            );
        }
    }
}

#[test]
fn each_app_counts_for_itself() {
    let (mut window, now) = window();
    note(&mut window, 0..100, Seen::Sent, now);
    let rejected = (1000..1060)
        .filter(|token| {
            window.note(*token, B, Seen::Gone, now);
            !window.tripped(B, Seen::Gone)
        })
        .count();
    assert_eq!(rejected, 19);
    window.note(1, A, Seen::Gone, now);
    assert!(!window.tripped(A, Seen::Gone));
}

#[test]
fn unknown_pushkeys_are_weighed_against_those_of_all_apps() {
    let (mut window, now) = window();
    for token in 0..30 {
        window.note(token, if token < 15 { A } else { B }, Seen::Sent, now);
    }
    assert!(!note(&mut window, 100..130, Seen::Unknown, now));
    assert!(note(&mut window, 130..131, Seen::Unknown, now));
    note(&mut window, 50..51, Seen::Known, now);
    assert!(!window.tripped(A, Seen::Unknown));
}

#[test]
fn the_verdict_that_makes_it_twenty_is_withheld_already() {
    let now = Instant::now();
    let guard = MassGuard::new(now);
    let note = |n: u32, seen| guard.note("app", &format!("k{n}"), seen, now);
    assert!((0..19).all(|n| note(n, Seen::Gone)));
    assert!(!note(19, Seen::Gone));
    assert!(!note(0, Seen::Gone), "and so is every other from then on");
    assert!((100..120).all(|n| note(n, Seen::Sent)));
    assert!(note(0, Seen::Gone), "half is not more than half");
}

#[test]
fn a_token_counts_once_with_the_last_word_about_it() {
    let (mut window, now) = window();
    for _ in 0..100 {
        note(&mut window, 1..2, Seen::Gone, now);
    }
    assert!(!window.tripped(A, Seen::Gone));
    assert!(note(&mut window, 0..30, Seen::Gone, now));
    note(&mut window, 0..15, Seen::Known, now);
    assert!(window.tripped(A, Seen::Gone), "that is no word of PNM");
    note(&mut window, 0..15, Seen::Sent, now);
    assert!(!window.tripped(A, Seen::Gone), "15 of 30 have come back");
    let counts = window.apps[&A];
    assert_eq!((counts.bad, counts.all), (15, 30));
    note(&mut window, 0..30, Seen::Unknown, now);
    assert_eq!(window.apps[&A].all, 0);
    assert_eq!((window.unknown.bad, window.unknown.all), (30, 30));
}

#[test]
fn what_was_seen_is_forgotten_after_ten_minutes() {
    let (mut window, start) = window();
    assert!(note(&mut window, 0..30, Seen::Gone, start));
    assert!(note(&mut window, 30..31, Seen::Gone, start + 10 * MINUTE));
    let trips = window.note(31, B, Seen::Sent, start + 10 * MINUTE + TICK);
    assert!(matches!(
        trips[..],
        [Trip {
            of: Of::App { any: 0 },
            on: false,
            ..
        }]
    ));
    assert_eq!((window.apps[&A].bad, window.apps[&A].all), (1, 1));
    window.note(1, A, Seen::Sent, start + 100 * MINUTE);
    assert_eq!((window.tokens.len(), window.apps.len()), (1, 1));
}

#[test]
fn both_guards_end_after_ten_minutes_without_a_notification() {
    let start = Instant::now();
    let guard = MassGuard::new(start);
    let stopped = || {
        let window = guard.window.lock().unwrap();
        (window.stopped, window.unknown.tripped)
    };
    for n in 0..20 {
        guard.note("app", &format!("gone-{n}"), Seen::Gone, start);
    }
    for n in 0..30 {
        guard.note("app", &format!("unknown-{n}"), Seen::Unknown, start);
    }
    assert_eq!(stopped(), (1, true));
    guard.sweep(start + 10 * MINUTE);
    assert_eq!(stopped(), (1, true));
    guard.sweep(start + 10 * MINUTE + TICK);
    assert_eq!(stopped(), (0, false));
}

#[test]
fn goes_on_while_the_retries_are_bad_too() {
    for (bad, _) in KINDS {
        let (mut window, start) = window();
        for minute in 0..60 {
            let tripped = note(&mut window, 0..20, bad, start + minute * MINUTE);
            assert!(tripped, "minute {minute}");
        }
    }
}

#[test]
fn is_bounded_and_weighs_what_it_cannot_keep() {
    let (mut window, start) = window();
    (window.max_known, window.max_unknown) = (100, 50);
    note(&mut window, 0..1000, Seen::Sent, start);
    assert_eq!((window.tokens.len(), window.apps[&A].all), (100, 100));
    note(&mut window, 2000..3000, Seen::Unknown, start);
    assert_eq!((window.tokens.len(), window.unknown.bad), (150, 50));
    assert!(note(&mut window, 0..60, Seen::Gone, start));
    window.note(1, A, Seen::Sent, start + 20 * MINUTE);
    assert_eq!(window.tokens.len(), 1);
}

#[test]
fn a_clock_that_stands_or_steps_back_does_no_harm() {
    let (mut window, start) = window();
    window.note(1, A, Seen::Gone, start + MINUTE);
    window.note(2, A, Seen::Gone, start);
    assert_eq!((window.apps[&A].bad, window.apps[&A].all), (2, 2));
}
