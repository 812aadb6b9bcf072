"""How bytes move between ranks."""

from vllm_layershard.runtime.transport.base import Ticket, Transport
from vllm_layershard.runtime.transport.broadcast import Broadcast

__all__ = ["Broadcast", "Ticket", "Transport"]
