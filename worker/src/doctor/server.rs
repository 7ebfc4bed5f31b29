//! The doctor's checks of a PostgreSQL server: whether the database can be used, and what will make it slow.

use matrix2acrobits_shared::flow::server::{Connections, OldTransaction, ServerFacts};
use matrix2acrobits_store::{Database, Store};

use super::Report;

/// How far two clocks may differ, in milliseconds.
const SKEW: i64 = 5_000;

/// Checks the server. False when the database cannot be used, and then the report says why.
pub(super) async fn check(database: &Database, report: &mut Report) -> bool {
    match Store::examine(database).await {
        None => true,
        Some(Err(error)) => {
            report.wrong("database", &error.to_string());
            false
        }
        Some(Ok(facts)) => {
            server(&facts, report);
            rights(&facts, report);
            feed(&facts, report);
            clock(facts.ahead_ms, report);
            connections(&facts.connections, database.max_connections.into(), report);
            encryption(&facts, report);
            for old in &facts.old_transactions {
                report.suspect("transactions", &old_words(old));
            }
            !(facts.standby || facts.read_only)
        }
    }
}

fn server(facts: &ServerFacts, report: &mut Report) {
    let before = report.wrong;
    if facts.standby {
        report.wrong(
            "server",
            "it is a standby, which takes no writes: DATABASE_URL must lead to the primary",
        );
    } else if facts.read_only {
        report.wrong(
            "server",
            "default_transaction_read_only is on, so nothing can be saved: somebody switched it on, or the service that \
             runs the server did because the disk is full; mend that, then switch it off",
        );
    }
    if facts.encoding != "UTF8" {
        let text = format!(
            "the database's encoding is {}, so not every text can be saved: make a new one with `createdb --encoding=UTF8 \
             --template=template0` and move the data by pg_dump",
            facts.encoding
        );
        report.wrong("server", &text);
    }
    if !facts.autovacuum {
        report.wrong(
            "server",
            "autovacuum or track_counts is off, so the queue's table grows and slows down: switch both on",
        );
    }
    if report.wrong == before {
        let text = format!(
            "PostgreSQL {}, takes writes, {}, autovacuum is on",
            facts.version, facts.encoding
        );
        report.ok("server", &text);
    }
}

fn rights(facts: &ServerFacts, report: &mut Report) {
    if !facts.may_create {
        report.wrong(
            "rights",
            "the user may not make tables: make it the database's owner (`ALTER DATABASE … OWNER TO …`), or GRANT CREATE \
             ON SCHEMA public",
        );
    }
    if !facts.closed_tables.is_empty() {
        let text = format!(
            "these tables belong to another user, so an upgrade cannot change them: {}: `ALTER TABLE … OWNER TO …` for each",
            facts.closed_tables.join(", ")
        );
        report.wrong("rights", &text);
    }
    if facts.may_create && facts.closed_tables.is_empty() {
        report.ok(
            "rights",
            "the user may make tables and owns those that exist",
        );
    }
}

fn feed(facts: &ServerFacts, report: &mut Report) {
    if facts.hears {
        report.ok("sessions", "they last, and LISTEN hears NOTIFY");
    } else if !facts.standby {
        report.wrong(
            "sessions",
            "what is told by NOTIFY is not heard by LISTEN, so no process learns of another's changes: connect to PostgreSQL \
             itself, without what stands between",
        );
    }
}

fn clock(ahead_ms: i64, report: &mut Report) {
    if ahead_ms.abs() <= SKEW {
        return report.ok("server clock", "as this machine's");
    }
    let (seconds, where_to) = (
        ahead_ms.abs() / 1000,
        if ahead_ms > 0 { "ahead of" } else { "behind" },
    );
    let text = format!(
        "the server is {seconds} s {where_to} this machine: all goes by the server's clock, but logs do not match; set both \
         by NTP"
    );
    report.wrong("server clock", &text);
}

/// Checks whether there are enough connections for all processes, and for one more that replaces another during an
/// upgrade.
fn connections(there: &Connections, each: i64, report: &mut Report) {
    let all = there.processes * each;
    let others = there.taken - there.ours;
    let left = there.most - others;
    let left = there.most_of_ours.map_or(left, |most| left.min(most));
    let counted = format!(
        "the server has {left} for us, {} processes run, each may take {each} (DATABASE_MAX_CONNECTIONS)",
        there.processes
    );
    let advice = "raise max_connections (or the user's or database's CONNECTION LIMIT), or lower DATABASE_MAX_CONNECTIONS";
    if all > left {
        report.wrong("connections", &format!("{counted}: {advice}"));
    } else if all + each > left {
        let text =
            format!("{counted}, and one more will not fit beside them during an upgrade: {advice}");
        report.suspect("connections", &text);
    } else {
        report.ok("connections", &counted);
    }
}

fn encryption(facts: &ServerFacts, report: &mut Report) {
    match (facts.encrypted, facts.local) {
        (true, _) => report.ok("TLS", "the connection is encrypted"),
        (false, true) => report.ok("TLS", "not needed: the server is on this machine"),
        (false, false) => report.suspect(
            "TLS",
            "the connection to another machine is not encrypted, so tokens can be read on the way: switch ssl on at the \
             server and add ?sslmode=verify-full to DATABASE_URL, unless the network is the bridge's own",
        ),
    }
}

fn old_words(old: &OldTransaction) -> String {
    let age = old.age.and_then(|age| u64::try_from(age).ok());
    let age = age.map_or("for long".to_owned(), |age| {
        let age = std::time::Duration::from_secs(age / 60 * 60);
        format!("for {}", humantime::format_duration(age))
    });
    format!(
        "{} is open {age}: until it ends, the queue's deleted rows stay and slow it down. A running dump ends by itself; \
         otherwise `{}`",
        old.name, old.end
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> ServerFacts {
        ServerFacts {
            encoding: "UTF8".into(),
            autovacuum: true,
            may_create: true,
            hears: true,
            ..ServerFacts::default()
        }
    }

    /// The numbers of ok, wrong and suspect lines.
    fn counts(say: impl FnOnce(&mut Report)) -> (u32, u32, u32) {
        let mut report = Report::default();
        say(&mut report);
        (report.ok, report.wrong, report.suspects)
    }

    #[test]
    fn each_fault_of_a_server_is_wrong() {
        let of = |facts: &ServerFacts| {
            counts(|report| {
                server(facts, report);
                rights(facts, report);
                feed(facts, report);
            })
        };
        assert_eq!(of(&fine()), (3, 0, 0));
        let faults: [fn(&mut ServerFacts); 7] = [
            |facts| facts.standby = true,
            |facts| facts.read_only = true,
            |facts| facts.encoding = "SQL_ASCII".into(),
            |facts| facts.autovacuum = false,
            |facts| facts.may_create = false,
            |facts| facts.closed_tables = vec!["jobs".into()],
            |facts| facts.hears = false,
        ];
        for fault in faults {
            let mut facts = fine();
            fault(&mut facts);
            assert_eq!(of(&facts), (2, 1, 0), "{facts:?}");
        }
    }

    #[test]
    fn connections_must_do_for_all_and_one_more() {
        let of = |most: i64, others: i64, most_of_ours, processes| {
            let there = Connections {
                most,
                taken: others + 3,
                most_of_ours,
                ours: 3,
                processes,
            };
            counts(|report| connections(&there, 8, report))
        };
        let (fine, wrong, suspect) = ((1, 0, 0), (0, 1, 0), (0, 0, 1));
        assert_eq!(of(97, 0, None, 4), fine);
        assert_eq!(of(40, 0, None, 4), fine);
        assert_eq!(of(39, 0, None, 4), suspect);
        assert_eq!(of(97, 60, None, 4), suspect);
        assert_eq!(of(97, 70, None, 4), wrong);
        assert_eq!(of(97, 0, Some(20), 4), wrong);
        assert_eq!(of(97, 0, None, 0), fine);
    }

    #[test]
    fn clocks_and_encryption() {
        let clock_of = |ms| counts(|report| clock(ms, report));
        assert_eq!(clock_of(-4_000), (1, 0, 0));
        assert_eq!(clock_of(6_000), (0, 1, 0));
        let tls = |encrypted, local| {
            let facts = ServerFacts {
                encrypted,
                local,
                ..fine()
            };
            counts(|report| encryption(&facts, report))
        };
        assert_eq!(tls(true, false), (1, 0, 0));
        assert_eq!(tls(false, true), (1, 0, 0));
        assert_eq!(tls(false, false), (0, 0, 1));
    }
}
