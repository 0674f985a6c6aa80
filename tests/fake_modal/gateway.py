"""HTTP in front of a web function: each request becomes an input, its body and the response become data chunks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from modal._serialization import deserialize_data_format, serialize_data_format
from modal_proto import api_pb2

if TYPE_CHECKING:
    from tests.fake_modal.cloud import Call, Function
    from tests.fake_modal.machine import FakeModal

ASGI = api_pb2.DATA_FORMAT_ASGI
PATIENCE = 180.0


class Gateway:
    """An ASGI app that forwards to containers of `function`."""

    def __init__(self, machine: FakeModal, function: Function):
        self.machine, self.function = machine, function

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        passed = {
            name: scope[name] for name in ("type", "http_version", "method", "scheme", "path", "query_string", "client")
        }
        arguments = passed | {"headers": [(bytes(k), bytes(v)) for k, v in scope["headers"]]}
        given = api_pb2.FunctionInput(
            args=serialize_data_format(((arguments,), {}), api_pb2.DATA_FORMAT_PICKLE),
            data_format=api_pb2.DATA_FORMAT_PICKLE,
        )
        cloud = self.machine.cloud
        call = await self.machine.submit(
            self.function, given, api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC, cloud.name("fc")
        )
        bodies = asyncio.create_task(self._take_in(call, receive))
        try:
            await self._give_out(call, send)
        finally:
            bodies.cancel()

    async def _take_in(self, call: Call, receive: Any) -> None:
        while True:
            message = await receive()
            index = len(call.incoming) + 1
            data = serialize_data_format(message, ASGI)
            call.incoming.append(api_pb2.DataChunk(data_format=ASGI, data=data, index=index))
            await self.machine.cloud.tell()
            if message["type"] == "http.disconnect":
                return

    async def _give_out(self, call: Call, send: Any) -> None:
        sent = 0
        while True:
            await self.machine.wait(lambda seen=sent: len(call.outgoing) > seen or call.output is not None, PATIENCE)
            chunks = call.outgoing[sent:]
            for chunk in chunks:
                message = deserialize_data_format(chunk.data, chunk.data_format, None)
                await send(message)
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    return
            sent += len(chunks)
            if call.output is not None and sent == len(call.outgoing):
                break
        if not sent:
            text = (
                f"modal: {call.status}: {call.output.result.exception}".encode() if call.output else b"modal: nothing"
            )
            await send({"type": "http.response.start", "status": 500, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": text})
