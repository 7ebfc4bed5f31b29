//! The operator's mappings of selectors to users. The pushers of the selectors' phones follow in the same transaction.

use super::{
    Pair, Phones, Result, Transaction,
    settle::{Touched, settle},
};
use crate::ids::{Selector, UserId};

/// Maps a selector to a user. Said again, only the mapping's time changes.
pub async fn put_mapping(
    tx: &mut dyn Transaction,
    selector: &Selector,
    user: &UserId,
) -> Result<()> {
    let selectors = [selector.as_str()];
    tx.lock_selectors(&selectors).await?;
    let stored = tx.mappings(&selectors).await?;
    let said = stored
        .iter()
        .flatten()
        .any(|mapping| mapping.user_id == user.as_str());
    let mapping = [(selector, user)];
    let changed = if said { &[] } else { &mapping[..] };
    write(tx, &mapping, changed).await
}

/// Writes mappings whose selectors are locked. The pushers follow those that are new or have another user.
pub(super) async fn write(
    tx: &mut dyn Transaction,
    mappings: &[(&Selector, &UserId)],
    changed: &[(&Selector, &UserId)],
) -> Result<()> {
    let texts = mappings.iter().map(|(s, u)| (s.as_str(), u.as_str()));
    tx.put_mappings(&texts.collect::<Vec<_>>()).await?;
    let mut selectors: Vec<_> = changed
        .iter()
        .map(|(selector, _)| selector.as_str())
        .collect();
    selectors.sort_unstable();
    follow(tx, &selectors).await
}

/// Deletes a mapping. False when there was none.
pub async fn delete_mapping(tx: &mut dyn Transaction, selector: &Selector) -> Result<bool> {
    let selectors = [selector.as_str()];
    tx.lock_selectors(&selectors).await?;
    let gone = tx.delete_mapping(selector.as_str()).await?;
    if gone {
        follow(tx, &selectors).await?;
    }
    Ok(gone)
}

async fn follow(tx: &mut dyn Transaction, selectors: &[&str]) -> Result<()> {
    if selectors.is_empty() {
        return Ok(());
    }
    let mut phones = tx.phones(Phones::Selectors(selectors)).await?;
    // Where several get an owner at once, the one that reported last has the token.
    phones.sort_by_key(|phone| phone.updated_at);
    let touched = phones.iter().filter_map(|phone| {
        let pair = Pair::from(phone.contents.pair()?);
        let row = Some(phone.id);
        Some(Touched {
            pair,
            row,
            reporter: None,
            gives_way: true,
        })
    });
    let touched: Vec<_> = touched.collect();
    for touched in &touched {
        // Caches remember whether a token belongs to a user.
        tx.changed(touched.pair.pushkey);
    }
    settle(tx, &touched).await
}
