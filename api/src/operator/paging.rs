//! The pages of the operator's lists: how long a page is, where it begins, and where the next one begins.

use super::errors::{AdminError, invalid};

const DEFAULT_PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;

/// The rows per page. Read one more, which [`cut`] cuts off again.
pub(super) fn limit(asked: Option<u32>) -> Result<u32, AdminError> {
    match asked {
        None => Ok(DEFAULT_PAGE),
        Some(limit) if (1..=MAX_PAGE).contains(&limit) => Ok(limit),
        Some(_) => Err(invalid(format!("limit must be from 1 to {MAX_PAGE}."))),
    }
}

/// The id after which the page begins.
pub(super) fn after_id(after: Option<&str>) -> Result<i64, AdminError> {
    after.map_or(Ok(0), |text| text.parse().map_err(|_| wrong_after()))
}

pub(super) fn wrong_after() -> AdminError {
    invalid("after must be what next was.")
}

pub(super) fn unreadable() -> AdminError {
    invalid("The query has a value that cannot be read.")
}

/// Cuts off the extra row beyond the page. Returns the cursor of the next page, if there is one.
pub(super) fn cut<T, C>(rows: &mut Vec<T>, limit: u32, cursor: impl Fn(&T) -> C) -> Option<C> {
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    rows.last().filter(|_| more).map(cursor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_page_names_no_next_one() {
        for (rows, shown, next) in [(0, 0, None), (1, 1, None), (2, 2, None), (3, 2, Some(1))] {
            let mut page: Vec<_> = (0..rows).collect();
            let cursor = cut(&mut page, 2, |row| *row);
            assert_eq!((page.len(), cursor), (shown, next), "{rows}");
        }
    }
}
