//! Notices that the database's file was replaced or removed under this process. What it wrote from then on would be lost,
//! so it must acknowledge nothing.

use std::{
    io::ErrorKind,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use matrix2acrobits_shared::flow::{Result, StoreError};

/// The file that was opened.
#[derive(Debug)]
pub(crate) struct SameFile {
    path: PathBuf,
    opened: Option<(u64, u64)>,
    told: AtomicBool,
}

/// The path leads to another file now, or to none.
#[derive(Debug, thiserror::Error)]
#[error("the database's file was replaced or removed while this process used it")]
struct Replaced;

impl SameFile {
    /// The file at this path, which has just been opened.
    pub(crate) fn opened(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            opened: std::fs::metadata(path).ok().map(|file| identity(&file)),
            told: AtomicBool::new(false),
        }
    }

    /// An error if it is another file now. One system call, which no disk delays.
    ///
    /// The process goes on, because a new one would take what the old write-ahead log holds for part of the new file.
    pub(crate) fn check(&self) -> Result<()> {
        let now = std::fs::metadata(&self.path);
        let same = match (&now, self.opened) {
            (Ok(file), Some(opened)) => identity(file) == opened,
            (Err(error), Some(_)) => error.kind() != ErrorKind::NotFound,
            (_, None) => true,
        };
        if same {
            self.told.store(false, Ordering::Relaxed);
            return Ok(());
        }
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::error!(
                file = %self.path.display(),
                "the database's file was replaced or removed while this process used it: nothing is accepted until it is \
                 back. If it was moved, move it back and delete nothing. If another file is to stay in its place, stop all \
                 processes, remove the former one's -wal and -shm files, and start them again"
            );
        }
        Err(StoreError::Unavailable(Arc::new(Replaced)))
    }
}

/// The same for all paths that lead to one file.
pub(crate) fn identity(file: &std::fs::Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}
