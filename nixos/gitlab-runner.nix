# services.ravebot-runner: a GitLab runner whose jobs may start virtual machines.
{
  config,
  lib,
  ...
}:

let
  inherit (lib) mkIf mkOption types;
  cfg = config.services.ravebot-runner;
in
{
  options.services.ravebot-runner = {
    enable = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Whether to enable a privileged GitLab runner with `/dev/kvm`. Its jobs can become root of this host: let only
        trusted projects use it.
      '';
    };

    tokenFile = mkOption {
      type = types.externalPath;
      example = "/run/secrets/gitlab-runner";
      description = ''
        A file outside the Nix store that root can read, with two lines: `CI_SERVER_URL=https://…` and
        `CI_SERVER_TOKEN=glrt-…`, or with a registration token `REGISTRATION_TOKEN=…` in place of the second.
      '';
    };

    tokenKind = mkOption {
      type = types.enum [
        "authentication"
        "registration"
      ];
      default = "authentication";
      description = "GitLab 16 and newer give authentication tokens; registration tokens are deprecated.";
    };

    tags = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "kvm" ];
      description = ''
        The tags of the jobs that it takes, for a registration token. With an authentication token GitLab keeps them:
        set them there, where the token is made.
      '';
    };

    image = mkOption {
      type = types.str;
      default = "debian:stable";
      description = "The container image of jobs that name none.";
    };

    memory = mkOption {
      type = types.str;
      default = "8g";
      description = "The most memory of a job, as Docker writes it.";
    };

    cpus = mkOption {
      type = types.ints.positive;
      default = 4;
      description = "The most processors of a job.";
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.tags == [ ] || cfg.tokenKind == "registration";
        message = "services.ravebot-runner.tags has no effect with an authentication token: set the tags in GitLab";
      }
    ];

    virtualisation.docker.enable = true;

    services.gitlab-runner = {
      enable = true;
      settings.concurrent = 1; # the limits are a job's
      services.ravebot = {
        executor = "docker";
        dockerImage = cfg.image;
        dockerPrivileged = true;
        dockerVolumes = [ "/cache" ]; # which jobs share
        registrationFlags = [
          "--docker-devices /dev/kvm"
          "--docker-memory ${cfg.memory}"
          "--docker-memory-swap ${cfg.memory}" # the sum of both: no swap
          "--docker-cpus ${toString cfg.cpus}"
        ];
        authenticationTokenConfigFile = mkIf (cfg.tokenKind == "authentication") cfg.tokenFile;
        registrationConfigFile = mkIf (cfg.tokenKind == "registration") cfg.tokenFile;
        tagList = cfg.tags;
      };
    };
  };
}
