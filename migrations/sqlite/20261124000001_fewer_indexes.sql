-- Every new phone writes to every index, at a page of the disk each where keys come in no order.

-- Nobody asks for pushers by user alone, so one index does the work of two.
CREATE TABLE pushers_new (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id       TEXT    NOT NULL,
    app_id        TEXT    NOT NULL,
    pushkey       TEXT    NOT NULL,
    selector      TEXT    NOT NULL,
    wanted        TEXT    NOT NULL CHECK (wanted IN ('present', 'absent')),
    state         TEXT    NOT NULL CHECK (state IN ('pending', 'registered', 'failed', 'removed')),
    generation    INTEGER NOT NULL,            -- counts changes of what is wanted
    claim         INTEGER NOT NULL,            -- orders the users who reported the same app_id and pushkey
    ask_first     INTEGER NOT NULL DEFAULT 0,  -- the homeserver may hold it already: look before setting
    attempts      INTEGER NOT NULL DEFAULT 0,  -- failed attempts since the last success
    last_error    TEXT,
    registered_as TEXT,                        -- the worker's settings that the registered pusher carries
    refresh_at    INTEGER,                     -- from then on a report has the worker check it
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    UNIQUE (pushkey, app_id, user_id)
) STRICT;
INSERT INTO pushers_new SELECT * FROM pushers;
-- A job may outlive its pusher's row, so ids are not used again.
DELETE FROM sqlite_sequence WHERE name = 'pushers_new';
INSERT INTO sqlite_sequence (name, seq) SELECT 'pushers_new', seq FROM sqlite_sequence WHERE name = 'pushers';
DROP TABLE pushers;
ALTER TABLE pushers_new RENAME TO pushers;
CREATE INDEX pushers_unsettled ON pushers (id) WHERE state = 'pending';

-- These serve apalis' own fetch and statistics, which are not used here (see shared/src/queue.rs).
DROP INDEX IF EXISTS idx_jobs_claimable;
DROP INDEX IF EXISTS idx_jobs_completed_done_at;
DROP INDEX IF EXISTS idx_jobs_failed;
DROP INDEX IF EXISTS idx_jobs_pending;
DROP INDEX IF EXISTS idx_jobs_running;
DROP INDEX IF EXISTS idx_jobs_status_run_at;
