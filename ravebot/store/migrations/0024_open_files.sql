-- What uses too much: the file descriptors of a machine's QEMU.
ALTER TABLE machines ADD COLUMN open_files INTEGER NOT NULL DEFAULT 0;            -- as at the last look; 0: not known
