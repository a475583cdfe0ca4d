import json
import re
import runpy
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from zipfile import ZipFile

import here
import pytest
import yaml
from jsonschema import ValidationError
from packaging.requirements import Requirement
from packaging.version import Version
from ray.scripts.scripts import start as ray_start

from raykb import config
from raykb.runtime.nodes import LIMIT

try:
    from ray.autoscaler._private.util import prepare_config, validate_config
except ImportError:
    prepare_config = validate_config = None
try:
    from ray._private.runtime_env.packaging import _zip_files
except ImportError:
    _zip_files = None

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "clusters"
CLOUDS = ["aws_gpu", "azure_gpu", "gcp_gpu"]
LAUNCHED = ["local", *CLOUDS]
FILES = [*LAUNCHED, "kuberay"]
CONFIG = ROOT / "pipelines" / "configs" / "augment" / "fastaa_fashion_mnist_sample.yaml"

needs_launcher = pytest.mark.skipif(
    validate_config is None,
    reason="this Ray has no ray.autoscaler._private.util, the only offline check of launcher files",
)
needs_packaging = pytest.mark.skipif(
    _zip_files is None, reason="this Ray packs jobs by code that is not where it was"
)


def text(name):
    return (CLUSTERS / f"{name}.yaml").read_text()


def launcher(name):
    return yaml.safe_load(text(name))


def commands(launched):
    """All shell commands of a launcher file."""
    return [line for key, lines in launched.items() if key.endswith("_commands") for line in lines]


def starts(launched, node):
    return [line for line in launched[f"{node}_start_ray_commands"] if "ray start" in line]


# Launcher files


@needs_launcher
@pytest.mark.parametrize("name", LAUNCHED)
def test_the_launcher_accepts_the_file(name):
    validate_config(prepare_config(launcher(name)))


def rename(section, key):
    section[key + "x"] = section.pop(key)


TYPOS = {
    "top": (lambda c: rename(c, "file_mounts"), "'file_mountsx' was unexpected"),
    "auth": (lambda c: rename(c["auth"], "ssh_user"), "'ssh_userx' was unexpected"),
    "docker": (lambda c: rename(c["docker"], "run_options"), "'run_optionsx' was unexpected"),
    "node type": (lambda c: rename(gpu(c), "min_workers"), "'min_workersx' was unexpected"),
    "head": (lambda c: c.update(head_node_type="haed"), "must be one of `available_node_types`"),
    "fraction": (lambda c: gpu(c)["resources"].update(GPU=0.5), "0.5 is not of type 'integer'"),
    "minimum": (lambda c: gpu(c).update(min_workers=9), "smaller than the sum of `min_workers`"),
}
WITHIN = [("local", typo) for typo in ("top", "auth")]  # the other sections it has not
WITHIN += [(name, typo) for name in CLOUDS for typo in TYPOS]


def gpu(launched):
    return launched["available_node_types"]["gpu"]


@needs_launcher
@pytest.mark.parametrize(("name", "typo"), WITHIN)
def test_a_typo_in_a_launcher_file_is_caught(name, typo):
    changed, (change, message) = launcher(name), TYPOS[typo]
    change(changed)
    with pytest.raises((ValidationError, ValueError), match=message):
        validate_config(prepare_config(changed))


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_command_is_bash_and_every_option_one_of_ray_start(name):
    known = {option for parameter in ray_start.params for option in parameter.opts}
    for line in commands(launcher(name)):
        subprocess.run(["bash", "-n", "-c", line], check=True)
        if "ray start" in line:
            options = re.findall(r"(--[a-z-]+)", line.partition("ray start")[2])
            assert set(options) <= known


@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_get_the_packages_that_pyproject_names(name):
    launched = launcher(name)
    (install,) = (c for c in launched["setup_commands"] if re.search(r"pip install", c))
    got = {r.name: r for r in map(Requirement, re.findall(r'"([^"]+)"', install))}
    project = (ROOT / "pyproject.toml").read_text()
    section = re.search(r"^dependencies = \[(.*?)\n\]", project, re.MULTILINE | re.DOTALL)
    asked = {r.name: r for r in map(Requirement, re.findall(r'"([^"]+)"', section[1]))}
    ray, version = asked.pop("ray"), Version(ray_versions(name).pop())
    if "docker" not in launched:
        assert got.pop("ray").extras == ray.extras
    assert got == asked
    assert version in ray.specifier
    assert version >= Version("2.52")  # the first with tokens


def ray_versions(name):
    return set(re.findall(r"(?:rayproject/ray:|rayVersion: |==)(\d+\.\d+\.\d+)", text(name)))


def test_all_files_have_one_version_of_ray():
    assert len(set.union(*map(ray_versions, FILES))) == 1


def waits(name):
    """Seconds that a run waits for nodes on the cluster of a file."""
    if name == "kuberay":
        (head,) = pods(ray_cluster(kuberay("RayCluster")))[0]["spec"]["containers"]
        return [float(each["value"]) for each in head["env"] if each["name"] == LIMIT]
    (start,) = starts(launcher(name), "head")
    return list(map(float, re.findall(rf"\bexport [^;]*{LIMIT}=(\S+?);.*ray start", start)))


@pytest.mark.parametrize("name", FILES)
def test_the_head_says_how_long_a_run_waits_for_nodes_where_any_can_come(name):
    assert waits(name) == [] if name == "local" else [900]


@pytest.mark.parametrize("name", CLOUDS)
def test_a_cluster_of_a_cloud_is_empty_between_runs(name):
    launched = launcher(name)
    types = launched["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert [types["gpu"][f"{end}_workers"] for end in ("min", "max")] == [0, 8]
    assert launched["idle_timeout_minutes"] <= 10
    groups = ray_cluster(kuberay("RayCluster"))["workerGroupSpecs"]
    assert [group["minReplicas"] for group in groups] == [0]


# KubeRay

ANY = object()
METADATA = {"name": str, "labels": {str: str}}
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "env": [{"name": str, "value": str, "valueFrom": {"secretKeyRef": {"name": str, "key": str}}}],
    "resources": {"requests": {str: ANY}, "limits": {str: ANY}},
    "securityContext": {
        "allowPrivilegeEscalation": bool,
        "readOnlyRootFilesystem": bool,
        "capabilities": {"drop": [str]},
    },
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool, "subPath": str}],
}
POD = {
    "metadata": {"labels": {str: str}, "annotations": {str: str}},
    "spec": {
        "serviceAccountName": str,
        "automountServiceAccountToken": bool,
        "securityContext": {
            "runAsNonRoot": bool,
            "runAsUser": int,
            "runAsGroup": int,
            "fsGroup": int,
            "seccompProfile": {"type": str},
        },
        "containers": [CONTAINER],
        "nodeSelector": {str: str},
        "tolerations": [{"key": str, "operator": str, "value": str, "effect": str}],
        "volumes": [
            {
                "name": str,
                "emptyDir": {"medium": str, "sizeLimit": str},
                "persistentVolumeClaim": {"claimName": str},
                "secret": {"secretName": str},
            }
        ],
    },
}
RAY_CLUSTER = {
    "rayVersion": str,
    "suspend": bool,
    "authOptions": {"mode": str, "secretName": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "version": str,
        "idleTimeoutSeconds": int,
        "upscalingMode": str,
        "resources": CONTAINER["resources"],
        "securityContext": CONTAINER["securityContext"],
    },
    "gcsFaultToleranceOptions": {
        "redisAddress": str,
        "redisPassword": ANY,
        "externalStorageNamespace": str,
    },
    "headGroupSpec": {"serviceType": str, "rayStartParams": {str: str}, "template": POD},
    "workerGroupSpecs": [
        {
            "groupName": str,
            "replicas": int,
            "minReplicas": int,
            "maxReplicas": int,
            "numOfHosts": int,
            "rayStartParams": {str: str},
            "template": POD,
        }
    ],
}
RAY_JOB = {
    "entrypoint": str,
    "runtimeEnvYAML": str,
    "submissionMode": str,
    "backoffLimit": int,
    "activeDeadlineSeconds": int,
    "preRunningDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "entrypointNumCpus": float,
    "suspend": bool,
    "clusterSelector": {str: str},
    "rayClusterSpec": RAY_CLUSTER,
}
SELECTOR = {"matchLabels": {str: str}}
PEER = {"podSelector": SELECTOR, "namespaceSelector": SELECTOR}
NETWORK_POLICY = {
    "podSelector": SELECTOR,
    "policyTypes": [str],
    "ingress": [{"from": [PEER], "ports": [{"protocol": str, "port": int}]}],
}
KINDS = {
    "RayCluster": ("ray.io/v1", RAY_CLUSTER),
    "RayJob": ("ray.io/v1", RAY_JOB),
    "NetworkPolicy": ("networking.k8s.io/v1", NETWORK_POLICY),
}


def misfits(value, schema, path):
    """Yield where a document has a key or a type that the schema does not."""
    if schema is ANY:
        return
    if isinstance(schema, list) and isinstance(value, list):
        for number, item in enumerate(value):
            yield from misfits(item, schema[0], f"{path}[{number}]")
    elif isinstance(schema, dict) and isinstance(value, dict):
        for key, item in value.items():
            if str in schema:
                yield from misfits(item, schema[str], f"{path}.{key}")
            elif key in schema:
                yield from misfits(item, schema[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}: unknown"
    elif not isinstance(schema, type) or type(value) is not schema:
        yield f"{path}: {value!r}"


def unfit(document):
    version, spec = KINDS[document["kind"]]
    schema = {"apiVersion": str, "kind": str, "metadata": METADATA, "spec": spec}
    assert document["apiVersion"] == version
    return list(misfits(document, schema, document["kind"]))


def kuberay(kind):
    (document,) = (d for d in kuberay_documents() if d["kind"] == kind)
    return json.loads(json.dumps(document))  # a copy in which aliases are parted, too


@cache
def kuberay_documents():
    return list(yaml.safe_load_all(text("kuberay")))


def ray_cluster(document):
    spec = document["spec"]
    return spec if document["kind"] == "RayCluster" else spec["rayClusterSpec"]


def pods(cluster):
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@pytest.mark.parametrize("kind", KINDS)
def test_kuberay_documents_have_only_known_keys(kind):
    assert unfit(kuberay(kind)) == []


@pytest.mark.parametrize(
    ("kind", "typo", "where"),
    [
        ("RayCluster", lambda s: rename(s, "authOptions"), "RayCluster.spec.authOptionsx: unknown"),
        (
            "RayCluster",
            lambda s: s["workerGroupSpecs"][0].update(minReplicas="2"),
            "RayCluster.spec.workerGroupSpecs[0].minReplicas: '2'",
        ),
        (
            "RayCluster",
            lambda s: s["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
            "RayCluster.spec.headGroupSpec.rayStartParams.num-cpus: 0",
        ),
        ("RayJob", lambda s: rename(s, "backoffLimit"), "RayJob.spec.backoffLimitx: unknown"),
        (
            "RayJob",
            lambda s: rename(s["rayClusterSpec"]["headGroupSpec"]["template"]["spec"], "volumes"),
            "RayJob.spec.rayClusterSpec.headGroupSpec.template.spec.volumesx: unknown",
        ),
        ("NetworkPolicy", lambda s: rename(s, "ingress"), "NetworkPolicy.spec.ingressx: unknown"),
    ],
)
def test_a_typo_in_a_kuberay_document_is_caught(kind, typo, where):
    changed = kuberay(kind)
    typo(changed["spec"])
    assert unfit(changed) == [where]


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_pods_are_locked_down_and_can_hold_the_object_store(kind):
    cluster = ray_cluster(kuberay(kind))
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        known = {option for parameter in ray_start.params for option in parameter.opts}
        assert {f"--{option}" for option in group["rayStartParams"]} <= known
    for pod in pods(cluster):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in spec["volumes"]
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_job_begins_a_run_or_goes_on_with_it_by_one_command():
    spec = kuberay("RayJob")["spec"]
    assert spec["backoffLimit"] >= 1
    bash, option, script = shlex.split(spec["entrypoint"])
    assert (bash, option) == ("bash", "-c")
    say = "python() { echo python $*; [[ $* == *--out* ]]; }; "  # --resume is refused
    shown = subprocess.run(["bash", "-c", say + script], check=True, capture_output=True, text=True)
    resume, out = shown.stdout.splitlines()
    place = "/shared/runs/fastaa-1"
    assert resume == f"python code/pipelines/fastaa_search.py --resume {place}"
    assert out.startswith(f"python code/pipelines/fastaa_search.py --out {place} --set resources.")


# All files


def doors(name):
    """Return what of a file lets a stranger in."""
    if name != "kuberay":
        return launcher_doors(launcher(name))
    policy = kuberay("NetworkPolicy")
    return [d for kind in ("RayCluster", "RayJob") for d in kuberay_doors(kuberay(kind), policy)]


def launcher_doors(launched):
    found = []
    if launched.get("file_mounts", {}).get("~/.ray/auth_token") != "~/.ray/auth_token":
        found.append("no token on the nodes")
    if not any(re.search(r"chmod 600 ~/\.ray/auth_token$", c) for c in launched["setup_commands"]):
        found.append("a token that others on the node can read")
    for node in ("head", "worker"):
        for line in starts(launched, node):
            if not re.search(r"\bexport [^;]*RAY_AUTH_MODE=token\b.*ray start", line):
                found.append(f"{node}: no token asked for")
    for line in starts(launched, "head"):
        if re.findall(r"--dashboard-host[= ](\S+)", line) != ["127.0.0.1"]:
            found.append("dashboard beyond loopback")
    return found


def kuberay_doors(document, policy):
    cluster, found = ray_cluster(document), []
    if cluster.get("authOptions") != {"mode": "token", "secretName": "raykb-auth"}:
        found.append("no token asked for")
    selected = policy["spec"]["podSelector"]["matchLabels"].items()
    if any(not selected <= pod["metadata"]["labels"].items() for pod in pods(cluster)):
        found.append("a pod outside the policy")
    if cluster["headGroupSpec"].get("serviceType", "ClusterIP") != "ClusterIP":
        found.append("a port on the outside")
    host = cluster["headGroupSpec"]["rayStartParams"].get("dashboard-host", "0.0.0.0")
    if document["kind"] != "RayJob" and host != "127.0.0.1":  # KubeRay asks a job's how it fares
        found.append("dashboard beyond loopback")
    return found


@pytest.mark.parametrize("name", FILES)
def test_nobody_gets_in_without_the_token(name):
    assert doors(name) == []


@pytest.mark.parametrize(
    ("old", "new", "door"),
    [
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "head: no token asked for"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "dashboard beyond loopback"),
        ("--dashboard-host=127.0.0.1", "", "dashboard beyond loopback"),
        ("~/.ray/auth_token: ~/.ray/auth_token", "{}", "no token on the nodes"),
        ("chmod 600 ~/.ray", "chmod 644 ~/.ray", "a token that others on the node can read"),
    ],
)
@pytest.mark.parametrize("name", LAUNCHED)
def test_a_door_left_open_in_a_launcher_file_is_seen(name, old, new, door):
    assert old in text(name)
    assert door in launcher_doors(yaml.safe_load(text(name).replace(old, new)))


@pytest.mark.parametrize(
    ("change", "door"),
    [
        (lambda c: c.pop("authOptions"), "no token asked for"),
        (lambda c: c["headGroupSpec"]["rayStartParams"].clear(), "dashboard beyond loopback"),
        (lambda c: c["headGroupSpec"].update(serviceType="LoadBalancer"), "a port on the outside"),
        (
            lambda c: pods(c)[1].update(metadata={"labels": {}}),
            "a pod outside the policy",
        ),
    ],
)
def test_a_door_left_open_in_kuberay_is_seen(change, door):
    document = kuberay("RayCluster")
    change(document["spec"])
    assert kuberay_doors(document, kuberay("NetworkPolicy")) == [door]


SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|\b[0-9a-f]{32,}\b|\bgh[a-z]_\w{20,}"
    r"|(?i:auth_token|password|secret_?key|access_?key)\w*['\"]?\s*[:=]\s*(?![\s~$/'\"{])\S"
)


@pytest.mark.parametrize("name", FILES)
def test_no_file_holds_a_secret(name):
    assert SECRET.findall(text(name)) == []


@pytest.mark.parametrize(
    "line",
    [
        "export RAY_AUTH_TOKEN=swordfish",
        "redisPassword: swordfish",
        f"value: {'0a' * 16}",
        f"aws_access_key_id = {'AKIA' + 'A' * 16}",
    ],
)
def test_a_secret_would_be_seen(line):
    assert SECRET.search(line)


@pytest.mark.parametrize("name", FILES)
def test_a_file_begins_with_the_commands_to_start_use_and_end_the_cluster(name):
    head = text(name).partition("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    file = f"clusters/{name}.yaml"
    expected = [f"ray up {file}", "export RAY_AUTH_MODE=token; ray dashboard", "ray job submit"]
    expected.append(f"ray down {file}")
    if name == "kuberay":
        expected = [f"kubectl apply -f {file}", "RAY_AUTH_MODE=token; kubectl port-forward"]
        expected += ["ray job submit", "kubectl delete raycluster"]
    places = [head.find(command) for command in expected]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize("name", FILES)
def test_the_settings_that_a_file_proposes_exist(name):
    found = re.findall(r"--set (?:'([^']+)'|\"([^\"]+)\"|(\S+))", text(name))
    assert found
    script = runpy.run_path(str(ROOT / "pipelines" / "fastaa_search.py"))
    schema = here.schema_of(script)
    config.load(CONFIG, schema, overrides=[a or b or c for a, b, c in found])


# What a job takes along

KEPT = [
    "raykb/__init__.py",
    "raykb/data/datasets.py",
    "raykb/data/samples/any.parquet",
    "pipelines/configs/augment/any.yaml",
    "pipelines/any.py",
]
LEFT = [
    ".git/objects/ab/cdef",
    ".venv/lib/python3.12/site-packages/torch/any.py",
    "runs/fastaa/run.json",
    "datasets/cifar10/any.bin",
    "mlruns/0/meta.yaml",
    "mlartifacts/0/any.png",
    "mlflow.db",
    "mlflow.db-wal",
    ".mypy_cache/any.json",
    ".ruff_cache/any",
    ".pytest_cache/any",
    "raykb.egg-info/PKG-INFO",
    "raykb/__pycache__/any.pyc",
]


def packed(folder, archive):
    """Names of the files that a job takes along from ``folder``, packed by Ray itself."""
    _zip_files(str(folder), [], str(archive), include_gitignore=False)
    with ZipFile(archive) as file:
        return [name for name in file.namelist() if not name.endswith("/")]


@needs_packaging
def test_a_job_takes_the_code_and_the_samples_and_leaves_what_runs_made(tmp_path):
    checkout = tmp_path / "checkout"
    for name in KEPT + LEFT:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    shutil.copy(ROOT / ".rayignore", checkout)
    assert sorted(packed(checkout, tmp_path / "job.zip")) == sorted([".rayignore", *KEPT])


@needs_packaging
def test_this_checkout_is_a_small_job(tmp_path):
    names = packed(ROOT, tmp_path / "job.zip")
    samples = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("raykb/data/samples/*.parquet")}
    assert samples
    assert samples <= set(names)
    assert CONFIG.relative_to(ROOT).as_posix() in names
    assert (tmp_path / "job.zip").stat().st_size < 20 * 2**20


# Continuous integration


def ci(folder, readme):
    (folder / ".ci").mkdir(exist_ok=True)
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci")
    (folder / "README.md").write_text(readme)
    return subprocess.run(["bash", ".ci/run"], cwd=folder, capture_output=True, text=True)


def test_ci_runs_the_command_of_the_readme_and_ends_where_it_fails(tmp_path):
    others = "```\nexit 1\n```\n", "```\nexit 2\n```\n"
    marked = "<!-- command: test -->\n\n```bash\ntouch ran && exit 7\n```\n"
    done = ci(tmp_path, marked.join(others))
    assert done.returncode == 7
    assert (tmp_path / "ran").exists()
    assert "==> touch ran && exit 7" in done.stderr
    assert "slow" not in done.stderr


@pytest.mark.parametrize(
    "fails", [None, "ruff format --check .", "mypy ", "python -m pytest -m slow"]
)
def test_ci_checks_style_and_types_before_the_slow_tests_and_ends_where_it_fails(tmp_path, fails):
    for name in ("python", "ruff", "mypy"):
        tool = tmp_path / ".venv" / "bin" / name
        tool.parent.mkdir(parents=True, exist_ok=True)
        tool.write_text(f'#!/bin/bash\necho "{name} $*" >> ran; [ "{name} $*" != "{fails}" ]\n')
        tool.chmod(0o755)
    readme = "<!-- command: test -->\n\n```bash\necho README >> ran\n```\n"
    done = ci(tmp_path, readme)
    steps = ["README", "ruff check .", "ruff format --check .", "mypy ", "python -m pytest -m slow"]
    ran = (tmp_path / "ran").read_text().splitlines()
    assert ran == (steps if fails is None else steps[: steps.index(fails) + 1])
    assert (done.returncode == 0) == ("all checks passed" in done.stderr) == (fails is None)


def test_ci_says_when_the_readme_lacks_the_command(tmp_path):
    done = ci(tmp_path, "```bash\ntouch ran\n```\n")
    assert done.returncode == 1
    assert "README.md has no fenced block after a line <!-- command: test -->" in done.stderr
    assert not (tmp_path / "ran").exists()
