"""Files that start moesaic elsewhere: valid for the tools that read them, and naming only what exists here."""

import json
import os
import re
import subprocess
import sys
import tomllib
from argparse import Namespace
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml
from kubeflow.training import ApiClient, KubeflowOrgV1PyTorchJob
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch.distributed.run import get_args_parser

from moesaic import __version__
from moesaic.cli import app
from moesaic.commands.options import recipe_from

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
JOB, PYTORCHJOB = DEPLOY / "kubernetes/job.yaml", DEPLOY / "kubernetes/pytorchjob.yaml"
SBATCH, DOCKERFILE = DEPLOY / "slurm/train.sbatch", DEPLOY / "Dockerfile"
TOOLS = Path(sys.executable).parent  # shellcheck and hadolint come as packages of the development environment
KUBERNETES = ("1.31", "1.34")  # the oldest with all that job.yaml uses, and a newer one

# A script that others source is read where they source it. --include would hide new kinds of findings.
SHELL = [*sorted(DEPLOY.rglob("*.sbatch")), *sorted(DEPLOY.rglob("*.sh")), ROOT / ".ci/run"]
SHELL += [path for path in sorted((ROOT / "scripts").glob("*.sh")) if path.read_text().startswith("#!")]


def lint(tool: str, *words: str) -> str:
    """What a linter says; empty when it is content."""
    found = subprocess.run([TOOLS / tool, *words], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (found.returncode == 0) == (not found.stdout.strip()), found
    return found.stdout + found.stderr


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def container(path: Path) -> dict[str, Any]:
    """The one container that trains."""
    spec = documents(path)[-1]["spec"]
    template = spec["template"] if "template" in spec else spec["pytorchReplicaSpecs"]["Worker"]["template"]
    (only,) = template["spec"]["containers"]
    return dict(only)


def submit(folder: Path, status: int = 0, starts: int = 0) -> tuple[int, list[str], str]:
    """Run the batch script as Slurm would for the example at its top, on two nodes of eight GPUs.

    Slurm's two commands only note how they are called. Gives the exit status, the call of torchrun, what was requeued.
    """
    example = re.search(r"^# +sbatch .*train\.sbatch (.*)$", SBATCH.read_text(), re.MULTILINE)
    assert example
    stand_ins = {
        "srun": f'printf "%s\\n" "$@" >"{folder}/called"; exit {status}',
        "scontrol": f'case $1 in show) printf "a1\\na2\\n";; requeue) echo "$2" >"{folder}/requeued";; esac',
    }
    for name, body in stand_ins.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    slurm = {"JOB_ID": "123456", "JOB_NUM_NODES": "2", "JOB_NODELIST": "a[1-2]", "GPUS_ON_NODE": "8"}
    env = {f"SLURM_{name}": value for name, value in slurm.items()} | {"SLURM_RESTART_COUNT": str(starts)}
    env["PATH"] = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(["bash", SBATCH, *example[1].split()], env=env, timeout=60, check=False)
    words = (folder / "called").read_text().splitlines()
    requeued = folder / "requeued"
    return done.returncode, words[words.index("torchrun") + 1 :], requeued.read_text() if requeued.exists() else ""


def readme_words() -> list[str]:
    """The call that the page shows."""
    call = re.search(r"^torchrun (.*?)\n```", (DEPLOY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert call
    return call[1].replace("\\\n", " ").split()


CALLS = {
    "readme": readme_words(),
    "job": container(JOB)["args"],
    "pytorchjob": ["--nnodes=2", "--nproc-per-node=8", *container(PYTORCHJOB)["args"]],  # what the operator sets
}


def as_torchrun_reads(words: list[str]) -> Namespace:
    return get_args_parser().parse_args(words)


@pytest.mark.parametrize("path", SHELL, ids=lambda p: p.name)
def test_shell_scripts_are_clean(path: Path) -> None:
    assert lint("shellcheck", "--external-sources", "--source-path=SCRIPTDIR", str(path)) == ""


def test_a_dirty_script_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.sh").write_text("#!/bin/sh\nrm -rf $1/*\n")
    assert "SC2086" in lint("shellcheck", str(tmp_path / "a.sh"))


def test_dockerfile_is_clean() -> None:
    assert lint("hadolint", str(DOCKERFILE)) == ""


def test_dockerfile_builds_two_images_for_a_user_without_rights_and_torch_comes_first() -> None:
    text = DOCKERFILE.read_text()
    stages = dict(
        zip(re.findall(r"^FROM .* AS (\w+)$", text, re.M), re.split(r"^FROM .*$", text, flags=re.M)[1:], strict=True)
    )
    assert {"cpu", "cuda"} <= stages.keys()
    torch = next(line for line in (DEPLOY / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    assert f"torch_version={torch.removeprefix('torch==')}\n" in (ROOT / "scripts/environment.sh").read_text()
    for name in ("cpu", "cuda"):
        installs = re.findall(r"pip install .*", stages[name])
        assert [torch in line for line in installs] == [True, False]
        assert "--constraint /tmp/constraints.txt" in installs[1]
        assert "moesaic[serve]" in installs[1]
        assert re.findall(r"^USER (.*)$", stages[name], re.M) == ["10001:10001"]
    addresses = re.findall(r"https?://\S+", text)
    assert all(re.search(rf"^ARG \w+={re.escape(address)}$", text, re.M) for address in addresses)


def test_every_package_of_an_image_is_pinned() -> None:
    """All that `moesaic[serve]` needs, which is `moesaic[train]` and more, and what that needs in turn."""
    lines = (line for line in (DEPLOY / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
    pinned = dict(line.split("==") for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert "moesaic[train]" in extras["serve"]
    left = [
        Requirement(r) for r in (*project["dependencies"], *extras["train"], *extras["serve"]) if r != "moesaic[train]"
    ]
    seen = set()
    while left:
        wanted = left.pop()
        key = (canonicalize_name(wanted.name), *sorted(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        assert key[0] in pinned, f"{wanted} is not in deploy/constraints.txt"
        assert wanted.specifier.contains(pinned[key[0]]), f"{wanted} refuses the version in deploy/constraints.txt"
        for text in distribution(wanted.name).requires or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in (*wanted.extras, "")):
                left.append(inner)


def test_the_build_sees_what_the_dockerfile_copies() -> None:
    let_in = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = {w for words in re.findall(r"^COPY (.*)$", DOCKERFILE.read_text(), re.M) for w in words.split()[:-1]}
    assert copied == let_in
    assert all((ROOT / path).exists() for path in copied)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_service_and_job(version: str) -> None:
    service, job = documents(JOB)
    for document in (service, job):
        kubernetes_validate.validate(document, version, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job | {"spec": job["spec"] | {"completion": 2}}, version, strict=True)


def test_pods_of_the_job_find_their_rendezvous() -> None:
    service, job = documents(JOB)
    name, pods = job["metadata"]["name"], job["spec"]["template"]["spec"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pods["subdomain"] == service["metadata"]["name"]
    endpoint = as_torchrun_reads(CALLS["job"]).rdzv_endpoint
    assert endpoint == f"{name}-0.{pods['subdomain']}:{service['spec']['ports'][0]['port']}"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(as_torchrun_reads(CALLS["job"]).nnodes)


def test_the_training_operator_takes_the_pytorchjob() -> None:
    """Its model gives back every key: one that it does not know would be lost on the way."""
    (document,) = documents(PYTORCHJOB)
    client = ApiClient()
    response = type("Response", (), {"data": json.dumps(document)})
    made = client.deserialize(response, "KubeflowOrgV1PyTorchJob")
    assert isinstance(made, KubeflowOrgV1PyTorchJob)
    assert client.sanitize_for_serialization(made) == document
    assert made.spec.elastic_policy.min_replicas == made.spec.pytorch_replica_specs["Worker"].replicas
    pod = document["spec"]["pytorchReplicaSpecs"]["Worker"]["template"] | {"apiVersion": "v1", "kind": "Pod"}
    pod["spec"] = pod["spec"] | {"restartPolicy": "OnFailure"}  # the operator copies it there
    kubernetes_validate.validate(pod, KUBERNETES[0], strict=True)


def test_both_ways_on_kubernetes_run_the_same() -> None:
    plain, operated = container(JOB), container(PYTORCHJOB)
    shared = ("image", "workingDir", "command", "securityContext", "resources", "volumeMounts")
    assert {k: plain[k] for k in shared} == {k: operated[k] for k in shared}
    assert plain["command"] == ["torchrun"]
    assert plain["image"] == f"moesaic:{__version__}-cuda"


def test_a_lost_node_sends_the_job_back_into_the_queue_but_not_for_ever(tmp_path: Path) -> None:
    assert submit(tmp_path)[::2] == (0, "")
    assert submit(tmp_path, status=1, starts=3)[::2] == (1, "123456\n")
    (tmp_path / "requeued").unlink()
    assert submit(tmp_path, status=1, starts=50)[::2] == (1, "")


def test_ranks_of_a_restarted_job_do_not_meet_those_of_the_one_before(tmp_path: Path) -> None:
    first, second = (as_torchrun_reads(submit(tmp_path, starts=n)[1]) for n in (0, 1))
    assert first.rdzv_id != second.rdzv_id
    assert first.rdzv_endpoint == second.rdzv_endpoint == "a1:23456"


@pytest.mark.parametrize("where", ["sbatch", *CALLS])
def test_calls_start_a_run_that_moesaic_takes(where: str, tmp_path: Path) -> None:
    """torchrun reads its options, `train` the rest, and the layout is for as many processes as are started."""
    call = submit(tmp_path)[1] if where == "sbatch" else CALLS[where]
    started = as_torchrun_reads(call)
    assert (started.module, started.training_script) == (True, "moesaic.cli")
    verb, *words = started.training_script_args
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    given = command.make_context(verb, list(words)).params
    assert given["resume"] is True
    assert given["run"] == "first"
    recipe = recipe_from(given["recipe"], given["values"], layout=given["layout"])
    assert recipe.layout.world == int(started.nnodes) * int(started.nproc_per_node)
    grace = 300  # seconds before the time limit or the end of a pod
    assert started.shutdown_timeout < grace
    assert str(grace) in SBATCH.read_text()
    assert all(f"terminationGracePeriodSeconds: {grace}" in path.read_text() for path in (JOB, PYTORCHJOB))
