"""A TCP proxy that is far away: FRONT_PORT BACK_PORT DELAY_S [BYTES_PER_S].

What clients send arrives DELAY_S later, each piece by itself, so that an upload is late but not slow. With
BYTES_PER_S each connection brings answers at this rate, as one connection to a real store does.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque

_READ_BYTES = 1 << 18
# answers are let through in pieces that take about so long, so that the rate is even
_PIECE_S = 0.005


class Late:
    """Writes what it is given, in order, a while later."""

    def __init__(self, writer: asyncio.StreamWriter, delay_s: float) -> None:
        self._writer = writer
        self._delay_s = delay_s
        self._held: deque[bytes] = deque()

    def write(self, data: bytes) -> None:
        """Keep `data` until its time comes."""
        self._held.append(data)
        asyncio.get_running_loop().call_later(self._delay_s, self._let_go)

    def _let_go(self) -> None:
        # timers of one moment may come in any order, pieces may not
        self._writer.write(self._held.popleft())


async def main(front: int, back: int, delay_s: float, bytes_per_s: float) -> None:
    """Serve until ended."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", back, limit=_READ_BYTES)
        except OSError:
            writer.close()  # nobody listens there yet
            return
        await asyncio.gather(send(reader, far_writer, delay_s), answer(far_reader, writer, bytes_per_s))

    server = await asyncio.start_server(serve, "127.0.0.1", front, backlog=256, limit=_READ_BYTES)
    await server.serve_forever()


async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Pass on what the client says, late."""
    late = Late(writer, delay_s)
    try:
        while data := await reader.read(_READ_BYTES):
            late.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        await asyncio.sleep(delay_s)
        writer.close()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bytes_per_s: float) -> None:
    """Pass on what the server says, at once or at the rate of a connection."""
    clock = asyncio.get_running_loop().time
    piece = int(bytes_per_s * _PIECE_S) or _READ_BYTES
    free_at = clock()
    try:
        while data := await reader.read(piece):
            writer.write(data)
            await writer.drain()
            if bytes_per_s:
                free_at = max(free_at, clock() - _PIECE_S) + len(data) / bytes_per_s
                await asyncio.sleep(free_at - clock())
    except OSError:
        pass
    finally:
        writer.close()


if __name__ == "__main__":
    rate = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), rate))
