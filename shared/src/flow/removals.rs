//! Forgets tokens: when a phone asks for it, when the operator deletes them, and when PNM says that a token is gone.

use std::collections::{BTreeSet, HashSet};

use super::{
    Pair, Phones, Result, Transaction,
    settle::{Pairs, Touched, settle},
    sorted,
};
use crate::{
    ids::{Pushkey, Selector, UserId},
    rules::{
        pushers::{Change, reject},
        report::{Phone, Reporter, Saved},
    },
};

/// Forgets the tokens of a phone, or of all phones with this selector if no phone is named, and has their pushers
/// removed. If a `token` is named, phones that have another token by now stay. With a login, no phone of the selector may
/// be another user's: by the login that it reported with, or else by the mapping.
pub async fn remove_account(
    tx: &mut dyn Transaction,
    from: &Reporter,
    token: Option<&Pushkey>,
) -> Result<Saved> {
    let selector = [from.selector.as_str()];
    tx.lock_selectors(&selector).await?;
    let mut phones = tx.phones(Phones::Selectors(&selector)).await?;
    if let Some(owner) = from.owner.as_ref().map(UserId::as_str) {
        let mapped = mapped(tx, &selector).await?;
        // A login outranks the mapping here: the mapping may name a user who logs in under another name.
        let holder = |phone: &Phone| phone.contents.owner.clone().or_else(|| mapped.clone());
        if phones
            .iter()
            .filter_map(holder)
            .any(|holder| holder != owner)
        {
            return Ok(Saved::NotYours);
        }
    }
    let device = from.device.as_ref().map(|_| from.device());
    // None if we cannot compare.
    let same_token = |phone: &Phone| {
        let stored = phone.contents.token_msgs.as_deref();
        stored
            .zip(token)
            .map(|(stored, named)| stored == named.as_str())
    };
    phones.retain(|phone| {
        // As in a report, a phone with a device may have reported without one before: its token shows it.
        let by_token = phone.device.is_empty() && same_token(phone) == Some(true);
        let meant = device.is_none_or(|device| phone.device == device) || by_token;
        meant && same_token(phone) != Some(false)
    });
    let changed = forget(tx, &phones).await? > 0;
    Ok(Saved::Done {
        changed,
        user: None,
        stranger: false,
        same_row: None,
    })
}

/// Forgets the tokens of a selector that belong to this user, by the mapping or else by a login. Tokens of another user,
/// and those that nobody has claimed yet, stay. Returns how many rows it deleted.
pub async fn remove_of_user(
    tx: &mut dyn Transaction,
    selector: &Selector,
    user: &UserId,
) -> Result<usize> {
    let selector = [selector.as_str()];
    tx.lock_selectors(&selector).await?;
    let mapped = mapped(tx, &selector).await?;
    let mut phones = tx.phones(Phones::Selectors(&selector)).await?;
    phones.retain(|phone| {
        let holder = mapped.as_deref().or(phone.contents.owner.as_deref());
        holder == Some(user.as_str())
    });
    forget(tx, &phones).await
}

/// The user to whom the operator mapped this selector.
async fn mapped(tx: &mut dyn Transaction, selector: &[&str; 1]) -> Result<Option<String>> {
    let mapping = tx.mappings(selector).await?.pop().flatten();
    Ok(mapping.map(|mapping| mapping.user_id))
}

/// Forgets the tokens of one selector, or of the next `limit` rows after an id, for the operator. Returns how many rows
/// it deleted and the last id.
pub async fn remove_tokens(
    tx: &mut dyn Transaction,
    selector: Option<&Selector>,
    after: i64,
    limit: i64,
) -> Result<(usize, i64)> {
    let named = selector.map(|selector| [selector.as_str()]);
    if let Some(selector) = &named {
        tx.lock_selectors(selector).await?;
    }
    let which = named
        .as_ref()
        .map_or(Phones::After(after, limit), |selectors| {
            Phones::Selectors(selectors)
        });
    let mut phones = tx.phones(which).await?;
    let last = phones.last().map_or(after, |phone| phone.id);
    if named.is_none() && !phones.is_empty() {
        // The phones may have reported since their rows were read.
        let ids: HashSet<_> = phones.iter().map(|phone| phone.id).collect();
        let selectors: BTreeSet<_> = phones.iter().map(|phone| phone.selector.as_str()).collect();
        let selectors: Vec<_> = selectors.into_iter().collect();
        tx.lock_selectors(&selectors).await?;
        // Compare ids, because a selector that is not valid text cannot be looked up.
        let mut now = tx.phones(which).await?;
        now.retain(|phone| ids.contains(&phone.id));
        phones = now;
    }
    Ok((forget(tx, &phones).await?, last))
}

/// Forgets up to `limit` rows that nobody stands for and that were last reported before a time. The rows that were
/// reported longest ago go first. Returns how many rows it deleted.
pub async fn forget_strangers(tx: &mut dyn Transaction, before: i64, limit: i64) -> Result<usize> {
    let which = Phones::OfNobody { before, limit };
    let found = tx.phones(which).await?;
    let selectors = sorted(found.iter().map(|phone| phone.selector.as_str()));
    tx.lock_selectors(&selectors).await?;
    // A phone may have reported, or got a mapping, before its selector was locked.
    let mut phones = tx.phones(which).await?;
    phones.retain(|phone| found.iter().any(|read| read.id == phone.id));
    forget(tx, &phones).await
}

/// The homeserver drops a pusher when it reads our rejection. A pusher that is set before that is lost, so we wait this
/// long, in seconds.
const REJECTION_READ: i64 = 10;

async fn forget(tx: &mut dyn Transaction, phones: &[Phone]) -> Result<usize> {
    if phones.is_empty() {
        return Ok(0);
    }
    let ids: Vec<_> = phones.iter().map(|phone| phone.id).collect();
    tx.delete_phones(&ids).await?;
    let left = phones.iter().filter_map(|phone| phone.contents.pair());
    let left: Vec<_> = left.map(|pair| Touched::left(Pair::from(pair))).collect();
    for touched in &left {
        tx.changed(touched.pair.pushkey);
    }
    settle(tx, &left).await?;
    Ok(phones.len())
}

/// Remembers that PNM called a row's token gone, until its phone reports again. False when the phone has reported since
/// the row was read (`report`), because PNM's verdict is out of date then. `pushed_to` is the selector that the pusher
/// carries.
pub async fn mark_dead(
    tx: &mut dyn Transaction,
    row: i64,
    report: i64,
    pushed_to: Option<&str>,
) -> Result<bool> {
    let now = tx.now();
    let phones = tx.phones(Phones::Id(row)).await?;
    let Some(Phone {
        selector, device, ..
    }) = phones.into_iter().next()
    else {
        return Ok(false);
    };
    tx.lock_selectors(&[&selector]).await?;
    let account = tx.accounts(&[(&selector, &device)]).await?.pop();
    let account = account.unwrap_or_default();
    let stored = account.phones.iter().find(|stored| stored.id == row);
    let Some(mut phone) = stored.filter(|stored| stored.report == report).cloned() else {
        return Ok(false);
    };
    let Some((app_id, pushkey)) = phone.contents.pair() else {
        return Ok(false);
    };
    let (app_id, pushkey) = (app_id.to_owned(), pushkey.to_owned());
    phone.dead_at = Some(now);
    phone.updated_at = now;
    tx.update_phones(&[&phone]).await?;
    tx.changed(&pushkey);
    let pair = Pair {
        app_id: &app_id,
        pushkey: &pushkey,
    };
    let user = account
        .mapped
        .as_deref()
        .or(phone.contents.owner.as_deref());
    let mut pairs = Pairs::load(tx, &[pair]).await?;
    if let Some(state) = pairs.get(pair) {
        for (at, change) in reject(&state.holders, &state.pushers, user, pushed_to) {
            state.change(at, &change, now);
            let pusher = &state.pushers[at];
            let left = state
                .holders
                .iter()
                .rfind(|holder| holder.user_id == pusher.user_id);
            if let Some(holder) = left {
                // Another row of the same user has that token, and PNM has not called it gone for that row.
                let (selector, claim) = (holder.selector.clone(), pusher.claim);
                state.change(at, &Change::Present { selector, claim }, now);
                state.delay(at, now + REJECTION_READ);
            }
        }
        state.settle(pair, None, false, now);
    }
    pairs.save(tx).await?;
    Ok(true)
}
