//! The progress bar of the commands.

use std::io::IsTerminal as _;

pub use indicatif::ProgressBar;
use indicatif::ProgressStyle;

/// A bar on a terminal. Otherwise the bar is hidden, and the caller prints lines.
pub fn bar(total: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar
}
