"""A server that goes on with the request of a client that died."""

from __future__ import annotations

import asyncio
from typing import Any

from lightlyfs.server.asgi import App, Receive, Scope, Send
from lightlyfs.testing import Fault, HeldRequests


class WorkLater(Fault, tag="work_later", frozen=True, kw_only=True):
    """Take a request, and do its work a second later, whoever is gone by then."""

    def wrap(self, app: App, held: HeldRequests) -> App:
        async def later(scope: Scope, receive: Receive, send: Send) -> None:
            messages = [await receive()]
            while messages[-1].get("more_body"):
                messages.append(await receive())
            await asyncio.sleep(1.0)
            await app(scope, _replayed(messages), send)

        return later


def _replayed(messages: list[Any]) -> Receive:
    left = iter(messages)

    async def receive() -> Any:
        return next(left)

    return receive
