//! What each statement costs, in a database that is new and in one that is full: none reads a whole table that grows with
//! phones, jobs or workers, unless the list below says why. The statements are those that sqlx has checked, so that a
//! new one cannot be forgotten.
//!
//! It needs PostgreSQL's server from Debian's package; where there is none, it says so and tests nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{fs, path::Path, str::FromStr};

use matrix2acrobits_postgres::{DatabaseUrl, FEWEST_CONNECTIONS, Postgres};
use matrix2acrobits_shared::clock::Clock;
use matrix2acrobits_test_postgres::Server;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

/// A table that a statement may read from end to end.
struct Excuse {
    /// A part of the statement.
    statement: &'static str,
    /// How the step of the plan begins.
    step: &'static str,
    /// Why this is right all the same.
    reason: &'static str,
}

const WORKERS: &str = "the table has a row for each worker of the last hour";
const COUNTED: &str = "counts are kept for fifty times as long as they took";
const ONCE: &str = "once in an operator's command";
const YOUNG: &str = "while the table is taken for empty; the first 2,000 rows have it analyzed";

const EXCUSES: [Excuse; 16] = [
    Excuse {
        statement: "",
        step: "Seq Scan workers",
        reason: WORKERS,
    },
    Excuse {
        statement: "DELETE FROM workers w",
        step: "Index Scan workers_pkey",
        reason: WORKERS,
    },
    Excuse {
        statement: "SELECT is_called",
        step: "Seq Scan push_tokens_id_seq",
        reason: "a sequence is one row",
    },
    Excuse {
        statement: "DELETE FROM meta",
        step: "Seq Scan meta",
        reason: "the table has a row for each key",
    },
    Excuse {
        statement: "current_setting('max_connections')",
        step: "Index Scan pg_database_oid_index",
        reason: "the table has a row for each database of the server",
    },
    Excuse {
        statement: "SELECT least((SELECT min(run_at)",
        step: "Index Only Scan jobs_due",
        reason: "ends at the first entry of the index",
    },
    Excuse {
        statement: "WHERE state = 'Killed'",
        step: "Index Scan jobs_dead",
        reason: "ends at its limit, in the order of the index",
    },
    Excuse {
        statement: "AS \"unmapped!\"",
        step: "Bitmap Index Scan push_tokens_by_token_msgs",
        reason: YOUNG,
    },
    Excuse {
        statement: "WHERE a.waiting_since <= $1",
        step: "Bitmap Index Scan push_tokens_by_token_msgs",
        reason: YOUNG,
    },
    Excuse {
        statement: "WHERE t.of_nobody",
        step: "",
        reason: "there is a bound on the number of these rows",
    },
    Excuse {
        statement: "ELSE 'Queued' END",
        step: "Seq Scan jobs",
        reason: COUNTED,
    },
    Excuse {
        statement: "GROUP BY p.state",
        step: "Seq Scan pushers",
        reason: COUNTED,
    },
    Excuse {
        statement: "right(registered_as, length($1)) IS DISTINCT FROM $1",
        step: "Seq Scan pushers",
        reason: ONCE,
    },
    Excuse {
        statement: "right(registered_as, length($1)) = $1",
        step: "Seq Scan pushers",
        reason: ONCE,
    },
    Excuse {
        statement: "AND (NOT $1 OR state = 'failed')",
        step: "Seq Scan pushers",
        reason: ONCE,
    },
    Excuse {
        statement: "AS \"lost_jobs!\"",
        step: "",
        reason: ONCE,
    },
];

/// Ten thousand rows in each table that can grow; jobs and pushers in every state.
const ROWS: &str = "
    INSERT INTO push_tokens (selector, device, owner, token_msgs, app_id_msgs, report, dead_at, created_at, updated_at)
    SELECT 's' || n, 'd', CASE WHEN n % 3 = 0 THEN '@u' || n || ':x' END, 'k' || n, 'app', 1,
        CASE WHEN n % 7 = 0 THEN 1 END, 1, 1
    FROM generate_series(1, 10000) n;
    INSERT INTO arrivals (phone, pushed_at, waiting_since, received_at, receipts)
    SELECT id, 1, CASE WHEN id % 2 = 0 THEN 1 END, CASE WHEN id % 3 = 0 THEN 1 END, 1
    FROM push_tokens;
    INSERT INTO mappings (selector, user_id, created_at, updated_at)
    SELECT 's' || n, '@u' || n || ':x', 1, 1
    FROM generate_series(1, 10000) n;
    INSERT INTO pushers (user_id, app_id, pushkey, selector, wanted, state, generation, claim, created_at, updated_at)
    SELECT '@u' || n || ':x', 'app', 'k' || n, 's' || n, CASE WHEN n % 5 = 0 THEN 'absent' ELSE 'present' END,
        (ARRAY['pending', 'registered', 'failed', 'removed'])[n % 4 + 1], 1, 1, 1, 1
    FROM generate_series(1, 10000) n;
    INSERT INTO workers (name, settings, last_seen)
    SELECT 'w' || n, 'settings', n
    FROM generate_series(1, 10000) n;
    INSERT INTO jobs (pusher_id, created_ms, state, run_at, lock_by, lost, done_at)
    SELECT n, 1, (ARRAY['Pending', 'Failed', 'Killed', 'Queued', 'Running'])[n % 5 + 1], n,
        CASE WHEN n % 5 > 2 THEN 'w' || n END, CASE WHEN n % 10 = 0 THEN 1 END, CASE WHEN n % 5 = 2 THEN n END
    FROM generate_series(1, 10000) n;
    ANALYZE;";

/// As our connections that look up rows by an index have it.
const SETTINGS: &str = "
    SET enable_seqscan TO off;
    SET enable_hashjoin TO off;
    SET enable_mergejoin TO off;
    SET plan_cache_mode TO force_generic_plan;";

/// A statement that sqlx has checked, and how many parameters it has.
struct Statement {
    text: String,
    parameters: usize,
}

/// Those that have a plan.
fn statements() -> Vec<Statement> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx");
    let files = fs::read_dir(folder).unwrap();
    let statement = |file: std::io::Result<fs::DirEntry>| {
        let file = fs::read(file.unwrap().path()).unwrap();
        let file: Value = serde_json::from_slice(&file).unwrap();
        let parameters = &file["describe"]["parameters"]["Left"];
        Statement {
            text: file["query"].as_str().unwrap().to_owned(),
            parameters: parameters.as_array().map_or(0, Vec::len),
        }
    };
    let planned = |it: &Statement| {
        let verbs = ["SELECT", "INSERT", "UPDATE", "DELETE", "WITH"];
        verbs.iter().any(|verb| it.text.starts_with(verb))
    };
    files.map(statement).filter(planned).collect()
}

/// What a plan reads of a table beyond what its conditions ask for.
fn whole_tables(plan: &Value, found: &mut Vec<String>) {
    let kind = plan["Node Type"].as_str().unwrap_or_default();
    let reads_all = match kind {
        "Seq Scan" => true,
        "Index Scan" | "Index Only Scan" | "Bitmap Index Scan" => plan["Index Cond"].is_null(),
        _ => false,
    };
    if reads_all {
        let what = plan["Index Name"].as_str();
        let what = what.or(plan["Relation Name"].as_str());
        found.push(format!("{kind} {}", what.unwrap_or_default()));
    }
    for part in plan["Plans"].as_array().into_iter().flatten() {
        whole_tables(part, found);
    }
}

async fn run(connection: &mut PgConnection, sql: &str) {
    let sql = AssertSqlSafe(sql.to_owned());
    sqlx::raw_sql(sql).execute(connection).await.unwrap();
}

async fn plan(connection: &mut PgConnection, statement: &Statement) -> Vec<String> {
    run(connection, &format!("PREPARE asked AS {}", statement.text)).await;
    let nulls = match statement.parameters {
        0 => String::new(),
        some => format!("({})", vec!["NULL"; some].join(", ")),
    };
    let explain = AssertSqlSafe(format!("EXPLAIN (FORMAT JSON) EXECUTE asked{nulls}"));
    let row = sqlx::raw_sql(explain).fetch_one(&mut *connection).await;
    let plan: String = row.unwrap().get_unchecked(0);
    let plan: Value = serde_json::from_str(&plan).unwrap();
    run(connection, "DEALLOCATE asked").await;
    let mut found = Vec::new();
    whole_tables(&plan[0]["Plan"], &mut found);
    found
}

async fn complain(connection: &mut PgConnection, when: &str, used: &mut [bool]) -> Vec<String> {
    let mut complaints = Vec::new();
    for statement in statements() {
        for step in plan(connection, &statement).await {
            let excuse = EXCUSES
                .iter()
                .position(|it| statement.text.contains(it.statement) && step.starts_with(it.step));
            match excuse {
                Some(place) => used[place] = true,
                None => complaints.push(format!("{when}: {step}\n{}", statement.text)),
            }
        }
    }
    complaints
}

#[tokio::test]
async fn no_statement_reads_a_whole_table_without_a_reason() {
    let Some(server) = Server::shared() else {
        return;
    };
    let database = server.database();
    let url = DatabaseUrl::from_str(&database.url()).unwrap();
    let opened = Postgres::open(&url, FEWEST_CONNECTIONS, Clock::system()).await;
    drop(opened.unwrap());
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    run(&mut connection, SETTINGS).await;

    let mut used = [false; EXCUSES.len()];
    let mut complaints = complain(&mut connection, "new", &mut used).await;
    run(&mut connection, ROWS).await;
    complaints.extend(complain(&mut connection, "full", &mut used).await);
    let needless = EXCUSES.iter().zip(used).filter(|(_, used)| !used);
    complaints.extend(
        needless.map(|(it, _)| format!("no longer needed: {} ({})", it.statement, it.reason)),
    );
    assert!(complaints.is_empty(), "{}", complaints.join("\n\n"));
}
