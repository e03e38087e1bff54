"""A batch from and to an S3 service on this machine, and on workers of which one is lost."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.cli.command import refused, run

OTHERS = ("--model", "nets.py:Net", "--input-shape", "1,3,9,7", "--no-onnx")

# The first one stops until it is ended; whoever comes after it works.
ONCE = """
import os, signal
from nets import Net

class Once(Net):
    def __init__(self):
        if os.path.exists("began"):
            super().__init__()
            return
        with open("beginning", "w") as file:
            file.write(str(os.getppid()))
        os.rename("beginning", "began")
        signal.pause()
"""


@pytest.fixture
def workers(project):
    """A scheduler with two workers in the project's folder."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=None,
        silence_logs=60,
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.filterwarnings("ignore")
def test_what_a_lost_worker_had_is_converted_by_another(project, workers):
    psutil = pytest.importorskip("psutil")
    Path("once.py").write_text(ONCE)
    for name in ("a", "b", "c"):
        shutil.copy("model.pth", f"{name}.pth")
    own = [{"source": "model.pth", "model": "once.py:Once"}, "a.pth", "b.pth", "c.pth"]
    text = [line if isinstance(line, str) else json.dumps(line) for line in own]
    Path("list").write_text("\n".join(text))
    killed = []

    def kill():
        while not Path("began").exists():
            time.sleep(0.05)
        killed.append(psutil.Process(int(Path("began").read_text())).ppid())
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = run("batch", "--list", "list", "--scheduler", workers, *OTHERS)
    killer.join()
    assert killed
    assert result.exit_code == 0, result.stdout + result.stderr
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert sorted(line["source"] for line in told) == ["a.pth", "b.pth", "c.pth", "model.pth"]
    left = sorted(path.name for path in project.iterdir() if "fused" in path.name)
    names = ("a", "b", "c", "model")
    assert left == sorted(f"{n}.fused{end}" for n in names for end in (".pth", ".acfuse.json"))


def test_a_scheduler_that_does_not_answer_is_named(project):
    pytest.importorskip("distributed")
    refused(run("batch", "model.pth", "--scheduler", "nothing://x"), 3, "nothing://x")


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of an S3 service on this machine."""
    server = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    service = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    service.start()
    host, port = service.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "name",
        "AWS_SECRET_ACCESS_KEY": "word",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    system = s3fs.S3FileSystem(skip_instance_cache=True)
    system.mkdir("bucket")
    yield system
    service.stop()


@pytest.mark.filterwarnings("ignore")
def test_checkpoints_in_a_bucket_are_converted_into_a_bucket(project, bucket):
    for name in ("a.pth", "b.pth"):
        bucket.pipe(f"bucket/in/{name}", Path("model.pth").read_bytes())
    given = ("s3://bucket/in/a.pth", "s3://bucket/in/b.pth", "s3://bucket/in/none.pth")
    line = ("batch", *given, "-o", "s3://bucket/out", *OTHERS)
    result = run(*line)
    assert result.exit_code == 3, result.stdout + result.stderr
    told = {one["source"]: one for one in map(json.loads, result.stdout.splitlines())}
    assert [told[source]["exit"] for source in given] == [0, 0, 3]
    assert "does not exist" in told[given[2]]["error"]
    bucket.invalidate_cache()
    assert sorted(bucket.ls("bucket/out")) == [
        f"bucket/out/{name}.fused{end}" for name in ("a", "b") for end in (".acfuse.json", ".pth")
    ]
    again = run(*line, "--resume")
    assert "0 converted, 2 skipped, 1 failed" in again.stderr
