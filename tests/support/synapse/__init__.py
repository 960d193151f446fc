"""A real Synapse to throw away, and people who talk on it; for tests and the demo."""

from tests.support.synapse.reader import RoomReader
from tests.support.synapse.server import Synapse
from tests.support.synapse.user import MatrixError, MatrixUser, Message

__all__ = ["MatrixError", "MatrixUser", "Message", "RoomReader", "Synapse"]
