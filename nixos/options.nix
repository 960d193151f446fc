# Every NixOS option that these modules set or read, with its type, below the file of nixpkgs that declares it; and
# every package that they take from nixpkgs. The tests evaluate the modules against these lists.
types: with types; {
  # Of nixpkgs, the newest stable release when the list was made.
  release = "26.05";

  options = {
    # nixos/modules/config/sysctl.nix: a submodule that is free in its keys
    "boot.kernel.sysctl" = attrsOf (nullOr (oneOf [ bool str int ]));

    # nixos/modules/config/system-path.nix
    "environment.systemPackages" = listOf package;

    # nixos/modules/config/users-groups.nix
    "users.users.<name>.extraGroups" = listOf str;
    "users.users.<name>.isNormalUser" = bool;

    # nixos/modules/image/images.nix
    "image.modules" = attrsOf deferredModule;

    # nixos/modules/misc/assertions.nix
    "assertions" = listOf unspecified;

    # nixos/modules/misc/documentation.nix
    "documentation.enable" = bool;

    # nixos/modules/programs/nix-ld.nix
    "programs.nix-ld.enable" = bool;

    # nixos/modules/security/sudo.nix
    "security.sudo.wheelNeedsPassword" = bool;

    # nixos/modules/services/continuous-integration/gitlab-runner/runner.nix
    "services.gitlab-runner.enable" = bool;
    "services.gitlab-runner.settings" = attrsOf anything; # JSON
    "services.gitlab-runner.services.<name>.authenticationTokenConfigFile" = nullOr path;
    "services.gitlab-runner.services.<name>.dockerImage" = nullOr str;
    "services.gitlab-runner.services.<name>.dockerPrivileged" = bool;
    "services.gitlab-runner.services.<name>.dockerVolumes" = listOf str;
    "services.gitlab-runner.services.<name>.executor" = str;
    "services.gitlab-runner.services.<name>.registrationConfigFile" = nullOr path;
    "services.gitlab-runner.services.<name>.registrationFlags" = listOf str;
    "services.gitlab-runner.services.<name>.tagList" = listOf str;

    # nixos/modules/services/monitoring/grafana.nix
    "services.grafana.dataDir" = path;
    "services.grafana.enable" = bool;
    "services.grafana.package" = package;
    "services.grafana.provision.datasources.path" = nullOr path;
    "services.grafana.provision.enable" = bool;
    "services.grafana.settings" = attrsOf (attrsOf anything); # a submodule, free in its keys

    # nixos/modules/services/monitoring/prometheus/default.nix, exporters.nix
    "services.prometheus.configText" = nullOr lines;
    "services.prometheus.enable" = bool;
    "services.prometheus.exporters.node.enable" = bool;
    "services.prometheus.exporters.node.listenAddress" = str;
    "services.prometheus.exporters.node.port" = port;
    "services.prometheus.extraFlags" = listOf str;
    "services.prometheus.listenAddress" = str;
    "services.prometheus.package" = package;
    "services.prometheus.port" = port;
    "services.prometheus.retentionTime" = nullOr str;
    "services.prometheus.webExternalUrl" = nullOr str;

    # nixos/modules/services/networking/dhcpcd.nix
    "networking.dhcpcd.denyInterfaces" = listOf str;

    # nixos/modules/services/networking/firewall.nix
    "networking.firewall.allowedTCPPorts" = listOf port;
    "networking.firewall.interfaces.<name>.allowedTCPPorts" = listOf port;
    "networking.firewall.interfaces.<name>.allowedUDPPorts" = listOf port;

    # nixos/modules/services/networking/firewall-nftables.nix
    "networking.firewall.extraForwardRules" = lines;

    # nixos/modules/services/networking/ssh/sshd.nix
    "services.openssh.authorizedKeysInHomedir" = bool;
    "services.openssh.enable" = bool;
    "services.openssh.hostKeys" = listOf attrs;
    "services.openssh.settings.AllowTcpForwarding" = oneOf [ bool str ]; # by the submodule's free keys
    "services.openssh.settings.GatewayPorts" = nullOr str;
    "services.openssh.settings.KbdInteractiveAuthentication" = nullOr bool;
    "services.openssh.settings.PasswordAuthentication" = nullOr bool;
    "services.openssh.settings.PermitRootLogin" = nullOr (enum [
      "yes"
      "without-password"
      "prohibit-password"
      "forced-commands-only"
      "no"
    ]);

    # nixos/modules/services/web-servers/nginx/default.nix, vhost-options.nix, location-options.nix
    "services.nginx.enable" = bool;
    "services.nginx.validateConfigFile" = bool;
    "services.nginx.virtualHosts.<name>.default" = bool;
    "services.nginx.virtualHosts.<name>.extraConfig" = lines;
    "services.nginx.virtualHosts.<name>.listen" = listOf (attrsOf (oneOf [ str port ]));
    "services.nginx.virtualHosts.<name>.locations.<name>.alias" = nullOr path;
    "services.nginx.virtualHosts.<name>.locations.<name>.extraConfig" = lines;
    "services.nginx.virtualHosts.<name>.root" = nullOr path;

    # nixos/modules/system/boot/grow-partition.nix
    "boot.growPartition" = bool;

    # nixos/modules/system/boot/kernel.nix
    "boot.kernelParams" = listOf str;

    # nixos/modules/system/boot/loader/loader.nix
    "boot.loader.timeout" = nullOr int;

    # nixos/modules/system/boot/networkd.nix
    "systemd.network.networks.<name>.dhcpV4Config" = attrsOf anything;
    "systemd.network.networks.<name>.matchConfig" = attrsOf anything;
    "systemd.network.networks.<name>.networkConfig" = attrsOf anything;

    # nixos/modules/system/boot/systemd.nix, nixos/lib/systemd-unit-options.nix
    "systemd.services.<name>.after" = listOf str;
    "systemd.services.<name>.description" = str;
    "systemd.services.<name>.environment" = attrsOf (nullOr (oneOf [ str path package ]));
    "systemd.services.<name>.path" = listOf (oneOf [ package str ]);
    "systemd.services.<name>.preStart" = lines;
    "systemd.services.<name>.restartTriggers" = listOf unspecified;
    "systemd.services.<name>.serviceConfig" = attrsOf anything; # what systemd takes
    "systemd.services.<name>.unitConfig" = attrsOf anything; # what systemd takes
    "systemd.services.<name>.wantedBy" = listOf str;
    "systemd.services.<name>.wants" = listOf str;
    "systemd.timers.<name>.description" = str;
    "systemd.timers.<name>.timerConfig" = attrsOf anything; # what systemd takes
    "systemd.timers.<name>.wantedBy" = listOf str;

    # nixos/modules/system/boot/systemd/tmpfiles.nix
    "systemd.tmpfiles.settings.<name>.<name>.<name>.argument" = str;
    "systemd.tmpfiles.settings.<name>.<name>.<name>.group" = str;
    "systemd.tmpfiles.settings.<name>.<name>.<name>.mode" = str;
    "systemd.tmpfiles.settings.<name>.<name>.<name>.user" = str;

    # nixos/modules/system/etc/etc.nix
    "environment.etc.<name>.source" = path;
    "environment.etc.<name>.text" = nullOr lines;

    # nixos/modules/tasks/network-interfaces.nix
    "networking.hostName" = strMatching "[[:alnum:]]([[:alnum:]_-]{0,61}[[:alnum:]])?";
    "networking.useDHCP" = bool;
    "networking.useNetworkd" = bool;

    # nixos/modules/virtualisation/docker.nix
    "virtualisation.docker.enable" = bool;

    # nixos/modules/virtualisation/libvirtd.nix
    "virtualisation.libvirtd.enable" = bool;
    "virtualisation.libvirtd.onBoot" = enum [ "start" "ignore" ];
    "virtualisation.libvirtd.onShutdown" = enum [ "shutdown" "suspend" ];
    "virtualisation.libvirtd.qemu.package" = package;
    "virtualisation.libvirtd.qemu.runAsRoot" = bool;

    # nixos/modules/virtualisation/qemu-guest-agent.nix
    "services.qemuGuest.enable" = bool;
  };

  packages = [
    "claude-code-router"
    "conntrack-tools"
    "git"
    "iproute2"
    "nftables"
    "procps"
    "prometheus-node-exporter"
    "python3"
    "util-linux"
  ];
}
