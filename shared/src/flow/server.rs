//! Facts about a database server that the operator runs, for finding the cause of a problem.

/// A server, as one connection to it sees it.
#[expect(clippy::struct_excessive_bools, reason = "each is one fact of its own")]
#[derive(Debug, Clone, Default)]
pub struct ServerFacts {
    /// The server's release, such as 15.18.
    pub version: String,
    /// Whether the server follows another one and takes no writes.
    pub standby: bool,
    /// Whether new transactions may only read.
    pub read_only: bool,
    /// The encoding of the database's texts.
    pub encoding: String,
    /// Whether autovacuum is on.
    pub autovacuum: bool,
    /// Whether our user may make tables.
    pub may_create: bool,
    /// Tables that our user may not fully use, or whose schema it may not change.
    pub closed_tables: Vec<String>,
    /// Whether a notification from one connection arrives on another.
    pub hears: bool,
    /// How far the server's clock is ahead of this machine's, in milliseconds.
    pub ahead_ms: i64,
    /// Whether the server is on this machine.
    pub local: bool,
    /// Whether the connection is encrypted.
    pub encrypted: bool,
    /// Connections.
    pub connections: Connections,
    /// The transactions that have been open for longest. They keep deleted rows from being cleaned up.
    pub old_transactions: Vec<OldTransaction>,
}

/// How many connections there are, and may be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Connections {
    /// The most connections that ordinary users may have together.
    pub most: i64,
    /// How many of these are in use.
    pub taken: i64,
    /// The most connections of our user, or to our database, if that is limited.
    pub most_of_ours: Option<i64>,
    /// The connections of our processes, without doctor's.
    pub ours: i64,
    /// How many of our processes are connected.
    pub processes: i64,
}

/// A transaction that has been open for long.
#[derive(Debug, Clone, Default)]
pub struct OldTransaction {
    /// Seconds since the transaction began, if the server says so.
    pub age: Option<i64>,
    /// The server's name for it: a process with its program, or a prepared transaction.
    pub name: String,
    /// The statement that ends the transaction.
    pub end: String,
}
