# A guest that meets ravebot's contract; importing it is enough. docs/nixos.md says how to make an image of it.
{
  config,
  lib,
  modulesPath,
  pkgs,
  ...
}:

let
  inherit (lib) mkDefault mkOption types;
  cfg = config.ravebot.sandbox;
in
{
  imports = [
    (modulesPath + "/profiles/qemu-guest.nix") # the drivers of the disk and the rest
    ./rave.nix
  ];

  options.ravebot.sandbox = {
    user = mkOption {
      type = types.str;
      default = "agent";
      description = "The account that people log in to; `sandbox.user` of ravebot's configuration.";
    };
    webPort = mkOption {
      type = types.port;
      default = 3002;
      description = "Where the machine's own web server listens; `sandbox.web_port` of ravebot's configuration.";
    };
    codeFolder = mkOption {
      type = types.path;
      default = "/srv/merge-request";
      readOnly = true;
      internal = true;
      description = "Where ravebot puts the merge request's files.";
    };
  };

  config = {
    # ravebot's way in. nixpkgs starts the agent without a list of refused commands, so guest-exec and
    # guest-ssh-add-authorized-keys are allowed. Host keys are made before it answers, because ravebot reads them then.
    services.qemuGuest.enable = true;
    systemd.services.qemu-guest-agent.after = [ "sshd.service" ];

    services.openssh = {
      enable = true;
      authorizedKeysInHomedir = true; # where the agent puts keys
      # Made at the first boot. Only this one: an RSA key takes long under emulation.
      hostKeys = [
        {
          type = "ed25519";
          path = "/etc/ssh/ssh_host_ed25519_key";
        }
      ];
      settings = {
        PasswordAuthentication = false;
        KbdInteractiveAuthentication = false;
        PermitRootLogin = "no";
        AllowTcpForwarding = true; # remote forwards, which GatewayPorts keeps at 127.0.0.1
        GatewayPorts = "no";
      };
    };

    # Their sudo needs no password: this is the sandbox's own root.
    users.users.${cfg.user} = {
      isNormalUser = true;
      extraGroups = [ "wheel" ];
    };
    security.sudo.wheelNeedsPassword = false;

    systemd.tmpfiles.settings."10-ravebot" = {
      "/srv".d = { };
      ${cfg.codeFolder}.d = {
        inherit (cfg) user;
        group = "users";
      };
      # Scripts of projects begin with it.
      "/bin/bash"."L+".argument = "/run/current-system/sw/bin/bash";
    };
    # Programs of other distributions run, those that npm and pip bring too.
    programs.nix-ld.enable = true;
    environment.systemPackages = [
      pkgs.git
      pkgs.python3
    ];

    networking = {
      hostName = mkDefault "sandbox";
      useDHCP = false;
      useNetworkd = true;
      firewall.allowedTCPPorts = [ cfg.webPort ];
    };
    # The only network card; bridges and the like that a project makes are of a kind. ravebot's lease is for its MAC.
    systemd.network.networks."10-ravebot" = {
      matchConfig = {
        Type = "ether";
        Kind = "!*";
      };
      networkConfig = {
        DHCP = "ipv4";
        IPv6AcceptRA = false;
      };
      dhcpV4Config.ClientIdentifier = "mac";
    };

    # q35 with SeaBIOS and the disk at /dev/vda, which is larger than the image.
    boot = {
      growPartition = true;
      kernelParams = [ "console=ttyS0" ]; # ravebot keeps what the console says
      loader.timeout = 0;
    };
    image.modules.qemu.image.baseName = "ravebot-sandbox";

    documentation.enable = mkDefault false;
  };
}
