-- What each worker thinks of the homeserver, written with its heartbeat; for the status page alone.
CREATE TABLE gates (
    worker TEXT    NOT NULL PRIMARY KEY REFERENCES Workers (id) ON DELETE CASCADE,
    state  TEXT    NOT NULL CHECK (state IN ('untried', 'open', 'shut')),
    since  INTEGER NOT NULL,  -- seconds since 1970
    reason TEXT               -- why it is shut
) STRICT, WITHOUT ROWID;
