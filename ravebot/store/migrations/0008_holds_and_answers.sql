-- When somebody was answered last, whether that was delivered or not. Only emoji: the merge keys of cards and notes have
-- very many delivered rows, which `outbox_merge` leaves out.
CREATE INDEX outbox_acknowledged ON outbox (merge_key, created_at) WHERE merge_key IS NOT NULL AND kind = 'emoji';

-- A held image is tried again: when its files or the configuration changed since `built_from`, or after a pause.
ALTER TABLE images ADD COLUMN told TEXT NOT NULL DEFAULT '';
ALTER TABLE images ADD COLUMN built_from TEXT NOT NULL DEFAULT '';
ALTER TABLE images ADD COLUMN tried_at INTEGER;
ALTER TABLE images ADD COLUMN trials INTEGER NOT NULL DEFAULT 0;
