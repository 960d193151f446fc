"""Machines on one libvirt host. Only this folder makes blocking libvirt calls, in named thread pools."""

from ravebot.providers.libvirt.provider import LibvirtProvider
from ravebot.providers.libvirt.remains import LibvirtRemains

__all__ = ["LibvirtProvider", "LibvirtRemains"]
