"""How bytes move between ranks."""

from vllm_layershard.runtime.transport.base import Ticket, Transport
from vllm_layershard.runtime.transport.broadcast import Broadcast
from vllm_layershard.runtime.transport.pull import Pull

__all__ = ["Broadcast", "Pull", "Ticket", "Transport"]
