-- Rows that nobody stands for (no mapping, no login, not imported) are kept for a time and up to a number. They are
-- found, counted and put in the order of their last report by an index of their own, which no other row is in.
ALTER TABLE push_tokens ADD COLUMN of_nobody INTEGER NOT NULL DEFAULT 0;

UPDATE push_tokens
SET of_nobody = 1
WHERE owner IS NULL
  AND imported = 0
  AND NOT EXISTS (SELECT 1
                  FROM mappings m
                  WHERE m.selector = push_tokens.selector);

CREATE INDEX push_tokens_of_nobody ON push_tokens (updated_at) WHERE of_nobody = 1;

CREATE TRIGGER push_tokens_mapped AFTER INSERT ON mappings
BEGIN UPDATE push_tokens SET of_nobody = 0 WHERE selector = new.selector AND of_nobody = 1; END;
CREATE TRIGGER push_tokens_unmapped AFTER DELETE ON mappings
BEGIN UPDATE push_tokens SET of_nobody = 1 WHERE selector = old.selector AND owner IS NULL AND imported = 0; END;
