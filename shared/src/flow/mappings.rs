//! The operator's mappings: whose a selector is. The pushers of its phones follow in the same transaction.

use super::{
    Pair, Phones, Result, Transaction,
    settle::{Touched, settle},
};
use crate::ids::{Selector, UserId};

/// Says whose selectors are.
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

/// Takes a mapping back. False when there was none.
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
    for it in &touched {
        // Whether a token belongs to anybody is remembered with it.
        tx.changed(it.pair.pushkey);
    }
    settle(tx, &touched).await
}
