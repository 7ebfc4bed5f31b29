//! Decides which pushers an app id and pushkey should have, from the rows that hold them, and enqueues
//! what has to change at the homeserver. Every write that touches a token ends here.

use std::collections::HashSet;

use serde::Deserialize;
use sqlx::SqliteConnection;

use super::{StoreError, finish::gone_by_itself, from_json, inserted, json};
use crate::queue;

/// A live row that holds the pushkey, with the user whose it is.
#[derive(Debug, Clone, Deserialize)]
struct Holder {
    row: i64,
    user_id: String,
    selector: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Pusher {
    id: i64,
    user_id: String,
    selector: String,
    wanted: Wanted,
    state: String,
    claim: i64,
    refresh_at: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Wanted {
    Present,
    Absent,
}

impl Pusher {
    fn is_present(&self) -> bool {
        self.wanted == Wanted::Present
    }
}

/// A change of what is wanted. The claim orders the users who report the same pushkey.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Insert {
        user_id: String,
        selector: String,
        claim: i64,
    },
    Present {
        id: i64,
        selector: String,
        claim: i64,
    },
    Absent {
        id: i64,
    },
    /// Reported again as it is.
    Again {
        id: i64,
        claim: Option<i64>,
        step: Step,
    },
}

/// What a report of an unchanged pusher leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Nothing,
    Enqueue,
    Revive,
}

/// An app id and pushkey whose pushers have to follow the rows that hold them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Touched<'a> {
    pub(super) pushkey: &'a str,
    pub(super) app_id: &'a str,
    /// The row whose phone reports, or whose mapping changes, at this moment.
    pub(super) row: Option<i64>,
}

/// Makes the wanted pushers of all these follow the rows, one after the other where a pair comes twice.
pub(super) async fn settle(
    connection: &mut SqliteConnection,
    touched: Vec<Touched<'_>>,
    now: i64,
) -> Result<(), StoreError> {
    let mut waiting = touched;
    while !waiting.is_empty() {
        let mut pairs = HashSet::new();
        let (round, rest) = waiting
            .into_iter()
            .partition::<Vec<_>, _>(|it| pairs.insert((it.pushkey, it.app_id)));
        settle_round(connection, &round, now).await?;
        waiting = rest;
    }
    Ok(())
}

async fn settle_round(
    connection: &mut SqliteConnection,
    touched: &[Touched<'_>],
    now: i64,
) -> Result<(), StoreError> {
    let pairs = json(touched.iter().map(|it| (it.pushkey, it.app_id)))?;
    let holders = by_pair(touched.len(), holders(connection, &pairs).await?);
    let pushers = by_pair(touched.len(), pushers(connection, &pairs).await?);
    let (mut new, mut due) = (Vec::new(), Vec::new());
    for (it, (holders, pushers)) in touched.iter().zip(holders.into_iter().zip(pushers)) {
        for change in plan(&holders, &pushers, it.row, now) {
            match change {
                Change::Insert {
                    user_id,
                    selector,
                    claim,
                } => new.push((user_id, it.app_id, it.pushkey, selector, claim)),
                Change::Present {
                    id,
                    selector,
                    claim,
                } => {
                    want_present(connection, id, &selector, claim, now).await?;
                    due.push(id);
                }
                Change::Absent { id } => {
                    want_absent(connection, id, now).await?;
                    due.push(id);
                }
                Change::Again { id, claim, step } => {
                    reported_again(connection, id, claim, step, now).await?;
                    due.extend((step != Step::Nothing).then_some(id));
                }
            }
        }
    }
    insert(connection, &new, now).await?;
    queue::enqueue(connection, &due, now).await
}

/// Decides. The touched row's user is wanted from now on. A user who was displaced by another
/// (PUSHER_APPEND=false) does not come back just because a row is still there, or the two would fight.
fn plan(holders: &[Holder], pushers: &[Pusher], touched: Option<i64>, now: i64) -> Vec<Change> {
    let present = || pushers.iter().filter(|p| p.is_present());
    let top = present().map(|p| p.claim).max().unwrap_or(0);
    let mut changes = Vec::new();

    for pusher in present() {
        let mut theirs = holders
            .iter()
            .filter(|h| h.user_id == pusher.user_id)
            .peekable();
        if theirs.peek().is_none() {
            changes.push(Change::Absent { id: pusher.id });
        }
    }

    let mut wanted = holders.iter().find(|h| Some(h.row) == touched);
    if wanted.is_none() && present().count() == changes.len() {
        // Whoever held the pushkey has left it: it falls back to who reported it before.
        wanted = holders.last();
    }
    for pusher in present() {
        // The account was renamed on the phone: data.selector has to follow.
        let mut theirs = holders
            .iter()
            .filter(|h| h.user_id == pusher.user_id)
            .peekable();
        let renamed = theirs.peek().is_some() && theirs.all(|h| h.selector != pusher.selector);
        let holder = holders
            .iter()
            .rfind(|h| renamed && h.user_id == pusher.user_id);
        if let Some(holder) = holder {
            let reports = wanted.is_some_and(|wanted| wanted.user_id == pusher.user_id);
            changes.push(Change::Present {
                id: pusher.id,
                selector: holder.selector.clone(),
                // A rename alone takes nothing from another user.
                claim: if reports { top + 1 } else { pusher.claim },
            });
            wanted = wanted.filter(|_| !reports);
        }
    }
    let Some(holder) = wanted else {
        return changes;
    };
    let selector = holder.selector.clone();
    changes.push(match pushers.iter().find(|p| p.user_id == holder.user_id) {
        None => Change::Insert {
            user_id: holder.user_id.clone(),
            selector,
            claim: top + 1,
        },
        Some(pusher) if !pusher.is_present() => Change::Present {
            id: pusher.id,
            selector,
            claim: top + 1,
        },
        Some(pusher) => Change::Again {
            id: pusher.id,
            // Another user's pusher is about to be set; the newest report wins. Its job finds that it has
            // been outdone and has ours checked, so ours needs no job for that.
            claim: (pusher.claim < top).then_some(top + 1),
            step: match pusher.state.as_str() {
                "registered" if pusher.refresh_at.is_none_or(|at| now < at) => Step::Nothing,
                "registered" | "pending" => Step::Enqueue,
                _ => Step::Revive,
            },
        },
    });
    changes
}

/// Takes the pushers of a dead token back. The homeserver drops the one that it pushed to by itself when it reads
/// our rejection (should the answer not reach it, it asks again); others are deleted. Which one that was is
/// known by the selector that it carries, unless more than one does.
pub(super) async fn forget_rejected(
    connection: &mut SqliteConnection,
    pushkey: &str,
    app_id: &str,
    pushed_to: Option<&str>,
    now: i64,
) -> Result<(), StoreError> {
    let pushers = pushers(connection, &json([(pushkey, app_id)])?).await?;
    let carries =
        |p: &&(usize, Pusher)| p.1.state != "removed" && Some(p.1.selector.as_str()) == pushed_to;
    let alone = pushers.iter().filter(carries).count() == 1;
    for it in pushers.iter().filter(|(_, pusher)| pusher.is_present()) {
        let id = it.1.id;
        if alone && carries(&it) {
            gone_by_itself(connection, id, now).await?;
        } else {
            want_absent(connection, id, now).await?;
            queue::enqueue(connection, &[id], now).await?;
        }
    }
    Ok(())
}

/// The same user reports the same pushkey again.
async fn reported_again(
    connection: &mut SqliteConnection,
    id: i64,
    claim: Option<i64>,
    step: Step,
    now: i64,
) -> Result<(), StoreError> {
    if let Some(claim) = claim {
        // A job that runs at this moment may have found that it has been outdone.
        sqlx::query!(
            "UPDATE pushers SET claim = ?, generation = generation + 1 WHERE id = ?",
            claim,
            id
        )
        .execute(&mut *connection)
        .await?;
    }
    if step == Step::Revive {
        sqlx::query!(
            "UPDATE pushers SET state = 'pending', attempts = 0, updated_at = ? WHERE id = ?",
            now,
            id
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// A found row, and the number of the pair that it belongs to.
type Found<T> = (usize, T);

fn by_pair<T>(pairs: usize, found: Vec<Found<T>>) -> Vec<Vec<T>> {
    let mut lists: Vec<Vec<T>> = std::iter::repeat_with(Vec::new).take(pairs).collect();
    for (at, row) in found {
        if let Some(list) = lists.get_mut(at) {
            list.push(row);
        }
    }
    lists
}

/// Who holds these pairs (a JSON list of pushkey and app id); the latest report comes last.
async fn holders(
    connection: &mut SqliteConnection,
    pairs: &str,
) -> Result<Vec<Found<Holder>>, StoreError> {
    let rows = sqlx::query_scalar!(
        r#"SELECT json_group_array(json_array(i.key, json_object('row', t.id, 'user_id', coalesce(m.user_id, t.owner),
               'selector', t.selector)) ORDER BY t.updated_at, t.id) AS "rows!: String"
           FROM json_each(?) i CROSS JOIN push_tokens t LEFT JOIN mappings m ON m.selector = t.selector
           WHERE t.token_msgs = i.value ->> 0 AND t.app_id_msgs = i.value ->> 1 AND t.dead_at IS NULL
             AND coalesce(m.user_id, t.owner) IS NOT NULL"#,
        pairs
    )
    .fetch_one(connection)
    .await?;
    from_json(&rows)
}

/// The pushers of these pairs (a JSON list of pushkey and app id).
async fn pushers(
    connection: &mut SqliteConnection,
    pairs: &str,
) -> Result<Vec<Found<Pusher>>, StoreError> {
    let rows = sqlx::query_scalar!(
        r#"SELECT json_group_array(json_array(i.key, json_object('id', p.id, 'user_id', p.user_id,
               'selector', p.selector, 'wanted', p.wanted, 'state', p.state, 'claim', p.claim,
               'refresh_at', p.refresh_at))) AS "rows!: String"
           FROM json_each(?) i CROSS JOIN pushers p
           WHERE p.pushkey = i.value ->> 0 AND p.app_id = i.value ->> 1"#,
        pairs
    )
    .fetch_one(connection)
    .await?;
    from_json(&rows)
}

/// A pusher that is not there yet: user, app id, pushkey, selector, claim.
type New<'a> = (String, &'a str, &'a str, String, i64);

async fn insert(
    connection: &mut SqliteConnection,
    new: &[New<'_>],
    now: i64,
) -> Result<(), StoreError> {
    if new.is_empty() {
        return Ok(());
    }
    let rows = json(new)?;
    let last = sqlx::query!(
        "INSERT INTO pushers (user_id, app_id, pushkey, selector, wanted, state, generation, claim, created_at, updated_at)
         SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, 'present', 'pending', 1, value ->> 4, ?2, ?2
         FROM json_each(?1) ORDER BY key",
        rows,
        now
    )
    .execute(&mut *connection)
    .await?
    .last_insert_rowid();
    let ids: Vec<i64> = inserted(last, new.len()).collect();
    queue::enqueue_new(connection, &ids, now).await
}

async fn want_present(
    connection: &mut SqliteConnection,
    id: i64,
    selector: &str,
    claim: i64,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE pushers SET wanted = 'present', state = 'pending', selector = ?, claim = ?, attempts = 0,
             last_error = NULL, generation = generation + 1, updated_at = ? WHERE id = ?",
        selector,
        claim,
        now,
        id
    )
    .execute(&mut *connection)
    .await?;
    Ok(())
}

async fn want_absent(
    connection: &mut SqliteConnection,
    id: i64,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE pushers SET wanted = 'absent', state = 'pending', attempts = 0, last_error = NULL,
             generation = generation + 1, updated_at = ? WHERE id = ?",
        now,
        id
    )
    .execute(&mut *connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(row: i64, user: &str, selector: &str) -> Holder {
        Holder {
            row,
            user_id: user.into(),
            selector: selector.into(),
        }
    }

    fn pusher(
        id: i64,
        user: &str,
        selector: &str,
        present: bool,
        state: &str,
        claim: i64,
    ) -> Pusher {
        let (user_id, selector, state) = (user.into(), selector.into(), state.into());
        Pusher {
            id,
            user_id,
            selector,
            wanted: if present {
                Wanted::Present
            } else {
                Wanted::Absent
            },
            state,
            claim,
            refresh_at: Some(1000),
        }
    }

    fn again(id: i64, claim: Option<i64>, step: Step) -> Change {
        Change::Again { id, claim, step }
    }

    #[test]
    fn one_user() {
        let rows = [holder(1, "a", "s")];
        let insert = Change::Insert {
            user_id: "a".into(),
            selector: "s".into(),
            claim: 1,
        };
        assert_eq!(plan(&rows, &[], Some(1), 0), [insert]);
        for (state, now, step) in [
            ("registered", 0, Step::Nothing),
            ("registered", 1000, Step::Enqueue),
            ("pending", 0, Step::Enqueue),
            ("failed", 0, Step::Revive),
        ] {
            let pushers = [pusher(7, "a", "s", true, state, 1)];
            assert_eq!(
                plan(&rows, &pushers, Some(1), now),
                [again(7, None, step)],
                "{state} {now}"
            );
        }
        let removed = [pusher(7, "a", "s", false, "removed", 1)];
        let present = Change::Present {
            id: 7,
            selector: "s".into(),
            claim: 1,
        };
        assert_eq!(plan(&rows, &removed, Some(1), 0), [present]);
        let left = [pusher(7, "a", "s", true, "registered", 1)];
        assert_eq!(plan(&[], &left, None, 0), [Change::Absent { id: 7 }]);
    }

    #[test]
    fn a_renamed_account_takes_its_pusher_along_and_a_second_one_does_not() {
        let pushers = [pusher(7, "a", "old", true, "registered", 1)];
        let present = Change::Present {
            id: 7,
            selector: "new".into(),
            claim: 2,
        };
        assert_eq!(
            plan(&[holder(1, "a", "new")], &pushers, Some(1), 0),
            [present]
        );
        let both = [holder(1, "a", "old"), holder(2, "a", "new")];
        assert_eq!(
            plan(&both, &pushers, Some(2), 0),
            [again(7, None, Step::Nothing)]
        );
    }

    #[test]
    fn two_users_of_one_phone_do_not_fight() {
        let rows = [holder(1, "a", "sa"), holder(2, "b", "sb")];
        let pushers = [pusher(7, "a", "sa", true, "registered", 1)];
        let insert = Change::Insert {
            user_id: "b".into(),
            selector: "sb".into(),
            claim: 2,
        };
        assert_eq!(plan(&rows, &pushers, Some(2), 0), [insert]);
        // b has displaced a; what is not a's own report leaves it so.
        let after = [
            pusher(7, "a", "sa", false, "removed", 1),
            pusher(8, "b", "sb", true, "registered", 2),
        ];
        assert_eq!(plan(&rows, &after, None, 0), []);
        let back = Change::Present {
            id: 7,
            selector: "sa".into(),
            claim: 3,
        };
        assert_eq!(plan(&rows, &after, Some(1), 0), [back]);
        // b leaves the phone: a gets it back.
        let back = Change::Present {
            id: 7,
            selector: "sa".into(),
            claim: 3,
        };
        assert_eq!(
            plan(&rows[..1], &after, None, 0),
            [Change::Absent { id: 8 }, back]
        );
        // a reports while b's pusher waits to be set: a's report is the newer one.
        let race = [
            pusher(7, "a", "sa", true, "registered", 1),
            pusher(8, "b", "sb", true, "pending", 2),
        ];
        assert_eq!(
            plan(&rows, &race, Some(1), 0),
            [again(7, Some(3), Step::Nothing)]
        );
    }
}
