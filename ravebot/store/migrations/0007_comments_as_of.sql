-- The `updated_at` of the merge request whose comments polling has read: while it is the same, there are no newer ones.
ALTER TABLE merge_requests ADD COLUMN comments_as_of INTEGER;
