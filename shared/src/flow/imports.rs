//! Imports many mappings or tokens, from a file or another program's database. A chunk is one transaction, and does
//! what mappings and reports do, including jobs.

use super::{Phones, Result, Transaction, mappings, reports::save, sorted};
use crate::rules::{
    import::{Imported, MappingRow, TokenRow, judge_mapping, judge_tokens},
    report::{Origin, Saved},
};

/// Imports a chunk of mappings. Returns one result for each, in order.
pub async fn import_mappings(
    tx: &mut dyn Transaction,
    rows: &[MappingRow],
) -> Result<Vec<Imported>> {
    let selectors: Vec<_> = rows.iter().map(|row| row.selector.as_str()).collect();
    tx.lock_selectors(&sorted(selectors.iter().copied()))
        .await?;
    let stored = tx.mappings(&selectors).await?;
    let judged = rows.iter().zip(&stored);
    let judged: Vec<_> = judged
        .map(|(row, stored)| judge_mapping(row, stored.as_ref()))
        .collect();
    let written = rows
        .iter()
        .zip(&judged)
        .filter(|(_, judged)| judged.is_written());
    let written: Vec<_> = written.map(|(row, _)| (&row.selector, &row.user)).collect();
    if !written.is_empty() {
        mappings::write(tx, &written, &written).await?;
    }
    Ok(judged)
}

/// Imports a chunk of tokens. Returns one result for each, in order.
pub async fn import_tokens(tx: &mut dyn Transaction, rows: &[TokenRow]) -> Result<Vec<Imported>> {
    let selectors = rows.iter().map(|row| row.report.from.selector.as_str());
    let selectors = sorted(selectors);
    tx.lock_selectors(&selectors).await?;
    let stored = tx.phones(Phones::Selectors(&selectors)).await?;
    let mut judged = judge_tokens(rows, &stored);
    let written = rows
        .iter()
        .zip(&judged)
        .filter(|(_, judged)| judged.is_written());
    let written: Vec<_> = written
        .map(|(row, _)| {
            let at = row.updated_at.unwrap_or(0);
            (&row.report, Origin::Import { at })
        })
        .collect();
    let saved = save(tx, &written).await?;
    for (judged, saved) in judged
        .iter_mut()
        .filter(|judged| judged.is_written())
        .zip(saved)
    {
        match saved {
            Saved::Done { .. } => {}
            Saved::NeedsAppId => *judged = Imported::NeedsAppId,
            // Neither can happen: imported reports have no login, and `strangers` allows new rows.
            Saved::NotYours | Saved::Strange => *judged = Imported::NewerHere,
        }
    }
    Ok(judged)
}
