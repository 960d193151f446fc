# The RAVE stack behind nginx on the web port of a sandbox: a path for each part, and a start page with their links.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkIf mkOption types;
  inherit (config.ravebot.sandbox) user webPort;
  cfg = config.ravebot.sandbox.rave;
  code = "/srv/merge-request";

  ports = {
    grafana = 3000;
    router = 3456;
    kanban = 3457;
    prometheus = 9090;
    node = 9100;
  };
  local = port: "127.0.0.1:${toString port}";
  proxy = target: {
    proxyPass = "http://${target}";
    proxyWebsockets = true;
    extraConfig = "proxy_set_header Host $http_host;"; # with the port that the browser sees
  };

  parts = {
    "/code/" = "the merge request's files";
    "/grafana/" = "Grafana";
    "/prometheus/" = "Prometheus";
    "/node/metrics" = "node exporter";
  }
  // lib.optionalAttrs (cfg.claudeCodeRouter != null) { "/router/ui/" = "Claude Code Router"; }
  // lib.optionalAttrs (cfg.vibeKanban != null) { "/kanban/" = "Vibe Kanban"; };
  startPage = pkgs.writeTextDir "index.html" ''
    <!doctype html>
    <html lang="en"><meta charset="utf-8"><title>Sandbox</title><h1>Sandbox</h1>
    <ul>
    ${lib.concatStrings (lib.mapAttrsToList (path: name: "<li><a href=\"${path}\">${name}</a>\n") parts)}</ul>
    </html>
  '';

  # Made at the first start, so that no two machines share it and the store holds none.
  secret = file: ''
    [ -s ${file} ] || (umask 077; od -An -N 24 -tx1 /dev/urandom | tr -d ' \n' >${file})
  '';
  grafana = config.services.grafana.dataDir;

  routerConfig = pkgs.writeText "claude-code-router.json" (
    builtins.toJSON {
      APIKEY = "@key@";
      HOST = "127.0.0.1";
      PORT = ports.router;
      # It listens on 127.0.0.1 only as long as a provider stands here.
      Providers = [
        {
          name = "provider";
          api_base_url = "https://provider.example/v1/chat/completions";
          api_key = "";
          models = [ "model" ];
        }
      ];
      Router.default = "provider,model";
    }
  );
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
      virtualHosts.sandbox = {
        default = true;
        listen = [
          {
            addr = "0.0.0.0";
            port = webPort;
          }
        ];
        root = code;
        extraConfig = "absolute_redirect off;"; # the port that people see is another
        locations = {
          "= /" = {
            root = startPage;
            tryFiles = "/index.html =404";
          };
          "/code/" = {
            alias = "${code}/";
            extraConfig = "autoindex on;";
          };
          "/grafana/" = proxy (local ports.grafana);
          "/prometheus/" = proxy (local ports.prometheus);
          "= /node/metrics" = proxy "${local ports.node}/metrics";
        }
        // lib.optionalAttrs (cfg.claudeCodeRouter != null) {
          "/router/" = proxy "${local ports.router}/";
        }
        // lib.optionalAttrs (cfg.vibeKanban != null) {
          # Its pages are made for the root of a site.
          "/kanban/" = proxy "${local ports.kanban}/";
          "~ ^/(assets|api)/" = proxy (local ports.kanban);
        };
      };
    };

    services.prometheus = {
      enable = true;
      listenAddress = "127.0.0.1";
      port = ports.prometheus;
      webExternalUrl = "/prometheus/";
      retentionTime = "2d";
      exporters.node = {
        enable = true;
        listenAddress = "127.0.0.1";
        port = ports.node;
      };
      scrapeConfigs = [
        {
          job_name = "prometheus";
          metrics_path = "/prometheus/metrics";
          static_configs = [ { targets = [ (local ports.prometheus) ]; } ];
        }
        {
          job_name = "node";
          static_configs = [ { targets = [ (local ports.node) ]; } ];
        }
      ];
    };

    services.grafana = {
      enable = true;
      settings = {
        server = {
          http_addr = "127.0.0.1";
          http_port = ports.grafana;
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
        datasources.settings.datasources = [
          {
            name = "Prometheus";
            type = "prometheus";
            url = "http://${local ports.prometheus}/prometheus";
            isDefault = true;
          }
        ];
      };
    };
    systemd.services.grafana.preStart = secret "${grafana}/admin-password" + secret "${grafana}/secret-key";

    systemd.services.claude-code-router = mkIf (cfg.claudeCodeRouter != null) {
      description = "Claude Code Router";
      wantedBy = [ "multi-user.target" ];
      environment.HOME = "/var/lib/claude-code-router";
      # Without a key of its own it lets everyone who reaches the web port read and change its configuration.
      preStart = ''
        cd "$HOME"
        ${secret "key"}
        mkdir -p .claude-code-router
        [ -s .claude-code-router/config.json ] ||
          (umask 077; sed "s/@key@/$(cat key)/" ${routerConfig} >.claude-code-router/config.json)
      '';
      serviceConfig = {
        ExecStart = "${cfg.claudeCodeRouter}/bin/ccr start";
        Restart = "on-failure";
        RestartSec = 5;
        DynamicUser = true;
        StateDirectory = "claude-code-router";
      };
    };

    systemd.services.vibe-kanban = mkIf (cfg.vibeKanban != null) {
      description = "Vibe Kanban";
      wantedBy = [ "multi-user.target" ];
      environment = {
        HOST = "127.0.0.1";
        PORT = toString ports.kanban;
      };
      serviceConfig = {
        ExecStart = "${cfg.vibeKanban}/bin/vibe-kanban";
        Restart = "on-failure";
        RestartSec = 5;
        User = user;
        WorkingDirectory = code;
      };
    };
  };
}
