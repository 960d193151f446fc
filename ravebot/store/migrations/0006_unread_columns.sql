-- Nothing reads them.
ALTER TABLE machines DROP COLUMN create_attempted_at;
ALTER TABLE stage_results DROP COLUMN sha;
