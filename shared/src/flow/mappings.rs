//! The operator's mappings of selectors to users. The pushers of the selectors' phones follow in the same transaction.

use super::{
    Pair, Phones, Result, Transaction,
    settle::{Touched, settle},
};
use crate::ids::{Selector, UserId};

/// Maps selectors to users.
pub async fn put_mapping(
    tx: &mut dyn Transaction,
    mappings: &[(&Selector, &UserId)],
) -> Result<()> {
    let mappings: Vec<_> = mappings
        .iter()
        .map(|(s, u)| (s.as_str(), u.as_str()))
        .collect();
    let mut selectors: Vec<_> = mappings.iter().map(|(selector, _)| *selector).collect();
    selectors.sort_unstable();
    tx.lock_selectors(&selectors).await?;
    tx.put_mappings(&mappings).await?;
    follow(tx, &selectors).await
}

/// Deletes a mapping. False when there was none.
pub async fn delete_mapping(tx: &mut dyn Transaction, selector: &Selector) -> Result<bool> {
    let selectors = [selector.as_str()];
    tx.lock_selectors(&selectors).await?;
    let gone = tx.delete_mapping(selector.as_str()).await?;
    follow(tx, &selectors).await?;
    Ok(gone)
}

async fn follow(tx: &mut dyn Transaction, selectors: &[&str]) -> Result<()> {
    let phones = tx.phones(Phones::Selectors(selectors)).await?;
    let touched = phones.iter().filter_map(|phone| {
        let pair = Pair::from(phone.contents.pair()?);
        let row = Some(phone.id);
        Some(Touched {
            pair,
            row,
            reporter: None,
        })
    });
    let touched: Vec<_> = touched.collect();
    for touched in &touched {
        // Caches remember whether a token belongs to a user.
        tx.changed(touched.pair.pushkey);
    }
    settle(tx, &touched).await
}
