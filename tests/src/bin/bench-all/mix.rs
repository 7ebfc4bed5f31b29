//! The mixed load of `soak`: which phone reports what, and to which phone and token a push goes.
//!
//! Two of three reports are unchanged, from any of the phones that keep their tokens. The third has a renewed token:
//! the phones that renew theirs take turns, and each has two tokens, which it reports alternately, so that the number
//! of rows stays bounded. No phone is new, for the same reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use matrix2acrobits_tests::marks::MarkKey;

use crate::fill;
use crate::load::Requests;
use crate::notify::{mixed, notification};
use crate::reports::report_token;

pub(crate) const PHONES: u64 = 10_000;
/// The first phones renew their tokens.
const RENEWING: u64 = 1_000;
/// One report of so many has a renewed token.
const ONE_OF: u64 = 3;
/// A phone gets no push while it is closer than so many turns to its own, before and after: its old token may be gone
/// already, and its new one not yet stored. At ten turns a second these are ten seconds.
const CLOSE: u64 = 100;

/// What has been reported so far.
#[derive(Debug, Default)]
pub(crate) struct Mix {
    reports: AtomicU64,
}

/// A phone, and the number of its token.
type Target = (u64, u64);

impl Mix {
    pub(crate) fn pushes(self: &Arc<Self>) -> Requests {
        let (mix, key) = (self.clone(), MarkKey::new(&fill::MARK_KEY));
        Arc::new(move |number, into| notification(&key, number, mix.pushed_to(number), into))
    }

    pub(crate) fn reports(self: &Arc<Self>) -> Requests {
        let mix = self.clone();
        Arc::new(move |number, into| {
            let (phone, token) = mix.next_report(number);
            report_token(phone, token, into);
        })
    }

    fn next_report(&self, chance: u64) -> Target {
        let number = self.reports.fetch_add(1, Ordering::Relaxed);
        if number.is_multiple_of(ONE_OF) {
            return renewed(number / ONE_OF);
        }
        let phone = RENEWING + mixed(chance) % (PHONES - RENEWING);
        (phone, phone)
    }

    /// Any phone with equal chance; instead of one that is about to renew its token, or has just done so, another.
    fn pushed_to(&self, chance: u64) -> Target {
        let phone = mixed(chance) % PHONES;
        if phone >= RENEWING {
            return (phone, phone);
        }
        let turns = self.reports.load(Ordering::Relaxed).div_ceil(ONE_OF);
        let since = (turns + RENEWING - 1 - phone) % RENEWING;
        if !(CLOSE..RENEWING - CLOSE).contains(&since) {
            return (RENEWING + phone, RENEWING + phone);
        }
        let last = turns.checked_sub(since + 1);
        last.map_or((phone, phone), renewed)
    }
}

/// The phone whose turn it is, and the token that it then has. A phone's first token, which is stored from the start,
/// has the phone's number.
fn renewed(turn: u64) -> Target {
    let phone = turn % RENEWING;
    let second = (turn / RENEWING + 1) % 2;
    (phone, phone + second * PHONES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushes_go_to_tokens_that_are_stored() {
        let mix = Mix::default();
        let mut stored: Vec<_> = (0..PHONES).collect();
        let mut renewals = 0;
        for number in 0..3 * ONE_OF * RENEWING {
            for chance in 0..20 {
                let (phone, token) = mix.pushed_to(number * 20 + chance);
                assert_eq!(token, stored[usize::try_from(phone).unwrap()]);
            }
            let (phone, token) = mix.next_report(number);
            let stored = &mut stored[usize::try_from(phone).unwrap()];
            renewals += u64::from(*stored != token);
            *stored = token;
        }
        assert_eq!(renewals, 3 * RENEWING);
    }
}
