//! What there is to know of a database server that others run: for whoever looks for the reason of trouble.

/// A server, as one connection to it sees it.
#[expect(clippy::struct_excessive_bools, reason = "each is one fact of its own")]
#[derive(Debug, Clone, Default)]
pub struct ServerFacts {
    /// Its release, such as 15.18.
    pub version: String,
    /// It follows another server and takes no writes.
    pub standby: bool,
    /// New transactions may only read.
    pub read_only: bool,
    /// The encoding of the database's texts.
    pub encoding: String,
    /// Whether it clears up by itself.
    pub autovacuum: bool,
    /// Whether our user may make tables.
    pub may_create: bool,
    /// Tables that our user may not fully use, or cannot change the schema of.
    pub closed_tables: Vec<String>,
    /// Whether what is told on one connection is heard on another.
    pub hears: bool,
    /// How far its clock is ahead of this machine's, in milliseconds.
    pub ahead_ms: i64,
    /// Whether it is on this machine.
    pub local: bool,
    /// Whether the connection is encrypted.
    pub encrypted: bool,
    /// Connections.
    pub connections: Connections,
    /// The transactions that have been open for longest; they keep what was deleted since.
    pub old_transactions: Vec<OldTransaction>,
}

/// How many connections there are, and may be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Connections {
    /// How many users like ours may have in all, whoever they are.
    pub most: i64,
    /// How many of these are taken.
    pub taken: i64,
    /// How many our user, or all users of our database, may have, where that is limited.
    pub most_of_ours: Option<i64>,
    /// How many our processes have, without the doctor's.
    pub ours: i64,
    /// How many of our processes are connected.
    pub processes: i64,
}

/// A transaction that is open for long.
#[derive(Debug, Clone, Default)]
pub struct OldTransaction {
    /// Seconds since it began, where the server says.
    pub age: Option<i64>,
    /// What the server calls it: a process with its program, or a prepared transaction.
    pub name: String,
    /// The statement that ends it.
    pub end: String,
}
