"""`k2ray monitoring` writes what Prometheus and Grafana need, with the system's own addresses."""

from __future__ import annotations

from pathlib import Path

import yaml

from k2ray.cli.monitoring import monitoring
from k2ray.layout import DataDir
from tests.support.dashboards import FOLDER
from tests.support.rules import alert_rules


def test_the_files_are_of_this_system(tmp_path: Path) -> None:
    config = tmp_path / "k2ray.yaml"
    config.write_text("{data_dir: ./data, api: {port: 8765, host: 0.0.0.0}}")
    folder = tmp_path / "watch"
    for _ in range(2):  # again is harmless
        monitoring(config, folder)
    prometheus = yaml.safe_load((folder / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in prometheus["scrape_configs"]}
    assert jobs["k2ray"]["static_configs"] == [{"targets": ["127.0.0.1:8765"]}]
    (rays,) = jobs["ray"]["file_sd_configs"][0]["files"]
    assert rays.startswith(str(DataDir(tmp_path / "data").ray_temp))
    for rule in alert_rules():
        assert (folder / rule["annotations"]["runbook"]).exists(), "the alert's link holds in the folder, too"
    assert (folder / prometheus["rule_files"][0]).exists()
    (provider,) = yaml.safe_load((folder / "grafana/provisioning/dashboards/k2ray.yml").read_text())["providers"]
    copied = Path(provider["options"]["path"])
    assert {path.name for path in copied.glob("*.json")} == {path.name for path in FOLDER.glob("*.json")}
