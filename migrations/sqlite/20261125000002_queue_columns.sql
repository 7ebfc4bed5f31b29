-- What the queue knows of a job of ours stands in columns, not in JSON and not inside its key.
ALTER TABLE Jobs ADD COLUMN pusher_id INTEGER;                    -- the pusher that it is for; NULL: cannot be told
ALTER TABLE Jobs ADD COLUMN not_before INTEGER;                   -- the homeserver asked to wait until then
ALTER TABLE Jobs ADD COLUMN lost INTEGER;                         -- workers that died with it after it had begun; 0: had perhaps not begun
ALTER TABLE Jobs ADD COLUMN recalled INTEGER NOT NULL DEFAULT 0;  -- wanted again while a worker held it

UPDATE Jobs
SET pusher_id = CAST(substr(idempotency_key, 8) AS INTEGER)
WHERE job_type = 'sync_pusher'
  AND idempotency_key GLOB 'pusher:[1-9]*'
  AND idempotency_key NOT GLOB 'pusher:*[^0-9]*';

UPDATE Jobs
SET not_before = iif(json_type(metadata, '$.not_before') = 'integer', metadata ->> '$.not_before', NULL),
    lost = iif(json_type(metadata, '$.lost') = 'integer', nullif(metadata ->> '$.lost', 0), NULL)
WHERE job_type = 'sync_pusher'
  AND json_valid(metadata);

-- The column takes the key's place, and an index of each kind of row the place of those over all rows.
UPDATE Jobs
SET idempotency_key = NULL
WHERE job_type = 'sync_pusher';

DROP INDEX IF EXISTS idx_jobs_idempotency_key;
DROP INDEX IF EXISTS idx_jobs_job_type_status_run_at;
DROP INDEX IF EXISTS LIdx;
DROP INDEX jobs_due;
DROP INDEX jobs_suspect;

CREATE UNIQUE INDEX jobs_of_pusher ON Jobs (pusher_id);
CREATE INDEX jobs_due ON Jobs (run_at, status)
WHERE job_type = 'sync_pusher' AND status IN ('Pending', 'Failed') AND lost IS NULL;
CREATE INDEX jobs_suspect ON Jobs (run_at, status)
WHERE job_type = 'sync_pusher' AND status IN ('Pending', 'Failed') AND lost IS NOT NULL;
CREATE INDEX jobs_held ON Jobs (lock_by)
WHERE lock_by IS NOT NULL;
CREATE INDEX jobs_dead ON Jobs (done_at)
WHERE status = 'Killed';

-- The operator brought this row in, so somebody stands for it.
ALTER TABLE push_tokens ADD COLUMN imported INTEGER NOT NULL DEFAULT 0;

-- Whether a token belongs to anybody is remembered with it.
CREATE TRIGGER mappings_added AFTER INSERT ON mappings
WHEN EXISTS (SELECT 1 FROM push_tokens WHERE selector = new.selector)
BEGIN UPDATE token_epoch SET value = value + 1; END;
CREATE TRIGGER mappings_changed AFTER UPDATE OF user_id ON mappings
WHEN old.user_id <> new.user_id
BEGIN UPDATE token_epoch SET value = value + 1; END;
CREATE TRIGGER mappings_deleted AFTER DELETE ON mappings
BEGIN UPDATE token_epoch SET value = value + 1; END;

-- The settings of each worker, in the order in which the workers started: the newest settings count.
CREATE TABLE worker_settings (
    started  INTEGER PRIMARY KEY AUTOINCREMENT,
    worker   TEXT    NOT NULL UNIQUE REFERENCES Workers (id) ON DELETE CASCADE,
    settings TEXT    NOT NULL
) STRICT;
