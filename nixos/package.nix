# The program, for `callPackage`.
{
  lib,
  python3Packages,
}:

let
  project = (lib.importTOML ../pyproject.toml).project;
in
python3Packages.buildPythonApplication {
  pname = project.name;
  inherit (project) version;
  pyproject = true;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../LICENSE
      ../README.md
      ../pyproject.toml
      ../ravebot
    ];
  };

  build-system = [ python3Packages.setuptools ];

  dependencies = with python3Packages; [
    aiohttp
    asyncssh
    libvirt
    matrix-nio
    prometheus-client
    psutil
    pydantic
    python-gitlab
    pyyaml
    rich
    structlog
    typer
  ];

  # The tests need virtual machines, network rules and root: `./dev test` runs them.
  doCheck = false;
  pythonImportsCheck = [ "ravebot.cli" ];

  meta = {
    inherit (project) description;
    license = lib.licenses.asl20;
    mainProgram = "ravebot";
    platforms = [ "x86_64-linux" ];
  };
}
