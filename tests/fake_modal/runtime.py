"""The RPCs of a container: inputs and outputs, the streams of web requests, heartbeats, volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.fake_modal.cloud import Call, Container
from tests.fake_modal.servicer import Calling, answering, nothing

if TYPE_CHECKING:
    from tests.fake_modal.machine import FakeModal

LONG_POLL = 14.0


class Servicer(Calling):
    """All RPCs that there are; the rest answers UNIMPLEMENTED and is noted. One for users, one for each container."""

    def __init__(self, machine: FakeModal, container: Container | None = None):
        self.machine, self.container = machine, container

    async def _inputs(self, request: api_pb2.FunctionGetInputsRequest) -> api_pb2.FunctionGetInputsResponse:
        container = self._own()
        function = container.function

        def ready() -> bool:
            return container.retiring or bool(function.pending)

        await self.machine.wait(ready, LONG_POLL)
        if container.retiring:
            return api_pb2.FunctionGetInputsResponse(inputs=[api_pb2.FunctionGetInputsItem(kill_switch=True)])
        if not function.pending:
            return api_pb2.FunctionGetInputsResponse()
        call = function.pending.popleft()
        call.container, call.starts = container, call.starts + 1
        container.active.add(call.input_id)
        container.served.append(call.id)
        item = api_pb2.FunctionGetInputsItem(
            input_id=call.input_id, input=call.input, function_call_id=call.id, retry_count=call.starts - 1,
            function_call_invocation_type=call.invocation,  # type: ignore[arg-type]
        )  # fmt: skip
        await self.machine.cloud.tell()
        return api_pb2.FunctionGetInputsResponse(inputs=[item])

    async def _put_outputs(self, request: api_pb2.FunctionPutOutputsRequest) -> Empty:
        container = self._own()
        for item in request.outputs:
            call = self.machine.cloud.inputs[item.input_id]
            container.active.discard(item.input_id)
            if call.container is container:
                call.ends += 1
                self.machine.settle(call, item.result, item.data_format)
        await self.machine.cloud.tell()
        return Empty()

    async def _heartbeat(self, _: Any) -> api_pb2.ContainerHeartbeatResponse:
        container = self._own()
        await self.machine.wait(lambda: bool(container.cancelled), LONG_POLL)
        if not container.cancelled:
            return api_pb2.ContainerHeartbeatResponse()
        inputs, container.cancelled = container.cancelled, []
        return api_pb2.ContainerHeartbeatResponse(cancel_input_event=api_pb2.CancelInputEvent(input_ids=inputs))

    async def _task_result(self, request: api_pb2.TaskResultRequest) -> Empty:
        self._own().failure = request.result
        return Empty()

    async def _stop(self, request: api_pb2.ContainerStopRequest) -> api_pb2.ContainerStopResponse:
        for function in self.machine.cloud.functions.values():
            for container in function.containers:
                container.retiring |= container.task_id == request.task_id
        await self.machine.cloud.tell()
        return api_pb2.ContainerStopResponse()

    async def _put_data(self, request: api_pb2.FunctionCallPutDataRequest) -> Empty:
        self._call_of(request).outgoing.extend(request.data_chunks)
        await self.machine.cloud.tell()
        return Empty()

    async def FunctionCallGetDataIn(self, stream: Any) -> None:
        """The body of a web request, chunk by chunk, for as long as the call lasts."""
        request = await stream.recv_message()
        await self._stream(stream, self._call_of(request), "incoming", request.last_index)

    async def FunctionCallGetDataOut(self, stream: Any) -> None:
        """What a generator yields."""
        request = await stream.recv_message()
        await self._stream(stream, self._call_of(request), "outgoing", request.last_index)

    async def _commit(self, request: api_pb2.VolumeCommitRequest) -> api_pb2.VolumeCommitResponse:
        volume = self._volume_of(request.volume_id)
        if volume.failing:
            volume.failing -= 1
            raise GRPCError(Status.FAILED_PRECONDITION, "commit refused by the stand-in")
        volume.commits += 1
        return api_pb2.VolumeCommitResponse(skip_reload=True)

    async def _reload(self, request: api_pb2.VolumeReloadRequest) -> Empty:
        volume = self._volume_of(request.volume_id)
        if volume.busy:
            volume.busy -= 1
            raise GRPCError(Status.FAILED_PRECONDITION, "there are open files preventing the operation")
        volume.reloads += 1
        return Empty()

    async def _stream(self, stream: Any, call: Call, side: str, last: int) -> None:
        while True:
            chunks: list[api_pb2.DataChunk] = [chunk for chunk in getattr(call, side) if chunk.index > last]
            for chunk in chunks:
                last = chunk.index
                await stream.send_message(chunk)
            if call.output is not None:
                return
            await self.machine.wait(
                lambda seen=last: call.output is not None or len(getattr(call, side)) > seen, LONG_POLL
            )

    def _own(self) -> Container:
        assert self.container is not None, "only containers ask this"
        return self.container

    def _call_of(self, request: Any) -> Call:
        return self.machine.cloud.calls[request.function_call_id]

    def _volume_of(self, volume_id: str) -> Any:
        return next(volume for volume in self.machine.cloud.volumes.values() if volume.id == volume_id)

    ContainerHello, FunctionGetInputs, FunctionPutOutputs = (
        answering(nothing),
        answering(_inputs),
        answering(_put_outputs),
    )
    ContainerHeartbeat, TaskResult, ContainerStop = answering(_heartbeat), answering(_task_result), answering(_stop)
    FunctionCallPutDataOut, VolumeCommit, VolumeReload = answering(_put_data), answering(_commit), answering(_reload)


def _refusing(name: str) -> Any:
    async def refuse(self: Servicer, stream: Any) -> None:
        await stream.recv_message()
        self.machine.cloud.unknown.append(name)
        raise GRPCError(Status.UNIMPLEMENTED, f"the stand-in does not know {name}")

    return refuse


for _name in Servicer.__abstractmethods__:
    setattr(Servicer, _name, _refusing(_name))
Servicer.__abstractmethods__ = frozenset()  # type: ignore[misc]
