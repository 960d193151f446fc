# The keys of ravebot's configuration as options, with ravebot's own defaults; config.example.yaml says more of each.
# `secret` gives the path that a secret has in the service; null: there is none.
{ lib, secret }:

let
  inherit (lib) mkOption types;

  duration = types.strMatching "([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?" // {
    description = "duration such as 90s, 30m, 2h, 1h30m or 1d";
  };
  size = types.strMatching "[0-9]{1,15}([KMGT]i?B?)?" // {
    description = "size such as 512MiB or 4GiB";
  };
  amount = types.strMatching "[0-9]{1,12}[kKMG]?" // {
    description = "number such as 200k or 5M";
  };
  portRange = types.strMatching "[0-9]{4,5}-[0-9]{4,5}" // {
    description = "range of ports such as 2200-2299";
  };
  url = types.strMatching "https?://.+" // {
    description = "address that begins with https:// or http://";
  };
  network = types.strMatching "[0-9]{1,3}([.][0-9]{1,3}){3}/[0-9]{1,2}" // {
    description = "IPv4 network such as 192.0.2.0/24";
  };
  userId = types.strMatching "@[^[:space:]:]{1,200}:[^[:space:]]{1,200}" // {
    description = "Matrix id such as @ravebot:example.org";
  };
  room = types.strMatching "[#!][^[:space:]]{1,254}" // {
    description = "room such as #dev:example.org or !id:example.org";
  };
  project = types.strMatching "[[:alnum:]_.*/-]{1,255}" // {
    description = "project such as group/app, or a pattern such as group/*";
  };

  key =
    type: default: description:
    mkOption { inherit type default description; };
  required = type: description: mkOption { inherit type description; };
  optional =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };
  secretFile =
    name:
    mkOption {
      type = types.nullOr types.str;
      default = secret name;
      readOnly = true;
      internal = true;
      description = "Follows from the secret `${name}`.";
    };
in
{
  instance = key (types.strMatching "[a-z0-9]([a-z0-9-]{0,14}[a-z0-9])?") "main" "The name of this installation.";
  state_dir =
    key (types.strMatching "/var/lib/[^/]+") "/var/lib/ravebot"
      "The folder for the database, the Matrix login and the admin socket. systemd makes it.";

  matrix = {
    homeserver = required url "The base address of the homeserver's client API.";
    user_id = required userId "The bot's account.";
    password_file = secretFile "matrixPassword";
    access_token_file = secretFile "matrixAccessToken";
    command_prefix = key (types.strMatching "[^[:space:]]{1,20}") "!rave" "The word that every command begins with.";
    mentions = key (types.enum [
      "edit"
      "message"
      "none"
    ]) "edit" "How the owner of a sandbox is notified.";
    admins =
      key (types.listOf userId) [ ]
        "Who can invite ravebot to rooms, and use every command on every project.";
    operations_room = optional room "The room of the people who run ravebot.";
    users = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = {
        "@alice:example.org" = "alice";
      };
      description = "Who is who: Matrix id to GitLab user name.";
    };
    rooms = mkOption {
      type = types.listOf (
        types.submodule {
          options = {
            room = required room "An alias, or a room id that begins with `!`.";
            projects = required (types.nonEmptyListOf project) "The projects that are announced there.";
            agent = optional types.nonEmptyStr "One of `agents`, for what is said with `!rave ask` and without a name.";
          };
        }
      );
      default = [ ];
      example = [
        {
          room = "#dev:example.org";
          projects = [ "group/*" ];
        }
      ];
      description = "Which projects are announced in which rooms.";
    };
  };

  gitlab = {
    url = required url "GitLab's base address, without /api.";
    token_file = secretFile "gitlabToken";
    ca_file = optional types.path "The certificate of GitLab's own CA, in PEM, like ./ca.pem; no other is trusted.";
    proxy = optional url "The HTTP proxy through which GitLab is reached.";
    proxy_login_file = secretFile "gitlabProxyLogin";
    projects = required (types.nonEmptyListOf project) "The projects whose merge requests get sandboxes.";
    drafts = key (types.enum [
      "start"
      "wait"
    ]) "start" "Whether a draft gets a sandbox at once, or when a person comments `/sandbox start`.";
    labels = {
      skip = key types.nonEmptyStr "sandbox::off" "With this label, no sandbox starts by itself.";
      large = key types.nonEmptyStr "sandbox::large" "With this label, a sandbox is as large as `limits` lets it be.";
    };
    environments = key types.bool true "Whether GitLab's environments page shows each sandbox, with a stop button.";
    commit_status = key types.bool true "Whether commits get the status `ravebot/sandbox`.";
    ci = {
      audience = optional types.nonEmptyStr "Opens the door for CI jobs: the `aud` that their tokens have, ravebot's address.";
      issuer = optional url "The address that GitLab writes into jobs' tokens, if that is not `url`.";
    };
    webhook = {
      secret_token_file = secretFile "gitlabWebhook";
      signing_token_file = secretFile "gitlabWebhookSigning";
      previous_secret_token_file = secretFile "gitlabWebhookPrevious";
      previous_signing_token_file = secretFile "gitlabWebhookSigningPrevious";
    };
    poll = key duration "5m" "How often to ask GitLab for changes, in case webhooks were lost.";
    request_limit = key duration "60s" "How long GitLab works on one request at most.";
  };

  http = {
    listen =
      key (types.strMatching "([[][0-9a-fA-F:]+]|[^][:space:]:[]+):[0-9]{1,5}") "127.0.0.1:8080"
        "The address for webhooks, /healthz, /readyz and /metrics. Put a proxy that does TLS in front of it.";
    public_url = optional url "The address at which browsers and GitLab reach it.";
  };

  api = {
    listen =
      optional (types.strMatching "([[][0-9a-fA-F:]+]|[^][:space:]:[]+):[0-9]{1,5}")
        "The address for the API and MCP; null: there is none. Put a proxy that does TLS in front of it.";
    public_url = optional url "The address at which clients reach the API.";
  };

  pool = {
    max_running = key (types.ints.between 1 10000) 2 "How many sandboxes run at once; more wait in a queue.";
    warm = key (types.enum [ 0 ]) 0 "How many machines are kept ready ahead of time; only 0 is possible yet.";
    lifetime = key duration "2h" "How long a sandbox lives, from ready.";
    max_lifetime = key duration "8h" "How long it can live with extensions, from ready.";
    warn_before = key (types.listOf duration) [
      "30m"
      "10m"
    ] "How long before the end its owner is warned.";
    shutdown_grace =
      key duration "30s"
        "How long a machine may take to shut down before it is switched off.";
    build_timeout =
      key duration "5m"
        "How long a new machine may take until its guest agent answers.";
    orphan_sweep = key duration "5m" "How often to look for machines and disks without an owner.";
  };

  sandbox = {
    memory = key size "4GiB" "Memory of each machine.";
    vcpus = key (types.ints.between 1 256) 2 "Processors of each machine.";
    disk = key size "20GiB" "Disk of each machine; it grows as it is filled, but the whole is reserved.";
    user =
      key (types.strMatching "[a-z_][a-z0-9_-]{0,30}") "agent"
        "The account in the machine that people log in to.";
    web_port = key types.port 3002 "Where the machine's own web server listens.";
    host =
      required types.nonEmptyStr
        "The DNS name or IPv4 address of this host that people connect to; not that of GitLab, Matrix or ravebot.";
    ssh_ports = key portRange "2200-2299" "Each sandbox gets one of these for SSH.";
    web_ports = key portRange "3000-3099" "And one of these for its web server.";
    connections_per_minute = {
      ssh = key types.ints.positive 10 "New SSH connections of one address to one port in a minute.";
      web = key types.ints.positive 300 "The same for the web server.";
    };
    egress = key (types.enum [
      "internet"
      "none"
    ]) "internet" "Whether sandboxes reach the internet; `none` stops DNS as well.";
    allow =
      key (types.listOf (types.strMatching "[0-9.]+(/[0-9]{1,2})?(:[0-9]{1,5})?")) [ ]
        "Private networks that sandboxes may reach, with or without a port: `10.0.5.0/24:443`.";
    max_source = key size "512MiB" "How large the archive of a merge request's source may be.";
    setup =
      key (types.listOf types.nonEmptyStr) [ "./.rave/setup" ]
        "Commands to run in the code's folder. A command whose file does not exist is skipped.";
    smoke_tests = mkOption {
      type = types.listOf (
        types.attrTag {
          http = required (types.strMatching "/[!-~]{0,500}") "A path that must be answered below 400.";
          run = required types.nonEmptyStr "A command that must end with 0.";
        }
      );
      default = [ ];
      example = [
        { http = "/health"; }
        { run = "make check"; }
      ];
      description = "What to try after set-up.";
    };
    junit =
      key (types.listOf types.nonEmptyStr) [ ]
        "Where tests leave JUnit reports, below the code's folder; `*` stands for any name.";
    keep_failed = key duration "0s" "How long to keep a machine whose set-up or smoke tests failed, open for SSH only.";
    timeouts = {
      copy = key duration "10m" "How long the code may take into the machine.";
      setup = key duration "15m" "How long set-up may take.";
      test = key duration "10m" "How long the smoke tests may take.";
      other = key duration "1m" "How long each other stage may take.";
    };
  };

  limits = {
    memory = key size "8GiB" "The most memory that a project may ask for in its `.rave.yml`.";
    vcpus = key types.ints.positive 4 "The most processors that it may ask for.";
    disk = key size "40GiB" "The largest disk that it may ask for.";
    lifetime = key duration "8h" "The longest lifetime that it may ask for.";
  };

  access.allow_from =
    key (types.listOf network) [ ]
      "The networks that can reach the sandboxes. Empty: whoever reaches this host reaches every sandbox's web port.";

  provider = {
    type = key (types.enum [ "libvirt" ]) "libvirt" "What runs the machines.";
    uri = key types.nonEmptyStr "qemu:///system" "Of the libvirt to use.";
    network = key (types.enum [
      "bridge"
      "none"
    ]) "bridge" "`none`: machines without any network.";
    bridge = {
      name =
        key (types.strMatching "[a-z][a-z0-9_-]{0,14}") "ravebot0"
          "The interface of the sandboxes' own network; libvirt makes it.";
      subnet = key network "10.80.0.0/24" "A private network, /29 or larger, that the host does not have yet.";
    };
    storage_pool = key types.path "/var/lib/ravebot/disks" "The folder for the machines' disks.";
    image = mkOption {
      type = types.path;
      example = lib.literalExpression ''"''${inputs.ravebot.packages.x86_64-linux.sandbox-image}/ravebot-sandbox.qcow2"'';
      description = "The qcow2 file that machines start from.";
    };
    images = key (types.attrsOf types.path) { } "More images, by the name with which a `.rave.yml` asks for one.";
    pipeline_images = optional (types.submodule {
      options = {
        folder = optional types.path "Where they are kept, and nothing else; null: `pipeline-images` in `state_dir`.";
        largest = key size "4GiB" "How large one may be, as it is downloaded.";
        keep = key size "40GiB" "How large all may be together; the least recently used ones are removed.";
        longest_wait = key duration "1h" "The most that a `.rave.yml` may wait for one.";
      };
    }) "Images that jobs of merge requests' pipelines build; null: there are none.";
    kernel = optional types.path "A kernel to boot directly; give `initrd` too.";
    initrd = optional types.path "Its initial ramdisk.";
    cmdline = key types.str "" "Its command line.";
    accelerator = key (types.enum [
      "auto"
      "kvm"
      "tcg"
    ]) "auto" "KVM, emulation, or KVM if a try at booting with it works.";
  };

  agents = mkOption {
    type = types.listOf (
      types.submodule {
        options = {
          name = required (types.strMatching "[a-z0-9][a-z0-9_-]{0,30}") "The agent's name, as people write it.";
          owner = optional types.nonEmptyStr "A GitLab user: the agent may never do more than they. Required to be spoken to.";
          projects = key (types.listOf project) [ ] "On whose merge requests it may work. Required to be spoken to.";
          acp = optional (types.submodule {
            options = {
              command = required (types.nonEmptyListOf types.nonEmptyStr) "The program that speaks the Agent Client Protocol, as it is run in the sandbox.";
              environment =
                key (types.attrsOf types.str) { }
                  "Its environment. Nothing secret: all code in the sandbox can read it.";
            };
          }) "How people speak to it, if it works in the sandbox.";
          webhook = optional (types.submodule {
            options = {
              url = required url "Where messages to it are sent.";
              signing_key_file =
                required (types.strMatching "/.+")
                  "A file with the key that signs them, of the user ravebot and chmod 600; not from the Nix store.";
            };
          }) "How people speak to it, if it works elsewhere and takes webhooks.";
          inbox = key types.bool false "Whether it works elsewhere and takes its messages itself, by the API.";
          models = key (types.listOf types.nonEmptyStr) [ ] "Which of `models` it may use, without their keys.";
          approve = key (types.listOf (
            types.enum [
              "read"
              "edit"
              "delete"
              "move"
              "search"
              "execute"
              "think"
              "fetch"
              "switch_mode"
              "other"
            ]
          )) [ ] "Which kinds of its tool calls a person must allow, if it asks.";
          forks = key types.bool false "Whether it also works on merge requests that come from forks.";
          limits = {
            turn = key duration "30m" "The longest time for one message.";
            messages_per_day = key types.ints.positive 200 "How many messages it takes on a UTC day.";
            tokens_per_day = key amount "20M" "How many tokens of models it may use on a UTC day.";
          };
          ssh_keys = key (types.listOf types.nonEmptyStr) [ ] "Its public SSH keys, which are let into every sandbox.";
        };
      }
    );
    default = [ ];
    description = "Coding agents that people speak to, or whose SSH keys are let into every sandbox.";
  };

  models = mkOption {
    type = types.listOf (
      types.submodule {
        options = {
          name = required (types.strMatching "[a-z][a-z0-9-]{0,30}") "Its name, by which agents find it.";
          url = required url "The service's address, up to the path.";
          key_file = optional (types.strMatching "/.+") "A file with the key, of the user ravebot and chmod 600; not from the Nix store.";
          header = key (types.enum [
            "authorization"
            "x-api-key"
            "x-goog-api-key"
          ]) "authorization" "How the key is sent.";
          paths = required (types.nonEmptyListOf types.nonEmptyStr) "The paths that agents may use.";
          allow = required (types.nonEmptyListOf types.nonEmptyStr) "The models that requests may name.";
          max_output = key amount "32k" "How long an answer may be if a request does not say, in tokens.";
          max_request = key size "8MiB" "How large a request may be.";
          server_tools = key (types.enum [
            "refuse"
            "allow"
          ]) "refuse" "Whether requests may have the service fetch, look up or run something.";
        };
      }
    );
    default = [ ];
    description = "Services of models that agents in sandboxes use without having the key.";
  };

  budgets = {
    person = {
      messages_per_day = key types.ints.positive 500 "How many messages one person may give to agents on a UTC day.";
      tokens_per_day = key amount "40M" "How many tokens of models agents may use for one person on a UTC day.";
    };
    sandbox.tokens = key amount "20M" "How many tokens of models agents in one sandbox may use over its life.";
  };

  keep = {
    consoles = key duration "7d" "How long consoles and QEMU's logs of machines that are gone are kept.";
    output = key duration "7d" "How long what set-up, tests and runs printed is kept.";
    messages = key duration "7d" "How long it is kept what became of messages that were delivered.";
    requests = key duration "14d" "How long it is kept what became of requests; at least 14d.";
    talks = key duration "30d" "How long what people and agents said to each other is kept.";
  };

  monitoring = {
    alertmanager_token_file = secretFile "alertmanagerToken";
    usage_report = optional room "The room that is told each Monday what was used in the week before.";
    projects = key types.ints.positive 50 "How many projects have metrics of their own; all others are `other`.";
  };
}
