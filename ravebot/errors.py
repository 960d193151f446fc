"""Every error that ravebot raises on purpose. A message says what is wrong and what to do next."""

from __future__ import annotations


class RavebotError(Exception):
    """The base class of all of them."""


class ConfigError(RavebotError):
    """The configuration can't be used as it is."""


class StoreError(RavebotError):
    """The database can't be opened or used (newer version, held by another process, damaged)."""


class Refused(RavebotError):
    """A person's request was understood and is not allowed or not possible; the text is shown to them."""


class Unavailable(RavebotError):
    """A part we depend on (GitLab, Matrix, libvirt, nftables) gave no proper answer: try again later."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class SlowDown(Unavailable):
    """GitLab or Matrix asks us to slow down with all requests of this kind, not only with this one."""


class NotRunningError(RavebotError):
    """No bot listens on the admin socket."""


class ProviderError(RavebotError):
    """The provider understood the request and can't fulfil it (missing image, bad definition)."""


class ImageError(ProviderError):
    """The image can't be the base of a machine; trying again does not help."""


class ImageBuildFailed(RavebotError):
    """A step of building an image failed; `lines` are the last ones that its program printed."""

    def __init__(self, message: str, lines: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.lines = lines


class ImageNotWritable(RavebotError):
    """An image can't be written to that file: wrong name, no such folder, or something is there already."""


class MachineNotFound(ProviderError):
    """The provider has no machine of that name."""


class GuestError(RavebotError):
    """The guest or its agent failed, or its answer was false, malformed or late."""


class GuestTimeout(GuestError):
    """The guest did not answer in time."""


class NotFound(RavebotError):
    """GitLab or Matrix says that it does not exist, or that we may not see it."""


class FileNotFound(NotFound):
    """GitLab has the commit, and no such file in it: that stays so."""


class Forbidden(RavebotError):
    """GitLab or Matrix refused the request (token without the scope, no power in the room): a person must act."""


class Unacceptable(Forbidden):
    """GitLab or Matrix will never accept this request, whatever a person does (malformed, too large)."""
