//! Saves reports of phones, many at a time.

use std::collections::{BTreeMap, HashMap, hash_map::Entry};

use super::{
    OwnedPair, Pair, Transaction,
    settle::{Touched, settle},
    sorted,
    writer::Bulk,
};
use crate::ids::UserId;
use crate::rules::report::{Account, Change, Origin, Report, Saved, Write, decide};

impl Bulk for Report {
    type Value = Saved;

    async fn write_all(tx: &mut dyn Transaction, reports: &[&Self]) -> super::Result<Vec<Saved>> {
        let reports: Vec<_> = reports
            .iter()
            .map(|report| (*report, Origin::Phone))
            .collect();
        save(tx, &reports).await
    }
}

/// Saves reports as if one came after the other.
pub(super) async fn save(
    tx: &mut dyn Transaction,
    reports: &[(&Report, Origin)],
) -> super::Result<Vec<Saved>> {
    let now = tx.now();
    let selectors = reports
        .iter()
        .map(|(report, _)| report.from.selector.as_str());
    let selectors = sorted(selectors);
    tx.lock_selectors(&selectors).await?;
    let asked: Vec<_> = reports
        .iter()
        .map(|(report, _)| (report.from.selector.as_str(), report.from.device()))
        .collect();
    let mut accounts = Accounts::new(&asked, tx.accounts(&asked).await?);
    let mut saved = Vec::with_capacity(reports.len());
    // Each pair that a report leaves or holds, with the row that holds it.
    let mut pairs: Vec<(OwnedPair, Option<By>)> = Vec::new();
    for &(report, origin) in reports {
        let decided = accounts.take(report, origin, now);
        saved.push(match decided {
            Err(refused) => refused,
            Ok(change) => {
                let held = change.phone.contents.pair();
                let held = held.map(|(app_id, pushkey)| (app_id.to_owned(), pushkey.to_owned()));
                if change.write == Write::Row {
                    for (_, pushkey) in change.left.iter().chain(&held) {
                        tx.changed(pushkey);
                    }
                }
                pairs.extend(change.left.into_iter().map(|pair| (pair, None)));
                let by = (change.phone.id, change.user.clone(), origin);
                pairs.extend(held.map(|pair| (pair, Some(by))));
                let changed = change.write == Write::Row;
                Saved::Done {
                    changed,
                    user: change.user,
                    stranger: change.stranger,
                    same_row: (!changed && change.phone.id > 0).then_some(change.phone.id),
                }
            }
        });
    }
    let ids = accounts.save(tx).await?;
    let touched: Vec<Touched<'_>> = pairs
        .iter()
        .map(|((app_id, pushkey), by)| {
            let pair = Pair { app_id, pushkey };
            let Some((row, user, origin)) = by else {
                return Touched::left(pair);
            };
            Touched {
                pair,
                row: Some(ids.get(row).copied().unwrap_or(*row)),
                reporter: user.as_ref().map(UserId::as_str),
                gives_way: *origin != Origin::Phone,
            }
        })
        .collect();
    settle(tx, &touched).await?;
    Ok(saved)
}

/// The row that holds the pair, the user whose phone reports, and who brings the report.
type By = (i64, Option<UserId>, Origin);

/// The accounts that reports are about, with all changes so far. A new row has its own negative id until it is stored.
#[derive(Default)]
struct Accounts {
    by_selector: HashMap<String, Account>,
    writes: BTreeMap<i64, Write>,
    absorbed: Vec<i64>,
    new: i64,
}

impl Accounts {
    fn new(asked: &[(&str, &str)], facts: Vec<Account>) -> Self {
        let mut accounts = Self::default();
        for ((selector, _), facts) in asked.iter().zip(facts) {
            match accounts.by_selector.entry((*selector).to_owned()) {
                Entry::Vacant(entry) => {
                    entry.insert(facts);
                }
                Entry::Occupied(mut entry) => {
                    let known = &mut entry.get_mut().phones;
                    for phone in facts.phones {
                        if !known.iter().any(|stored| stored.id == phone.id) {
                            known.push(phone);
                        }
                    }
                }
            }
        }
        accounts
    }

    /// Applies a report after the reports before it.
    fn take(&mut self, report: &Report, origin: Origin, now: i64) -> Result<Change, Saved> {
        let selector = report.from.selector.as_str();
        let account = self.by_selector.entry(selector.to_owned()).or_default();
        let mut change = decide(report, account, origin, now)?;
        if let Some(id) = change.absorbed {
            account.phones.retain(|stored| stored.id != id);
            self.writes.remove(&id);
            self.absorbed.extend((id > 0).then_some(id));
        }
        if change.phone.id == 0 {
            self.new -= 1;
            change.phone.id = self.new;
        }
        let phone = change.phone.clone();
        if account.owner.is_none() {
            account.owner.clone_from(&phone.contents.owner);
        }
        match account
            .phones
            .iter_mut()
            .find(|stored| stored.id == phone.id)
        {
            Some(stored) => *stored = phone,
            None => account.phones.push(phone),
        }
        let write = self.writes.entry(change.phone.id).or_insert(change.write);
        if change.write == Write::Row || *write == Write::Nothing {
            *write = change.write;
        }
        Ok(change)
    }

    /// Writes the changes. Returns the ids of new rows.
    async fn save(self, tx: &mut dyn Transaction) -> super::Result<HashMap<i64, i64>> {
        let (mut new, mut changed, mut touched) = (Vec::new(), Vec::new(), Vec::new());
        for phone in self
            .by_selector
            .values()
            .flat_map(|account| &account.phones)
        {
            match self.writes.get(&phone.id) {
                Some(Write::Row) if phone.id < 0 => new.push(phone),
                Some(Write::Row) => changed.push(phone),
                Some(Write::Time) => touched.push((phone.id, phone.updated_at)),
                Some(Write::Nothing) | None => {}
            }
        }
        // In the order in which they were reported.
        new.sort_unstable_by_key(|phone| -phone.id);
        if !self.absorbed.is_empty() {
            tx.delete_phones(&self.absorbed).await?;
        }
        if !changed.is_empty() {
            tx.update_phones(&changed).await?;
        }
        if !touched.is_empty() {
            tx.touch_phones(&touched).await?;
        }
        if new.is_empty() {
            return Ok(HashMap::new());
        }
        let ids = tx.insert_phones(&new).await?;
        Ok(new.iter().map(|phone| phone.id).zip(ids).collect())
    }
}
