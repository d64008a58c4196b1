"""The Grafana dashboard asks for what is exported: every metric and every label of its queries exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from crewline.telemetry.instruments import Instruments

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "configs/grafana/crewline.json").read_text())
PAGE = (ROOT / "docs/observability.md").read_text()
OF_PROMETHEUS = {"instance", "job", "le"}


def labels() -> dict[str, set[str]]:
    """The labels of each series that is exported, by its name."""
    return {
        name: {*metric._labelnames}
        for metric in vars(Instruments()).values()
        if hasattr(metric, "_labelnames")
        for name in series(metric)
    }


def series(metric: Any) -> list[str]:
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}[metric._type]
    return [metric._name + suffix for suffix in suffixes]


def queries() -> list[str]:
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return [*found, *(each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query")]


def test_the_dashboard_has_queries() -> None:
    assert len(queries()) > 20


@pytest.mark.parametrize("query", queries())
def test_a_query_names_metrics_and_labels_that_exist(query: str) -> None:
    exported, names = labels(), re.findall(r"\bcrewline_\w+", query)
    assert names
    assert set(names) <= exported.keys()
    process = re.findall(r"\bprocess_\w+", query)
    assert set(process) <= Instruments().names()
    asked = set(re.findall(r"(\w+)=~?\"", query))
    for listed in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
        asked |= {label.strip() for label in listed.split(",")}
    known = set.intersection(*(exported[name] for name in names))
    assert asked <= known | OF_PROMETHEUS


def test_what_a_line_is_called_is_a_label_that_its_query_keeps() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            kept = {label.strip() for listed in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in listed.split(",")}
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept | {"instance"}, panel["title"]


def test_every_metric_is_shown_and_explained() -> None:
    shown, told = " ".join(queries()), set(re.findall(r"`(crewline_\w+)", PAGE))
    exported = labels().keys()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported}
    assert {name for name in families if name not in shown} <= {"crewline_conversations_parked_now"}
    assert told == families
