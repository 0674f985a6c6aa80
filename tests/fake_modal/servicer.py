"""The RPCs of deploying, calling and looking: what the client of a user, and of a web function, asks for."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientBase

from tests.fake_modal.cloud import BUILDER, App, Call, Container, Function, Secret, Volume

if TYPE_CHECKING:
    from tests.fake_modal.machine import FakeModal

DONE = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
ENDED = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_TERMINATED)


def answering(handler: Any) -> Any:
    """An RPC from `handler(self, request) -> response`."""

    async def rpc(self: Any, stream: Any) -> None:
        await stream.send_message(await handler(self, await stream.recv_message()))

    return rpc


def nothing(self: Any, request: Any) -> Any:
    async def empty() -> Empty:
        return Empty()

    return empty()


class Deploying(ModalClientBase):
    """Apps, images, mounts, secrets, volumes and functions."""

    machine: FakeModal
    container: Container | None

    async def _hello(self, _: Any) -> api_pb2.ClientHelloResponse:
        return api_pb2.ClientHelloResponse()

    async def _token(self, _: Any) -> api_pb2.AuthTokenGetResponse:
        claims = base64.urlsafe_b64encode(json.dumps({"exp": time.time() + 86_400}).encode()).rstrip(b"=").decode()
        return api_pb2.AuthTokenGetResponse(token=f"x.{claims}.x")

    async def _environment(self, request: api_pb2.EnvironmentGetOrCreateRequest) -> Any:
        settings = api_pb2.EnvironmentSettings(image_builder_version=BUILDER, webhook_suffix="")
        metadata = api_pb2.EnvironmentMetadata(name=request.deployment_name or "main", settings=settings)
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    async def _find_app(self, request: api_pb2.AppGetByDeploymentNameRequest) -> Any:
        found = [app.id for app in self.machine.cloud.apps.values() if app.name == request.name and app.published]
        return api_pb2.AppGetByDeploymentNameResponse(app_id=found[-1] if found else "")

    async def _create_app(self, request: api_pb2.AppCreateRequest) -> api_pb2.AppCreateResponse:
        app = App(
            self.machine.cloud.name("ap"),
            "" if request.app_state == api_pb2.APP_STATE_EPHEMERAL else request.description,
        )
        self.machine.cloud.apps[app.id] = app
        return api_pb2.AppCreateResponse(app_id=app.id, app_page_url="http://modal.test/app")

    async def _layout(self, request: api_pb2.AppGetLayoutRequest) -> api_pb2.AppGetLayoutResponse:
        return api_pb2.AppGetLayoutResponse(
            app_layout=self.machine.cloud.layout(self.machine.cloud.apps[request.app_id])
        )

    async def _publish(self, request: api_pb2.AppPublishRequest) -> api_pb2.AppPublishResponse:
        app = self.machine.cloud.apps[request.app_id]
        app.name, app.published = request.name or app.name, app.published + 1
        app.tags, app.classes = dict(request.function_ids), dict(request.class_ids)
        for function in app.functions.values():
            for container in function.containers:
                container.retiring = True
        await self.machine.cloud.tell()
        return api_pb2.AppPublishResponse(url="http://modal.test/app", deployed_at=time.time())

    async def _disconnect(self, request: api_pb2.AppClientDisconnectRequest) -> Empty:
        app = self.machine.cloud.apps[request.app_id]
        if not app.name:
            app.done = True
            self.machine.stop_app(app)
        await self.machine.cloud.tell()
        return Empty()

    async def AppGetLogs(self, stream: Any) -> None:
        """Logs of `modal run`: none, until the app is done."""
        request = await stream.recv_message()
        app = self.machine.cloud.apps[request.app_id]
        async with self.machine.cloud.changed:
            await asyncio.wait_for(self.machine.cloud.changed.wait_for(lambda: app.done), request.timeout + 1)
        await stream.send_message(api_pb2.TaskLogsBatch(app_done=True))

    async def _mount(self, request: api_pb2.MountGetOrCreateRequest) -> api_pb2.MountGetOrCreateResponse:
        self.machine.cloud.mounted.update(file.filename for file in request.files)
        metadata = api_pb2.MountHandleMetadata(content_checksum_sha256_hex="0")
        return api_pb2.MountGetOrCreateResponse(mount_id=self.machine.cloud.name("mo"), handle_metadata=metadata)

    async def _missing_files(self, _: Any) -> api_pb2.MountBatchedCheckExistenceResponse:
        return api_pb2.MountBatchedCheckExistenceResponse()

    async def _put_file(self, _: Any) -> api_pb2.MountPutFileResponse:
        return api_pb2.MountPutFileResponse(exists=True)

    async def _image(self, request: api_pb2.ImageGetOrCreateRequest) -> api_pb2.ImageGetOrCreateResponse:
        digest = hashlib.sha256(request.image.SerializeToString(deterministic=True)).hexdigest()[:16]
        self.machine.cloud.images[f"im-{digest}"] = request.image
        metadata = api_pb2.ImageMetadata(image_builder_version=BUILDER, python_version_info="Python 3.11.2")
        return api_pb2.ImageGetOrCreateResponse(image_id=f"im-{digest}", result=DONE, metadata=metadata)

    async def _volume(self, request: api_pb2.VolumeGetOrCreateRequest) -> api_pb2.VolumeGetOrCreateResponse:
        creating = request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING
        if not creating and request.deployment_name not in self.machine.cloud.volumes:
            raise GRPCError(Status.NOT_FOUND, f"Volume '{request.deployment_name}' not found in environment 'main'")
        volume = self.machine.cloud.volumes.setdefault(
            request.deployment_name,
            Volume(
                self.machine.cloud.name("vo"), request.deployment_name, request.version or api_pb2.VOLUME_FS_VERSION_V1
            ),
        )
        metadata = api_pb2.VolumeMetadata(name=volume.name, version=volume.version)  # type: ignore[arg-type]
        return api_pb2.VolumeGetOrCreateResponse(volume_id=volume.id, version=metadata.version, metadata=metadata)

    async def _secret(self, request: api_pb2.SecretGetOrCreateRequest) -> api_pb2.SecretGetOrCreateResponse:
        name, required = request.deployment_name, tuple(request.required_keys)
        if not name:
            name = "own " + hashlib.sha256(repr(sorted(request.env_dict.items())).encode()).hexdigest()[:16]
            made = Secret(self.machine.cloud.name("st"), dict(request.env_dict))
            self.machine.cloud.secrets.setdefault(name, made)
        if name not in self.machine.cloud.secrets:
            raise GRPCError(Status.NOT_FOUND, f"Secret '{name}' not found in environment 'main'")
        secret = self.machine.cloud.secrets[name]
        missing = [key for key in required if key not in secret.values]
        if missing:
            raise GRPCError(Status.FAILED_PRECONDITION, f"Secret '{name}' is missing key(s): {', '.join(missing)}")
        secret.required = required or secret.required
        return api_pb2.SecretGetOrCreateResponse(secret_id=secret.id, metadata=api_pb2.SecretMetadata(name=name))

    async def _precreate(self, request: api_pb2.FunctionPrecreateRequest) -> api_pb2.FunctionPrecreateResponse:
        cloud = self.machine.cloud
        function_id = request.existing_function_id or cloud.name("fu")
        handle = api_pb2.FunctionHandleMetadata(
            function_name=request.function_name, function_type=request.function_type, app_id=request.app_id,
            function_schema=request.function_schema, definition_id=cloud.name("de"),
            supported_input_formats=request.supported_input_formats,
            supported_output_formats=request.supported_output_formats,
        )  # fmt: skip
        for name, method in request.method_definitions.items():
            handle.method_handle_metadata[name].CopyFrom(
                api_pb2.FunctionHandleMetadata(
                    function_name=method.function_name,
                    function_type=method.function_type,
                    is_method=True,
                    use_method_name=name,
                    function_schema=method.function_schema,
                    app_id=request.app_id,
                    supported_input_formats=method.supported_input_formats,
                    supported_output_formats=method.supported_output_formats,
                )
            )
        function = cloud.functions.get(function_id)
        if function is None:
            function = Function(function_id, request.app_id, request.function_name, handle)
            cloud.functions[function_id] = function
            cloud.apps[request.app_id].functions[function.tag] = function
        function.metadata = handle
        if request.webhook_config.type:
            function.url = function.url or await self.machine.open_gateway(function)
            handle.web_url = function.url
        return api_pb2.FunctionPrecreateResponse(function_id=function_id, handle_metadata=handle)

    async def _create(self, request: api_pb2.FunctionCreateRequest) -> api_pb2.FunctionCreateResponse:
        function = self.machine.cloud.functions[request.existing_function_id]
        ranked = request.HasField("function_data")
        function.data = request.function_data if ranked else None
        function.definition = request.function_data.ranked_functions[0].function if ranked else request.function
        function.metadata.class_parameter_info.CopyFrom(function.definition.class_parameter_info)
        data = request.function_data
        if not ranked:
            first = api_pb2.FunctionData.RankedFunction(rank=0, function=function.definition)
            data = api_pb2.FunctionData(function_name=function.definition.function_name, ranked_functions=[first])
        return api_pb2.FunctionCreateResponse(
            function_id=function.id, function=function.definition, function_data=data, handle_metadata=function.metadata
        )

    async def _class(self, request: api_pb2.ClassCreateRequest) -> api_pb2.ClassCreateResponse:
        class_id = request.existing_class_id or self.machine.cloud.name("cs")
        return api_pb2.ClassCreateResponse(class_id=class_id, handle_metadata=api_pb2.ClassHandleMetadata())

    ClientHello, AuthTokenGet = answering(_hello), answering(_token)
    EnvironmentGetOrCreate = answering(_environment)
    AppGetByDeploymentName, AppCreate, AppGetLayout = answering(_find_app), answering(_create_app), answering(_layout)
    AppPublish, AppHeartbeat, AppClientDisconnect = answering(_publish), answering(nothing), answering(_disconnect)
    MountGetOrCreate, MountBatchedCheckExistence = answering(_mount), answering(_missing_files)
    MountPutFile, ImageGetOrCreate = answering(_put_file), answering(_image)
    VolumeGetOrCreate, SecretGetOrCreate = answering(_volume), answering(_secret)
    FunctionPrecreate, FunctionCreate, ClassCreate = answering(_precreate), answering(_create), answering(_class)


class Calling(Deploying):
    """Calls and their results, and dicts."""

    def _known(self, call_id: str) -> Call:
        if call_id not in self.machine.cloud.calls:
            raise GRPCError(Status.NOT_FOUND, f"Function call {call_id} not found")
        return self.machine.cloud.calls[call_id]

    async def _get_function(self, request: api_pb2.FunctionGetRequest) -> api_pb2.FunctionGetResponse:
        for app in self.machine.cloud.apps.values():
            if app.name == request.app_name and request.object_tag in app.tags:
                function = self.machine.cloud.functions[app.tags[request.object_tag]]
                ranked = api_pb2.FunctionData.RankedFunction(rank=0, function=function.definition)
                return api_pb2.FunctionGetResponse(
                    function_id=function.id, handle_metadata=function.metadata,
                    function=function.data or api_pb2.FunctionData(ranked_functions=[ranked]),
                )  # fmt: skip
        raise GRPCError(Status.NOT_FOUND, f"No function {request.object_tag} in app {request.app_name}")

    async def _bind(self, request: api_pb2.FunctionBindParamsRequest) -> api_pb2.FunctionBindParamsResponse:
        function = self.machine.cloud.functions[request.function_id]
        return api_pb2.FunctionBindParamsResponse(bound_function_id=function.id, handle_metadata=function.metadata)

    async def _map(self, request: api_pb2.FunctionMapRequest) -> api_pb2.FunctionMapResponse:
        function = self.machine.cloud.functions[request.function_id]
        answered: list[api_pb2.FunctionPutInputsResponseItem] = []
        call_id = self.machine.cloud.name("fc")
        for item in request.pipelined_inputs:
            call = await self.machine.submit(function, item.input, request.function_call_invocation_type, call_id)
            answered.append(api_pb2.FunctionPutInputsResponseItem(idx=item.idx, input_id=call.input_id))
        return api_pb2.FunctionMapResponse(function_call_id=call_id, pipelined_inputs=answered)

    async def _outputs(self, request: api_pb2.FunctionGetOutputsRequest) -> api_pb2.FunctionGetOutputsResponse:
        call = self._known(request.function_call_id)
        await self.machine.wait(lambda: call.output is not None or call.expired, request.timeout)
        if call.output is None or call.expired:
            return api_pb2.FunctionGetOutputsResponse(num_unfinished_inputs=0 if call.expired else 1)
        return api_pb2.FunctionGetOutputsResponse(outputs=[call.output], idxs=[0])

    async def _call(self, request: api_pb2.FunctionCallFromIdRequest) -> api_pb2.FunctionCallFromIdResponse:
        return api_pb2.FunctionCallFromIdResponse(
            function_call_id=self._known(request.function_call_id).id, num_inputs=1
        )

    async def _cancel(self, request: api_pb2.FunctionCallCancelRequest) -> Empty:
        await self.machine.cancel(self._known(request.function_call_id))
        return Empty()

    async def _stats(self, request: api_pb2.FunctionGetCurrentStatsRequest) -> api_pb2.FunctionStats:
        function = self.machine.cloud.functions[request.function_id]
        return api_pb2.FunctionStats(backlog=len(function.pending), num_total_tasks=len(function.living))

    async def _dict(self, request: api_pb2.DictGetOrCreateRequest) -> api_pb2.DictGetOrCreateResponse:
        cloud = self.machine.cloud
        if request.deployment_name not in cloud.dict_names:
            if request.object_creation_type != api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                raise GRPCError(Status.NOT_FOUND, f"Dict '{request.deployment_name}' not found")
            cloud.dict_names[request.deployment_name] = cloud.name("di")
            cloud.dicts[cloud.dict_names[request.deployment_name]] = {}
        dict_id = cloud.dict_names[request.deployment_name]
        return api_pb2.DictGetOrCreateResponse(
            dict_id=dict_id, metadata=api_pb2.DictMetadata(name=request.deployment_name)
        )

    async def _dict_get(self, request: api_pb2.DictGetRequest) -> api_pb2.DictGetResponse:
        value = self.machine.cloud.dicts[request.dict_id].get(request.key)
        return api_pb2.DictGetResponse(found=value is not None, value=value or b"")

    async def _dict_update(self, request: api_pb2.DictUpdateRequest) -> api_pb2.DictUpdateResponse:
        kept = self.machine.cloud.dicts[request.dict_id]
        created = False
        for entry in request.updates:
            if request.if_not_exists and entry.key in kept:
                continue
            created = True
            kept[entry.key] = entry.value
        return api_pb2.DictUpdateResponse(created=created)

    async def _dict_pop(self, request: api_pb2.DictPopRequest) -> api_pb2.DictPopResponse:
        value = self.machine.cloud.dicts[request.dict_id].pop(request.key, None)
        return api_pb2.DictPopResponse(found=value is not None, value=value or b"")

    async def _dict_contains(self, request: api_pb2.DictContainsRequest) -> api_pb2.DictContainsResponse:
        return api_pb2.DictContainsResponse(found=request.key in self.machine.cloud.dicts[request.dict_id])

    async def _dict_len(self, request: api_pb2.DictLenRequest) -> api_pb2.DictLenResponse:
        return api_pb2.DictLenResponse(len=len(self.machine.cloud.dicts[request.dict_id]))

    async def DictContents(self, stream: Any) -> None:
        """The entries of a dict, one by one."""
        request = await stream.recv_message()
        for key, value in list(self.machine.cloud.dicts[request.dict_id].items()):
            await stream.send_message(api_pb2.DictEntry(key=key, value=value if request.values else b""))

    async def VolumeListFiles(self, stream: Any) -> None:
        """The entries of a folder of a volume, where tests say which folder here stands for it."""
        request = await stream.recv_message()
        volume = next(volume for volume in self.machine.cloud.volumes.values() if volume.id == request.volume_id)
        folder = (volume.folder or Path("/nonexistent")) / request.path.lstrip("/")
        if not folder.is_dir():
            raise GRPCError(Status.NOT_FOUND, f"no such file or directory: {request.path}")
        entries = [
            api_pb2.FileEntry(path=f"{request.path.strip('/')}/{path.name}") for path in sorted(folder.iterdir())
        ]
        await stream.send_message(api_pb2.VolumeListFilesResponse(entries=entries))

    FunctionGet, FunctionBindParams, FunctionMap = answering(_get_function), answering(_bind), answering(_map)
    FunctionGetOutputs, FunctionCallFromId, FunctionCallCancel = (
        answering(_outputs),
        answering(_call),
        answering(_cancel),
    )
    FunctionGetCurrentStats = answering(_stats)
    DictGetOrCreate, DictGet, DictUpdate = answering(_dict), answering(_dict_get), answering(_dict_update)
    DictPop, DictContains, DictLen = answering(_dict_pop), answering(_dict_contains), answering(_dict_len)
