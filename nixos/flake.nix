{
  description = "ravebot on NixOS: modules for the bot, the sandboxes and a GitLab runner, and an image of the sandbox";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      system = "x86_64-linux";
      pkgs = nixpkgs.legacyPackages.${system};
      sandbox = nixpkgs.lib.nixosSystem {
        modules = [
          self.nixosModules.sandbox
          {
            nixpkgs.hostPlatform = system;
            system.stateVersion = "26.05";
          }
        ];
      };
    in
    {
      nixosModules = {
        ravebot = ./ravebot.nix;
        sandbox = ./sandbox.nix;
        gitlab-runner = ./gitlab-runner.nix;
      };

      packages.${system} = {
        default = self.packages.${system}.ravebot;
        ravebot = pkgs.callPackage ./package.nix { };
        sandbox-image = sandbox.config.system.build.images.qemu; # holds ravebot-sandbox.qcow2
      };

      checks.${system} = {
        inherit (self.packages.${system}) ravebot;
        host = pkgs.testers.runNixOSTest (import ./test.nix { inherit self; });
      };
    };
}
