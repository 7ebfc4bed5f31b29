//! Imports rows from a file or another program's database, or only says what would become of them.

use std::sync::Arc;

use matrix2acrobits_shared::{
    flow::{self, Result},
    rules::import::{Imported, MappingRow, TokenRow},
};
use matrix2acrobits_sqlite::Existing;

use crate::{Database, DatabaseUrl, LookError, Store};

/// Where imported rows go.
#[derive(Debug)]
pub enum Import {
    /// Into the store.
    Into(Store),
    /// Nowhere. Only says what would become of the rows in this SQLite file.
    Look(Existing),
    /// The same for a PostgreSQL database.
    #[cfg(feature = "postgres")]
    LookAtPostgres(matrix2acrobits_postgres::Existing),
    /// The same if there is no database yet.
    LookAtNothing,
}

impl Import {
    /// Only says what would become of rows. Neither creates nor changes the database.
    pub async fn dry_run(database: &Database) -> std::result::Result<Self, LookError> {
        let opened = match &database.url {
            DatabaseUrl::Sqlite(file) => Existing::open(file).await.map(Self::Look),
            #[cfg(feature = "postgres")]
            DatabaseUrl::Postgres(url) => {
                let existing = matrix2acrobits_postgres::Existing::open(url).await;
                existing.map(Self::LookAtPostgres)
            }
        };
        match opened {
            Ok(existing) => Ok(existing),
            Err(LookError::Missing(_)) => Ok(Self::LookAtNothing),
            Err(error) => Err(error),
        }
    }

    /// Imports a chunk of mappings. Returns one result for each, in order.
    pub async fn mappings(&mut self, rows: Vec<MappingRow>) -> Result<Vec<Imported>> {
        match self {
            Self::LookAtNothing => Ok(vec![Imported::Added; rows.len()]),
            Self::Look(existing) => existing.judge_mappings(&rows).await,
            #[cfg(feature = "postgres")]
            Self::LookAtPostgres(existing) => existing.judge_mappings(&rows).await,
            Self::Into(store) => {
                let rows: Arc<[MappingRow]> = rows.into();
                store
                    .writer()
                    .write(move |tx| {
                        let rows = rows.clone();
                        Box::pin(async move { flow::import_mappings(tx, &rows).await })
                    })
                    .await
            }
        }
    }

    /// Imports a chunk of tokens. Returns one result for each, in order.
    pub async fn tokens(&mut self, rows: Vec<TokenRow>) -> Result<Vec<Imported>> {
        match self {
            Self::LookAtNothing => {
                let judge = |row| matrix2acrobits_shared::rules::import::judge_token(row, &[]);
                Ok(rows.iter().map(judge).collect())
            }
            Self::Look(existing) => existing.judge_tokens(&rows).await,
            #[cfg(feature = "postgres")]
            Self::LookAtPostgres(existing) => existing.judge_tokens(&rows).await,
            Self::Into(store) => {
                let rows: Arc<[TokenRow]> = rows.into();
                store
                    .writer()
                    .write(move |tx| {
                        let rows = rows.clone();
                        Box::pin(async move { flow::import_tokens(tx, &rows).await })
                    })
                    .await
            }
        }
    }

    /// How many tokens for messages belong to no user yet, and so have no pusher. None in a dry run.
    pub async fn unmapped(&self) -> Result<Option<i64>> {
        match self {
            Self::Into(store) => store.count_unmapped().await.map(Some),
            _ => Ok(None),
        }
    }
}
