"""A TCP proxy that holds what clients send for a while, as distance does: FRONT_PORT BACK_PORT SECONDS."""

from __future__ import annotations

import asyncio
import sys


async def main(front: int, back: int, delay_s: float) -> None:
    """Serve until ended."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", back)
        except OSError:
            writer.close()  # nobody listens there yet
            return
        await asyncio.gather(pump(reader, far_writer, delay_s), pump(far_reader, writer, 0))

    server = await asyncio.start_server(serve, "127.0.0.1", front, backlog=256)
    await server.serve_forever()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Pass bytes on until one side ends."""
    try:
        while data := await reader.read(1 << 18):
            if delay_s:
                await asyncio.sleep(delay_s)
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
