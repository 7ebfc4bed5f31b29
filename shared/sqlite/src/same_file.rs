//! Notices that the database's file was replaced or removed under this process, whose writes would be lost from then on.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use matrix2acrobits_shared::flow::feed::Vital;

/// How often to look. One look costs one system call.
const LOOK: Duration = Duration::from_secs(1);

/// Ends the process when the path no longer leads to the file that it leads to now. Then a supervisor starts the process
/// again, with the new file.
pub(crate) async fn watch(path: PathBuf, vital: Vital) {
    let Some(opened) = identity(&path).await else {
        return;
    };
    let mut other = 0;
    // Twice, because somebody who restores a backup may move the file away and back.
    while other < 2 {
        tokio::time::sleep(LOOK).await;
        other = match identity(&path).await {
            Some(now) if now == opened => 0,
            _ => other + 1,
        };
    }
    tracing::error!(
        file = %path.display(),
        "the database's file was replaced or removed while this process used it: stopping, because what it writes would be \
         lost; stop all processes before you restore a backup"
    );
    vital.end();
}

async fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = tokio::fs::metadata(path).await.ok()?;
    Some((metadata.dev(), metadata.ino()))
}
