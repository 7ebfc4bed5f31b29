//! What each statement costs: none reads a whole table that grows with phones, jobs or workers, unless the list
//! below says why. The statements are those that sqlx has checked, so that a new one cannot be forgotten.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{fs, path::Path, str::FromStr, time::Duration};

use matrix2acrobits_shared::clock::Clock;
use matrix2acrobits_sqlite::{DatabaseUrl, Sharing, Sqlite};
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};

/// A table that a statement may read from end to end.
struct Excuse {
    /// A part of the statement that no other has.
    statement: &'static str,
    /// What SQLite says of it.
    step: &'static str,
    /// Why this is right all the same.
    reason: &'static str,
}

const COUNTED: &str = "counts are kept for fifty times as long as they took";
const ONCE: &str = "once in an operator's command, on a connection of its own";

const EXCUSES: [Excuse; 14] = [
    Excuse {
        statement: "AS \"lost_jobs!\"",
        step: "SCAN ",
        reason: ONCE,
    },
    Excuse {
        statement: "DELETE FROM meta",
        step: "SCAN meta",
        reason: "the table has a row for each key",
    },
    Excuse {
        statement: "SELECT count(*) AS \"count!\"\n           FROM push_tokens\n           WHERE of_nobody = 1",
        step: "SCAN push_tokens USING COVERING INDEX push_tokens_of_nobody",
        reason: "there is a bound on the number of these rows",
    },
    Excuse {
        statement: "SELECT state, count(*)",
        step: "SCAN pushers",
        reason: COUNTED,
    },
    Excuse {
        statement: "SELECT 'Killed', count(*)",
        step: "SCAN Jobs USING INDEX jobs_due",
        reason: COUNTED,
    },
    Excuse {
        statement: "SELECT 'Killed', count(*)",
        step: "SCAN Jobs USING INDEX jobs_suspect",
        reason: COUNTED,
    },
    Excuse {
        statement: "SELECT 'Killed', count(*)",
        step: "SCAN Jobs USING COVERING INDEX jobs_dead",
        reason: COUNTED,
    },
    Excuse {
        statement: "coalesce(substr(registered_as, -length(?1)), '') <> ?1",
        step: "SCAN pushers",
        reason: ONCE,
    },
    Excuse {
        statement: "substr(registered_as, -length(?1)) = ?1",
        step: "SCAN pushers",
        reason: ONCE,
    },
    Excuse {
        statement: "SELECT count(*) AS \"count!\"\n           FROM pushers\n           WHERE state <> 'removed'",
        step: "SCAN pushers",
        reason: ONCE,
    },
    Excuse {
        statement: "FROM Jobs INDEXED BY jobs_dead",
        step: "SCAN Jobs USING INDEX jobs_dead",
        reason: "ends at its limit, in the order of the index",
    },
    Excuse {
        statement: "SELECT value\n         FROM token_epoch",
        step: "SCAN token_epoch",
        reason: "the table has one row",
    },
    Excuse {
        statement: "UPDATE token_epoch",
        step: "SCAN token_epoch",
        reason: "the table has one row",
    },
    Excuse {
        statement: "FROM sqlite_sequence",
        step: "SCAN sqlite_sequence",
        reason: "the table has a row for each table",
    },
];

/// Ten thousand rows in each table that can grow; jobs and pushers in every state.
const ROWS: [&str; 8] = [
    "INSERT INTO push_tokens (selector, device, owner, token_msgs, app_id_msgs, report, dead_at, created_at, updated_at)
     SELECT 's' || value, 'd', iif(value % 3 = 0, '@u' || value || ':x', NULL), 'k' || value, 'app', 1,
         iif(value % 7 = 0, 1, NULL), 1, 1
     FROM generate_series",
    "INSERT INTO arrivals (phone, pushed_at, waiting_since, received_at, receipts)
     SELECT id, 1, iif(id % 2 = 0, 1, NULL), iif(id % 3 = 0, 1, NULL), 1
     FROM push_tokens, (SELECT 1 FROM generate_series LIMIT 1)",
    "INSERT INTO mappings (selector, user_id, created_at, updated_at)
     SELECT 's' || value, '@u' || value || ':x', 1, 1
     FROM generate_series",
    "INSERT INTO pushers (user_id, app_id, pushkey, selector, wanted, state, generation, claim, created_at, updated_at)
     SELECT '@u' || value || ':x', 'app', 'k' || value, 's' || value, iif(value % 5 = 0, 'absent', 'present'),
         CASE value % 4 WHEN 0 THEN 'pending' WHEN 1 THEN 'registered' WHEN 2 THEN 'failed' ELSE 'removed' END, 1, 1, 1, 1
     FROM generate_series",
    "INSERT INTO Workers (id, worker_type, storage_name, layers, last_seen, started_at)
     SELECT 'w' || value, 'sync_pusher', 'SqliteStorage', '', value, value
     FROM generate_series",
    "INSERT INTO gates (worker, state, since)
     SELECT 'w' || value, 'open', 1
     FROM generate_series",
    "INSERT INTO worker_settings (worker, settings)
     SELECT 'w' || value, 'settings'
     FROM generate_series",
    "INSERT INTO Jobs (id, job, job_type, status, attempts, run_at, metadata, pusher_id, lock_by, lost, done_at)
     SELECT 'j' || value, '{}', 'sync_pusher',
         CASE value % 5 WHEN 0 THEN 'Pending' WHEN 1 THEN 'Failed' WHEN 2 THEN 'Killed' WHEN 3 THEN 'Queued' ELSE 'Running' END,
         1, value, '{}', value, iif(value % 5 > 2, 'w' || value, NULL), iif(value % 10 = 0, 1, NULL),
         iif(value % 5 = 2, value, NULL)
     FROM generate_series",
];

/// The statements that sqlx has checked.
fn statements() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx");
    let files = fs::read_dir(folder).unwrap();
    let query = |file: std::io::Result<fs::DirEntry>| {
        let file = fs::read(file.unwrap().path()).unwrap();
        let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
        file["query"].as_str().unwrap().to_owned()
    };
    files.map(query).collect()
}

/// How many statements the source has.
fn written() -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/statements");
    let files = fs::read_dir(folder).unwrap();
    let count = |file: std::io::Result<fs::DirEntry>| {
        let source = fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!source.contains("sqlx::query("), "sqlx has not checked it");
        source.matches("sqlx::query").count()
    };
    files.map(count).sum()
}

/// The steps of a plan that read all that there is of a stored table.
fn whole_tables(plan: &[String]) -> impl Iterator<Item = &String> {
    // What a part of the statement has found is no stored table.
    let found = plan.iter().filter_map(|step| {
        let name = step.strip_prefix("CO-ROUTINE ");
        name.or_else(|| step.strip_prefix("MATERIALIZE "))
    });
    let found: Vec<_> = found.collect();
    plan.iter().filter(move |step| {
        let scanned = step.strip_prefix("SCAN ").is_some_and(|what| {
            !what.contains("VIRTUAL TABLE")
                && !what.ends_with("CONSTANT ROW")
                && !what.ends_with("VALUES CLAUSE")
                && !found.contains(&what)
        });
        // An index that is made for one run costs as much.
        scanned || step.contains("AUTOMATIC")
    })
}

/// A file of this release with [`ROWS`]. Like our users' it has no statistics of SQLite's.
async fn filled(folder: &Path) -> SqliteConnection {
    let path = folder.join("full.db");
    let url = format!("sqlite://{}", path.display());
    let database = DatabaseUrl::from_str(&url).unwrap();
    let sharing = Sharing::ahead(Duration::from_secs(10));
    drop(
        Sqlite::open(&database, sharing, Clock::system())
            .await
            .unwrap(),
    );
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    for rows in ROWS {
        let series = "WITH RECURSIVE generate_series (value) AS (
                          SELECT 1 UNION ALL SELECT value + 1 FROM generate_series WHERE value < 10000)";
        let rows = AssertSqlSafe(format!("{series} {rows}"));
        sqlx::query(rows).execute(&mut connection).await.unwrap();
    }
    connection
}

async fn complain(connection: &mut SqliteConnection) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut used = [false; EXCUSES.len()];
    for statement in statements() {
        let plan = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
        let plan = sqlx::query(plan).fetch_all(&mut *connection).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|row| row.get("detail")).collect();
        for step in whole_tables(&plan) {
            let excuse = EXCUSES
                .iter()
                .position(|it| statement.contains(it.statement) && step.starts_with(it.step));
            match excuse {
                Some(place) => used[place] = true,
                None => complaints.push(format!("{step}\n{statement}")),
            }
        }
    }
    let needless = EXCUSES.iter().zip(used).filter(|(_, used)| !used);
    complaints.extend(
        needless.map(|(it, _)| format!("no longer needed: {} ({})", it.statement, it.reason)),
    );
    complaints
}

#[tokio::test]
async fn no_statement_reads_a_whole_table_without_a_reason() {
    assert_eq!(
        statements().len(),
        written(),
        "run tests/check-queries --renew"
    );
    let folder = tempfile::tempdir().unwrap();
    let mut connection = filled(folder.path()).await;
    let complaints = complain(&mut connection).await;
    assert!(complaints.is_empty(), "{}", complaints.join("\n\n"));
}
