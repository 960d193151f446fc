# Evaluates a module of nixos/ with nixpkgs' own lib, against the options that nixos/options.nix lists and nothing else.
# Returns what it sets, option by option; an option that is not in the list, or a value of another type, is an error.
{
  lib, # the folder `lib` of nixpkgs
  module, # a file of nixos/
  configuration, # a module that uses it, as a file
}:

let
  lib' = import lib;
  inherit (lib') mkOption types;

  recorded = import ../../../nixos/options.nix types;

  package = name: {
    type = "derivation";
    inherit name;
    version = "1.0";
    outPath = "/nix/store/${lib'.fixedWidthString 32 "0" ""}-${name}";
  };
  text = name: written: package name // { inherit written; };
  onHost = [ "gzip" "openssh" "qemu" "util-linux" "xz" "zstd" ];
  others = [ "grafana" "prometheus" "ravebot" "vibe-kanban" ];
  pkgs = lib'.genAttrs (recorded.packages ++ onHost ++ others) package // {
    callPackage = file: _: package (baseNameOf file);
    writeScriptBin = text;
    writeText = text;
    runCommand = name: environment: script: package name // environment // { inherit script; };
  };

  tree =
    options:
    lib'.mapAttrs (
      _: below:
      let
        first = lib'.head below;
      in
      if first.path == [ ] then
        mkOption { inherit (first) type; }
      else if lib'.head first.path == "<name>" then
        mkOption { type = named below; }
      else
        tree below
    ) (lib'.mapAttrs (_: map shorter) (lib'.groupBy (option: lib'.head option.path) options));

  # Options below names that the user chooses, as in systemd.services.<name>.path, are those of a submodule.
  named =
    options:
    if lib'.head (lib'.head options).path == "<name>" then
      types.attrsOf (named (map shorter options))
    else
      types.submodule { options = lib'.mapAttrs (_: optional) (tree options); };

  shorter = option: option // { path = lib'.tail option.path; };
  optional =
    option:
    option
    // {
      type = types.nullOr option.type;
      default = null;
    };

  listed = lib'.mapAttrsToList (name: type: {
    path = lib'.splitString "." name;
    inherit type;
  }) recorded.options;

  evaluated = lib'.evalModules {
    specialArgs = {
      inherit pkgs;
      modulesPath = ./.;
    };
    modules = [
      { options = tree listed; }
      module
      configuration
    ];
  };

  # A value as JSON: packages by name, with their text or the script that makes them.
  plain =
    value:
    if lib'.isDerivation value then
      { package = value.name; } // lib'.filterAttrs (name: _: name == "written" || name == "script") value
    else if lib'.isAttrs value then
      lib'.mapAttrs (_: plain) (lib'.filterAttrs (_: inner: inner != null) value)
    else if lib'.isList value then
      map plain value
    else
      value;

  defined =
    options:
    lib'.foldl' (
      found: name:
      let
        option = options.${name};
      in
      if lib'.isOption option then
        found // lib'.optionalAttrs option.isDefined { ${name} = plain option.value; }
      else
        found // { ${name} = defined option; }
    ) { } (lib'.attrNames options);
in
defined (removeAttrs evaluated.options [ "_module" ])
