//! Single cases, each on both databases.

use std::sync::Arc;

use matrix2acrobits_shared::{
    flow::{Claim, Finished, Held, MarkRenewal, Recorded},
    rules::pushers::{FinishSettings, Goal, Loaded, Outcome, PusherTask},
};

use crate::{
    behind::Behind,
    steps::{Sent, Step, Token},
    workers::{SETTINGS, fingerprint},
    world::World,
};

/// A phone reports this token.
async fn report(world: &mut World, selector: u8, app: u8) {
    let sent = Sent {
        selector,
        device: 0,
        token: Token::Set { key: 0, app },
        owner: None,
    };
    world.take(&Step::Reports(vec![sent])).await;
}

/// A world in which each phone is its own user's, and one phone has reported.
async fn world(behind: Behind) -> World {
    let mut world = World::new(behind, false).await;
    for user in 0..2 {
        let selector = user;
        world.take(&Step::Map { selector, user }).await;
    }
    report(&mut world, 0, 0).await;
    world
}

/// The only worker takes the due jobs.
async fn take(world: &World) -> Vec<(Held, PusherTask)> {
    let claim = Claim {
        worker: Arc::clone(&world.workers[0].0),
        settings: SETTINGS.into(),
        limit: 9,
        suspect: true,
        knows: None,
    };
    let mut taken = Vec::new();
    for held in world.other.claim(claim).await.unwrap().jobs {
        match world.other.task(&held, world.append).await.unwrap() {
            Loaded::Task(task) => taken.push((held, task)),
            other => panic!("{other:?}"),
        }
    }
    taken
}

/// The only due job.
async fn take_one(world: &World) -> (Held, PusherTask) {
    let mut taken = take(world).await;
    assert_eq!(taken.len(), 1, "{taken:?}");
    taken.remove(0)
}

async fn finish(world: &World, job: (Held, PusherTask), outcome: Outcome) -> Recorded {
    finish_at(world, job, outcome, false).await
}

/// The homeserver may keep one pusher for a user and pushkey.
async fn finish_at(
    world: &World,
    (held, task): (Held, PusherTask),
    outcome: Outcome,
    one_per_pushkey: bool,
) -> Recorded {
    let settings = FinishSettings {
        fingerprint: fingerprint(&world.key),
        settings: SETTINGS.into(),
        mark_key: world.key.clone(),
        append: world.append,
        one_per_pushkey,
        refresh_after: 86_400,
    };
    let finished = Finished {
        held,
        task,
        outcome,
        settings,
    };
    world.other.finish(finished).await.unwrap()
}

fn dead() -> Outcome {
    Outcome::Dead { error: "no".into() }
}

async fn without_mark(world: &World) -> i64 {
    let current = world.store.mark_keys().await.unwrap().current;
    world.store.count_without_mark(&current).await.unwrap()
}

async fn a_homeserver_that_is_back_gets_the_wait_that_it_asked_for_and_no_more(behind: Behind) {
    let world = world(behind).await;
    let retry = Outcome::Retry {
        run_at: world.now + 300,
        not_before: Some(world.now + 20),
        error: "no".into(),
        maybe_done: false,
    };
    finish(&world, take_one(&world).await, retry).await;
    let due = async || world.other.next_due().await.unwrap();
    world.other.make_one_due().await.unwrap();
    assert_eq!(due().await, Some(world.now + 300), "it cannot be due now");
    assert_eq!(world.other.make_all_due().await.unwrap(), 1);
    assert_eq!(due().await, Some(world.now + 20));
    assert_eq!(world.other.make_all_due().await.unwrap(), 0);
}

async fn a_job_that_was_under_way_when_the_key_changed_runs_again(behind: Behind) {
    let mut world = world(behind).await;
    let job = take_one(&world).await;
    world.take(&Step::RenewKey).await;
    assert_eq!(without_mark(&world).await, 1, "it may get an old mark yet");
    // The worker goes through all pushers while the job still has the former key.
    let former = world.key.clone();
    world.take(&Step::NoticeKey).await;
    let new = std::mem::replace(&mut world.key, former);
    finish(&world, job, Outcome::Registered).await;
    world.key = new;
    assert_eq!(without_mark(&world).await, 1);
    // Not before all workers know the new key.
    assert!(take(&world).await.is_empty());
    world.pass(10);
    let job = take_one(&world).await;
    assert_eq!(job.1.goal, Goal::Check);
    finish(&world, job, Outcome::Registered).await;
    assert_eq!(without_mark(&world).await, 0);
    assert_eq!(world.other.next_due().await.unwrap(), None);
}

async fn a_second_renewal_waits_until_no_pusher_needs_the_former_key(behind: Behind) {
    let mut world = world(behind).await;
    finish(&world, take_one(&world).await, Outcome::Registered).await;
    let renew = async |world: &World| world.store.renew_mark_key().await.unwrap();
    let key = async |world: &World| {
        let keys = world.store.mark_keys().await.unwrap();
        keys.current.name().to_owned()
    };
    assert_eq!(renew(&world).await, MarkRenewal::Done);
    let renewed = key(&world).await;
    assert_ne!(renewed, world.key);
    assert_eq!(renew(&world).await, MarkRenewal::TooEarly(1));
    assert_eq!(key(&world).await, renewed, "nothing changed");
    world.take(&Step::NoticeKey).await;
    finish(&world, take_one(&world).await, Outcome::Registered).await;
    assert_eq!(renew(&world).await, MarkRenewal::Done, "all are renewed");
    assert_eq!(renew(&world).await, MarkRenewal::TooEarly(1));
    world.pass(86_400);
    assert_eq!(renew(&world).await, MarkRenewal::Done, "a day later");
}

async fn a_deletion_by_pushkey_has_the_pusher_of_the_new_app_checked(behind: Behind) {
    let mut world = world(behind).await;
    for (app, one_per_pushkey) in [(1, true), (0, false)] {
        for job in take(&world).await {
            finish(&world, job, Outcome::Registered).await;
        }
        report(&mut world, 0, app).await;
        let (deletions, sets): (Vec<_>, Vec<_>) = take(&world)
            .await
            .into_iter()
            .partition(|(_, task)| task.goal == Goal::Delete);
        assert_eq!((deletions.len(), sets.len()), (1, 1));
        // The one worker has looked, the other one sets, and then the first one deletes.
        for job in sets {
            finish(&world, job, Outcome::Registered).await;
        }
        for job in deletions {
            finish_at(&world, job, Outcome::Removed, one_per_pushkey).await;
        }
        let again = take(&world).await;
        let goals: Vec<_> = again.iter().map(|(_, task)| task.goal).collect();
        let expected: &[_] = if one_per_pushkey { &[Goal::Check] } else { &[] };
        assert_eq!(goals, expected, "{one_per_pushkey}");
        for job in again {
            finish(&world, job, Outcome::Registered).await;
        }
    }
}

async fn a_revived_dead_letter_is_a_new_job(behind: Behind) {
    let mut world = world(behind).await;
    let job = take_one(&world).await;
    let name = job.0.job_id.clone();
    assert_eq!(finish(&world, job, dead()).await, Recorded::Stands);
    world.pass(3600);
    report(&mut world, 0, 0).await;
    let job = take_one(&world).await;
    assert_ne!(job.0.job_id, name);
    assert_eq!(job.0.attempts, 0);
    finish(&world, job, Outcome::Registered).await;
    assert!(world.jobs().await.is_empty());
}

async fn a_report_during_a_refusal_makes_no_dead_letter(behind: Behind) {
    let mut world = world(behind).await;
    let job = take_one(&world).await;
    report(&mut world, 0, 0).await;
    assert_eq!(finish(&world, job, dead()).await, Recorded::Again);
    assert_eq!(world.jobs().await, ["Pending"]);
    let job = take_one(&world).await;
    assert_eq!(finish(&world, job, dead()).await, Recorded::Stands);
    assert_eq!(world.jobs().await, ["Killed"]);
}

async fn a_pusher_that_waits_for_another_users_is_not_forgotten(behind: Behind) {
    let mut world = world(behind).await;
    report(&mut world, 1, 0).await;
    let (yields, sets): (Vec<_>, Vec<_>) = take(&world)
        .await
        .into_iter()
        .partition(|(_, task)| task.goal == Goal::Yield);
    assert_eq!((yields.len(), sets.len()), (1, 1));
    for job in yields {
        finish(&world, job, Outcome::Nothing).await;
    }
    assert_eq!(world.other.reconcile(false).await.unwrap(), 0);
    // Users who may share a pushkey do not wait for each other.
    assert_eq!(world.other.reconcile(true).await.unwrap(), 1);
}

macro_rules! on_both {
    ($($case:ident),* $(,)?) => {
        mod on_sqlite {
            use super::*;
            $(
                #[tokio::test]
                async fn $case() {
                    super::$case(Behind::sqlite()).await;
                }
            )*
        }
        mod on_postgres {
            use super::*;
            $(
                #[tokio::test]
                async fn $case() {
                    if let Some(behind) = Behind::postgres() {
                        super::$case(behind).await;
                    }
                }
            )*
        }
    };
}

on_both![
    a_homeserver_that_is_back_gets_the_wait_that_it_asked_for_and_no_more,
    a_job_that_was_under_way_when_the_key_changed_runs_again,
    a_second_renewal_waits_until_no_pusher_needs_the_former_key,
    a_deletion_by_pushkey_has_the_pusher_of_the_new_app_checked,
    a_revived_dead_letter_is_a_new_job,
    a_report_during_a_refusal_makes_no_dead_letter,
    a_pusher_that_waits_for_another_users_is_not_forgotten,
];
