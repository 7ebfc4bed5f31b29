//! Opening the file: several processes may do so at the same moment, as compose starts them.

use std::{
    str::FromStr,
    sync::{Arc, Barrier},
    time::Duration,
};

use matrix2acrobits_shared::{clock::Clock, config::DatabaseUrl, store::Store, writer::Sharing};

#[test]
fn two_open_a_new_file_at_once() {
    for _ in 0..60 {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/new.db", folder.path().display());
        let url = DatabaseUrl::from_str(&url).unwrap();
        let together = Arc::new(Barrier::new(2));
        let open = || {
            let (url, together) = (url.clone(), together.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                together.wait();
                runtime.block_on(async {
                    let store = Store::open(
                        &url,
                        Sharing::ahead(Duration::from_secs(10)),
                        Clock::system(),
                    )
                    .await;
                    store.unwrap().ping().await.unwrap();
                });
            })
        };
        for thread in [open(), open()] {
            thread.join().unwrap();
        }
    }
}
