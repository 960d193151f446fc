# Every NixOS option that these modules set or read, with its type as nixpkgs declares it, below the file of nixpkgs that
# declares it; and every package that they take from nixpkgs. The tests evaluate the modules against these lists.
types: with types; {
  # Of nixpkgs, the newest stable release when the list was made.
  release = "26.05";

  options = {
    # nixos/modules/config/sysctl.nix: a submodule that is free in its keys
    "boot.kernel.sysctl" = attrsOf (nullOr (oneOf [ bool str int ]));

    # nixos/modules/config/system-path.nix
    "environment.systemPackages" = listOf package;

    # nixos/modules/services/networking/dhcpcd.nix
    "networking.dhcpcd.denyInterfaces" = listOf str;

    # nixos/modules/services/networking/firewall.nix
    "networking.firewall.interfaces.<name>.allowedTCPPorts" = listOf port;
    "networking.firewall.interfaces.<name>.allowedUDPPorts" = listOf port;

    # nixos/modules/services/networking/firewall-nftables.nix
    "networking.firewall.extraForwardRules" = lines;

    # nixos/modules/system/boot/systemd.nix, nixos/lib/systemd-unit-options.nix
    "systemd.services.<name>.after" = listOf str;
    "systemd.services.<name>.description" = str;
    "systemd.services.<name>.path" = listOf (oneOf [ package str ]);
    "systemd.services.<name>.restartTriggers" = listOf unspecified;
    "systemd.services.<name>.serviceConfig" = attrsOf anything;
    "systemd.services.<name>.wantedBy" = listOf str;
    "systemd.services.<name>.wants" = listOf str;

    # nixos/modules/system/etc/etc.nix
    "environment.etc.<name>.source" = path;
    "environment.etc.<name>.text" = nullOr lines;

    # nixos/modules/virtualisation/libvirtd.nix
    "virtualisation.libvirtd.enable" = bool;
    "virtualisation.libvirtd.onBoot" = enum [ "start" "ignore" ];
    "virtualisation.libvirtd.onShutdown" = enum [ "shutdown" "suspend" ];
    "virtualisation.libvirtd.qemu.package" = package;
    "virtualisation.libvirtd.qemu.runAsRoot" = bool;
  };

  packages = [
    "conntrack-tools"
    "iproute2"
    "nftables"
    "procps"
  ];
}
