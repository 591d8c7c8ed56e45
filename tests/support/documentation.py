"""What docs/configuration.md must say of every setting, derived from the settings themselves."""

from __future__ import annotations

import json
from typing import Any

from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from k2ray import metrics
from k2ray.settings import Settings
from k2ray.settings.load import model_of


def setting_rows(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Return a Markdown table row for each setting below `model`, sections resolved."""
    rows = []
    for name, field in model.model_fields.items():
        inner = model_of(field.annotation)
        if inner is not None:
            rows.extend(setting_rows(inner, f"{prefix}{name}."))
        else:
            rows.append(f"| `{prefix}{name}` | `{_default(field)}` | {field.description} |")
    return rows


def _default(field: FieldInfo) -> str:
    value: Any = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str)


def metric_rows() -> list[str]:
    """Return a Markdown table row for each of k2ray's metrics."""
    return [
        f"| `{metric._name}{'_total' if isinstance(metric, Counter) else ''}` | {metric._documentation} |"
        for metric in vars(metrics).values()
        if isinstance(metric, MetricWrapperBase)
    ]
