# The options of nixos/settings.nix with no more of nixpkgs than the form of an option: its path and default, no types.
let
  lib = {
    mkOption = option: option // { _type = "option"; };
    literalExpression = text: text;
    types = {
      attrTag = options: { inherit options; };
      submodule = { options }: { inherit options; };
      attrsOf = inner: inner;
      listOf = inner: inner;
      nonEmptyListOf = inner: inner;
      nullOr = inner: inner;
      enum = _: { };
      strMatching = _: { };
      ints = {
        between = _: _: { };
        positive = { };
      };
      nonEmptyStr = { };
      path = { };
      port = { };
      bool = { };
      str = { };
    };
  };
  settings = import ../../../nixos/settings.nix {
    inherit lib;
    secret = _: null;
  };
  leaves =
    path: value:
    if value._type or null != "option" then
      builtins.concatMap (name: leaves (path ++ [ name ]) value.${name}) (builtins.attrNames value)
    else if value.type ? options then
      leaves path value.type.options
    else
      [
        {
          inherit path;
          default = value.default or null;
        }
      ];
in
leaves [ ] settings
