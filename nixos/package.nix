# The program, for `callPackage`.
{
  lib,
  conntrack-tools,
  iproute2,
  nftables,
  procps,
  python3Packages,
  util-linux,
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
    cryptography
    defusedxml
    h11
    libvirt
    markdown-it-py
    matrix-nio
    mcp
    pathspec
    prometheus-client
    psutil
    pydantic
    pyjwt
    python-gitlab
    pyyaml
    rich
    starlette
    structlog
    typer
    uvicorn
  ];

  # What it runs besides QEMU, which comes with the host's libvirtd.
  makeWrapperArgs = [
    "--prefix"
    "PATH"
    ":"
    (lib.makeBinPath [
      conntrack-tools
      iproute2
      nftables
      procps # sysctl
      util-linux # unshare
    ])
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
