"""What the stand-in knows: apps, functions, calls, containers, images, dicts, volumes and secrets, as plain objects."""

from __future__ import annotations

import asyncio
import itertools
import shlex
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from modal_proto import api_pb2

if TYPE_CHECKING:
    from tests.fake_modal.machine import Process

BUILDER = "2025.06"


@dataclass
class Call:
    """One input of one function call, and what became of it. `ends` counts the outputs that containers sent for it."""

    id: str
    input_id: str
    function: Function
    input: api_pb2.FunctionInput
    invocation: int
    container: Container | None = None
    output: api_pb2.FunctionGetOutputsItem | None = None
    expired: bool = False
    starts: int = 0
    ends: int = 0
    incoming: list[api_pb2.DataChunk] = field(default_factory=list)
    outgoing: list[api_pb2.DataChunk] = field(default_factory=list)

    @property
    def status(self) -> str:
        """pending, running, or the name of the result's status."""
        if self.output is None:
            return "running" if self.container else "pending"
        return (
            api_pb2.GenericResult.GenericStatus.Name(self.output.result.status).removeprefix("GENERIC_STATUS_").lower()
        )


@dataclass
class Container:
    """One process of the client's container runtime. A retiring one takes no further input."""

    task_id: str
    function: Function
    definition: api_pb2.Function
    log: str
    process: Process | None = None
    active: set[str] = field(default_factory=set)
    served: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    retiring: bool = False
    failure: api_pb2.GenericResult | None = None

    @property
    def slots(self) -> int:
        """Inputs that it takes at a time."""
        return self.definition.max_concurrent_inputs or 1

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class Function:
    """A function of an app: `definition` as created last (rank 0 of a GPU list), `data` when it has a GPU list."""

    id: str
    app_id: str
    tag: str
    metadata: api_pb2.FunctionHandleMetadata
    definition: api_pb2.Function = field(default_factory=api_pb2.Function)
    data: api_pb2.FunctionData | None = None
    pending: deque[Call] = field(default_factory=deque)
    containers: list[Container] = field(default_factory=list)
    url: str = ""

    @property
    def gpus(self) -> list[str]:
        """Ranked GPU types; empty for a CPU function."""
        if self.data is not None:
            return [ranked.function.resources.gpu_config.gpu_type for ranked in self.data.ranked_functions]
        kind = self.definition.resources.gpu_config.gpu_type
        return [kind] if kind else []

    @property
    def living(self) -> list[Container]:
        return [container for container in self.containers if container.alive]


@dataclass
class App:
    """An app: its published functions and classes, by tag."""

    id: str
    name: str
    published: int = 0
    tags: dict[str, str] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    done: bool = False


@dataclass
class Secret:
    """A secret's values; tests put named ones into the cloud before a deploy."""

    id: str
    values: dict[str, str]
    required: tuple[str, ...] = ()


@dataclass
class Volume:
    """A volume's name and version; `failing` commits or `busy` reloads are refused that many times.

    `folder`: what listing it shows.
    """

    id: str
    name: str
    version: int
    commits: int = 0
    reloads: int = 0
    failing: int = 0
    busy: int = 0
    folder: Path | None = None


@dataclass
class Cloud:
    """Everything, and the one condition that waiters of all kinds wait on."""

    apps: dict[str, App] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)
    inputs: dict[str, Call] = field(default_factory=dict)
    images: dict[str, api_pb2.Image] = field(default_factory=dict)
    secrets: dict[str, Secret] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    dicts: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    dict_names: dict[str, str] = field(default_factory=dict)
    mounted: set[str] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def name(self, prefix: str) -> str:
        """A fresh object id."""
        return f"{prefix}-{next(self._numbers):06d}"

    async def tell(self) -> None:
        """Wake everybody who waits."""
        async with self.changed:
            self.changed.notify_all()

    def function(self, tag: str, app: str) -> Function:
        """The function or class of this tag in a deployed app."""
        found = next(other for other in self.apps.values() if other.name == app)
        return found.functions[tag] if tag in found.functions else found.functions[f"{tag}.*"]

    def secret(self, name: str, **values: str) -> None:
        """Make a named secret."""
        self.secrets[name] = Secret(self.name("st"), values)

    def layers(self, function: Function) -> list[str]:
        """Every command of the image of a function, the base first."""
        commands: list[str] = []
        image_id = function.definition.image_id
        while image_id:
            image = self.images[image_id]
            commands = [*image.dockerfile_commands, *commands]
            image_id = image.base_images[0].image_id if image.base_images else ""
        return commands

    def environment(self, function: Function) -> dict[str, str]:
        """The variables that the image and the secrets of a function set."""
        variables: dict[str, str] = {}
        for command in self.layers(function):
            if command.startswith("ENV "):
                name, _, value = command.removeprefix("ENV ").partition("=")
                variables[name.strip()] = "".join(shlex.split(value))
        by_id = {secret.id: secret for secret in self.secrets.values()}
        for secret_id in function.definition.secret_ids:
            variables |= by_id[secret_id].values
        return variables

    def layout(self, app: App) -> api_pb2.AppLayout:
        """The published objects of an app, as containers and later deploys see them."""
        objects = [
            api_pb2.Object(object_id=function_id, function_handle_metadata=self.functions[function_id].metadata)
            for function_id in app.tags.values()
        ]
        for name, class_id in app.classes.items():
            handle = api_pb2.ClassHandleMetadata(class_function_id=app.tags.get(f"{name}.*", ""))
            objects.append(api_pb2.Object(object_id=class_id, class_handle_metadata=handle))
        seen = {known.object_id for known in objects}
        for function_id in app.tags.values():
            for needed in self.functions[function_id].definition.object_dependencies:
                if needed.object_id not in seen:
                    seen.add(needed.object_id)
                    objects.append(self._dependency(needed.object_id))
        return api_pb2.AppLayout(objects=objects, function_ids=app.tags, class_ids=app.classes)

    def _dependency(self, object_id: str) -> api_pb2.Object:
        for volume in self.volumes.values():
            if volume.id == object_id:
                metadata = api_pb2.VolumeMetadata(name=volume.name, version=volume.version)  # type: ignore[arg-type]
                return api_pb2.Object(object_id=object_id, volume_metadata=metadata)
        return api_pb2.Object(object_id=object_id)
