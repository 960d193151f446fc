"""What GitLab is shown of a sandbox beside the note: environment, deployments and commit status. Pure."""
