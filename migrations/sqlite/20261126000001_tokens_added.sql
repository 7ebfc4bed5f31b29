-- A token that other rows have as well counts as changed when one more row gets it, whoever writes the row (an import
-- beside a running api).
CREATE TRIGGER push_tokens_added AFTER INSERT ON push_tokens
WHEN EXISTS (SELECT 1 FROM push_tokens o WHERE o.token_msgs = new.token_msgs AND o.id <> new.id)
BEGIN UPDATE token_epoch SET value = value + 1; END;

CREATE TRIGGER push_tokens_gained AFTER UPDATE OF token_msgs ON push_tokens
WHEN old.token_msgs IS NULL
 AND EXISTS (SELECT 1 FROM push_tokens o WHERE o.token_msgs = new.token_msgs AND o.id <> new.id)
BEGIN UPDATE token_epoch SET value = value + 1; END;
