"""`ltx2 serve` and `ltx2 worker` as processes: starting, refusing to start, stopping, dying, coming back.

Every start costs seconds of a busy machine, so one server sees several things.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import time
from pathlib import Path

from tests.doors.http.running import Running, alive, command, environment, free_port, run, serve
from tests.doors.http.studio import wait_for


def test_I1_a_service_works_replaces_a_killed_worker_and_ends_in_order(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        assert "everybody on this machine" in server.log.read_text()
        job = server.post("a cat", headers={"Prefer": "wait=30"})
        assert job["status"] == "completed"
        assert server.ask("GET", f"/v1/videos/{job['id']}/content").text.startswith("a cat")
        assert stat.S_IMODE((tmp_path / "data/secret").stat().st_mode) == 0o600
        # One line of JSON for each event, and no prompt in any of them.
        assert any(line["event"] == "request" and line["route"] == "/v1/videos" for line in server.lines())
        assert "a cat" not in server.log.read_text()

        family = server.family()
        assert len(family) >= 2, "a worker and its engine"
        worker = next(pid for pid in family if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: alive(family) == [], 10)
        job = server.post("a cat")
        wait_for(lambda: server.state(job) == "done")

        family = server.family()
        assert server.stop() == 0
        assert alive(family) == []


def test_A4_A6_tokens_of_a_running_service(tmp_path: Path) -> None:
    data, public = ("--data", str(tmp_path / "data")), ("--host", "0.0.0.0")
    refused = run("serve", *public, "--port", str(free_port()), *data, "--no-workers")
    assert refused.returncode == 2
    assert "no token" in refused.stderr and "ENTER_TOKEN" in refused.stderr
    with serve(tmp_path, *public, ENTER_TOKEN="open sesame") as server:
        assert server.ask("GET", "/v1/videos").status_code == 401
        assert server.ask("GET", "/v1/videos", headers={"x-enter-token": "open"}).status_code == 401
        assert server.ask("GET", "/v1/videos", headers={"x-enter-token": "open sesame"}).status_code == 200
        assert "open sesame" not in server.log.read_text()

        added = json.loads(run("tokens", "add", "ann", "--json", *data).stdout)
        server.headers = {"Authorization": f"Bearer {added['token']}"}
        wait_for(lambda: server.ask("GET", "/v1/videos").status_code == 200, 10)
        job = server.post("take 4")
        assert run("tokens", "revoke", "ann", *data).returncode == 0
        wait_for(lambda: server.ask("GET", f"/v1/videos/{job['id']}").status_code == 401, 10)
        server.headers = {"Authorization": f"Bearer {run('tokens', 'add', 'ann', *data).stdout.strip()}"}
        wait_for(lambda: server.ask("GET", f"/v1/videos/{job['id']}").status_code == 200, 10)
        wait_for(lambda: server.state(job) == "done")


def test_E12_one_server_on_a_folder_and_a_port(tmp_path: Path) -> None:
    with serve(tmp_path, "--no-workers") as server:
        folder = run("serve", "--data", str(tmp_path / "data"), "--port", str(free_port()))
        assert folder.returncode == 2 and f"process {server.process.pid}" in folder.stderr
        port = run("serve", "--data", str(tmp_path / "other"), "--port", str(server.port))
        assert port.returncode == 2 and str(server.port) in port.stderr and "--port" in port.stderr
        assert server.is_ready(), "orders are taken; who does them comes and goes"
        job = server.post("a cat")
        server.process.kill()
        server.process.wait()
    # A lock is the kernel's: what a killed server leaves behind holds nobody up.
    with serve(tmp_path, "--no-workers") as server:
        words = command("worker", "--data", str(tmp_path / "data"), "--engine", "tests.doors.http.engines:quick")
        worker = subprocess.Popen(
            words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert worker.stdout
        wait_for(lambda: server.state(job) == "done")
        # It says how its engine stands when that changes; so it ends with READY, however short the job was.
        said = [json.loads(worker.stdout.readline())["state"]]
        while said[-1] != "READY":
            said.append(json.loads(worker.stdout.readline())["state"])
        assert said[0] == "STARTING"
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=20)
        assert worker.returncode == 0


def test_I1_sigterm_lets_the_job_end_and_a_second_one_does_not(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        job = server.post("take 2")
        wait_for(lambda: server.state(job) == "running")
        waiting = [server.post("take 0.1") for _ in range(3)]
        server.process.send_signal(signal.SIGTERM)
        refused = wait_for(lambda: (r := server.ask("GET", "/readyz")).status_code == 503 and r)
        assert refused.json()["status"] == "draining"
        create = server.ask("POST", "/v1/videos", json={"prompt": "x"})
        assert create.status_code == 503 and create.json()["error"]["code"] == "draining"
        assert create.headers["x-should-retry"] == "true" and int(create.headers["Retry-After"]) <= 120
        assert server.ask("GET", f"/v1/videos/{job['id']}").status_code == 200, "what is there can be read"
        assert server.process.wait(40) == 0
    with serve(tmp_path) as again:
        assert again.state(job) == "done"
        wait_for(lambda: all(again.state(other) == "done" for other in waiting))

        job = again.post("take 20")
        wait_for(lambda: again.state(job) == "running")
        family = again.family()
        again.process.send_signal(signal.SIGTERM)
        wait_for(lambda: again.ask("GET", "/readyz").json()["status"] == "draining")
        began = time.monotonic()
        again.process.send_signal(signal.SIGTERM)
        assert again.process.wait(20) == 1, "a second signal ends at once"
        assert time.monotonic() - began < 10
        wait_for(lambda: alive(family) == [], 10)


def test_I1_E11_a_longer_job_goes_back_and_nobody_outlives_a_killed_server(tmp_path: Path) -> None:
    with serve(tmp_path, "--drain-timeout", "0.3") as server:
        job = server.post("take 20")
        wait_for(lambda: server.state(job) == "running")
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 15
    with serve(tmp_path, ready=False) as again:
        # Given back, not lost: nobody waits for a lease.
        wait_for(lambda: again.state(job) == "running", 15)
        family = again.family()
        again.process.kill()
        began = time.monotonic()
        wait_for(lambda: alive(family) == [], 20)
        assert time.monotonic() - began < 10


def test_E14_a_signal_while_the_engine_loads(tmp_path: Path) -> None:
    with serve(tmp_path, engine="tests.doors.http.engines:loading", ready=False) as server:
        wait_for(lambda: len(server.family()) >= 2)
        assert server.ask("GET", "/readyz").json() == {"status": "waiting", "reason": "the engine starts"}
        family, began = server.family(), time.monotonic()
        assert server.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < 10
        assert alive(family) == []
        assert "Traceback" not in server.log.read_text()


def test_E14_ctrl_c_in_the_first_moments(tmp_path: Path) -> None:
    for pause in (0.3, 1.0):
        words = command("serve", "--data", str(tmp_path), "--port", str(free_port()), "--no-workers")
        process = subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True)
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        # While Python itself starts, or imports the command line, it speaks for itself; nothing has begun then.
        assert process.returncode in (0, 1, 130, -signal.SIGINT)
        if process.returncode in (0, 130):
            assert "Traceback" not in said, said


def test_E10_workers_that_die_in_a_row_make_the_service_defunct(tmp_path: Path) -> None:
    with serve(tmp_path, engine="tests.doors.http.engines:dead", ready=False) as server:
        wait_for(lambda: server.ask("GET", "/livez").status_code == 500, 60)
        ready = server.ask("GET", "/readyz")
        assert ready.status_code == 503 and ready.json()["status"] == "defunct"
        job = server.post("a cat")
        assert server.state(job) == "queued", "it waits for a machine that can"
        begun = len(starts(server))
        time.sleep(1.5)
        assert len(starts(server)) - begun <= 2, "no hot loop"


def starts(server: Running) -> list[dict[str, object]]:
    return [line for line in server.lines() if line["event"] == "worker begins"]


def test_I4_a_closed_log_does_not_stop_the_service(tmp_path: Path) -> None:
    port = free_port()
    words = command("serve", "--data", str(tmp_path), "--port", str(port), "--no-workers", "--min-free-gib", "0")
    # Buffered, as Python's output is by default: what nobody takes is still there at the end.
    variables = {name: value for name, value in environment().items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    server = Running(process, port, tmp_path / "none")  # type: ignore[arg-type]
    try:
        wait_for(server.is_up)
        process.stderr.close()
        process.stdout.close()
        for _ in range(5):
            assert server.ask("GET", "/v1/videos").status_code == 200
    finally:
        process.terminate()
        assert process.wait(20) == 0
