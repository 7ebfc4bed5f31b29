//! README.md and docs/operations as an operator with compose follows them: the commands as they stand there, but for the
//! ports and the project's name.

use std::fs;
use std::path::PathBuf;

use matrix2acrobits_tests::compose::{IN_TIME, Lab, Stack, root};
use matrix2acrobits_tests::documents::{blocks, document, inline, section};
use matrix2acrobits_tests::eventually;
use matrix2acrobits_tests::fixtures::{BOB, Phone};
use matrix2acrobits_tests::http;

use crate::{Ports, are_ready};

/// An operator in a folder with .env.
struct Operator<'a> {
    stack: Stack<'a>,
    folder: PathBuf,
    ports: Ports,
    page: String,
}

pub(crate) async fn the_documents_commands_work_as_printed(lab: &Lab) {
    let operator = Operator::of(lab);
    operator.install().await;
    operator.provision().await;
    operator.check().await;
    operator.bring_mappings().await;
    operator.restore_a_backup().await;
    operator.stack.compose(&["--profile", "demo", "down"]).await;
}

impl<'a> Operator<'a> {
    fn of(lab: &'a Lab) -> Self {
        let ports = Ports::free();
        let folder = lab.file("operator");
        fs::create_dir_all(&folder).unwrap();
        fs::copy(root().join(".env.example"), folder.join(".env.example")).unwrap();
        let mut env = ports.env();
        env.insert("ENV_FILE".into(), folder.join(".env").display().to_string());
        let compose_file = root().join("docker-compose.yml");
        Self {
            stack: lab.stack("operator", &[compose_file], &[], env),
            folder,
            ports,
            page: document("docs/operations/README.md"),
        }
    }

    async fn run(&self, commands: &str) -> String {
        let commands = commands
            .replace(":8080/", &format!(":{}/", self.ports.api))
            .replace(":9090/", &format!(":{}/", self.ports.api_admin))
            .replace(
                "matrix2acrobits_default",
                &format!("{}_default", self.stack.project()),
            );
        self.stack.shell(&self.folder, &commands).await
    }

    /// Writes what an operator fills in.
    fn fill_in(&self, settings: &[(&str, &str)]) {
        let path = self.folder.join(".env");
        let mut text = fs::read_to_string(&path).unwrap();
        for (name, value) in settings {
            let (before, after) = text.split_once(&format!("\n{name}=")).unwrap();
            let (_, after) = after.split_once('\n').unwrap();
            text = format!("{before}\n{name}={value}\n{after}");
        }
        fs::write(path, text).unwrap();
    }

    /// README.md, "Run it"
    async fn install(&self) {
        let readme = document("README.md");
        let commands = blocks(section(&readme, "## Run it"));
        // The comments are for hands: what to give Synapse and the reverse proxy.
        let lines: Vec<_> = commands[0]
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect();
        let [copy, build, register, up, doctor] = lines[..] else {
            unreachable!("five commands: {lines:?}");
        };
        self.run(copy).await;
        self.fill_in(&[
            ("MATRIX_HOMESERVER_URL", "http://stand-ins:8008"),
            ("PROXY_URL", "http://api:8080"),
            ("ADMIN_TOKEN", "0123456789abcdef0123456789abcdef"),
        ]);
        // There is no TLS here, and no Acrobits.
        let more = "MATRIX_SERVER_NAME=example.org\nALLOW_INSECURE_PROXY_URL=true\n\
            PNM_URL=http://stand-ins:8009/pnm2/send\n";
        let settings = fs::read_to_string(self.folder.join(".env")).unwrap();
        fs::write(self.folder.join(".env"), settings + more).unwrap();
        self.run(build).await;
        self.run(register).await;
        let registration = fs::read_to_string(self.folder.join("registration.yaml")).unwrap();
        let mut lines = registration.lines();
        let token = lines.find_map(|line| line.strip_prefix("as_token: "));
        self.fill_in(&[("MATRIX_AS_TOKEN", token.unwrap())]);
        let synapse = ["--profile", "demo", "up", "--detach", "stand-ins"];
        self.stack.compose(&synapse).await;
        self.run(up).await;
        are_ready(&http::client(), self.ports).await;
        let said = self.run(doctor).await;
        assert!(!said.contains("WRONG"), "{said}");
        let install = section(&self.page, "### Compose");
        let gateway = self.run(&blocks(install)[0]).await;
        assert!(
            gateway.trim().parse::<std::net::IpAddr>().is_ok(),
            "{gateway}"
        );
        let connect = blocks(section(&self.page, "## Connect Synapse"));
        assert!(connect[0].contains(register), "{register} in {connect:?}");
    }

    async fn provision(&self) {
        let phone = Phone::seed();
        self.report(&phone).await;
        let commands = blocks(section(&self.page, "## Provision the phones"));
        let said = self.run(&commands[0]).await;
        assert!(
            said.contains(&phone.selector) && said.contains(BOB),
            "{said}"
        );
        let set = format!("pusher of {BOB} set, token {}\n", phone.token);
        self.stack.logged("stand-ins", &set).await;
    }

    async fn report(&self, phone: &Phone) {
        let url = format!(
            "http://127.0.0.1:{}/api/client/push_token_report",
            self.ports.api
        );
        let report = http::client().post(url).json(&phone.report());
        http::send(report).await.expect_status(200);
    }

    async fn check(&self) {
        let commands = blocks(section(&self.page, "## Check"));
        let said = self.run(&commands[0]).await;
        assert!(said.contains("0 jobs"), "{said}");
        assert!(
            said.contains("held as wanted") && !said.contains("WRONG"),
            "{said}"
        );
        assert!(said.contains("PNM took the push"), "{said}");
        // "With compose, put `docker compose exec api` in front."
        let text = section(&self.page, "## Do pushes arrive?");
        let front = inline(text, "docker compose exec ");
        for line in blocks(text)[0].lines() {
            // The api makes an operator wait between two test pushes to a phone.
            eventually(IN_TIME, line, async || {
                let commands = format!("{front} {line}");
                let output = self.stack.try_shell(&self.folder, &commands).await;
                output.status.success()
            })
            .await;
        }
        let text = section(&self.page, "## Operate");
        let jobs = inline(
            text,
            "docker compose exec worker matrix2acrobits-worker jobs ",
        );
        self.run(&jobs.replace("[--state S] [--json]", "--state killed --json"))
            .await;

        let runbook = document("docs/operations/runbook.md");
        for block in blocks(&runbook) {
            let said = self.run(&block.replace(['[', ']'], "")).await;
            assert!(!said.contains("WRONG"), "{said}");
        }
        self.run(&inline(&runbook, "docker compose run --rm -T worker "))
            .await;
        self.run(&inline(&runbook, "docker compose ps")).await;
        self.run(&inline(&runbook, "docker compose logs api")).await;
    }

    async fn bring_mappings(&self) {
        let text = section(&self.page, "## Many mappings at once");
        let (_, example) = text.split_once("```csv\n").unwrap();
        let (example, _) = example.split_once("```").unwrap();
        let file = self.folder.join("mappings.csv");
        fs::write(&file, example).unwrap();
        let said = self.run(&blocks(text)[1]).await;
        assert!(said.contains("1 unchanged"), "{said}");
        let exported = fs::read_to_string(file).unwrap();
        assert!(exported.contains(&Phone::seed().selector), "{exported}");
    }

    /// A phone that reports between the backup and its return is lost with its database; the other is not.
    async fn restore_a_backup(&self) {
        let commands = blocks(section(&self.page, "## Backup and restore"));
        let [.., backup] = &commands[..3] else {
            unreachable!("{commands:?}");
        };
        let restore = commands.last().unwrap();
        self.run(backup).await;
        let late = Phone::new("after-the-backup");
        self.report(&late).await;
        let (data, _) = backup.split_once("\n(umask").unwrap();
        // "`data` from above"
        let said = self.run(&format!("{data}\n{restore}")).await;
        assert!(said.contains("1 pusher"), "{said}");
        are_ready(&http::client(), self.ports).await;
        let provision = blocks(section(&self.page, "## Provision the phones"));
        let tokens: Vec<_> = provision[0].lines().take(2).collect();
        let phones = self.run(&tokens.join("\n")).await;
        assert!(phones.contains(&Phone::seed().selector), "{phones}");
        assert!(!phones.contains(&late.selector), "{phones}");
        self.run(&inline(
            section(&self.page, "## Upgrade"),
            "docker compose build && ",
        ))
        .await;
        are_ready(&http::client(), self.ports).await;
    }
}
