"""cluster.yaml is what Ray's cluster launcher takes."""

import json
from pathlib import Path

import jsonschema
import ray.autoscaler
import yaml

ROOT = Path(__file__).parents[1]


def test_cluster_file_fits_rays_schema():
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] in types
    assert "GPU" not in types[cluster["head_node_type"]]["resources"], "the head must not take trials"
    workers = [node for name, node in types.items() if name != cluster["head_node_type"]]
    assert all(node["resources"]["GPU"] == 1 and node["min_workers"] == 0 for node in workers)
    start = " ".join(cluster["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
