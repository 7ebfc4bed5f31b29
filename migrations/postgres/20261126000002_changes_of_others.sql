-- A session that was reset (DISCARD ALL, as PgBouncer does between two clients) knows our setting as an empty text, not as
-- NULL. The tables are locked in the order in which our programs write them.
CREATE OR REPLACE TRIGGER mappings_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON mappings
FOR EACH STATEMENT
WHEN (coalesce(current_setting('matrix2acrobits.program', true), '') = '')
EXECUTE FUNCTION matrix2acrobits_tell();

CREATE OR REPLACE TRIGGER push_tokens_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON push_tokens
FOR EACH STATEMENT
WHEN (coalesce(current_setting('matrix2acrobits.program', true), '') = '')
EXECUTE FUNCTION matrix2acrobits_tell();

CREATE OR REPLACE TRIGGER jobs_changed AFTER INSERT OR UPDATE ON jobs
FOR EACH STATEMENT
WHEN (coalesce(current_setting('matrix2acrobits.program', true), '') = '')
EXECUTE FUNCTION matrix2acrobits_tell();

-- pg_restore and others write mappings with another search_path.
ALTER FUNCTION matrix2acrobits_mapped() SET search_path FROM CURRENT;
