"""Real parts for tests: a GitLab stand-in, a throwaway Synapse, a tiny guest, libvirt, network namespaces."""
