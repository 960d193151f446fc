-- With which sandbox an environment was seen, so that a stop ends only that one; what tells a deployment that was asked
-- for from earlier ones of the same commit; since when GitLab refuses something; and the pause after a refused deployment,
-- which holds up nothing else of the environment.

ALTER TABLE environments ADD COLUMN seen_with INTEGER NOT NULL DEFAULT 0;  -- the newest sandbox when it was last seen
ALTER TABLE environments ADD COLUMN asked_since INTEGER;                   -- when `asked` was asked for first
ALTER TABLE environments ADD COLUMN newest_deployment INTEGER NOT NULL DEFAULT 0;  -- the highest id that was ever ours
ALTER TABLE environments ADD COLUMN environment_refused_since INTEGER;
ALTER TABLE environments ADD COLUMN status_refused_since INTEGER;
ALTER TABLE environments ADD COLUMN deployment_refused TEXT NOT NULL DEFAULT '';      -- as environment_refused
ALTER TABLE environments ADD COLUMN deployment_refused_since INTEGER;
ALTER TABLE environments ADD COLUMN deployment_failures INTEGER NOT NULL DEFAULT 0;
ALTER TABLE environments ADD COLUMN deployment_since INTEGER;
ALTER TABLE environments ADD COLUMN deployment_until INTEGER;
UPDATE environments SET
    seen_with = COALESCE((SELECT MAX(s.id) FROM sandboxes s WHERE s.project_id = environments.project_id
        AND s.iid = environments.iid AND s.created_at <= environments.seen_at), 0),
    asked_since = asked_at,
    newest_deployment = COALESCE(deployment_id, 0);
