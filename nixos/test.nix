# A host with Synapse, a stand-in for GitLab and the bot: a merge request is opened, and its sandbox, a machine inside
# the host, is reached over SSH and HTTP from another machine. Faster where KVM can be nested.
{ self }:
{ lib, pkgs, ... }:

let
  image = "${self.packages.x86_64-linux.sandbox-image}/ravebot-sandbox.qcow2";
  python = pkgs.python3.withPackages (packages: [
    packages.aiohttp
    packages.linkify-it-py
    packages.markdown-it-py
  ]);
  standIn = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../tests/__init__.py
      ../tests/support/__init__.py
      ../tests/support/gitlab
    ];
  };
in
{
  name = "ravebot";

  nodes.host =
    { config, ... }:
    {
      imports = [ self.nixosModules.ravebot ];

      virtualisation = {
        cores = 2;
        memorySize = 6144;
        diskSize = 30 * 1024;
      };
      environment.systemPackages = [
        pkgs.jq
        pkgs.matrix-synapse # register_new_matrix_user
      ];

      services.matrix-synapse = {
        enable = true;
        settings = {
          server_name = "host";
          database.name = "sqlite3";
          registration_shared_secret = "of this test only";
        };
      };

      systemd.services.gitlab-stand-in = {
        wantedBy = [ "multi-user.target" ];
        serviceConfig = {
          ExecStart = "${python}/bin/python -m tests.support.gitlab --port 8929 --control 8930";
          WorkingDirectory = standIn;
          DynamicUser = true;
        };
      };

      systemd.services.ravebot.wantedBy = lib.mkForce [ ]; # its secrets are made first
      services.ravebot = {
        enable = true;
        secrets = {
          matrixPassword = "/var/secrets/matrix";
          gitlabToken = "/var/secrets/gitlab";
          gitlabWebhook = "/var/secrets/webhook";
        };
        settings = {
          matrix = {
            homeserver = "http://127.0.0.1:8008";
            user_id = "@ravebot:host";
            admins = [ "@alice:host" ];
            users."@alice:host" = "alice";
            rooms = [
              {
                room = "#dev:host";
                projects = [ "group/app" ];
              }
            ];
          };
          gitlab = {
            url = "http://127.0.0.1:8929";
            projects = [ "group/app" ];
          };
          sandbox = {
            host = config.networking.primaryIPAddress;
            memory = "2GiB";
            disk = "16GiB";
          };
          pool = {
            max_running = 1;
            build_timeout = "30m"; # without nested KVM
          };
          access.allow_from = [ "192.168.1.0/24" ];
          provider.image = image;
        };
      };
    };

  nodes.visitor.environment.systemPackages = [ pkgs.openssh ];

  testScript =
    { nodes, ... }:
    ''
      import json
      import shlex

      MATRIX = "http://127.0.0.1:8008/_matrix/client/v3"

      def control(method, **arguments):
          body = shlex.quote(json.dumps(arguments))
          return json.loads(host.succeed(f"curl -sf -d {body} http://127.0.0.1:8930/{method}"))

      def matrix(path, token="", **content):
          body = shlex.quote(json.dumps(content))
          sent = f"-H 'Authorization: Bearer {token}' -d {body}"
          return json.loads(host.succeed(f"curl -sf {sent} {MATRIX}/{path}"))

      def keep(name, value):
          host.succeed(f"mkdir -p -m 700 /var/secrets; umask 077; echo {shlex.quote(value)} >/var/secrets/{name}")

      start_all()
      host.wait_for_unit("matrix-synapse.service")
      host.wait_for_open_port(8008)
      host.wait_for_unit("gitlab-stand-in.service")
      host.wait_for_open_port(8930)
      visitor.wait_for_unit("multi-user.target")

      with subtest("people, a project and a room"):
          for name in ("ravebot", "alice"):
              host.succeed(
                  "register_new_matrix_user --no-admin -u " + name + " -p secret-of-" + name
                  + " -k 'of this test only' http://127.0.0.1:8008"
              )
          visitor.succeed("mkdir -p -m 700 /root/.ssh; ssh-keygen -q -t ed25519 -N ''' -f /root/.ssh/id_ed25519")
          key = visitor.succeed("cat /root/.ssh/id_ed25519.pub").strip()
          control("add_user", username="ravebot")
          control("add_user", username="alice", keys=[key])
          control("add_project", path="group/app")
          for name in ("ravebot", "alice"):
              control("set_role", project="group/app", user=name, level=40)
          keep("gitlab", control("token_for", user="ravebot"))
          keep("matrix", "secret-of-ravebot")
          keep("webhook", "hush")
          control("add_hook", project="group/app", url="http://127.0.0.1:8080/webhooks/gitlab", secret_token="hush")
          identifier = {"type": "m.id.user", "user": "alice"}
          alice = matrix("login", type="m.login.password", identifier=identifier, password="secret-of-alice")
          matrix("createRoom", alice["access_token"], room_alias_name="dev", invite=["@ravebot:host"])

      with subtest("the bot is ready, with no more rights than it needs"):
          host.succeed("systemctl start ravebot.service")
          host.wait_until_succeeds("curl -sf http://127.0.0.1:8080/readyz", timeout=120)
          pid = host.succeed("systemctl show -P MainPID ravebot.service").strip()
          host.succeed(f"grep -q '^CapEff:.*0000000000001000$' /proc/{pid}/status")
          host.fail("grep -r secret-of-ravebot /nix/store/*-ravebot.yaml /etc/ravebot")
          host.log(host.succeed("systemd-analyze security ravebot.service || true"))

      with subtest("a merge request gets a sandbox"):
          control("open_merge_request", project="group/app", author="alice")
          ports = "ravebot list --json | jq -e '.. | objects | select(has(\"ssh_port\")) | .ssh_port, .web_port'"
          ssh_port, web_port = host.wait_until_succeeds(ports, timeout=3600).split()
          address = "${nodes.host.networking.primaryIPAddress}"

      with subtest("another machine reaches it over SSH and HTTP"):
          ssh = f"ssh -o StrictHostKeyChecking=accept-new -p {ssh_port} agent@{address}"
          visitor.succeed(f"{ssh} cat /srv/merge-request/README.md | grep -q group/app")
          visitor.succeed(f"{ssh} sudo -n true")
          page = f"http://{address}:{web_port}"
          visitor.wait_until_succeeds(f"curl -sf {page}/start/parts.json | grep -q Prometheus", timeout=300)
          visitor.wait_until_succeeds(f"curl -sfL {page}/prometheus/-/ready", timeout=300)
          visitor.wait_until_succeeds(f"curl -sfL {page}/grafana/api/health", timeout=600)

      with subtest("the sandbox reaches neither the host nor its network"):
          visitor.fail(f"{ssh} curl -s --max-time 5 http://10.80.0.1:8008/")
          visitor.fail(f"{ssh} ping -c 1 -W 5 {address}")

      with subtest("it goes with the merge request"):
          control("merge", mr="group/app!1")
          host.wait_until_succeeds("test -z \"$(virsh list --all --name | tr -d '[:space:]')\"", timeout=300)
    '';
}
