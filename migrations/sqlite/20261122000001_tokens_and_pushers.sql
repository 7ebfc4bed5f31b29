-- What each phone reported, whose selector it is, and what the homeserver should hold.

-- One row per (selector, device). AUTOINCREMENT on purpose: sqlite_sequence then remembers that this
-- database has held a token, so that an empty table is told from a lost volume.
CREATE TABLE push_tokens (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    selector     TEXT    NOT NULL,
    device       TEXT    NOT NULL,
    owner        TEXT,                -- user ID that a login proved; NULL where nobody logs in
    token_msgs   TEXT,
    app_id_msgs  TEXT,
    token_calls  TEXT,
    app_id_calls TEXT,
    report       INTEGER NOT NULL,    -- counts the reports that changed this row or revived it
    dead_at      INTEGER,             -- PNM said that token_msgs is gone; cleared by the next report
    created_at   INTEGER NOT NULL,    -- all times are whole seconds since 1970
    updated_at   INTEGER NOT NULL,
    UNIQUE (selector, device)
) STRICT;

CREATE INDEX push_tokens_by_token_msgs ON push_tokens (token_msgs) WHERE token_msgs IS NOT NULL;

-- The operator's word on whose a selector is.
CREATE TABLE mappings (
    selector   TEXT    NOT NULL PRIMARY KEY,
    user_id    TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What the homeserver should hold (wanted) and what we know that it holds (state).
CREATE TABLE pushers (
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
    UNIQUE (user_id, app_id, pushkey)
) STRICT;

CREATE INDEX pushers_by_pushkey ON pushers (pushkey, app_id);
CREATE INDEX pushers_unsettled ON pushers (id) WHERE state = 'pending';

-- Small facts about this database: the key of the hashes in the logs, the token epoch.
CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Counts the changes that make a cached token stale, whoever makes them (another api, an operator's shell).
CREATE TABLE token_epoch (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    value INTEGER NOT NULL
) STRICT;
INSERT INTO token_epoch (id, value) VALUES (1, 0);

CREATE TRIGGER push_tokens_changed AFTER UPDATE OF token_msgs, app_id_msgs, selector, report, dead_at ON push_tokens
WHEN old.token_msgs IS NOT NULL
BEGIN UPDATE token_epoch SET value = value + 1; END;

CREATE TRIGGER push_tokens_deleted AFTER DELETE ON push_tokens
BEGIN UPDATE token_epoch SET value = value + 1; END;
