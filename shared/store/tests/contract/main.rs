//! The state machine of pushers and jobs: two stores write to one database, and reports, removals, mappings, responses
//! and deaths of workers come in any order. In the end, the homeserver holds what is wanted.
//!
//! Every run has the same cases. PROPTEST_CASES=5000 tries that many others. A failing case is printed in its shortest
//! form.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod behind;
mod cases;
mod homeserver;
mod steps;
mod workers;
mod world;

use std::collections::BTreeSet;

use behind::Behind;
use matrix2acrobits_shared::rules::pushers::Replay;
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};
use steps::{Answer, Sent, Step, Token};
use world::{Pair, World, app, key, selector, user};

/// What always holds.
async fn check_always(world: &World) {
    assert_eq!(world.behind.doubled().await, 0, "a pusher has two jobs");
}

/// What holds when only dead letters are left.
async fn check_settled(world: &World) {
    check_always(world).await;
    let pushers = world.store.list_pushers(None, 0, 1000).await.unwrap();
    for pusher in &pushers {
        let there = world.homeserver.pushers.iter().any(|held| {
            held.user == pusher.user_id && held.app == pusher.app_id && held.key == pusher.pushkey
        });
        match (pusher.wanted.as_str(), pusher.state.as_str()) {
            ("present", "registered") => {
                assert!(there || world.forgotten, "it is not there: {pusher:?}");
            }
            ("absent", "removed") => {}
            (_, "failed") => assert!(pusher.last_error.is_some(), "no reason: {pusher:?}"),
            _ => panic!("nobody takes care of it: {pusher:?}"),
        }
    }
    let key = world.store.mark_keys().await.unwrap().current;
    let old_marks = world.store.count_without_mark(&key).await.unwrap();
    assert_eq!(old_marks, 0, "pushers without the new mark");
    let failed = pushers.iter().filter(|p| p.state == "failed").count();
    let jobs = world.jobs().await;
    let killed = jobs.iter().filter(|state| *state == "Killed").count();
    assert_eq!(killed, failed + world.orphans, "dead letters");
}

/// The homeserver holds what the phones want.
async fn check_wanted(world: &mut World) {
    // The homeserver drops a pusher whose token is dead when it next pushes to it.
    let mut kept = Vec::new();
    for held in std::mem::take(&mut world.homeserver.pushers) {
        let target = world.target(&held).await;
        let target = target.unwrap_or_else(|| panic!("nobody wants {held:?}"));
        if !target.dead {
            kept.push(held);
        }
    }
    world.homeserver.pushers = kept;

    let pairs: BTreeSet<Pair> = (0..2).flat_map(|a| (0..2).map(move |k| (a, k))).collect();
    for pair in pairs {
        let phones = world.phones.iter();
        let live = phones.filter(|(_, phone)| phone.pair == Some(pair) && !phone.dead);
        let holders: BTreeSet<(u8, u8)> = live
            .filter_map(|(&(s, _), phone)| Some((world.user_of(s, phone)?, s)))
            .collect();
        let users: BTreeSet<u8> = holders.iter().map(|&(user, _)| user).collect();
        let held: Vec<_> = world
            .homeserver
            .pushers
            .iter()
            .filter(|h| h.app == app(pair.0).as_str() && h.key == key(pair.1).as_str())
            .collect();
        let has = |u: &u8| held.iter().any(|h| h.user == user(*u).as_str());
        for h in &held {
            assert_eq!(h.mark, world.key, "{h:?} has an old mark");
            let fits = |&(u, s): &(u8, u8)| {
                h.user == user(u).as_str() && h.selector == selector(s).as_str()
            };
            assert!(holders.iter().any(fits), "{h:?} is not among {holders:?}");
        }
        if world.append {
            assert!(
                users.iter().all(has),
                "{pair:?}: {users:?}, there is {held:?}"
            );
        } else {
            assert_eq!(
                held.len(),
                users.len().min(1),
                "{pair:?}: {users:?}, there is {held:?}"
            );
            let last = world.claims.get(&pair).filter(|last| users.contains(last));
            assert!(
                last.is_none_or(has),
                "{pair:?}: {last:?} was last, there is {held:?}"
            );
        }
    }
}

async fn run(behind: Behind, append: bool, steps: &[Step]) -> Behind {
    let mut world = World::new(behind, append).await;
    for step in steps {
        world.take(step).await;
        check_always(&world).await;
    }
    world.settle().await;
    // A pusher gets another job if its job no longer says for which pusher it is.
    let forgotten = world.store.reconcile(world.append).await.unwrap();
    assert!(forgotten <= world.orphans, "somebody was forgotten");
    world.settle().await;
    check_settled(&world).await;
    // Dead letters are revived, and a homeserver that forgot its pushers gets them again.
    world.replay(Replay::Dead).await;
    if std::mem::take(&mut world.forgotten) {
        world.replay(Replay::All).await;
    }
    world.settle().await;
    check_settled(&world).await;
    check_wanted(&mut world).await;
    let leftovers = world.jobs().await.len();
    assert_eq!(leftovers, world.unreadable, "finished jobs pile up");
    // A second replay finds everything as it should be.
    let before = world.homeserver.pushers.clone();
    world.replay(Replay::All).await;
    world.settle().await;
    assert_eq!(world.homeserver.pushers, before);
    world.behind
}

fn run_blocking(behind: Behind, append: bool, steps: &[Step]) -> Behind {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(run(behind, append, steps))
}

fn config(cases: u32) -> Config {
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => Config {
            cases,
            rng_seed: RngSeed::Fixed(1),
            ..config
        },
    }
}

/// The two phones of [`steps::race`] belong to different users.
fn race() -> impl Strategy<Value = Vec<Step>> {
    let mapped = (0..2).map(|user| Step::Map {
        selector: user,
        user,
    });
    let mapped: Vec<_> = mapped.collect();
    prop::collection::vec(steps::race(), 5..40)
        .prop_map(move |events| [mapped.clone(), events].concat())
}

fn any() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(steps::step(), 5..90)
}

proptest! {
    #![proptest_config(config(100))]

    #[test]
    fn two_users_race_for_one_pusher(steps in race()) {
        run_blocking(Behind::sqlite(), false, &steps);
    }

    #[test]
    fn two_users_race_side_by_side(steps in race()) {
        run_blocking(Behind::sqlite(), true, &steps);
    }

    #[test]
    fn one_pusher_per_phone(steps in any()) {
        run_blocking(Behind::sqlite(), false, &steps);
    }

    #[test]
    fn users_who_share_a_phone(steps in any()) {
        run_blocking(Behind::sqlite(), true, &steps);
    }
}

/// Two users report one phone's token, the second of them last, and the first one's job finds that. Before that is
/// recorded, the second one goes.
fn outdone_by_one_who_goes(goes: Step) -> Vec<Step> {
    let sent = |selector| Sent {
        selector,
        device: 0,
        token: Token::Set { key: 0, app: 0 },
        owner: None,
    };
    let fetch = Step::Fetch {
        worker: 0,
        limit: 2,
        suspect: true,
        answered: true,
    };
    let advance = Step::Advance {
        job: 0,
        answer: Answer::Ok,
    };
    let map = |user| Step::Map {
        selector: user,
        user,
    };
    vec![
        map(0),
        map(1),
        Step::Reports(vec![sent(1)]),
        fetch.clone(),
        advance.clone(),
        advance.clone(),
        Step::FinishAll,
        Step::Reports(vec![sent(0), sent(1)]),
        fetch,
        advance,
        goes,
    ]
}

fn who_goes() -> [Step; 2] {
    let removed = Step::Remove {
        selector: 1,
        device: None,
    };
    [Step::PushToGoneToken { pusher: 0 }, removed]
}

#[test]
fn who_was_outdone_by_one_who_goes_has_the_pusher() {
    for goes in who_goes() {
        run_blocking(Behind::sqlite(), false, &outdone_by_one_who_goes(goes));
    }
}

/// The same on PostgreSQL, with fewer cases, because each has to connect.
mod on_postgres {
    use std::cell::RefCell;

    use super::*;

    fn run(append: bool, steps: impl Strategy<Value = Vec<Step>>) {
        let Some(behind) = Behind::postgres() else {
            return;
        };
        let behind = RefCell::new(Some(behind));
        let mut runner = proptest::test_runner::TestRunner::new(config(40));
        let ran = runner.run(&steps, |steps| {
            // A case that fails drops its database. The next case, which is shorter, gets another one.
            let taken = behind.borrow_mut().take().or_else(Behind::postgres);
            *behind.borrow_mut() = Some(run_blocking(taken.unwrap(), append, &steps));
            Ok(())
        });
        assert!(ran.is_ok(), "{}", ran.unwrap_err());
    }

    #[test]
    fn who_was_outdone_by_one_who_goes_has_the_pusher() {
        for goes in who_goes() {
            if let Some(behind) = Behind::postgres() {
                run_blocking(behind, false, &outdone_by_one_who_goes(goes));
            }
        }
    }

    #[test]
    fn two_users_race_for_one_pusher() {
        run(false, race());
    }

    #[test]
    fn two_users_race_side_by_side() {
        run(true, race());
    }

    #[test]
    fn one_pusher_per_phone() {
        run(false, any());
    }

    #[test]
    fn users_who_share_a_phone() {
        run(true, any());
    }
}
