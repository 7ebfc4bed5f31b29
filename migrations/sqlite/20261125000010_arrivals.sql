-- What is known of the pushes to each phone. Times are whole seconds since 1970.
CREATE TABLE arrivals (
    phone         INTEGER NOT NULL PRIMARY KEY REFERENCES push_tokens (id) ON DELETE CASCADE,
    pushed_at     INTEGER,                     -- the last push that PNM took
    waiting_since INTEGER,                     -- the first push since the last receipt; NULL: all are confirmed
    received_at   INTEGER,                     -- the last receipt; NULL: its app has never sent one
    receipts      INTEGER NOT NULL DEFAULT 0   -- how many receipts
) STRICT;

-- The phones that may be silent, and no others.
CREATE INDEX arrivals_waiting ON arrivals (waiting_since, phone)
WHERE waiting_since IS NOT NULL AND received_at IS NOT NULL;

-- The operator looks for the phones of one user.
CREATE INDEX mappings_of_user ON mappings (user_id);
CREATE INDEX push_tokens_of_owner ON push_tokens (owner) WHERE owner IS NOT NULL;
