"""When each replica of a run computed and waited, who was slow, and all of it as a Chrome trace."""

from __future__ import annotations

from flowml.timeline.pace import Pace
from flowml.timeline.record import Timeline

__all__ = ["Pace", "Timeline"]
