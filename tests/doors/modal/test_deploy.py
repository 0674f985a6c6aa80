"""What `modal deploy ltx2_video.py` declares, as the stand-in recorded it; and what keeps it from deploying."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from modal_proto import api_pb2

from ltx2.doors.modal import deploy
from tests.doors.modal.conftest import Deployed
from tests.fake_modal import Function
from tests.fake_modal.machine import ROOT

OFFLINE = {"MODAL_SERVER_URL": "http://127.0.0.1:9", "MODAL_CONFIG_PATH": "/nonexistent", "PYTHONPATH": f"{ROOT}/src"}
# Heavy, and of no use where nothing is rendered.
ENGINE = ("torch", "diffusers", "transformers", "safetensors", "accelerate")


def run(code: str, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository's root, with Modal out of reach."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MODAL_", "LTX2_"))}
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env=own | OFFLINE | more,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def mounts(service: Deployed, function: Function) -> dict[str, tuple[str, bool]]:
    """Path in the container → name of the volume, and whether it is read-only."""
    names = {volume.id: volume.name for volume in service.machine.cloud.volumes.values()}
    root = str(service.root)
    return {
        mount.mount_path.removeprefix(root): (names[mount.volume_id], mount.read_only)
        for mount in function.definition.volume_mounts
    }


def secrets(service: Deployed, function: Function) -> set[str]:
    names = {secret.id: name for name, secret in service.machine.cloud.secrets.items()}
    return {names[secret] for secret in function.definition.secret_ids}


def own_layers(service: Deployed, function: Function) -> list[str]:
    """The layers that install packages of ours, beside those of Modal's own base image."""
    return [
        line
        for line in service.machine.cloud.layers(function)
        if "uv" in line and "pip install" in line and "==" in line
    ]


def installed(service: Deployed, function: Function) -> str:
    return " ".join(line for line in service.machine.cloud.layers(function) if "pip install" in line)


def test_the_gpu_class(declared: Deployed):
    function = declared.gpu
    definition, scaling = function.definition, function.definition.autoscaler_settings
    assert function.gpus == ["H200", "B200", "H100"]
    assert (scaling.min_containers, scaling.max_containers, scaling.buffer_containers) == (0, 1, 0)
    assert scaling.scaledown_window == 60
    assert (definition.timeout_secs, definition.startup_timeout_secs) == (900, 1200)
    assert (definition.resources.milli_cpu, definition.resources.memory_mb) == (4000, 16384)
    # Only a method that is not async, with one input at a time, can be cancelled with its container kept.
    assert definition.max_concurrent_inputs <= 1
    assert definition.retry_policy.retries == 0  # a refusal or an out-of-memory would only be paid again
    assert definition.checkpointing_enabled and "enable_gpu_snapshot" not in definition.experimental_options
    assert set(definition.method_definitions) == {"generate", "once"}
    assert secrets(declared, function) == set()
    assert mounts(declared, function) == {
        "/weights": ("ltx2-video-weights", True),
        "/outputs": ("ltx2-video-outputs", False),
        "/compiled": ("ltx2-video-compiled", False),
    }


def test_compiled_kernels_go_to_a_volume(declared: Deployed):
    lines = " ".join(declared.machine.cloud.layers(declared.gpu))
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        (place,) = re.findall(rf"{name}[= ]'?([^ ']+)", lines)
        assert Path(place).parent == declared.root / "compiled"
    # What compiles them for a GPU is part of the image.
    assert re.search(r"apt-get install .*\bgcc\b", lines)


def test_the_web_function(declared: Deployed):
    function = declared.web
    assert function.gpus == [] and function.definition.max_concurrent_inputs == 100
    assert function.definition.webhook_config.type == api_pb2.WEBHOOK_TYPE_ASGI_APP
    assert function.definition.webhook_config.requested_suffix == "ltx2-video"
    assert function.definition.autoscaler_settings.min_containers == 0
    assert secrets(declared, function) == {"enter-token"}
    assert all(read_only for _, read_only in mounts(declared, function).values())
    assert [name for name in ENGINE if re.search(rf"\b{name}\b", installed(declared, function))] == []


def test_the_download_has_the_hubs_token_and_no_gpu(declared: Deployed):
    function = declared.function("download")
    assert function.gpus == [] and secrets(declared, function) == {"huggingface-secret"}
    assert mounts(declared, function) == {"/weights": ("ltx2-video-weights", False)}


def test_the_sweep_runs_by_itself(declared: Deployed):
    function = declared.function("sweep")
    assert function.gpus == [] and function.definition.schedule.period.hours == 6


def test_secrets_name_their_keys_and_volumes_their_version(declared: Deployed):
    cloud = declared.machine.cloud
    assert cloud.secrets["enter-token"].required == ("ENTER_TOKEN",)
    assert cloud.secrets["huggingface-secret"].required == ("HF_TOKEN",)
    assert cloud.volumes["ltx2-video-outputs"].version == api_pb2.VOLUME_FS_VERSION_V2


def test_every_package_is_pinned_as_the_project_tests_it(declared: Deployed):
    lines = (ROOT / "constraints.txt").read_text().lower().splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    for function in (declared.web, declared.gpu):
        pins = re.findall(r"([A-Za-z0-9_-]+)(?:\[[a-z]+\])?==([0-9.]+)", installed(declared, function))
        assert len(pins) >= 10
        assert {name: version for name, version in pins if tested.get(name.lower(), version) != version} == {}
        asked = [
            word
            for line in own_layers(declared, function)
            for word in line.split(" install ")[1].split()
            if word[0] not in "-$" and word != "python)"
        ]
        assert [word for word in asked if "==" not in word] == []


def test_the_package_goes_along_with_its_data(declared: Deployed):
    held = declared.machine.cloud.mounted
    assert "/root/ltx2_video.py" in held and "/root/ltx2/doors/modal/deploy.py" in held
    assert any(name.endswith("tokenizer.json") for name in held) and not any("__pycache__" in name for name in held)


def test_a_deploy_without_the_secrets_fails_with_modals_message(declared: Deployed):
    kept = declared.machine.cloud.secrets.pop("enter-token")
    try:
        done = declared.deploy()
        assert done.returncode == 1 and "Secret 'enter-token' not found" in done.stdout + done.stderr
        declared.machine.cloud.secret("enter-token", TOKEN="x")
        done = declared.deploy()
        assert done.returncode == 1 and "missing key(s): ENTER_TOKEN" in done.stdout + done.stderr
    finally:
        declared.machine.cloud.secrets["enter-token"] = kept


def test_J5_a_gpu_that_modal_does_not_have_is_refused_before_the_deploy(declared: Deployed):
    done = declared.deploy(LTX2_MODAL_GPUS="H2OO")
    assert done.returncode != 0
    assert "Modal has no 'H2OO'" in done.stdout + done.stderr and "did you mean H200" in done.stdout + done.stderr


def test_every_snapshot_setting_is_declared_without_a_warning_and_without_asking_anybody():
    """Modal tells of renamed arguments by warnings; as errors they would end this import."""
    code = (
        "import os, runpy\n"
        "for snapshot in ('none', 'cpu', 'gpu'):\n"
        "    os.environ['LTX2_MODAL_SNAPSHOT'] = snapshot\n"
        "    app = runpy.run_path('ltx2_video.py')\n"
        "    print(snapshot, app['PLACE'].experimental, 'Generator' in app)\n"
    )
    done = run(code, "-W", "error::DeprecationWarning:modal", "-W", "error::UserWarning")
    assert done.stdout.splitlines() == [
        "none {} True", "cpu {} True", "gpu {'enable_gpu_snapshot': True} True",
    ], done.stderr  # fmt: skip


def test_the_web_function_runs_without_torch():
    code = (
        "import sys, ltx2.doors.modal.web, ltx2.doors.modal.sweep, ltx2.doors.modal.database;"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'safetensors') if name in sys.modules])"
    )
    done = run(code)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_settings_of_the_server_go_along_but_no_secret(tmp_path: Path):
    given = {"LTX2_RPM": "7", "LTX2_SECRET": "hush-hush-hush-hush", "LTX2_DB": "postgresql://u:p@h/d"}
    place = deploy.place(given | {"LTX2_MODAL_MODEL": "tiny"}, tmp_path)
    assert json.loads(place.service) == {"rpm": 7}


def test_a_warm_up_that_cannot_be_made_is_refused_before_the_deploy(tmp_path: Path):
    with pytest.raises(SystemExit, match="width: 33"):
        deploy.place({"LTX2_MODAL_MODEL": "tiny", "LTX2_MODAL_WARM_UP": "64x64x9,33x64x9"}, tmp_path)


def test_modal_run_without_weights_starts_no_gpu(declared: Deployed):
    done = declared.machine.command(
        "run", "ltx2_video.py", "--prompt", "x", **declared.settings | {"LTX2_MODAL_MODEL": "ltx-2-distilled"}
    )
    assert done.returncode == 1 and "modal run ltx2_video.py::download" in done.stdout + done.stderr
    assert not any(function.containers for function in declared.machine.cloud.functions.values())
