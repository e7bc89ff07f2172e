"""The files that describe a cluster are what Ray's launcher, its autoscaler and KubeRay take."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.core.generated.autoscaler_pb2 import GangResourceRequest, ResourceRequest

ROOT = Path(__file__).parents[2]
LAUNCHER_FILES = ("cluster.yaml", "cluster/on-premise.yaml")


def load(name):
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_rays_launcher_takes_the_file(name):
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    cluster = load(name)
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"idle_minutes": 5}, schema)
    validate_config(prepare_config(copy.deepcopy(cluster)))


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_nodes_ask_for_a_token_and_the_dashboard_stays_on_loopback(name):
    cluster = load(name)
    head, worker = (" ".join(cluster[f"{role}_start_ray_commands"]) for role in ("head", "worker"))
    assert "RAY_AUTH_MODE=token" in head
    assert "RAY_AUTH_MODE=token" in worker
    assert "--dashboard-host=127.0.0.1" in head
    assert "--num-cpus=0" in head, "no trial on the head"
    tokens = [there for there, here in cluster["file_mounts"].items() if here == "~/.ray/auth_token"]
    assert len(tokens) == 1, "the launching machine's token travels to every node"
    assert "chmod 600 ~/.ray/auth_token" in cluster["setup_commands"]
    assert ".venv" in cluster["rsync_exclude"]


def test_workers_hold_one_gpu_and_start_from_none():
    cluster = load("cluster.yaml")
    types = dict(cluster["available_node_types"])
    head = types.pop(cluster["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert set(types) == {"gpu_spot", "gpu_on_demand"}
    for node in types.values():
        assert node["resources"]["GPU"] == 1
        assert node["min_workers"] == 0
        assert node["max_workers"] == cluster["max_workers"]
    spot, on_demand = types["gpu_spot"]["node_config"], types["gpu_on_demand"]["node_config"]
    assert spot == on_demand | {"InstanceMarketOptions": {"MarketType": "spot"}}


@pytest.mark.parametrize(("trials", "refused", "expected"), [(3, [], "gpu_spot"), (3, ["gpu_spot"], "gpu_on_demand")])
def test_on_demand_machines_take_the_place_of_spot_machines_that_the_cloud_refuses(
    trials, refused, expected, tmp_path, monkeypatch
):
    """Ray's own scheduler of nodes, asked for a machine a trial: a placement group of one worker each, as Ray Train makes."""
    # Ray reads the token that it mounts, which a machine has only from its first cluster on.
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    config = AutoscalingConfig(prepare_config(load("cluster.yaml")))
    trial = GangResourceRequest(requests=[ResourceRequest(resources_bundle={"CPU": 1, "GPU": 1})])
    availability = dict.fromkeys(refused, 0.0)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        gang_resource_requests=[trial] * trials,
        cloud_resource_availabilities=availability,
        recoverable_resource_availabilities=availability,
    )
    reply = ResourceDemandScheduler(event_logger=None).schedule(request)
    workers = {each.instance_type: each.count for each in reply.to_launch if each.instance_type != "head"}
    assert workers == {expected: trials}
    assert "RAY_enable_autoscaler_v2=1" in " ".join(load("cluster.yaml")["head_start_ray_commands"])


def test_rayjob_runs_a_study_on_pods_of_one_gpu():
    job = load("cluster/rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    script = spec["entrypoint"].split()[1]
    assert (ROOT / script.removeprefix("/home/ray/kiloseg/")).is_file()
    assert {"--gpus-per-worker", "--max-concurrent"} <= set(spec["entrypoint"].split())
    assert spec["shutdownAfterJobFinishes"] is True
    assert set(yaml.safe_load(spec["runtimeEnvYAML"])) == {"env_vars"}
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] in (ROOT / "constraints.txt").read_text()
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert groups["gpu-spot"]["priority"] > groups["gpu-on-demand"]["priority"]
    for group in groups.values():
        assert group["minReplicas"] == group["replicas"] == 0
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    pods = [cluster["headGroupSpec"]["template"]["spec"], *(group["template"]["spec"] for group in groups.values())]
    for pod in pods:
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
        assert all("value" in entry and "KEY" not in entry["name"] for entry in container["env"]), "secrets by envFrom"


@pytest.mark.parametrize("name", (*LAUNCHER_FILES, "cluster/rayjob.yaml"))
def test_no_file_holds_a_secret(name):
    text = (ROOT / name).read_text()
    assert "FILL IN" in text
    for word in ("AKIA", "BEGIN", "password:", "RAY_AUTH_TOKEN="):
        assert word not in text
