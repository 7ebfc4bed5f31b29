//! Makes connections, each with its settings from the first statement on.

use std::time::Duration;

use matrix2acrobits_shared::flow::StoreError;
use sqlx::{PgConnection, postgres::PgConnectOptions};

use crate::{
    DatabaseUrl,
    errors::{NoAnswer, Standby},
    open::{OpenError, open_error},
    statements::session,
};

/// The time limit for the first connection.
const CONNECT: Duration = Duration::from_secs(5);

/// When a machine is lost, nobody closes its connections. With these settings the server notices after a minute. Without
/// them its processes would hold their places, and perhaps locks, for hours. A server on a socket ignores them.
pub(crate) const NOTICE_LOSS: [session::Setting; 4] = [
    ("tcp_keepalives_idle", "30"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "60s"),
];

/// The way to the database. Statements make the settings, because a connection pooler refuses settings that come with
/// the login (`options`), or forgets them.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    options: PgConnectOptions,
    settings: Vec<session::Setting>,
    /// Whether a standby is acceptable.
    standby: bool,
}

impl Access {
    /// The settings of all connections: the program's name, and the time limit for a statement.
    pub(crate) fn new(database: &DatabaseUrl, statement_timeout: &'static str) -> Self {
        let mut settings = NOTICE_LOSS.to_vec();
        settings.extend([
            // The triggers of the schema report changes that do not come from our programs.
            ("matrix2acrobits.program", "1"),
            ("statement_timeout", statement_timeout),
            ("lock_timeout", statement_timeout),
            ("idle_in_transaction_session_timeout", "5s"),
            ("default_transaction_isolation", "read committed"),
            ("jit", "off"),
        ]);
        Self {
            options: bare(database),
            settings,
            standby: false,
        }
    }

    /// The same for connections whose statements all look up rows by an index. PostgreSQL must use the index even while
    /// a table is young or its statistics are old.
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

    /// The same for a caller that only looks, so that a standby is acceptable.
    pub(crate) fn on_standby(mut self) -> Self {
        self.standby = true;
        self
    }

    /// The same with another name.
    pub(crate) fn named(mut self, name: &str) -> Self {
        self.options = self.options.application_name(name);
        self
    }

    /// The connection options.
    pub(crate) fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// Makes the settings of a new connection. Refuses a standby, because it may be behind, and then we would reject a
    /// token that it does not know yet.
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

    /// Connects for the first time. The error says what went wrong.
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

/// Connection options without our settings.
pub(crate) fn bare(database: &DatabaseUrl) -> PgConnectOptions {
    // A pooler does not know extra_float_digits, and we read no floats.
    let options = database.options().extra_float_digits(None);
    match options.get_application_name() {
        Some(_) => options,
        None => options.application_name("matrix2acrobits"),
    }
}
