# The RAVE stack behind nginx on the web port of a sandbox: a path for each part, and a start page with their links.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkIf mkOption types;
  inherit (config.ravebot.sandbox) codeFolder user webPort;
  cfg = config.ravebot.sandbox.rave;

  # The Debian image's own files, wherever they fit here as they are.
  debian = ../ravebot/images/guest/rave;
  startPage = debian + "/usr/share/rave/start";
  routerConfig = debian + "/etc/claude-code-router/config.json";
  locations = part: builtins.readFile (debian + "/etc/nginx/rave/${part}.conf");

  routerHome = "/var/lib/claude-code-router";
  routerSettings = "${routerHome}/.claude-code-router/config.json";

  # What the start page says, in the form and the words of the Debian image's install.sh.
  parts = [
    {
      name = "Merge request";
      path = "/code/";
      about = "The files of this merge request";
    }
    {
      name = "Prometheus";
      path = "/prometheus/";
      about = "Measurements of this machine, and of the project if it has any";
      version = lib.getVersion config.services.prometheus.package;
    }
    {
      name = "Node exporter";
      path = "/node/metrics";
      about = "CPU, memory, disk and network of this machine";
      version = lib.getVersion pkgs.prometheus-node-exporter;
    }
    (
      {
        name = "Claude Code Router";
        path = "/router/";
        about = "Routes Claude Code to the model of your choice; sign in with APIKEY of ${routerSettings}";
      }
      // versionOf "claudeCodeRouter"
    )
    (
      {
        name = "Vibe Kanban";
        path = "/kanban/";
        about = "A board of tasks for coding agents";
      }
      // versionOf "vibeKanban"
    )
    {
      name = "Grafana";
      path = "/grafana/";
      about = "Dashboards of what Prometheus measures; the password of admin is in /var/lib/grafana/admin-password";
      version = lib.getVersion config.services.grafana.package;
    }
  ];
  versionOf =
    option:
    if cfg.${option} == null then
      { left_out = "ravebot.sandbox.rave.${option} names no package"; }
    else
      { version = lib.getVersion cfg.${option}; };

  # Made at the first start, so that no two machines share it and the store holds none.
  random = "od -An -N 24 -tx1 /dev/urandom | tr -d ' \\n'";
  secret = file: ''
    [ -s ${file} ] || (umask 077; ${random} >${file})
  '';
  grafana = config.services.grafana.dataDir;
in
{
  options.ravebot.sandbox.rave = {
    enable = mkOption {
      type = types.bool;
      default = true;
      description = "Whether the sandbox has the RAVE stack. Without it, nothing listens on the web port.";
    };
    claudeCodeRouter = mkOption {
      type = types.nullOr types.package;
      default = pkgs.claude-code-router;
      defaultText = lib.literalExpression "pkgs.claude-code-router";
      description = "Claude Code Router, with the program `ccr`; `null` leaves it out.";
    };
    vibeKanban = mkOption {
      type = types.nullOr types.package;
      default = null;
      description = ''
        Vibe Kanban, with the program `vibe-kanban`; `null` leaves it out. It was not found in nixpkgs 26.05.
      '';
    };
  };

  config = mkIf cfg.enable {
    services.nginx = {
      enable = true;
      validateConfigFile = false; # gixy refuses $http_host, which has the port that the browser sees
      virtualHosts.sandbox = {
        default = true;
        listen = [
          {
            addr = "0.0.0.0";
            port = webPort;
          }
        ];
        root = codeFolder;
        locations = {
          "= /".extraConfig = "rewrite ^ /start/ last;";
          "^~ /start/" = {
            alias = "${startPage}/";
            extraConfig = "add_header Cache-Control no-cache;";
          };
          "= /start/parts.json".alias = pkgs.writeText "parts.json" (builtins.toJSON parts);
          "= /code".extraConfig = "return 302 /code/;";
          "^~ /code/".alias = "${codeFolder}/";
        };
        extraConfig = ''
          autoindex on;
          charset utf-8;
          absolute_redirect off; # the port that people see is not ours

          proxy_http_version 1.1;
          proxy_set_header Host $http_host;
          proxy_set_header Upgrade $http_upgrade;
          proxy_set_header Connection $connection_upgrade;
          proxy_read_timeout 10m;
          proxy_buffering off;
          client_max_body_size 64m;
          error_page 502 504 /start/no-answer.html;
        ''
        + lib.concatMapStrings locations (
          [
            "grafana"
            "node"
            "prometheus"
          ]
          ++ lib.optional (cfg.claudeCodeRouter != null) "router"
          ++ lib.optional (cfg.vibeKanban != null) "kanban"
        );
      };
    };

    services.prometheus = {
      enable = true;
      listenAddress = "127.0.0.1";
      port = 9090;
      webExternalUrl = "/prometheus/";
      retentionTime = "2d";
      extraFlags = [ "--storage.tsdb.retention.size=512MB" ];
      configText = builtins.readFile (debian + "/etc/prometheus/prometheus.yml");
      exporters.node = {
        enable = true;
        listenAddress = "127.0.0.1";
        port = 9100;
      };
    };
    # A project's own metrics, which the configuration looks for.
    systemd.tmpfiles.settings."10-ravebot"."/etc/prometheus/targets".d = { };

    services.grafana = {
      enable = true;
      settings = {
        server = {
          http_addr = "127.0.0.1";
          http_port = 3000;
          root_url = "%(protocol)s://%(domain)s/grafana/";
          serve_from_sub_path = true;
        };
        "auth.anonymous".enabled = true; # as a viewer; the machine's root can read the administrator's password
        security.admin_password = "$__file{${grafana}/admin-password}";
        security.secret_key = "$__file{${grafana}/secret-key}";
        analytics.reporting_enabled = false;
        analytics.check_for_updates = false;
      };
      provision = {
        enable = true;
        datasources.path = debian + "/etc/grafana/provisioning/datasources/prometheus.yaml";
      };
    };
    systemd.services.grafana.preStart = secret "${grafana}/admin-password" + secret "${grafana}/secret-key";

    systemd.services.claude-code-router = mkIf (cfg.claudeCodeRouter != null) {
      description = "Claude Code Router";
      wantedBy = [ "multi-user.target" ];
      environment.HOME = routerHome;
      path = [ (pkgs.writeScriptBin "ccr" (builtins.readFile (debian + "/opt/claude-code-router/bin/ccr"))) ];
      # Without a key of its own it lets everyone who reaches the web port read and change its configuration.
      preStart = ''
        mkdir -p "$HOME/.claude-code-router"
        cd "$HOME/.claude-code-router"
        [ -s config.json ] || sed "s/\"APIKEY\": \"\"/\"APIKEY\": \"$(${random})\"/" ${routerConfig} >config.json
      '';
      serviceConfig = {
        ExecStart = "${cfg.claudeCodeRouter}/bin/ccr start";
        Restart = "always"; # its page restarts it by ending it
        RestartSec = 5;
        UMask = "0077"; # its backups of the configuration hold keys
        DynamicUser = true;
        StateDirectory = "claude-code-router";
      };
    };

    systemd.services.vibe-kanban = mkIf (cfg.vibeKanban != null) {
      description = "Vibe Kanban";
      wantedBy = [ "multi-user.target" ];
      environment = {
        HOST = "127.0.0.1";
        PORT = "3457";
      };
      serviceConfig = {
        ExecStart = "${cfg.vibeKanban}/bin/vibe-kanban";
        Restart = "on-failure";
        RestartSec = 5;
        User = user;
        WorkingDirectory = "~";
      };
    };
  };
}
