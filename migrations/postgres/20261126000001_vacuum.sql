-- What pages of dead letters and failed pushers are read by; no other row is in these indexes.
CREATE INDEX jobs_dead_in_order ON jobs (pusher_id) WHERE state = 'Killed';
CREATE INDEX pushers_failed ON pushers (id) WHERE state = 'failed';

-- A table of a million phones would have 200,000 dead rows before it is vacuumed by the usual share of 20 %.
ALTER TABLE push_tokens SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
ALTER TABLE pushers SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
ALTER TABLE arrivals SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
