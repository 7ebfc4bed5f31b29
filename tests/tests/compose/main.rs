//! docker-compose.yml as it is, in a real engine: the production image, its settings and secrets, restarts,
//! stops, the demo and the commands for operators as the documents print them; and docker-compose.postgres.yml on top of it.
//!
//! tests/run leaves this out, and says so, where there is no engine.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests outside of #[test] functions; the figures are worth showing"
)]

mod operator;
mod postgres;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use matrix2acrobits_tests::compose::{IN_TIME, Lab, Stack, docker, programs, root};
use matrix2acrobits_tests::eventually;
use matrix2acrobits_tests::fixtures::{BOB, Phone};
use matrix2acrobits_tests::http::{self, Reply, segment};
use matrix2acrobits_tests::process::Env;
use matrix2acrobits_tests::server::free_port;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

const AS_TOKEN: &str = "as-token-from-a-file";
const ADMIN_TOKEN: &str = "admin-token-from-a-file";
/// `stop_grace_period`
const GRACE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn docker_compose_runs_the_services_and_the_demo() {
    let started = Instant::now();
    let done = |what: &str| println!("{:4.0} s: {what}", started.elapsed().as_secs_f64());
    let programs = programs(env!("CARGO_BIN_EXE_stand-ins"));
    let lab = Lab::new(&programs.each_ref().map(PathBuf::as_path)).await;
    let service = Services::of(&lab);
    service.stack.compose(&["build", "api", "worker"]).await;
    done("the production image is built");

    // Not needed before the homeserver has to be there.
    let stand_ins = service.with_demo(&["build", "stand-ins"]);
    let first = async {
        service.starts_without_the_demo().await;
        service.are_healthy_and_confined().await;
    };
    tokio::join!(stand_ins, first);
    done("both services are up and healthy");
    service.go_on_after_a_kill().await;
    done("killed, restarted, and the waiting work done");
    service.lose_nothing_by_a_restart().await;
    done("the worker restarted");
    service.keep_their_data_when_down().await;
    done("stopped, taken down and up again");
    service.keep_secrets_out_of_their_logs().await;
    service.with_demo(&["down"]).await;
    the_demo_works_as_printed(&lab).await;
    done("the demo");
    operator::the_documents_commands_work_as_printed(&lab).await;
    done("the operator's commands");
    postgres::two_of_each_lose_nothing_when_one_of_each_is_killed(&lab).await;
    done("PostgreSQL, two apis and two workers");
}

/// The two services on ports of their own.
struct Services<'a> {
    stack: Stack<'a>,
    ports: Ports,
    client: Client,
}

#[derive(Clone, Copy)]
struct Ports {
    api: u16,
    api_admin: u16,
    worker_admin: u16,
}

impl Ports {
    fn free() -> Self {
        let [api, api_admin, worker_admin] = std::array::from_fn(|_| free_port());
        Self {
            api,
            api_admin,
            worker_admin,
        }
    }

    fn env(self) -> Env {
        let each = [
            ("API_PORT", self.api),
            ("API_ADMIN_PORT", self.api_admin),
            ("WORKER_ADMIN_PORT", self.worker_admin),
        ];
        each.map(|(name, port)| (name.to_owned(), format!("127.0.0.1:{port}")))
            .into()
    }
}

impl<'a> Services<'a> {
    /// As an operator sets them up: settings in a copy of .env.example, secrets in files.
    fn of(lab: &'a Lab) -> Self {
        let ports = Ports::free();
        let settings = lab.file("settings");
        fs::write(&settings, settings_from_example()).unwrap();
        let compose_file = lab.file("with-secrets.yml");
        fs::write(&compose_file, with_secrets(lab)).unwrap();
        let mut env = ports.env();
        env.insert("ENV_FILE".into(), settings.display().to_string());
        // Compose hands it to the stand-in of the homeserver; the worker has it from its file alone.
        env.insert("MATRIX_AS_TOKEN".into(), AS_TOKEN.into());
        Self {
            stack: lab.stack("service", &[compose_file], &[], env),
            ports,
            client: http::client(),
        }
    }

    /// Runs Compose with the stand-ins among the services.
    async fn with_demo(&self, args: &[&str]) {
        let args = [&["--profile", "demo"], args].concat();
        self.stack.compose(&args).await;
    }

    async fn starts_without_the_demo(&self) {
        self.stack.compose(&["up", "--detach"]).await;
        assert_eq!(self.stack.containers(None).await.len(), 2);
        self.stack.container("api").await;
        self.stack.container("worker").await;
        self.are_ready().await;
        // The admin token has arrived, and a report is saved without any homeserver.
        self.map(&phone(1)).await;
        self.report(&phone(1)).await;
        assert_eq!(self.jobs().await, 1, "the worker sees what the api saved");
    }

    async fn are_healthy_and_confined(&self) {
        for service in ["api", "worker"] {
            eventually(IN_TIME, &format!("{service} is healthy"), async || {
                let health = self.stack.inspect(service, "{{.State.Health.Status}}");
                health.await == "healthy"
            })
            .await;
            let container = self.stack.container(service).await;
            // The engine wants the pid. The health check may be among the processes.
            let processes = docker(&["top", &container, "-o", "pid,uid"]).await;
            let mut users = processes.lines().skip(1).map(str::trim);
            let confined =
                processes.lines().count() > 1 && users.all(|line| line.ends_with(" 10001"));
            assert!(confined, "{service}: {processes}");
            let root = format!("{container}:/etc/intruder");
            let copy = tokio::process::Command::new("docker")
                .args(["cp", concat!(env!("CARGO_MANIFEST_DIR"), "/run"), &root])
                .output();
            let copy = copy.await.unwrap();
            let error = String::from_utf8_lossy(&copy.stderr);
            assert!(
                !copy.status.success() && error.contains("read-only"),
                "{service}: {error}"
            );
            let confined = "{{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}}";
            assert_eq!(
                self.stack.inspect(service, confined).await,
                "[ALL] [no-new-privileges:true]"
            );
            let env = self.stack.inspect(service, "{{.Config.Env}}").await;
            assert!(
                !env.contains(AS_TOKEN) && !env.contains(ADMIN_TOKEN),
                "{env}"
            );
        }
        let image = self.stack.inspect("api", "{{.Image}}").await;
        assert_eq!(image, self.stack.inspect("worker", "{{.Image}}").await);
        let size = docker(&["image", "inspect", "--format", "{{.Size}}", &image]).await;
        println!("image of debug programs: {} bytes", size.trim());
    }

    async fn go_on_after_a_kill(&self) {
        tokio::join!(self.stack.kill_9("api"), self.stack.kill_9("worker"));
        self.are_ready().await;
        assert_eq!(self.jobs().await, 1, "the job waits");
        self.with_demo(&["up", "--detach", "stand-ins"]).await;
        self.pusher_is_set(&phone(1)).await;
    }

    async fn lose_nothing_by_a_restart(&self) {
        self.with_demo(&["stop", "stand-ins"]).await;
        self.map(&phone(2)).await;
        self.report(&phone(2)).await;
        self.stack.compose(&["restart", "worker"]).await;
        assert_eq!(self.jobs().await, 1, "the job waits");
        self.with_demo(&["start", "stand-ins"]).await;
        self.pusher_is_set(&phone(2)).await;
    }

    async fn keep_their_data_when_down(&self) {
        self.with_demo(&["stop", "stand-ins"]).await;
        self.map(&phone(3)).await;
        self.report(&phone(3)).await;
        let asked = Instant::now();
        self.stack.compose(&["stop", "api", "worker"]).await;
        let took = asked.elapsed();
        println!("both services stopped within {took:?}");
        assert!(took < GRACE, "stopping took {took:?}");
        for service in ["api", "worker"] {
            let code = self.stack.inspect(service, "{{.State.ExitCode}}").await;
            assert_eq!(code, "0", "{service}: {:?}", self.stack.logs(service).await);
        }
        self.with_demo(&["down"]).await;
        assert!(self.stack.containers(None).await.is_empty());

        self.with_demo(&["up", "--detach"]).await;
        self.are_ready().await;
        self.pusher_is_set(&phone(3)).await;
        for number in [1, 2] {
            let path = format!("/api/internal/mappings/{}", phone(number).selector);
            let mapping = self
                .admin(self.client.get(self.api_admin(&path)))
                .await
                .expect_status(200);
            assert_eq!(mapping.json()["user_id"], BOB);
        }
    }

    async fn keep_secrets_out_of_their_logs(&self) {
        let mut secrets = vec![AS_TOKEN.to_owned(), ADMIN_TOKEN.to_owned()];
        secrets.extend((1..=3).map(|number| phone(number).token));
        for service in ["api", "worker"] {
            let (out, error) = self.stack.logs(service).await;
            assert!(
                out.contains("admin_addr="),
                "{service} says where it listens: {out}"
            );
            assert_eq!(error, "", "{service} logs on standard output alone");
            for secret in &secrets {
                assert!(!out.contains(secret), "{service} logs {secret}: {out}");
            }
        }
    }

    fn api_admin(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports.api_admin)
    }

    async fn are_ready(&self) {
        are_ready(&self.client, self.ports).await;
    }

    async fn admin(&self, request: RequestBuilder) -> Reply {
        http::send(request.bearer_auth(ADMIN_TOKEN)).await
    }

    async fn map(&self, phone: &Phone) {
        let path = format!("/api/internal/mappings/{}", segment(&phone.selector));
        let request = self.client.put(self.api_admin(&path));
        let reply = self.admin(request.json(&json!({"user_id": phone.user})));
        assert!(reply.await.status < 300);
    }

    async fn report(&self, phone: &Phone) {
        let path = "api/client/push_token_report";
        let url = format!("http://127.0.0.1:{}/{path}", self.ports.api);
        let request = self.client.post(url).json(&phone.report());
        http::send(request).await.expect_status(200);
    }

    /// How many jobs the worker's own command lists.
    async fn jobs(&self) -> usize {
        let jobs = ["matrix2acrobits-worker", "jobs", "--json"];
        let jobs = [&["exec", "-T", "worker"], &jobs[..]].concat();
        let listed = self.stack.compose(&jobs).await;
        let listed: Value = serde_json::from_str(&listed).expect("JSON");
        listed.as_array().expect("a list").len()
    }

    async fn pusher_is_set(&self, phone: &Phone) {
        let line = format!("pusher of {} set, token {}\n", phone.user, phone.token);
        self.stack.logged("stand-ins", &line).await;
        eventually(IN_TIME, "no job left", async || self.jobs().await == 0).await;
    }
}

fn phone(number: u32) -> Phone {
    Phone::new(&format!("compose-{number}"))
}

async fn are_ready(client: &Client, ports: Ports) {
    for port in [ports.api_admin, ports.worker_admin] {
        eventually(IN_TIME, &format!("ready on {port}"), async || {
            let url = format!("http://127.0.0.1:{port}/health/ready");
            let reply = http::try_send(client.get(url)).await;
            reply.is_ok_and(|reply| reply.status == 200)
        })
        .await;
    }
}

/// .env.example with what an operator fills in; the secrets stay empty.
fn settings_from_example() -> String {
    let mut settings = fs::read_to_string(root().join(".env.example")).unwrap();
    for (example, own) in [
        (
            "\nMATRIX_HOMESERVER_URL=https://matrix.example.org\n",
            "\nMATRIX_HOMESERVER_URL=http://stand-ins:8008\n",
        ),
        ("\n#MATRIX_SERVER_NAME=", "\nMATRIX_SERVER_NAME="),
        // A name that does not resolve can take its time.
        ("\n#HOMESERVER_TIMEOUT=30s\n", "\nHOMESERVER_TIMEOUT=2s\n"),
        ("\nADMIN_TOKEN=\n", "\nADMIN_TOKEN=\n"),
        ("\nMATRIX_AS_TOKEN=\n", "\nMATRIX_AS_TOKEN=\n"),
    ] {
        assert!(settings.contains(example), "{example} in .env.example");
        settings = settings.replace(example, own);
    }
    settings
}

/// docker-compose.yml with its commented lines on secrets in force.
fn with_secrets(lab: &Lab) -> String {
    for (name, secret) in [("admin_token", ADMIN_TOKEN), ("as_token", AS_TOKEN)] {
        fs::create_dir_all(lab.file("secrets")).unwrap();
        fs::write(lab.file("secrets").join(name), format!("{secret}\n")).unwrap();
    }
    let file = fs::read_to_string(root().join("docker-compose.yml")).unwrap();
    let (services, end) = file
        .split_once("\n# secrets:\n")
        .expect("secrets, commented");
    let mut text = services.to_owned();
    for line in [
        "ADMIN_TOKEN_FILE: /run/secrets/admin_token",
        "MATRIX_AS_TOKEN_FILE: /run/secrets/as_token",
        "secrets: [admin_token]",
        "secrets: [as_token]",
    ] {
        let commented = format!("# {line}\n");
        assert!(text.contains(&commented), "{commented}");
        text = text.replace(&commented, &format!("{line}\n"));
    }
    text.push_str("\nsecrets:\n");
    for line in end.lines() {
        text.push_str(line.strip_prefix('#').expect("a comment"));
        text.push('\n');
    }
    let folder = format!("{}/", lab.file("secrets").display());
    text.replace("./secrets/", &folder)
}

/// The README's commands, but for the ports, and with the images of this test.
async fn the_demo_works_as_printed(lab: &Lab) {
    let ports = Ports::free();
    let compose_file = root().join("docker-compose.yml");
    let demo = lab.stack("demo", &[compose_file], &[], ports.env());
    let prefix = "docker compose ";
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let commands = readme.lines().skip_while(|line| !line.starts_with(prefix));
    let commands = commands.filter(|line| line.starts_with(prefix) || line.starts_with("curl "));
    let commands: Vec<_> = commands.take(6).collect();
    let [up, report, map, notify, logs, down] = commands[..] else {
        unreachable!("six commands in the README: {commands:?}");
    };
    let compose = async |line: &str| {
        let line = line.strip_prefix(prefix).expect("a command of Compose");
        let args: Vec<_> = line.split(' ').filter(|word| *word != "--build").collect();
        assert!(args.contains(&"demo") && args.contains(&".env.demo"));
        demo.compose(&args).await
    };

    compose(up).await;
    assert_eq!(demo.containers(None).await.len(), 3);
    are_ready(&http::client(), ports).await;
    for (line, answer) in [(report, "{}"), (map, BOB), (notify, r#"{"rejected":[]}"#)] {
        let line = line
            .replace(":8080/", &format!(":{}/", ports.api))
            .replace(":9090/", &format!(":{}/", ports.api_admin));
        let mut shell = tokio::process::Command::new("sh");
        let curl = shell.args(["-c", &line]).output().await.unwrap();
        let said = String::from_utf8_lossy(&curl.stdout);
        assert!(
            curl.status.success() && said.contains(answer),
            "{line}: {said} {}",
            String::from_utf8_lossy(&curl.stderr)
        );
    }
    demo.logged("stand-ins", "homeserver: pusher of @bob:example.org set")
        .await;
    let logs = compose(logs).await;
    assert!(logs.contains("PNM: push {"), "{logs}");
    compose(down).await;
    assert!(demo.containers(None).await.is_empty());
}
