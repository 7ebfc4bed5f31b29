//! docs/operations/README.md as an operator follows it: every command as it stands there, on a machine with systemd, and on
//! one with Podman, from the installation to a restored backup.
//!
//! tests/run leaves this out, and says so, where systemd does not run in a container.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests outside of #[test] functions; the times are worth showing"
)]

mod podman;
mod systemd;

use std::path::PathBuf;
use std::time::Instant;

use matrix2acrobits_tests::compose::{IN_TIME, Lab, programs};
use matrix2acrobits_tests::documents::{blocks, document, inline, section};
use matrix2acrobits_tests::fixtures::{BOB, Phone, message};
use matrix2acrobits_tests::machine::Machine;
use matrix2acrobits_tests::{eventually, within};
use serde_json::{Value, json};

const PAGE: &str = "docs/operations/README.md";
const SETTINGS: &str = "/etc/matrix2acrobits/env";
/// What the stand-ins print.
const HEARD: &str = "/root/stand-ins.log";

/// A machine, and what lies around it.
struct Site {
    machine: Machine,
    page: String,
    /// How the two programs reach what listens on the machine itself.
    host: &'static str,
    phone: Phone,
    started: Instant,
    lab: Lab,
}

impl Site {
    async fn new(host: &'static str) -> Self {
        let started = Instant::now();
        let programs = programs(env!("CARGO_BIN_EXE_stand-ins"));
        let lab = Lab::new(&programs.each_ref().map(PathBuf::as_path)).await;
        let site = Self {
            machine: Machine::boot(&lab).await,
            page: document(PAGE),
            host,
            // It has the selector that the document's commands name.
            phone: Phone::seed(),
            started,
            lab,
        };
        site.done("a machine");
        site
    }

    fn done(&self, what: &str) {
        println!("{:4.0} s: {what}", self.started.elapsed().as_secs_f64());
    }

    /// "Edit `/etc/matrix2acrobits/env`"
    async fn edit_the_settings(&self) {
        let mut settings = self.machine.run(&format!("cat {SETTINGS}")).await;
        for (name, own) in [
            ("MATRIX_HOMESERVER_URL=https://matrix.example.org\n", "8008"),
            ("PROXY_URL=https://push.example.org\n", "8443"),
        ] {
            assert!(settings.contains(name), "{name} in {settings}");
            let (setting, _) = name.split_once('=').unwrap();
            let own = format!("{setting}=http://{}:{own}\n", self.host);
            settings = settings.replace(name, &own);
        }
        let pnm = format!("PNM_URL=http://{}:8009/pnm2/send", self.host);
        // There is no TLS here, and no Acrobits.
        let more = format!("{pnm}\nALLOW_INSECURE_PROXY_URL=true");
        self.machine
            .run(&format!("cat > {SETTINGS} <<'END'\n{settings}{more}\nEND"))
            .await;
    }

    /// "Give `registration.yaml` to Synapse": to a stand-in that accepts its token, with PNM's stand-in. And a reverse
    /// proxy for `PROXY_URL`.
    async fn start_what_is_around(&self, registration: &str) {
        self.machine
            .run(&format!(
                "umask 077
                sed -n 's/^as_token: /MATRIX_AS_TOKEN=/p' {registration} > /run/stand-ins
                systemd-run --quiet --unit=stand-ins --property=EnvironmentFile=/run/stand-ins \
                    --property=StandardOutput=append:{HEARD} \
                    --setenv=HOMESERVER_ADDR=0.0.0.0:8008 --setenv=PNM_ADDR=0.0.0.0:8009 /built/stand-ins
                systemd-run --quiet --unit=reverse-proxy --socket-property=ListenStream=0.0.0.0:8443 \
                    /usr/lib/systemd/systemd-socket-proxyd 127.0.0.1:8080"
            ))
            .await;
    }

    async fn survives_a_reboot(&self, registration: &str) {
        self.stop_cleanly().await;
        self.machine.reboot().await;
        self.start_what_is_around(registration).await;
        self.are_ready().await;
        self.a_message_arrives("$rebooted").await;
        self.done("stopped, rebooted");
    }

    async fn heard(&self) -> String {
        self.machine.run(&format!("cat {HEARD}")).await
    }

    async fn are_ready(&self) {
        for port in [9090, 9091] {
            let ask =
                format!("curl --silent --fail --max-time 5 http://127.0.0.1:{port}/health/ready");
            let ready = within(IN_TIME, async || {
                self.machine.try_run(&ask).await.status.success()
            });
            if !ready.await {
                let journal = self.machine.run("journalctl --boot --lines=60").await;
                unreachable!("nothing is ready on {port}: {journal}");
            }
        }
    }

    /// A request to the public listener, which has to answer 200.
    async fn post(&self, path: &str, body: &Value) -> Value {
        let post = format!(
            "curl --silent --show-error --fail --json @- http://127.0.0.1:8080/{path} <<'END'\n{body}\nEND"
        );
        serde_json::from_str(&self.machine.run(&post).await).unwrap()
    }

    /// The phone reports, and the operator says whose it is, once the first of the document's lines gives the token.
    async fn provision(&self, admin_token: &str) {
        let report = self.phone.report();
        self.post("api/client/push_token_report", &report).await;
        let commands = blocks(section(&self.page, "## Provision the phones"));
        let [provision] = &commands[..] else {
            unreachable!("one block: {commands:?}");
        };
        let (first, rest) = provision.split_once('\n').unwrap();
        assert!(first.starts_with("ADMIN_TOKEN=$("), "{first}");
        let said = self.machine.run(&format!("{admin_token}\n{rest}")).await;
        assert!(
            said.contains(&self.phone.selector),
            "it has reported: {said}"
        );
        assert!(said.contains(BOB), "it is mapped: {said}");
        let set = format!("pusher of {BOB} set, token {}\n", self.phone.token);
        eventually(IN_TIME, "the pusher is set", async || {
            self.heard().await.contains(&set)
        })
        .await;
    }

    /// The homeserver has a message for the phone, and PNM gets it.
    async fn a_message_arrives(&self, event_id: &str) {
        let body = message(event_id, &[self.phone.device()]);
        let answer = self.post("_matrix/push/v1/notify", &body).await;
        assert_eq!(answer, json!({"rejected": []}));
        let heard = self.heard().await;
        let pushed = |line: &str| line.starts_with("PNM: push {") && line.contains(event_id);
        assert!(heard.lines().any(pushed), "{event_id}: {heard}");
    }

    /// What the commands of [check](#check) print when all is well.
    fn nothing_is_wrong(doctor: &str) {
        println!("{doctor}");
        assert!(doctor.lines().count() > 10, "{doctor}");
        assert!(!doctor.contains("WRONG"), "{doctor}");
        assert!(doctor.contains("held as wanted"), "{doctor}");
    }

    /// A property of a unit.
    async fn unit(&self, name: &str, property: &str) -> String {
        let show = format!("systemctl show --value --property={property} matrix2acrobits-{name}");
        self.machine.run(&show).await.trim().to_owned()
    }

    /// Both stop within their time, of their own will.
    async fn stop_cleanly(&self) {
        let asked = Instant::now();
        self.machine
            .run("systemctl stop matrix2acrobits-api matrix2acrobits-worker")
            .await;
        let took = asked.elapsed();
        assert!(took.as_secs() < 20, "stopping took {took:?}");
        for name in ["api", "worker"] {
            assert_eq!(self.unit(name, "ActiveState").await, "inactive");
            assert_eq!(self.unit(name, "Result").await, "success");
            assert_eq!(self.unit(name, "ExecMainStatus").await, "0");
        }
    }

    /// A process that is killed is started again. The command tells its id.
    async fn go_on_after_a_kill(&self, pid_of: &str) {
        for name in ["api", "worker"] {
            let kill = format!("kill -KILL \"$({pid_of} matrix2acrobits-{name})\"");
            self.machine.run(&kill).await;
            eventually(IN_TIME, &format!("{name} is restarted"), async || {
                self.unit(name, "NRestarts").await == "1"
            })
            .await;
        }
        self.are_ready().await;
    }

    /// A phone that reports between the backup and its return is lost with its database; the other is not.
    async fn restore_a_backup(&self, backup: &str, restore: &str, admin_token: &str) {
        self.machine.run(backup).await;
        let mode = "stat --format %a /var/backups/matrix2acrobits.db";
        assert_eq!(self.machine.run(mode).await, "600\n", "root's alone");
        let check = "sqlite3 /var/backups/matrix2acrobits.db 'PRAGMA integrity_check'";
        assert_eq!(self.machine.run(check).await, "ok\n");
        let late = Phone::new("after-the-backup");
        self.post("api/client/push_token_report", &late.report())
            .await;
        let phones = format!(
            "{admin_token}\ncurl --silent --fail -H \"Authorization: Bearer $ADMIN_TOKEN\" \
            http://127.0.0.1:9090/api/internal/push_tokens"
        );
        assert!(self.machine.run(&phones).await.contains(&late.selector));
        // "`data` from above"
        let data = backup.lines().find(|line| line.starts_with("data="));
        let restore = format!("{}\n{restore}", data.unwrap_or_default());
        println!("{}", self.machine.run(&restore).await);
        self.are_ready().await;
        let phones = self.machine.run(&phones).await;
        assert!(phones.contains(&self.phone.selector), "{phones}");
        assert!(!phones.contains(&late.selector), "{phones}");
        self.a_message_arrives("$restored").await;
    }

    /// Code 2: systemd does not try again, and the journal says what is wrong.
    async fn a_wrong_setting_ends_it(&self) {
        let restart = format!(
            "sed -i 's/^PROXY_URL=.*/PROXY_URL=nonsense/' {SETTINGS}
            systemctl restart matrix2acrobits-worker"
        );
        // systemctl may or may not notice how it ends.
        self.machine.try_run(&restart).await;
        eventually(IN_TIME, "the worker is given up", async || {
            self.unit("worker", "ActiveState").await == "failed"
        })
        .await;
        assert_eq!(self.unit("worker", "ExecMainStatus").await, "2");
        let text = section(&self.page, "### systemd");
        let journal = inline(text, "journalctl --unit ").replace("-api", "-worker");
        let said = self.machine.run(&format!("{journal} --lines=20")).await;
        assert!(said.contains("PROXY_URL"), "{said}");
    }

    /// The journal holds no secret and no token, and the two programs' lines are in it.
    async fn the_journal_keeps_secrets(&self, admin_token: &str, registration: &str) {
        let journal = self.machine.run("journalctl --boot=all").await;
        let tokens = format!(
            "{admin_token}\necho \"$ADMIN_TOKEN\"; sed -n 's/^[ah]s_token: //p' {registration}"
        );
        let tokens = self.machine.run(&tokens).await;
        let mut secrets: Vec<_> = tokens.lines().collect();
        assert_eq!(secrets.len(), 3, "{tokens}");
        secrets.push(&self.phone.token);
        for secret in secrets {
            assert!(secret.len() > 20, "{secret}");
            for line in journal.lines() {
                assert!(!line.contains(secret), "{secret}: {line}");
            }
        }
    }
}
