-- What people said is kept only until it is acted on or told.
UPDATE inbox SET body = '' WHERE handled_at IS NOT NULL;
UPDATE outbox SET body = '{}' WHERE delivered_at IS NOT NULL;

-- A comment that polling found was kept as every event of GitLab's is from here on; of a webhook the whole body was.
UPDATE inbox SET kind = 'raw_' || kind
    WHERE handled_at IS NULL AND source = 'gitlab' AND kind IN ('merge_request', 'note');
UPDATE inbox SET kind = 'note' WHERE handled_at IS NULL AND source = 'gitlab' AND kind = 'polled_note';
