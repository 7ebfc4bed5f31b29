//! Advisory locks, which make two processes that change the same phones or pushers go one after the other.

use matrix2acrobits_shared::flow::{Pair, Result};
use sqlx::PgConnection;

use crate::errors::from_sqlx;

/// The kinds of a number, so that selectors and pairs do not wait for each other.
const SELECTOR: &str = "selector";
const PAIR: &str = "pair";

/// Keeps others away from these selectors until the end of the transaction.
pub(crate) async fn selectors(connection: &mut PgConnection, selectors: &[&str]) -> Result<()> {
    let names = selectors
        .iter()
        .map(|selector| number(SELECTOR, &[selector]));
    lock(connection, names.collect()).await
}

/// Keeps others away from these pairs until the end of the transaction.
pub(crate) async fn pairs(connection: &mut PgConnection, pairs: &[Pair<'_>]) -> Result<()> {
    let names = pairs
        .iter()
        .map(|pair| number(PAIR, &[pair.app_id, pair.pushkey]));
    lock(connection, names.collect()).await
}

/// Locks in the order of the numbers, which is the same everywhere and prevents deadlocks. This is a separate
/// statement, so that the next one sees what was committed while this one waited.
async fn lock(connection: &mut PgConnection, mut numbers: Vec<i64>) -> Result<()> {
    numbers.sort_unstable();
    numbers.dedup();
    sqlx::query!(
        "SELECT count(pg_advisory_xact_lock(n))
         FROM unnest($1::int8[]) n",
        &numbers[..]
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// The lock's number, the same in every process and release (64-bit FNV-1a). Two names with the same number only wait
/// for each other without need.
fn number(kind: &str, parts: &[&str]) -> i64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in std::iter::once(&kind).chain(parts) {
        // Texts contain no NUL character, so a NUL marks the end of each.
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_same_everywhere_and_tell_names_apart() {
        assert_eq!(number(SELECTOR, &["a"]), number(SELECTOR, &["a"]));
        let all = [
            number(SELECTOR, &["a"]),
            number(SELECTOR, &["b"]),
            number(PAIR, &["a"]),
            number(PAIR, &["a", "b"]),
            number(PAIR, &["ab", ""]),
            number(PAIR, &["", "ab"]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[at + 1..].contains(one), "{at}");
        }
        // Another release must get the same number.
        assert_eq!(number(SELECTOR, &["a"]), 4_292_433_372_511_086_269);
    }
}
