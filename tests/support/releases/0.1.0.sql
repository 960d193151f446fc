BEGIN TRANSACTION;
CREATE TABLE cards (
    sandbox_id INTEGER NOT NULL,
    room       TEXT NOT NULL,                   -- as configured
    room_id    TEXT NOT NULL,                   -- in which it was posted: the name may mean another room by now
    event_id   TEXT NOT NULL, shown TEXT NOT NULL DEFAULT '', replaced INTEGER NOT NULL DEFAULT 0, posted_at INTEGER,
    PRIMARY KEY (sandbox_id, room)
) STRICT;
INSERT INTO "cards" VALUES(1,'#dev:example.org','!dev:example.org','$card','digest',0,1767268801000000);
CREATE TABLE connections (
    sandbox_id INTEGER NOT NULL REFERENCES sandboxes (id),
    service    TEXT NOT NULL,                   -- ssh, web
    source     TEXT NOT NULL,
    first_at   INTEGER NOT NULL,
    last_at    INTEGER NOT NULL,
    count      INTEGER NOT NULL,
    dropped    INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,
    PRIMARY KEY (sandbox_id, service, source)
) STRICT;
INSERT INTO "connections" VALUES(1,'ssh','192.0.2.7',1767268800000000,1767268800000000,3,1,4096);
CREATE TABLE events (
    id         INTEGER PRIMARY KEY,
    at         INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    actor_kind TEXT NOT NULL,
    actor      TEXT NOT NULL,
    project_id INTEGER,
    iid        INTEGER,
    sandbox_id INTEGER,
    machine_id INTEGER,
    data       TEXT NOT NULL,
    hash       TEXT NOT NULL                    -- SHA-256 over the hash before and this row
) STRICT;
INSERT INTO "events" VALUES(1,1767268800000000,'sandbox.queued','gitlab','alice',7,1,1,NULL,'{"by":"alice (gitlab)","ref":"group/app!1","sha":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}','98430ab001b48ce116fa5d3cd3a37b3b242240c039d97690b4c403a6a67e317a');
INSERT INTO "events" VALUES(2,1767268800000000,'sandbox.starting','ravebot','ravebot',7,1,1,1,'{"machine":"rave-test-8387dedd21"}','4ec1ff6ca37cbdf67e274eabe5f4dc9cfdc433a81eca8bb6e1af6b781ced3d08');
INSERT INTO "events" VALUES(3,1767268800000000,'machine.booted','ravebot','ravebot',7,1,1,1,'{"seconds":0.0}','a22a22bcc0e2edadadce68f9922602a1259530be8c6e320ea85a7884d160e165');
INSERT INTO "events" VALUES(4,1767268800000000,'stage.done','ravebot','ravebot',7,1,1,1,'{"seconds":0.0,"stage":"host keys"}','b88ae9365164316a857cf7d6c51ad4939d29219c99c8b636ffff6b186db765c3');
INSERT INTO "events" VALUES(5,1767268800000000,'stage.done','ravebot','ravebot',7,1,1,1,'{"seconds":0.0,"stage":"authorize"}','a079fa6212a7a020e0a9be4253c529d4651555fcfdaeb8d63919b6386218e9ae');
INSERT INTO "events" VALUES(6,1767268800000000,'stage.done','ravebot','ravebot',7,1,1,1,'{"seconds":0.0,"stage":"copy"}','c57309f1c4381fc1efc966c46847d6f14ec447874e687ec6cfb69d5ea368ca84');
INSERT INTO "events" VALUES(7,1767268800000000,'stage.done','ravebot','ravebot',7,1,1,1,'{"seconds":0.0,"stage":"setup"}','5fa1627b0dea4d9e167148085b814d2af3150ed6613ed9593801694b90d8696d');
INSERT INTO "events" VALUES(8,1767268800000000,'stage.done','ravebot','ravebot',7,1,1,1,'{"seconds":0.0,"stage":"open ports"}','3b4e1e51e7bc6f0ce413e049bbd8d77eaa518343d861ec85052a1292c651845b');
INSERT INTO "events" VALUES(9,1767268800000000,'sandbox.ready','ravebot','ravebot',7,1,1,1,'{"seconds":0.0,"sha":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}','8c0ac71cd36f31d3fadcb1722a786537f7c18053a44881de49d1a8e954e4dead');
INSERT INTO "events" VALUES(10,1767275401000000,'sandbox.warned','ravebot','ravebot',7,1,1,NULL,'{"left":599.0,"threshold":600}','58580140031fd07a7f71868c550f9ea2a138a879913a06471a9a2153ba43fb09');
INSERT INTO "events" VALUES(11,1767275401000000,'sandbox.queued','gitlab','alice',7,2,2,NULL,'{"by":"alice (gitlab)","ref":"group/app!2","sha":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}','387b7bea7ef1c5104d0fd5eca34c75872c291830b6d6b46209e41daeb6610db3');
INSERT INTO "events" VALUES(12,1767275401000000,'sandbox.starting','ravebot','ravebot',7,2,2,2,'{"machine":"rave-test-65cad06651"}','5da5e1cc41e9971ddfec0e2227ed40ff4c7e111420be6602ed3d534a06c9adcc');
INSERT INTO "events" VALUES(13,1767275401000000,'machine.booted','ravebot','ravebot',7,2,2,2,'{"seconds":0.0}','8819d78dda06ffb2426a902c63d85ed73716981bf0815316ceea9d54d5d49a94');
INSERT INTO "events" VALUES(14,1767275401000000,'stage.done','ravebot','ravebot',7,2,2,2,'{"seconds":0.0,"stage":"host keys"}','b53eed3bff3965ea259b9e791c502b0601c21a227bf315d6fbe6ebd3f7a4d9cb');
INSERT INTO "events" VALUES(15,1767275401000000,'stage.done','ravebot','ravebot',7,2,2,2,'{"seconds":0.0,"stage":"authorize"}','31922d33a6791f606b5608bc49f59310104d8a09e101687fa41dfc15049d4692');
INSERT INTO "events" VALUES(16,1767275401000000,'stage.done','ravebot','ravebot',7,2,2,2,'{"seconds":0.0,"stage":"copy"}','6b5ab4eb150f2ccbff5a7a0b2de51e38a938833a8996b9f6055e0b08381c382e');
INSERT INTO "events" VALUES(17,1767275401000000,'stage.done','ravebot','ravebot',7,2,2,2,'{"seconds":0.0,"stage":"setup"}','32e2a512bbe1d5fec3a6994987f7fa8ae4b9362768849f8e43b0e4dc898027ff');
INSERT INTO "events" VALUES(18,1767275401000000,'stage.done','ravebot','ravebot',7,2,2,2,'{"seconds":0.0,"stage":"open ports"}','181b0438be19c4eb18ec5900875531c61bf3a38195ec7e5f0f0767ec065b469c');
INSERT INTO "events" VALUES(19,1767275401000000,'sandbox.ready','ravebot','ravebot',7,2,2,2,'{"seconds":0.0,"sha":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}','d579c390220bbdf744c61cc2ff3b67d04cc88b744104915cdaea41059eabeb2f');
INSERT INTO "events" VALUES(20,1767275402000000,'sandbox.stopping','gitlab','alice',7,2,2,NULL,'{"by":"alice (gitlab)","detail":"","reason":"merged"}','edb023c7983c350df1dee03ea06871f66f6a8bf67e7ba4fca8ca0105a054fe88');
INSERT INTO "events" VALUES(21,1767275403000000,'sandbox.ended','ravebot','ravebot',7,2,2,2,'{"cpu_seconds":1.5,"detail":"","lived_seconds":2.0,"memory_peak_bytes":33554432,"reason":"merged"}','482ee9299b8b52494d29e301d2cc8eced1977dc18b9733bf95f04a3b6ba25040');
INSERT INTO "events" VALUES(22,1767275404000000,'sandbox.queued','gitlab','alice',7,3,3,NULL,'{"by":"alice (gitlab)","ref":"group/app!3","sha":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}','165c722db677c96046f45c7deca28a6bea1b31172f2148c6e67d4b82c8d96f35');
INSERT INTO "events" VALUES(23,1767275404000000,'sandbox.starting','ravebot','ravebot',7,3,3,3,'{"machine":"rave-test-5f4d1cf37d"}','0c7a7c5e117c228ac162ef51aee493ca4b2541ff47b59dedd4ebf0988e4c7fd8');
CREATE TABLE images (
    image    TEXT PRIMARY KEY,
    failures INTEGER NOT NULL,                  -- in a row
    held     TEXT NOT NULL                      -- why nothing is built from it until a person says retry
, told TEXT NOT NULL DEFAULT '', built_from TEXT NOT NULL DEFAULT '', tried_at INTEGER, trials INTEGER NOT NULL DEFAULT 0) STRICT;
INSERT INTO "images" VALUES('/var/lib/ravebot/image.qcow2',0,'','','0bbb950435253cc7eba4f45e4a92b48e04fb5c10e087d5731814c3254109f327',NULL,0);
CREATE TABLE inbox (
    id              INTEGER PRIMARY KEY,
    source          TEXT NOT NULL,              -- gitlab, matrix
    delivery_key    TEXT NOT NULL,              -- the same delivery twice is one row
    lane            TEXT NOT NULL,              -- order is kept within a lane
    kind            TEXT NOT NULL,
    body            TEXT NOT NULL,
    received_at     INTEGER NOT NULL,
    attempts        INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER NOT NULL DEFAULT 0,
    handled_at      INTEGER,
    outcome         TEXT, postponed_at INTEGER NOT NULL DEFAULT 0,
    UNIQUE (source, delivery_key)
) STRICT;
INSERT INTO "inbox" VALUES(1,'matrix','$said','!dev:example.org','message','{"event_id": "$said", "room_id": "!dev:example.org", "sender": "@alice:example.org", "text": "!rave list", "thread_root": null, "direct": false, "at_ms": 0, "reply_to": null}',1767275764000000,0,0,NULL,NULL,0);
CREATE TABLE machines (
    id                  INTEGER PRIMARY KEY,
    name                TEXT NOT NULL UNIQUE,   -- never used twice
    uuid                TEXT NOT NULL UNIQUE,
    state               TEXT NOT NULL,
    image               TEXT NOT NULL,
    address             TEXT NOT NULL,
    mac                 TEXT NOT NULL,
    tap                 TEXT NOT NULL,
    memory_bytes        INTEGER NOT NULL,
    disk_bytes          INTEGER NOT NULL,
    created_at          INTEGER NOT NULL,
    state_since         INTEGER NOT NULL,
    sandbox_id          INTEGER,
    host_keys           TEXT NOT NULL DEFAULT '[]',
    restarts            INTEGER NOT NULL DEFAULT 0,
    booted_at           INTEGER,
    cpu_seconds         REAL NOT NULL DEFAULT 0,
    memory_peak_bytes   INTEGER NOT NULL DEFAULT 0,
    silent_since        INTEGER,                -- since when the guest agent was seen not to answer
    silent_seen_at      INTEGER,                -- the last of these looks
    unhealthy_told      INTEGER NOT NULL DEFAULT 0,
    paused_since        INTEGER,
    cpu_before_restart  REAL NOT NULL DEFAULT 0,
    paused_by_us        INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO "machines" VALUES(1,'rave-test-8387dedd21','8387dedd-2181-4428-92b8-94f065a12334','leased','/var/lib/ravebot/image.qcow2','10.80.0.2','52:54:00:81:74:28','rv8387dedd21',67108864,67108864,1767268800000000,1767268800000000,1,'["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJA26roiKIKNNQ3W8BrecHZTz8u5xhuyC2RyDlcPfX9u"]',0,1767268800000000,1.5,33554432,NULL,NULL,0,NULL,0.0,0);
INSERT INTO "machines" VALUES(2,'rave-test-65cad06651','65cad066-51e2-4cd4-948b-85ca8eb103d9','gone','/var/lib/ravebot/image.qcow2','10.80.0.3','52:54:00:e2:ac:d4','rv65cad06651',67108864,67108864,1767275401000000,1767275403000000,2,'["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOfihdhP66t5nCfjhzmU81rb/KBgePEdK+XWe+Zs5J75"]',0,1767275401000000,1.5,33554432,NULL,NULL,0,NULL,0.0,0);
INSERT INTO "machines" VALUES(3,'rave-test-5f4d1cf37d','5f4d1cf3-7d4f-4067-b82d-6812c44049ad','building','/var/lib/ravebot/image.qcow2','10.80.0.4','52:54:00:4f:d0:67','rv5f4d1cf37d',67108864,67108864,1767275404000000,1767275404000000,3,'[]',0,NULL,0.0,0,NULL,NULL,0,NULL,0.0,0);
CREATE TABLE merge_requests (
    project_id        INTEGER NOT NULL,
    iid               INTEGER NOT NULL,
    project_path      TEXT NOT NULL,
    title             TEXT NOT NULL,
    web_url           TEXT NOT NULL,
    source_branch     TEXT NOT NULL,
    source_project_id INTEGER NOT NULL,
    head_sha          TEXT NOT NULL,
    author_id         INTEGER NOT NULL,
    author_username   TEXT NOT NULL,
    people            TEXT NOT NULL,            -- JSON [[id, username], …]
    draft             INTEGER NOT NULL,
    state             TEXT NOT NULL,
    updated_at        INTEGER,                  -- by GitLab's clock: older news than this is stale
    approved_sha      TEXT,
    note_id           INTEGER,
    last_comment      INTEGER, note_sought INTEGER NOT NULL DEFAULT 0, comments_as_of INTEGER,                  -- the newest that polling has seen
    PRIMARY KEY (project_id, iid)
) STRICT;
INSERT INTO "merge_requests" VALUES(7,1,'group/app','Add a feature','http://gitlab.example.org/group/app/-/merge_requests/1','feature',7,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',101,'alice','[]',0,'opened',1767268800000000,NULL,NULL,NULL,0,NULL);
INSERT INTO "merge_requests" VALUES(7,2,'group/app','Add a feature','http://gitlab.example.org/group/app/-/merge_requests/2','feature',7,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',101,'alice','[]',0,'merged',1767268800000000,NULL,NULL,NULL,0,NULL);
INSERT INTO "merge_requests" VALUES(7,3,'group/app','Add a feature','http://gitlab.example.org/group/app/-/merge_requests/3','feature',7,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',101,'alice','[]',0,'opened',1767268800000000,NULL,NULL,NULL,0,NULL);
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
INSERT INTO "meta" VALUES('matrix_sync_token','s42');
CREATE TABLE outbox (
    -- Never given out twice, though old rows are forgotten: what is sent carries it, so that twice is once.
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    target          TEXT NOT NULL,              -- matrix, gitlab
    lane            TEXT NOT NULL,              -- room, or project!iid: order is kept within it
    kind            TEXT NOT NULL,
    merge_key       TEXT,                       -- unsent rows with the same one are sent as one
    sandbox_id      INTEGER,
    body            TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    attempted_at    INTEGER,
    attempts        INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER NOT NULL DEFAULT 0,
    delivered_at    INTEGER,
    result          TEXT
, salt TEXT NOT NULL DEFAULT '', postponed_at INTEGER NOT NULL DEFAULT 0, last_attempt_at INTEGER, refused TEXT) STRICT;
INSERT INTO "outbox" VALUES(1,'matrix','#dev:example.org','card','card:1:#dev:example.org',1,'{}',1767268800000000,1767275764000000,1,1767268800000000,1767275764000000,'$sent','c15fd5e9f0f42406',1767268800000000,NULL,NULL);
INSERT INTO "outbox" VALUES(2,'gitlab','7!1','note','note:7!1',NULL,'{}',1767268800000000,NULL,0,1767268800000000,NULL,NULL,'3a248e6731901164',1767268800000000,NULL,NULL);
INSERT INTO "outbox" VALUES(3,'matrix','#dev:example.org','call',NULL,1,'{}',1767268800000000,NULL,0,1767268800000000,NULL,NULL,'5606783d86da0ad8',1767268800000000,NULL,NULL);
INSERT INTO "outbox" VALUES(4,'matrix','#dev:example.org','history',NULL,1,'{"calls":true,"text":"ready after 0.0 s"}',1767268800000000,NULL,0,1767268800000000,NULL,NULL,'31e292ec7dc0d469',1767268800000000,NULL,NULL);
INSERT INTO "outbox" VALUES(5,'matrix','#dev:example.org','warning',NULL,1,'{"threshold":600}',1767275401000000,NULL,0,1767275401000000,NULL,NULL,'0c42505f40926a2a',1767275401000000,NULL,NULL);
INSERT INTO "outbox" VALUES(6,'gitlab','7!1','warning',NULL,1,'{"threshold":600}',1767275401000000,NULL,0,1767275401000000,NULL,NULL,'746c990a04faefea',1767275401000000,NULL,NULL);
INSERT INTO "outbox" VALUES(7,'matrix','#dev:example.org','card','card:2:#dev:example.org',2,'{}',1767275401000000,NULL,0,1767275401000000,NULL,NULL,'bd0899068d09bc8b',1767275401000000,NULL,NULL);
INSERT INTO "outbox" VALUES(8,'gitlab','7!2','note','note:7!2',NULL,'{}',1767275401000000,NULL,0,1767275401000000,NULL,NULL,'71530eb30e44e711',1767275401000000,NULL,NULL);
INSERT INTO "outbox" VALUES(9,'matrix','#dev:example.org','call',NULL,2,'{}',1767275401000000,NULL,0,1767275401000000,NULL,NULL,'1996304a4e08af5f',1767275401000000,NULL,NULL);
INSERT INTO "outbox" VALUES(10,'matrix','#dev:example.org','history',NULL,2,'{"calls":true,"text":"ready after 0.0 s"}',1767275401000000,NULL,0,1767275401000000,NULL,NULL,'7a627d4f9fcf5ef1',1767275401000000,NULL,NULL);
INSERT INTO "outbox" VALUES(11,'matrix','#dev:example.org','history',NULL,2,'{"calls":false,"text":"ended: the merge request was merged (lived 2 s)"}',1767275403000000,NULL,0,1767275403000000,NULL,NULL,'a7752b45db1d803a',1767275403000000,NULL,NULL);
INSERT INTO "outbox" VALUES(12,'matrix','#dev:example.org','card','card:3:#dev:example.org',3,'{}',1767275404000000,NULL,0,1767275404000000,NULL,NULL,'089af1b268c12239',1767275404000000,NULL,NULL);
INSERT INTO "outbox" VALUES(13,'gitlab','7!3','note','note:7!3',NULL,'{}',1767275404000000,NULL,0,1767275404000000,NULL,NULL,'d02c84339a213716',1767275404000000,NULL,NULL);
CREATE TABLE room_problems (
    room    TEXT PRIMARY KEY,                   -- as configured
    problem TEXT NOT NULL,
    since   INTEGER NOT NULL
) STRICT;
INSERT INTO "room_problems" VALUES('#other:example.org','it is encrypted',1767268800000000);
CREATE TABLE room_warnings (
    sandbox_id INTEGER NOT NULL,
    room       TEXT NOT NULL,                   -- as configured
    threshold  INTEGER NOT NULL,                -- in seconds before the end
    room_id    TEXT NOT NULL,
    event_id   TEXT NOT NULL,
    is_over    INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (sandbox_id, room, threshold)
) STRICT;
INSERT INTO "room_warnings" VALUES(1,'#dev:example.org',900,'!dev:example.org','$warning',0);
CREATE TABLE rooms (
    name    TEXT PRIMARY KEY,                   -- as configured: alias or id
    room_id TEXT NOT NULL
) STRICT;
INSERT INTO "rooms" VALUES('#dev:example.org','!dev:example.org');
CREATE TABLE sandboxes (
    id               INTEGER PRIMARY KEY,
    project_id       INTEGER NOT NULL,
    iid              INTEGER NOT NULL,
    state            TEXT NOT NULL,
    wait_reason      TEXT NOT NULL,             -- why it is queued, beyond its turn
    not_before       INTEGER,                   -- backoff after a failed build
    requested_kind   TEXT NOT NULL,
    requested_by     TEXT NOT NULL,
    created_at       INTEGER NOT NULL,
    state_since      INTEGER NOT NULL,
    sha              TEXT NOT NULL,
    running_sha      TEXT,
    machine_id       INTEGER REFERENCES machines (id),
    stage            TEXT,
    stage_started_at INTEGER,
    attempt          INTEGER NOT NULL,
    stage_attempt    INTEGER NOT NULL,
    ssh_port         INTEGER,
    web_port         INTEGER,
    web_scheme       TEXT,
    ports_open       INTEGER NOT NULL DEFAULT 0,
    ready_at         INTEGER,
    expires_at       INTEGER,
    end_reason       TEXT,
    end_detail       TEXT NOT NULL,
    notice           TEXT NOT NULL,             -- what went wrong with the last update
    ended_at         INTEGER,
    refreshed_at     INTEGER,
    FOREIGN KEY (project_id, iid) REFERENCES merge_requests (project_id, iid)
) STRICT;
INSERT INTO "sandboxes" VALUES(1,7,1,'ready','',NULL,'gitlab','alice',1767268800000000,1767268800000000,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',1,NULL,NULL,1,1,42200,43000,'https',1,1767268800000000,1767276000000000,NULL,'','nobody of this merge request has an SSH key on GitLab: add one in your GitLab preferences, it is let in soon',NULL,1767275401000000);
INSERT INTO "sandboxes" VALUES(2,7,2,'ended','',NULL,'gitlab','alice',1767275401000000,1767275403000000,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',2,NULL,NULL,1,1,42201,43001,'https',0,1767275401000000,1767282601000000,'merged','','',1767275403000000,1767275403000000);
INSERT INTO "sandboxes" VALUES(3,7,3,'starting','',NULL,'gitlab','alice',1767275404000000,1767275404000000,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',NULL,3,NULL,NULL,1,0,42202,43002,NULL,0,NULL,NULL,NULL,'','',NULL,1767275404000000);
CREATE TABLE sightings (
    kind       TEXT NOT NULL,                   -- machine, volume
    name       TEXT NOT NULL,
    first_seen INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT;
INSERT INTO "sightings" VALUES('machine','rave-test-stray',1767275764000000);
CREATE TABLE stage_results (
    id         INTEGER PRIMARY KEY,
    sandbox_id INTEGER NOT NULL REFERENCES sandboxes (id),
    attempt    INTEGER NOT NULL,
    stage      TEXT NOT NULL,
    ok         INTEGER NOT NULL,
    seconds    REAL NOT NULL,
    tail       TEXT NOT NULL,
    at         INTEGER NOT NULL
) STRICT;
INSERT INTO "stage_results" VALUES(1,1,1,'host keys',1,0.0,'',1767268800000000);
INSERT INTO "stage_results" VALUES(2,1,1,'authorize',1,0.0,'',1767268800000000);
INSERT INTO "stage_results" VALUES(3,1,1,'copy',1,0.0,'',1767268800000000);
INSERT INTO "stage_results" VALUES(4,1,1,'setup',1,0.0,'its output
',1767268800000000);
INSERT INTO "stage_results" VALUES(5,1,1,'open ports',1,0.0,'',1767268800000000);
INSERT INTO "stage_results" VALUES(6,2,1,'host keys',1,0.0,'',1767275401000000);
INSERT INTO "stage_results" VALUES(7,2,1,'authorize',1,0.0,'',1767275401000000);
INSERT INTO "stage_results" VALUES(8,2,1,'copy',1,0.0,'',1767275401000000);
INSERT INTO "stage_results" VALUES(9,2,1,'setup',1,0.0,'its output
',1767275401000000);
INSERT INTO "stage_results" VALUES(10,2,1,'open ports',1,0.0,'',1767275401000000);
CREATE TABLE warnings (
    sandbox_id INTEGER NOT NULL REFERENCES sandboxes (id),
    threshold  INTEGER NOT NULL,                -- seconds before expiry
    PRIMARY KEY (sandbox_id, threshold)
) STRICT;
INSERT INTO "warnings" VALUES(1,600);
INSERT INTO "warnings" VALUES(1,1800);
CREATE INDEX inbox_pending ON inbox (source, lane, id) WHERE handled_at IS NULL;
CREATE INDEX inbox_handled ON inbox (handled_at) WHERE handled_at IS NOT NULL;
CREATE INDEX machines_live ON machines (id) WHERE state <> 'gone';
CREATE INDEX machines_sandbox ON machines (sandbox_id);
CREATE UNIQUE INDEX machines_address ON machines (address) WHERE state <> 'gone';
CREATE UNIQUE INDEX machines_tap ON machines (tap) WHERE state <> 'gone';
CREATE UNIQUE INDEX sandboxes_one_per_mr ON sandboxes (project_id, iid)
    WHERE state IN ('queued', 'starting', 'ready');
CREATE UNIQUE INDEX sandboxes_ssh_port ON sandboxes (ssh_port) WHERE state <> 'ended';
CREATE UNIQUE INDEX sandboxes_web_port ON sandboxes (web_port) WHERE state <> 'ended';
CREATE INDEX sandboxes_live ON sandboxes (id) WHERE state <> 'ended';
CREATE INDEX sandboxes_mr ON sandboxes (project_id, iid, id);
CREATE INDEX stage_results_sandbox ON stage_results (sandbox_id, id);
CREATE INDEX outbox_pending ON outbox (target, lane, id) WHERE delivered_at IS NULL;
CREATE INDEX outbox_merge ON outbox (merge_key) WHERE delivered_at IS NULL;
CREATE INDEX outbox_delivered ON outbox (delivered_at) WHERE delivered_at IS NOT NULL;
CREATE INDEX events_sandbox ON events (sandbox_id, id);
CREATE TRIGGER events_are_never_changed BEFORE UPDATE ON events
    BEGIN SELECT RAISE (ABORT, 'the event log is append-only'); END;
CREATE TRIGGER events_are_never_removed BEFORE DELETE ON events
    BEGIN SELECT RAISE (ABORT, 'the event log is append-only'); END;
CREATE INDEX outbox_acknowledged ON outbox (merge_key, created_at) WHERE merge_key IS NOT NULL AND kind = 'emoji';
CREATE INDEX cards_event ON cards (event_id);
CREATE INDEX outbox_result ON outbox (result) WHERE sandbox_id IS NOT NULL;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('outbox',13);
COMMIT;
PRAGMA user_version = 10;
