"""The control endpoints, for tests that start the server as another process."""

import msgspec

from .asgi import Call, Reply, json_reply
from .errors import malformed
from .faults import Faults
from .stats import Stats


class ControlApi:
    """Handlers of `/__control__`. Runs on the server's loop."""

    def __init__(self, faults: Faults, stats: Stats) -> None:
        self._faults = faults
        self._stats = stats

    async def add_faults(self, call: Call) -> Reply:
        """POST a list of faults to arm; answers how many are armed."""
        try:
            self._faults.add_plain(await call.json())
        except msgspec.ValidationError as error:
            raise malformed(str(error)) from error
        return json_reply({"armed": len(self._faults.armed())})

    async def stats(self, call: Call) -> Reply:
        """GET all counts."""
        return json_reply(self._stats.snapshot())

    async def reset(self, call: Call) -> Reply:
        """POST: disarm all faults and count anew."""
        self._faults.clear()
        self._stats.reset()
        return json_reply({})
