"""`k2ray monitoring FOLDER`: Prometheus' config, alert rules, their runbook and Grafana's dashboards, for one system.

The wheel carries them below `k2ray/ops`; a checkout has them in `ops` and `docs/runbook`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import k2ray
from k2ray.cli.console import say
from k2ray.cli.system import System
from k2ray.errors import MissingProgram

RAY_TARGETS = "prom_metrics_service_discovery.json"
"""The file in its temp folder in which Ray's dashboard keeps the addresses of all nodes' metrics."""


def monitoring(config: Path | None, folder: Path) -> None:
    """Write everything below `folder`, with the addresses of the system of a settings file.

    Raises:
        MissingProgram: This installation came without the files.
    """
    system = System.load(config)
    prometheus, grafana, runbook = _shipped()
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    scrape = (prometheus / "prometheus.yml").read_text(encoding="utf-8")
    scrape = scrape.replace("127.0.0.1:8000", system.api_url.removeprefix("http://"))
    scrape = scrape.replace("ray.json", str(system.layout.ray_temp / RAY_TARGETS))
    (folder / "prometheus.yml").write_text(scrape, encoding="utf-8")
    shutil.copy(prometheus / "k2ray.rules.yml", folder)
    shutil.copytree(runbook, folder / "docs" / "runbook", dirs_exist_ok=True)
    shutil.copytree(grafana / "dashboards", folder / "grafana" / "dashboards", dirs_exist_ok=True)
    shutil.copytree(grafana / "provisioning", folder / "grafana" / "provisioning", dirs_exist_ok=True)
    provider = folder / "grafana" / "provisioning" / "dashboards" / "k2ray.yml"
    text = provider.read_text(encoding="utf-8")
    provider.write_text(text.replace("/etc/grafana/dashboards/k2ray", str(folder / "grafana" / "dashboards")))
    say(f"prometheus --config.file={folder}/prometheus.yml --storage.tsdb.path={folder}/data")
    say(f"GF_PATHS_PROVISIONING={folder}/grafana/provisioning grafana server --homepath /usr/share/grafana")


def _shipped() -> tuple[Path, Path, Path]:
    package = Path(k2ray.__file__).parent
    for ops, runbook in (
        (package / "ops", package / "ops" / "runbook"),
        (package.parent / "ops", package.parent / "docs" / "runbook"),
    ):
        if (ops / "prometheus").is_dir() and runbook.is_dir():
            return ops / "prometheus", ops / "grafana", runbook
    raise MissingProgram(
        "this installation has no monitoring files; they are in the wheel and in a checkout's ops folder"
    )
