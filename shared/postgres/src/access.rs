//! How connections are made: where to, and the settings that each has from its first statement on.

use std::time::Duration;

use matrix2acrobits_shared::flow::StoreError;
use sqlx::{PgConnection, postgres::PgConnectOptions};

use crate::{
    DatabaseUrl,
    errors::{NoAnswer, Standby},
    open::{OpenError, open_error},
    statements::session,
};

/// How long connecting takes at most, where it is the first time.
const CONNECT: Duration = Duration::from_secs(5);

/// The way to the database. The settings are made by statements: a connection pooler refuses those that come with the
/// login (`options`), or forgets them.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    options: PgConnectOptions,
    settings: Vec<session::Setting>,
    /// Whether a standby will do.
    standby: bool,
}

impl Access {
    /// What all connections have: who it is, and how long a statement takes at most.
    pub(crate) fn new(database: &DatabaseUrl, statement_timeout: &'static str) -> Self {
        Self {
            options: bare(database),
            settings: vec![
                // The triggers of the schema tell others of what no program of ours has done.
                ("matrix2acrobits.program", "1"),
                ("statement_timeout", statement_timeout),
                ("lock_timeout", statement_timeout),
                ("idle_in_transaction_session_timeout", "5s"),
                ("default_transaction_isolation", "read committed"),
                ("jit", "off"),
            ],
            standby: false,
        }
    }

    /// The same for connections whose statements all look up rows by an index: PostgreSQL must not think better of it
    /// while a table is young or its statistics are old.
    pub(crate) fn indexed(database: &DatabaseUrl) -> Self {
        Self::new(database, "2s").with([
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
        ])
    }

    /// The same with more settings.
    pub(crate) fn with(mut self, more: impl IntoIterator<Item = session::Setting>) -> Self {
        self.settings.extend(more);
        self
    }

    /// The same for who only looks, and may find a standby.
    pub(crate) fn on_standby(mut self) -> Self {
        self.standby = true;
        self
    }

    /// The same by another name.
    pub(crate) fn named(mut self, name: &str) -> Self {
        self.options = self.options.application_name(name);
        self
    }

    /// Where it leads.
    pub(crate) fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// Makes the settings of a new connection. One to a standby is refused: it may be behind, and a token that it does not
    /// know yet would be rejected.
    pub(crate) async fn set_up(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let is_standby = session::set(connection, &self.settings).await?;
        if is_standby && !self.standby {
            return Err(sqlx::Error::AnyDriverError(Box::new(Standby)));
        }
        Ok(())
    }

    /// Connects.
    pub(crate) async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        use sqlx::Connection as _;
        let mut connection = PgConnection::connect_with(&self.options).await?;
        self.set_up(&mut connection).await?;
        Ok(connection)
    }

    /// Connects for the first time; says in words what went wrong.
    pub(crate) async fn connect_first(&self, name: &str) -> Result<PgConnection, OpenError> {
        match tokio::time::timeout(CONNECT, self.connect()).await {
            Ok(connected) => connected.map_err(|error| open_error(name, error)),
            Err(_) => Err(OpenError::Unreachable(
                name.to_owned(),
                StoreError::Unavailable(std::sync::Arc::new(NoAnswer(CONNECT))),
            )),
        }
    }
}

/// Connection options without any setting of ours.
pub(crate) fn bare(database: &DatabaseUrl) -> PgConnectOptions {
    // A pooler knows no extra_float_digits, and we read no floats.
    let options = database.options().extra_float_digits(None);
    match options.get_application_name() {
        Some(_) => options,
        None => options.application_name("matrix2acrobits"),
    }
}
