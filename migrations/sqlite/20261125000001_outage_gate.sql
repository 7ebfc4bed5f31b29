-- What all workers know together of the homeserver: one row. Times are milliseconds since 1970.
CREATE TABLE outage_gate (
    id          INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    version     INTEGER NOT NULL,  -- grows with every change
    epoch       INTEGER NOT NULL,  -- grows with every shut
    state       TEXT    NOT NULL CHECK (state IN ('open', 'down', 'limited', 'misconfigured')),
    since_ms    INTEGER NOT NULL,  -- when it last ceased to be open
    next_try_ms INTEGER NOT NULL,  -- nobody tries before
    slot_ms     INTEGER NOT NULL,  -- requests that nothing vouches for are paced by this
    holder      TEXT,              -- the worker that tries
    gone        INTEGER NOT NULL CHECK (gone IN (0, 1)),  -- the last probe found nobody
    reason      TEXT               -- why it is shut
) STRICT;

INSERT INTO outage_gate (id, version, epoch, state, since_ms, next_try_ms, slot_ms, gone)
VALUES (1, 0, 0, 'open', 0, 0, 0, 0);
