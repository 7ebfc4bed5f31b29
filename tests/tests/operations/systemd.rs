//! The path with systemd.

use matrix2acrobits_tests::documents::{blocks, inline, section};
use matrix2acrobits_tests::fixtures::BOB;

use crate::Site;

const REGISTRATION: &str = "/etc/matrix2acrobits/registration.yaml";

#[tokio::test]
async fn systemd_runs_both_as_the_document_says() {
    let site = Site::new("127.0.0.1").await;
    let machine = &site.machine;
    let text = section(&site.page, "### systemd");
    let commands = blocks(text);
    let [install, register, start, database, api, doctor] = &commands[..] else {
        unreachable!("six blocks: {commands:#?}");
    };

    machine.run(install).await;
    site.edit_the_settings().await;
    machine.run(register).await;
    site.start_what_is_around(REGISTRATION).await;
    machine.run(start).await;
    site.are_ready().await;
    site.are_confined().await;
    site.done("both units run");

    let admin_token = inline(&site.page, "ADMIN_TOKEN=$(cat ");
    site.provision(&admin_token).await;
    site.a_message_arrives("$first").await;
    let said = machine.run(database).await;
    assert!(said.contains(BOB), "phones: {said}");
    let said = machine.run(api).await;
    assert!(said.contains(&site.phone.selector), "{said}");
    Site::nothing_is_wrong(&machine.run(doctor).await);
    site.done("a pusher is set, pushes arrive, the doctor finds nothing");

    let pid_of = "systemctl show --value --property=MainPID";
    site.go_on_after_a_kill(pid_of).await;
    // As an upgrade does it.
    let replace = install
        .lines()
        .find(|line| line.starts_with("install -m 755 "));
    machine.run(replace.unwrap()).await;
    let upgrade = section(&site.page, "## Upgrade");
    machine.run(&inline(upgrade, "systemctl restart ")).await;
    site.are_ready().await;
    site.a_message_arrives("$upgraded").await;
    site.done("killed, upgraded");

    let text = section(&site.page, "## Backup and restore");
    let [backup, _, _, restore, ..] = &blocks(text)[..] else {
        unreachable!("backup and restore for each kind: {text}");
    };
    site.restore_a_backup(backup, restore, &admin_token).await;
    site.done("restored a backup");

    site.survives_a_reboot(REGISTRATION).await;
    site.a_wrong_setting_ends_it().await;
    site.the_journal_keeps_secrets(&admin_token, REGISTRATION)
        .await;
}

impl Site {
    async fn are_confined(&self) {
        let text = section(&self.page, "### systemd");
        let limits = self.machine.run(&inline(text, "systemd-analyze ")).await;
        let overall = limits.lines().last().unwrap_or_default().to_owned();
        println!("{overall}");
        assert!(overall.contains(" OK "), "{limits}");
        for name in ["api", "worker"] {
            assert_eq!(self.unit(name, "ActiveState").await, "active");
            let pid = self.unit(name, "MainPID").await;
            let user = format!("stat --format %U /proc/{pid}");
            let user = self.machine.run(&user).await;
            assert_eq!(user.trim(), "matrix2acrobits", "{name}");
            let capabilities = format!("grep CapBnd /proc/{pid}/status");
            let capabilities = self.machine.run(&capabilities).await;
            assert!(
                capabilities.trim().ends_with("\t0000000000000000"),
                "{capabilities}"
            );
            let environment = format!("tr '\\0' '\\n' < /proc/{pid}/environ");
            let environment = self.machine.run(&environment).await;
            let secret = match name {
                "api" => {
                    "ADMIN_TOKEN_FILE=/run/credentials/matrix2acrobits-api.service/admin_token"
                }
                _ => {
                    "MATRIX_AS_TOKEN_FILE=/run/credentials/matrix2acrobits-worker.service/as_token"
                }
            };
            let named = environment.lines().filter(|line| line.contains("TOKEN"));
            assert_eq!(named.collect::<Vec<_>>(), [secret]);
        }
        let modes = "cd /etc/matrix2acrobits; stat --format '%a %U %n' admin_token as_token registration.yaml";
        for line in self.machine.run(modes).await.lines() {
            assert!(line.starts_with("600 root "), "{line}");
        }
    }
}
