"""Machines on one libvirt host. Blocking libvirt calls live here, in named thread pools, and nowhere else."""

from ravebot.providers.libvirt.provider import LibvirtProvider

__all__ = ["LibvirtProvider"]
