//! The path with Podman's units.

use matrix2acrobits_tests::compose::IN_TIME;
use matrix2acrobits_tests::documents::{blocks, document, inline, section};
use matrix2acrobits_tests::eventually;

use crate::Site;

const REGISTRATION: &str = "registration.yaml";

#[tokio::test]
async fn podman_runs_both_as_the_document_says() {
    let site = Site::new("host.containers.internal").await;
    let machine = &site.machine;
    let text = section(&site.page, "### Podman");
    let commands = blocks(text);
    let [install, start, use_it] = &commands[..] else {
        unreachable!("three blocks: {commands:#?}");
    };

    site.load_base_images().await;
    machine.run(install).await;
    site.done("the image is built");
    site.edit_the_settings().await;
    site.start_what_is_around(REGISTRATION).await;
    machine.run(start).await;
    site.are_ready().await;
    site.are_healthy_and_confined().await;
    site.done("both containers are healthy");

    let admin_token = use_it
        .lines()
        .find(|line| line.starts_with("ADMIN_TOKEN=$("));
    let admin_token = admin_token.unwrap();
    site.provision(admin_token).await;
    site.a_message_arrives("$first").await;
    let said = machine.run(use_it).await;
    Site::nothing_is_wrong(&said);
    assert!(said.contains(&site.phone.selector), "{said}");
    site.done("a pusher is set, pushes arrive, the doctor finds nothing");

    let pid_of = "podman inspect --format '{{ .State.Pid }}'";
    site.go_on_after_a_kill(pid_of).await;
    let upgrade = section(&site.page, "## Upgrade");
    machine
        .run(&inline(upgrade, "systemctl daemon-reload"))
        .await;
    machine.run(&inline(upgrade, "systemctl restart ")).await;
    site.are_ready().await;
    site.a_message_arrives("$upgraded").await;
    site.done("killed, restarted");

    let text = section(&site.page, "## Backup and restore");
    let [_, backup, _, _, restore, _] = &blocks(text)[..] else {
        unreachable!("backup and restore for each kind: {text}");
    };
    site.restore_a_backup(backup, restore, admin_token).await;
    site.done("restored a backup");

    site.survives_a_reboot(REGISTRATION).await;
    site.a_wrong_setting_ends_it().await;
    site.the_journal_keeps_secrets(admin_token, REGISTRATION)
        .await;
}

impl Site {
    /// There is no registry: the images that the Dockerfile names are those of this test.
    async fn load_base_images(&self) {
        let dockerfile = document("Dockerfile");
        for (argument, image) in [("ARG BUILDER=", "builder"), ("ARG BASE=", "base")] {
            let mut lines = dockerfile.lines();
            let name = lines.find_map(|line| line.strip_prefix(argument)).unwrap();
            let name = format!("docker.io/library/{name}");
            self.machine.load_image(&self.lab.image(image), &name).await;
        }
    }

    async fn inspect(&self, name: &str, format: &str) -> String {
        let inspect = format!("podman inspect --format '{format}' matrix2acrobits-{name}");
        self.machine.run(&inspect).await.trim().to_owned()
    }

    async fn are_healthy_and_confined(&self) {
        for name in ["api", "worker"] {
            assert_eq!(self.unit(name, "ActiveState").await, "active");
            eventually(IN_TIME, &format!("{name} is healthy"), async || {
                self.inspect(name, "{{ .State.Health.Status }}").await == "healthy"
            })
            .await;
            let confined = "{{ .HostConfig.ReadonlyRootfs }} {{ .HostConfig.Memory }} {{ .HostConfig.PidsLimit }} {{ .Config.User }}";
            let confined = self.inspect(name, confined).await;
            assert_eq!(confined, "true 536870912 256 10001:10001", "{name}");
            let environment = self.inspect(name, "{{ .Config.Env }}").await;
            let secret = match name {
                "api" => "ADMIN_TOKEN_FILE=/run/secrets/admin_token",
                _ => "MATRIX_AS_TOKEN_FILE=/run/secrets/as_token",
            };
            let named = environment
                .split([' ', '[', ']'])
                .filter(|it| it.contains("TOKEN"));
            assert_eq!(named.collect::<Vec<_>>(), [secret]);
            let pid = self.inspect(name, "{{ .State.Pid }}").await;
            let status = format!("grep -E '^(Uid|CapBnd|NoNewPrivs):' /proc/{pid}/status");
            let status = self.machine.run(&status).await;
            let words: Vec<_> = status.split_whitespace().collect();
            assert_eq!(words[1], "10001", "{status}");
            assert!(status.contains("CapBnd:\t0000000000000000"), "{status}");
            assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        }
    }
}
