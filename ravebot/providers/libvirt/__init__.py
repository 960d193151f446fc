"""Machines on one libvirt host. Blocking libvirt calls live here, in named thread pools, and nowhere else."""

from ravebot.providers.libvirt.provider import LibvirtProvider
from ravebot.providers.libvirt.remains import LibvirtRemains

__all__ = ["LibvirtProvider", "LibvirtRemains"]
