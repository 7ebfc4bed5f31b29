-- Tombstones are looked for every few minutes, which without this reads every pusher under the write lock.
CREATE INDEX pushers_removed ON pushers (updated_at) WHERE state = 'removed';
