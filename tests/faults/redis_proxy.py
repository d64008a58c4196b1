"""A way to a server that can be cut, slowed, or lose its answers."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Proxy:
    """Forwards connections on `port` to 127.0.0.1:`to`; an async context manager.

    Args:
        answer_after_s: how long each piece of an answer is held back.
        lose_answers: how many of the next requests reach the server while their connection is cut before the answer.
    """

    def __init__(self, to: int) -> None:
        self.to = to
        self.port = 0
        self.answer_after_s = 0.0
        self.lose_answers = 0
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.to)
        self._writers |= {writer, server_writer}
        await asyncio.gather(
            self._forward(reader, server_writer), self._forward(server_reader, writer, answers=True)
        )

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False) -> None:
        try:
            while data := await reader.read(65_536):
                if answers and self.lose_answers:
                    self.lose_answers -= 1
                    break
                if answers and self.answer_after_s:
                    await asyncio.sleep(self.answer_after_s)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # one side has gone, so the other is let go too
        finally:
            writer.transport.abort()
