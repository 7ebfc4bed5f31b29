//! Rows that nobody stands for: which rows these are, how long they stay, and how many may stay.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use matrix2acrobits_shared::{
    clock::Clock,
    flow::feed::Changed,
    ids::{AppId, Pushkey, Selector, UserId},
    rules::{
        import::TokenRow,
        report::{Field, Report, Reporter},
    },
};
use matrix2acrobits_store::{Database, Forgotten, Import, Role, Store};
use matrix2acrobits_test_postgres as postgres;
use tempfile::TempDir;

const START: i64 = 1_800_000_000;
const DAY: i64 = 86_400;

struct World {
    store: Store,
    _folder: Option<TempDir>,
    _database: Option<postgres::Database>,
}

impl World {
    async fn on_sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("test.db").display());
        Self {
            store: open(&url).await,
            _folder: Some(folder),
            _database: None,
        }
    }

    /// None if no server is available.
    async fn on_postgres() -> Option<Self> {
        let database = postgres::Server::shared()?.database();
        Some(Self {
            store: open(&database.url()).await,
            _folder: None,
            _database: Some(database),
        })
    }

    fn at(&self, seconds: i64) {
        self.store.clock().set(START + seconds);
    }

    async fn reports(&self, name: &str, owner: Option<&str>) {
        self.store.save_report(report(name, owner)).await.unwrap();
    }

    async fn maps(&self, name: &str) {
        self.store.put_mapping(selector(name), bob()).await.unwrap();
    }

    async fn forget(&self, most: i64) -> Forgotten {
        self.store.forget_strangers(30 * DAY, most).await.unwrap()
    }

    async fn rows(&self) -> Vec<String> {
        let rows = self.store.list_tokens(0, 100).await.unwrap();
        let mut names: Vec<_> = rows.into_iter().map(|row| row.selector).collect();
        names.sort();
        names
    }
}

async fn open(url: &str) -> Store {
    let database = Database {
        url: url.parse().unwrap(),
        max_connections: 4,
    };
    let store = Store::open(&database, Role::Ahead, Clock::manual(START)).await;
    store.unwrap()
}

fn selector(name: &str) -> Selector {
    Selector::parse(name).unwrap()
}

fn bob() -> UserId {
    UserId::parse("@bob:example.org").unwrap()
}

fn report(name: &str, owner: Option<&str>) -> Report {
    Report {
        from: Reporter {
            selector: selector(name),
            device: None,
            owner: owner.map(|owner| UserId::parse(owner).unwrap()),
            strangers: true,
        },
        token_msgs: Field::Set(Pushkey::parse(&format!("token-{name}")).unwrap()),
        app_id_msgs: Field::Set(AppId::parse("app").unwrap()),
        token_calls: Field::Absent,
        app_id_calls: Field::Absent,
    }
}

#[tokio::test]
async fn strangers_go_thirty_days_after_their_last_report_and_others_stay() {
    thirty_days(World::on_sqlite().await).await;
}

#[tokio::test]
async fn strangers_go_thirty_days_after_their_last_report_and_others_stay_on_postgres() {
    if let Some(world) = World::on_postgres().await {
        thirty_days(world).await;
    }
}

async fn thirty_days(world: World) {
    for name in ["idle", "alive", "mapped", "unmapped", "logs-in-later"] {
        world.reports(name, None).await;
    }
    world.reports("logged-in", Some("@bob:example.org")).await;
    world.maps("mapped").await;
    world.maps("mapped-before").await;
    world.reports("mapped-before", None).await;
    world.maps("unmapped").await;
    world
        .store
        .delete_mapping(selector("unmapped"))
        .await
        .unwrap();
    world
        .reports("logs-in-later", Some("@bob:example.org"))
        .await;
    let imported = TokenRow {
        report: report("imported", None),
        updated_at: None,
    };
    let mut import = Import::Into(world.store.clone());
    import.tokens(vec![imported]).await.unwrap();
    let told = Arc::<std::sync::Mutex<Vec<String>>>::default();
    let listener = told.clone();
    world.store.listen(move |changed| {
        if let Changed::Pushkeys(pushkeys) = changed {
            listener.lock().unwrap().extend(pushkeys.iter().cloned());
        }
    });

    world.at(10 * DAY);
    world.reports("alive", None).await;
    world.at(30 * DAY);
    assert_eq!(world.forget(100).await, Forgotten::default());
    assert_eq!(world.rows().await.len(), 8);
    world.at(30 * DAY + 1);
    let gone = Forgotten { old: 2, surplus: 0 };
    assert_eq!(world.forget(100).await, gone, "idle and unmapped");
    let mut told = told.lock().unwrap().clone();
    told.sort();
    assert_eq!(told, ["token-idle", "token-unmapped"], "caches are told");
    let stay = [
        "alive",
        "imported",
        "logged-in",
        "logs-in-later",
        "mapped",
        "mapped-before",
    ];
    assert_eq!(world.rows().await, stay);
    world.at(40 * DAY + 1);
    assert_eq!(world.forget(100).await.old, 1, "alive");
    world.at(4000 * DAY);
    assert_eq!(world.forget(0).await, Forgotten::default());
}

#[tokio::test]
async fn beyond_a_number_the_oldest_go_and_never_what_somebody_stands_for() {
    a_number(World::on_sqlite().await).await;
}

#[tokio::test]
async fn beyond_a_number_the_oldest_go_and_never_what_somebody_stands_for_on_postgres() {
    if let Some(world) = World::on_postgres().await {
        a_number(world).await;
    }
}

async fn a_number(world: World) {
    world.reports("mapped", None).await;
    world.maps("mapped").await;
    world.reports("logged-in", Some("@bob:example.org")).await;
    for n in 0..700 {
        world.at(n);
        world.reports(&format!("s{n:03}"), None).await;
    }
    world.at(7200);
    world.reports("s000", None).await;
    let gone = Forgotten {
        old: 0,
        surplus: 698,
    };
    assert_eq!(world.forget(2).await, gone);
    assert_eq!(world.rows().await, ["logged-in", "mapped", "s000", "s699"]);
    assert_eq!(world.forget(2).await, Forgotten::default());
}
