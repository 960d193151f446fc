-- Which SSH keys of people and agents a machine was last made to let in, so that it is known whose were taken out.
CREATE TABLE granted_keys (
    machine_id INTEGER NOT NULL REFERENCES machines (id),
    key        TEXT NOT NULL,                   -- type and Base64
    whose      TEXT NOT NULL,                   -- a GitLab user's name, or that of an agent in the configuration
    PRIMARY KEY (machine_id, key)
) STRICT;
