"""Every error ravebot raises on purpose; a message says what is wrong and what to do next."""

from __future__ import annotations


class RavebotError(Exception):
    """The root of all of them."""


class ConfigError(RavebotError):
    """The configuration can't be used as it is."""


class StoreError(RavebotError):
    """The database can't be opened or used (newer version, held by another process, damaged)."""


class Refused(RavebotError):
    """A person's request was understood and is not allowed or not possible; the text is shown to them."""


class Unavailable(RavebotError):
    """A part we depend on (GitLab, Matrix, libvirt, nftables) did not answer properly: try again later."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class SlowDown(Unavailable):
    """GitLab or Matrix asks for patience with everything that we send, not only with this."""


class ProviderError(RavebotError):
    """The provider understood and failed for good (missing image, bad definition)."""


class ImageError(ProviderError):
    """The image can't be the base of a machine, however often it is tried."""


class MachineNotFound(ProviderError):
    """The provider has no machine of that name."""


class GuestError(RavebotError):
    """The guest, through its agent, failed, lied, was silent too long or answered with nonsense."""


class GuestTimeout(GuestError):
    """The guest did not answer in time."""


class NotFound(RavebotError):
    """GitLab or Matrix says there is no such thing, or that we may not see it."""


class Forbidden(RavebotError):
    """GitLab or Matrix understood and refused (token without the scope, no power in the room): a person must act."""


class Unacceptable(Forbidden):
    """GitLab or Matrix will never take this very request, whatever a person does (malformed, too large)."""
