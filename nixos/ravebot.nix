# services.ravebot: the bot, and what it needs of the host. docs/nixos.md says how to use it.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkDefault mkIf mkOption types;
  cfg = config.services.ravebot;
  inherit (cfg.settings) provider state_dir;
  bridged = provider.network == "bridge";
  libvirtd = config.virtualisation.libvirtd;

  # Of images from pipelines, where it is not below the state folder.
  images = if provider.pipeline_images == null then null else provider.pipeline_images.folder;
  imagesElsewhere = images != null && !(lib.hasPrefix "${state_dir}/" (toString images));

  # What neither the bot nor its backup needs.
  hardened = {
    NoNewPrivileges = true;
    ProtectSystem = "strict";
    PrivateTmp = true;
    ProtectKernelModules = true;
    ProtectKernelLogs = true;
    ProtectControlGroups = true;
    ProtectClock = true;
    ProtectHostname = true;
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    LockPersonality = true;
    SystemCallArchitectures = "native";
    SystemCallFilter = "@system-service";
    SystemCallErrorNumber = "EPERM";
  };

  # What each secret is, and the name of its credential.
  secrets = {
    matrixPassword = "the password of the bot's Matrix account; give this or `matrixAccessToken`";
    matrixAccessToken = "an access token of the bot's Matrix account";
    gitlabToken = "a GitLab token with the scope api; required";
    alertmanagerToken = "the bearer token of Alertmanager's webhook";
    gitlabProxyLogin = "NAME:PASSWORD for `gitlab.proxy`";
    gitlabWebhook = "the secret token of GitLab's webhooks; give this, `gitlabWebhookSigning`, or both";
    gitlabWebhookSigning = "the signing token (whsec_…) of GitLab's webhooks";
    gitlabWebhookPrevious = "the secret token that is being replaced, and still accepted";
    gitlabWebhookSigningPrevious = "the signing token that is being replaced, and still accepted";
  };
  given = lib.filterAttrs (_: file: file != null) cfg.secrets;
  credentials = "/run/credentials/ravebot.service";
  credential = name: if cfg.secrets.${name} == null then null else "${credentials}/${name}";

  set = lib.filterAttrsRecursive (_: value: value != null) cfg.settings;
  # A section `gitlab.ci` opens a door, also an empty one.
  written = builtins.toJSON (
    set // { gitlab = lib.filterAttrs (name: value: name != "ci" || value != { }) set.gitlab; }
  );

  # JSON is YAML. ravebot checks it when the system is built, with a placeholder for each secret.
  configFile =
    pkgs.runCommand "ravebot.yaml"
      {
        nativeBuildInputs = [ cfg.package ];
        inherit written;
        passAsFile = [ "written" ];
      }
      ''
        (umask 077; echo placeholder >secret; echo "whsec_$(head -c 32 /dev/zero | base64)" >key)
        sed -e "s|${credentials}/[A-Za-z]*|$PWD/secret|g" \
          -e "s|\"key_file\":\"[^\"]*\"|\"key_file\":\"$PWD/secret\"|g" \
          -e "s|\"signing_key_file\":\"[^\"]*\"|\"signing_key_file\":\"$PWD/key\"|g" "$writtenPath" >trial.yaml
        ravebot check-config -c trial.yaml
        cp "$writtenPath" $out
      '';
in
{
  options.services.ravebot = {
    enable = lib.mkEnableOption "ravebot, which gives every GitLab merge request an isolated sandbox";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The program.";
    };

    secrets = lib.mapAttrs (
      _: what:
      mkOption {
        type = types.nullOr types.externalPath;
        default = null;
        example = "/run/secrets/ravebot";
        description = "A file outside the Nix store that root can read, with ${what}, in one line.";
      }
    ) secrets;

    settings = import ./settings.nix {
      inherit lib;
      secret = credential;
    };

    backup = {
      enable = mkOption {
        type = types.bool;
        default = true;
        description = "Whether a timer backs up database, instance id and Matrix login, with the bot up or down.";
      };
      path = mkOption {
        type = types.str;
        default = "${state_dir}/backups";
        defaultText = lib.literalExpression ''"''${settings.state_dir}/backups"'';
        description = "The folder of the backups, which only root can read. Copy it to another host.";
      };
      keep = mkOption {
        type = types.ints.positive;
        default = 14;
        description = "How many backups stay there; older ones are removed once a new one is complete.";
      };
      calendar = mkOption {
        type = types.nonEmptyStr;
        default = "daily";
        example = "hourly";
        description = "When, as in {manpage}`systemd.time(7)`.";
      };
    };

    journalRetention = mkOption {
      type = types.nullOr types.nonEmptyStr;
      default = "7day";
      description = ''
        How long the journal of this host is kept, as `MaxRetentionSec=` of {manpage}`journald.conf(5)`.
        `null` leaves the journal as it is.
      '';
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        # Root's programs would keep its capability: ravebot starts none of those that read such images.
        assertion =
          provider.pipeline_images == null
          || (config.systemd.services.ravebot.serviceConfig.User or "root") != "root";
        message = "services.ravebot.settings.provider.pipeline_images needs ravebot to run as a user of its own: docs/nixos.md, The unit, says how";
      }
    ];

    environment.etc."ravebot/config.yaml".source = configFile;
    environment.systemPackages = [ cfg.package ];

    systemd.services.ravebot = {
      description = "ravebot, a sandbox for every merge request";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "libvirtd.service"
      ];
      restartTriggers = [ configFile ];
      path = [
        libvirtd.qemu.package
        pkgs.openssh # to agents in sandboxes
        pkgs.util-linux # limits for what reads images from pipelines
        pkgs.gzip
        pkgs.xz
        pkgs.zstd
      ];
      serviceConfig = hardened // {
        ExecStart = "${cfg.package}/bin/ravebot run";
        Type = "notify"; # ravebot says when its doors are open
        NotifyAccess = "main";
        TimeoutStartSec = "5min";
        Restart = "on-failure";
        RestartSec = 5;
        StateDirectory = lib.removePrefix "/var/lib/" state_dir;
        StateDirectoryMode = "0711";
        ReadWritePaths = lib.optional imagesElsewhere "-${toString images}"; # `-`: it starts without it, and says so
        LoadCredential = lib.mapAttrsToList (name: file: "${name}:${file}") given;

        # It runs as root, whose only capability changes rules and interfaces.
        CapabilityBoundingSet = "CAP_NET_ADMIN";
        # Landlock, and a filter of their own, for what reads images from pipelines.
        SystemCallFilter = "@system-service landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp";
        ProtectHome = true;
        # Not ProtectKernelTunables: ravebot turns net.ipv4.ip_forward back on when something turned it off.
        DevicePolicy = "closed";
        DeviceAllow = "/dev/kvm rw"; # ravebot tries it out before the first machine
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_INET6"
          "AF_NETLINK"
        ];
      };
    };

    systemd.tmpfiles.settings."10-ravebot-backup" = mkIf cfg.backup.enable {
      ${cfg.backup.path}.d = {
        mode = "0700";
        user = "root";
        group = "root";
      };
    };
    systemd.timers.ravebot-backup = mkIf cfg.backup.enable {
      description = "Backs up ravebot's state";
      wantedBy = [ "timers.target" ];
      timerConfig = {
        OnCalendar = cfg.backup.calendar;
        RandomizedDelaySec = "30min";
        Persistent = true;
      };
    };
    systemd.services.ravebot-backup = mkIf cfg.backup.enable {
      description = "A backup of ravebot's state";
      unitConfig.ConditionPathExists = "${state_dir}/ravebot.db"; # until ravebot first ran there is nothing to back up
      serviceConfig = hardened // {
        Type = "oneshot";
        ExecStart = "${cfg.package}/bin/ravebot backup --into ${lib.escapeShellArg cfg.backup.path} --keep ${toString cfg.backup.keep}";
        UMask = "0077";
        Nice = 10;
        IOSchedulingClass = "idle";

        # Like the bot, it runs as root; it needs no capability at all.
        CapabilityBoundingSet = "";
        ReadWritePaths = [
          state_dir
          cfg.backup.path
        ];
        ProtectHome = "read-only";
        PrivateNetwork = true;
        PrivateDevices = true;
        ProtectKernelTunables = true;
        RestrictAddressFamilies = [ "AF_UNIX" ];
      };
    };

    virtualisation.libvirtd = {
      enable = true;
      # A guest that breaks out of QEMU must not be root.
      qemu.runAsRoot = false;
      # Only ravebot starts machines: after it has verified the firewall.
      onBoot = "ignore";
      onShutdown = "shutdown";
    };

    # ravebot's own rules say what guests reach; these let DHCP and DNS of the bridge through the host's firewall.
    networking.firewall.interfaces = mkIf bridged {
      ${provider.bridge.name} = {
        allowedTCPPorts = [ 53 ];
        allowedUDPPorts = [
          53
          67
        ];
      };
    };
    networking.firewall.extraForwardRules = mkIf bridged ''
      iifname "${provider.bridge.name}" accept
      oifname "${provider.bridge.name}" accept
    '';
    # A guest that answers DHCP on the bridge must not give the host addresses and routes.
    networking.dhcpcd.denyInterfaces = mkIf bridged [ provider.bridge.name ];
    boot.kernel.sysctl = mkIf bridged { "net.ipv4.ip_forward" = mkDefault true; };

    # Not services.journald, whose options differ between releases.
    environment.etc."systemd/journald.conf.d/ravebot.conf" = mkIf (cfg.journalRetention != null) {
      text = ''
        [Journal]
        MaxRetentionSec=${cfg.journalRetention}
      '';
    };
  };
}
