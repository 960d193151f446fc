"""Machines on one libvirt host. Blocking libvirt calls live here, in named thread pools, and nowhere else."""
