//! Facts that the server reports about itself and our rights.

use matrix2acrobits_shared::flow::server::{Connections, OldTransaction, ServerFacts};
use sqlx::PgConnection;

/// The end of the name of a change feed's connection. Every process has one such connection.
pub(crate) const FEED: &str = " feed";

/// The facts that one statement can read.
pub(crate) async fn facts(connection: &mut PgConnection) -> Result<ServerFacts, sqlx::Error> {
    let row = sqlx::query!(
        r#"SELECT split_part(current_setting('server_version'), ' ', 1) AS "version!",
                  pg_is_in_recovery() AS "standby!",
                  current_setting('default_transaction_read_only')::boolean AS "read_only!",
                  pg_encoding_to_char(encoding)::text AS "encoding!",
                  current_setting('autovacuum')::boolean
                      AND current_setting('track_counts')::boolean AS "autovacuum!",
                  coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS "may_create!",
                  ARRAY(SELECT tablename::text
                        FROM pg_tables
                        WHERE schemaname = current_schema()
                          AND NOT pg_has_role(tableowner, 'USAGE')
                        ORDER BY 1) AS "closed_tables!",
                  coalesce((SELECT ssl
                            FROM pg_stat_ssl
                            WHERE pid = pg_backend_pid()), false) AS "encrypted!"
           FROM pg_database
           WHERE datname = current_database()"#
    )
    .fetch_one(connection)
    .await?;
    Ok(ServerFacts {
        version: row.version,
        standby: row.standby,
        read_only: row.read_only,
        encoding: row.encoding,
        autovacuum: row.autovacuum,
        may_create: row.may_create,
        closed_tables: row.closed_tables,
        encrypted: row.encrypted,
        ..ServerFacts::default()
    })
}

/// Counts connections. `examining` is the name of the connections that examine the server.
pub(crate) async fn connections(
    connection: &mut PgConnection,
    examining: &str,
) -> Result<Connections, sqlx::Error> {
    let row = sqlx::query!(
        r#"SELECT current_setting('max_connections')::int8
                      - current_setting('superuser_reserved_connections')::int8
                      -- It came with release 16.
                      - coalesce(current_setting('reserved_connections', true)::int8, 0) AS "most!",
                  count(*) FILTER (WHERE a.application_name <> $1) AS "taken!",
                  (SELECT least(nullif(d.datconnlimit, -1), nullif(r.rolconnlimit, -1))::int8
                   FROM pg_database d, pg_roles r
                   WHERE d.datname = current_database()
                     AND r.rolname = current_user) AS most_of_ours,
                  count(*) FILTER (WHERE a.datname = current_database()
                                     AND a.usename = current_user
                                     AND a.application_name <> $1) AS "ours!",
                  count(*) FILTER (WHERE a.datname = current_database()
                                     AND a.usename = current_user
                                     AND right(a.application_name, length($2)) = $2) AS "processes!"
           FROM pg_stat_activity a
           -- What kind of process another user's is, is hidden from us.
           WHERE a.usesysid IS NOT NULL"#,
        examining,
        FEED
    )
    .fetch_one(connection)
    .await?;
    Ok(Connections {
        most: row.most,
        taken: row.taken,
        most_of_ours: row.most_of_ours,
        ours: row.ours,
        processes: row.processes,
    })
}

/// Sends a notification to a channel.
pub(crate) async fn tell(connection: &mut PgConnection, channel: &str) -> Result<(), sqlx::Error> {
    sqlx::query!(r#"SELECT pg_notify($1, '')::text AS "told!""#, channel)
        .fetch_one(connection)
        .await?;
    Ok(())
}

/// Up to `limit` transactions of this database that have been open for this many seconds, the oldest first. For other
/// users' transactions, the server does not say since when, but how many transactions ago.
pub(crate) async fn old_transactions(
    connection: &mut PgConnection,
    age: i64,
    transactions: i32,
    limit: i64,
) -> Result<Vec<OldTransaction>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT o.age,
                  o.name AS "name!",
                  o.statement AS "end!"
           FROM (SELECT extract(epoch FROM now() - xact_start)::int8 AS age,
                        format('process %s (%s of user %s)', pid, application_name, usename) AS name,
                        format('SELECT pg_terminate_backend(%s)', pid) AS statement,
                        age(backend_xmin) AS transactions
                 FROM pg_stat_activity
                 WHERE datname = current_database()
                   AND backend_xmin IS NOT NULL
                 UNION ALL
                 SELECT extract(epoch FROM now() - prepared)::int8,
                        format('the prepared transaction %s', gid),
                        format('ROLLBACK PREPARED %L', gid),
                        0
                 FROM pg_prepared_xacts
                 WHERE database = current_database()) o
           WHERE o.age >= $1
              OR (o.age IS NULL AND o.transactions >= $2)
           ORDER BY o.age DESC
           LIMIT $3"#,
        age,
        transactions,
        limit
    )
    .fetch_all(connection)
    .await?;
    let each = rows.into_iter().map(|row| OldTransaction {
        age: row.age,
        name: row.name,
        end: row.end,
    });
    Ok(each.collect())
}
