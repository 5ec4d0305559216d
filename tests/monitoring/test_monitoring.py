"""The dashboard and the rules: expressions parse, ask for metrics and labels that there are, and mean something."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser as promql
import pytest
import yaml

from roundhouse_gateway import metrics

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "monitoring"

# The gateway's metrics: kind and labels, by name without the ending that Prometheus wants (_total, _bucket).
METRICS = {
    name: (metric.kind, " ".join(metric.labels)) for name, metric in (metrics.METRICS | metrics.STATE).items()
}

# What else is used. Of the engines' own metrics (as vLLM 0.12.0 and 0.32.0, SGLang 0.5.6 and llama.cpp export them)
# there are only the labels which they get when they are scraped.
_ENGINE = "model engine backend"
OTHERS = {
    "up": ("gauge", ""),
    "vllm:num_requests_waiting": ("gauge", _ENGINE),
    "vllm:num_requests_running": ("gauge", _ENGINE),
    "vllm:kv_cache_usage_perc": ("gauge", _ENGINE),
    "vllm:request_queue_time_seconds": ("histogram", _ENGINE),
    "vllm:prefix_cache_queries": ("counter", _ENGINE),
    "vllm:prefix_cache_hits": ("counter", _ENGINE),
    "vllm:num_preemptions": ("counter", _ENGINE),
    "vllm:generation_tokens": ("counter", _ENGINE),
    "sglang:num_queue_reqs": ("gauge", _ENGINE),
    "sglang:num_running_reqs": ("gauge", _ENGINE),
    "sglang:token_usage": ("gauge", _ENGINE),
    "sglang:queue_time_seconds": ("histogram", _ENGINE),
    "sglang:num_retractions": ("histogram", _ENGINE),
    "sglang:prompt_tokens": ("counter", _ENGINE),
    "sglang:cached_tokens": ("counter", _ENGINE),
    "sglang:generation_tokens": ("counter", _ENGINE),
    "llamacpp:requests_deferred": ("gauge", _ENGINE),
    "llamacpp:requests_processing": ("gauge", _ENGINE),
    "llamacpp:prompt_tokens": ("counter", _ENGINE),
    "llamacpp:prompt_tokens_cached": ("counter", _ENGINE),
    "llamacpp:tokens_predicted": ("counter", _ENGINE),
}

# What some labels may say, as far as expressions ask for it.
VALUES = {
    "direction": {"input", "output"},
    "status": {"200", "401", "429", "499", "502", "503", "504"},
    "code": {"", "client_left", "engine_busy", "invalid_api_key", "missing_api_key", "rate_limited"},
}

RATES = {"rate", "increase"}

Labels = frozenset[str]


class Series(NamedTuple):
    kind: str  # counter, gauge, or bucket
    labels: Labels


def known() -> dict[str, Series]:
    """All series there are, by their names in Prometheus; what rules record comes later."""
    found = {}
    for name, (kind, words) in (METRICS | OTHERS).items():
        labels = frozenset({"job", "instance", *words.split()})
        match kind:
            case "counter":
                found[f"{name}_total"] = Series("counter", labels)
            case "gauge":
                found[name] = Series("gauge", labels)
            case "histogram":
                found[f"{name}_bucket"] = Series("bucket", labels | {"le"})
                found |= {f"{name}_{part}": Series("counter", labels) for part in ("sum", "count")}
    return found


SERIES = known()


class WrongError(Exception):
    """An expression that can't mean what it is meant to."""


def wrong(when: bool, why: str) -> None:
    if when:
        raise WrongError(why)


def labels_of(node: Any, *inside: str) -> Labels | None:
    """The labels that a result has; None: it is a number. `inside` are the functions around it. Raises WrongError."""
    match node:
        case promql.NumberLiteral() | promql.StringLiteral():
            return None
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            return labels_of(node.expr, *inside)
        case promql.MatrixSelector():
            return labels_of(node.vector_selector, *inside)
        case promql.VectorSelector():
            return _selected(node, inside)
        case promql.AggregateExpr():
            return _aggregated(node, inside)
        case promql.BinaryExpr():
            return _combined(node, inside)
        case promql.Call():
            return _called(node, inside)
    raise WrongError(f"what is a {type(node).__name__}?")


def _selected(node: promql.VectorSelector, inside: tuple[str, ...]) -> Labels:
    name = node.name or ""
    wrong(name not in SERIES, f"there is no metric {name!r}")
    kind, labels = SERIES[name]
    for matcher in node.matchers.matchers:
        wrong(matcher.name not in labels, f"{name} has no label {matcher.name!r}")
        if matcher.op in (promql.MatchOp.Equal, promql.MatchOp.Re) and matcher.name in VALUES:
            for choice in matcher.value.split("|"):
                fits = any(re.fullmatch(choice, value) for value in VALUES[matcher.name])
                wrong(not fits, f"{matcher.name} is never {choice!r}")
    rated = bool(inside) and inside[-1] in RATES
    wrong(rated != (kind != "gauge"), f"{name} is a {kind}, {'' if rated else 'not '}inside rate")
    wrong(
        ("histogram_quantile" in inside) != (kind == "bucket"),
        f"{name} is a {kind}; quantiles are of buckets",
    )
    return labels


def _aggregated(node: promql.AggregateExpr, inside: tuple[str, ...]) -> Labels:
    labels = labels_of(node.expr, *inside, str(node.op))
    assert labels is not None
    given = frozenset(node.modifier.labels) if node.modifier else frozenset()
    wrong(not given <= labels, f"nothing to group by: {sorted(given - labels)}")
    if node.modifier and node.modifier.type == promql.AggModifierType.Without:
        return labels - given
    return given


def _called(node: promql.Call, inside: tuple[str, ...]) -> Labels | None:
    name = node.func.name
    arguments = [labels_of(argument, *inside, name) for argument in node.args]
    if name == "absent":
        return frozenset(matcher.name for matcher in node.args[0].matchers.matchers)
    if name == "histogram_quantile":
        buckets = arguments[1] or frozenset()
        wrong("le" not in buckets, "a quantile needs le")
        wrong(str(getattr(node.args[1], "op", "")) != "sum", "a quantile is one of a sum by (le, ...)")
        return buckets - {"le"}
    return next((labels for labels in arguments if labels is not None), None)


def _combined(node: promql.BinaryExpr, inside: tuple[str, ...]) -> Labels | None:
    left, right = labels_of(node.lhs, *inside), labels_of(node.rhs, *inside)
    if left is None or right is None:
        return right if left is None else left
    matching = node.modifier.matching if node.modifier else None
    if matching is None:
        wrong(left != right, f"the sides of {node.op} never match: {sorted(left)}, {sorted(right)}")
        return left
    given = frozenset(matching.labels)
    wrong(not given <= left & right, f"not on both sides of {node.op}: {sorted(given)}")
    if str(node.op) in ("and", "unless"):
        return left
    return given if matching.type == promql.LabelModifierType.Include else left - given


def check(expression: str) -> Labels | None:
    """Parse an expression and return the labels of its result. Raises WrongError, and ValueError if it can't."""
    return labels_of(promql.parse(expression))


def read_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


RULES = read_rules()
ALERTS = [rule for rule in RULES if "alert" in rule]
for _rule in RULES:
    if "record" in _rule:
        SERIES[_rule["record"]] = Series("gauge", check(_rule["expr"]) or frozenset())

DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text())
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
EVERYTHING = [panel for row in DASHBOARD["panels"] for panel in (row, *row.get("panels", ()))]
PANELS = [panel for panel in EVERYTHING if panel["type"] != "row"]
QUERIES = [pytest.param(panel, target, id=panel["title"]) for panel in PANELS for target in panel["targets"]]


def plain(expression: str) -> str:
    """An expression of Grafana, with something in the place of each variable. Fails if there is no such variable."""
    expression = expression.replace("[$__rate_interval]", "[5m]").replace("[$__range]", "[1h]")
    return re.sub(r"\$\{?(\w+)}?", lambda found: VARIABLES[found[1]]["allValue"], expression)


def test_the_gateways_metrics_are_all_looked_at() -> None:
    texts = " ".join(asking["expr"] for asker in ({"targets": RULES}, *PANELS) for asking in asker["targets"])
    assert not [name for name in METRICS if name not in texts]


@pytest.mark.parametrize(("panel", "target"), QUERIES)
def test_queries_of_the_dashboard_make_sense(panel: dict[str, Any], target: dict[str, Any]) -> None:
    labels = check(plain(target["expr"])) or frozenset()
    named = set(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
    assert named <= labels
    # A line whose name does not tell it from others.
    if target.get("format") != "table" and panel["type"] != "stat":
        assert named == labels or not labels


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panels_say_what_they_show(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    references = [target["refId"] for target in panel["targets"]]
    assert references == sorted(set(references))
    # Grafana shows nothing of a table's query but its columns: each is named, and has a unit of its own.
    if panel["type"] == "table":
        _, organized = panel["transformations"]
        columns = organized["options"]["renameByName"]
        units = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
        assert units == {columns[f"Value #{reference}"] for reference in references}


def test_panels_have_their_place() -> None:
    assert len({panel["id"] for panel in EVERYTHING}) == len(EVERYTHING)
    places = [(panel["gridPos"], panel["title"]) for panel in EVERYTHING]
    assert all(min(at.values()) >= 0 and at["x"] + at["w"] <= 24 for at, _ in places)
    for (one, title), (other, its_title) in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, f"{title} lies on {its_title}"


def test_the_dashboard_is_nobodys_in_particular() -> None:
    assert DASHBOARD["uid"] == "roundhouse"
    assert not DASHBOARD.keys() & {"id", "gnetId", "__inputs", "__requires"}
    assert list(VARIABLES) == ["datasource", "model", "engine", "key"]
    assert VARIABLES["datasource"]["query"] == "prometheus"
    for name in ("model", "engine", "key"):
        variable = VARIABLES[name]
        assert variable["includeAll"]
        assert variable["multi"]
        found = re.fullmatch(r"label_values\((\w+)(?:{.+})?, (\w+)\)", variable["query"]["query"])
        assert found
        assert found[2] == name
        assert name in SERIES[found[1]].labels
    for annotation in DASHBOARD["annotations"]["list"]:
        check(plain(annotation["expr"]))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_make_sense(rule: dict[str, Any]) -> None:
    labels = check(rule["expr"]) or frozenset()
    if "record" in rule:
        level = "_".join(label for label in ("model", "engine", "key") if label in labels)
        assert re.fullmatch(rf"{level}:roundhouse_\w+:\w+5m", rule["record"])
        return
    assert re.fullmatch(r"\d+[smh]", rule["for"])
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"].keys() == {"summary", "description"}
    for text in rule["annotations"].values():
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels
        assert all(
            re.fullmatch(r"\$(labels\.\w+|value( \| humanize\w*)?)", said)
            for said in re.findall(r"{{ (.+?) }}", text)
        )
    # Where it is, as far as the expression tells.
    assert all(f"$labels.{label}" in rule["annotations"]["summary"] for label in labels - {"job"})
    # And what to do.
    assert re.search("`make (status|logs)", rule["annotations"]["description"])


def test_alerts_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in ALERTS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"Roundhouse[A-Z]\w+", name) for name in names)


def test_what_alerts_tell_to_run_is_there() -> None:
    texts = " ".join(rule["annotations"]["description"] for rule in ALERTS)
    told = set(re.findall(r"`make (\w+)", texts))
    assert told == {"keys", "logs", "restart", "status"}
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{command}: " in makefile for command in told)


def test_prometheus_scrapes_what_the_rules_ask_for() -> None:
    text = (MONITORING / "prometheus.yml").read_text()
    config = yaml.safe_load(text)
    assert all((MONITORING / name).exists() for name in config["rule_files"])
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    asked = {job for rule in RULES for job in re.findall(r'job="(\w+)"', rule["expr"])}
    assert asked <= jobs.keys()
    assert jobs["roundhouse"]["authorization"] == {"credentials_file": "gateway.key"}
    assert jobs["roundhouse"]["static_configs"] == [{"targets": ["127.0.0.1:8080"]}]
    # What the comment says to run writes the file that is read, with the labels that the dashboard asks for.
    (files,) = jobs["engines"]["file_sd_configs"]
    assert files == {"files": ["engines.json"]}
    assert "labels: {model: $m, engine: $e, backend: .name}}]' > engines.json" in text


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("sum(rate(roundhouse_request_total[5m]))", "no metric 'roundhouse_request_total'"),
        ('sum(rate(roundhouse_tokens_total{backend="a"}[5m]))', "no label 'backend'"),
        ('sum(rate(roundhouse_tokens_total{direction="out"}[5m]))', "direction is never 'out'"),
        ('sum(rate(roundhouse_requests_total{code=~"engine_busy|bussy"}[5m]))', "code is never 'bussy'"),
        ("sum by (key) (roundhouse_workers)", r"nothing to group by: \['key'\]"),
        ("sum(roundhouse_retries_total)", "is a counter, not inside rate"),
        ("rate(roundhouse_workers[5m])", "is a gauge, inside rate"),
        ("sum(rate(roundhouse_request_duration_seconds_bucket[5m]))", "is a bucket; quantiles"),
        (
            "histogram_quantile(0.5, sum by (model) (rate(roundhouse_retries_total[5m])))",
            "is a counter; quantiles",
        ),
        (
            "histogram_quantile(0.5, sum by (model) (rate(roundhouse_request_duration_seconds_bucket[5m])))",
            "a quantile needs le",
        ),
        ("histogram_quantile(0.5, rate(roundhouse_request_duration_seconds_bucket[5m]))", "of a sum by"),
        (
            "sum by (model) (roundhouse_backend_healthy) / sum by (engine) (roundhouse_backend_healthy)",
            "never match",
        ),
        ("up and on (model) roundhouse_backend_healthy", "not on both sides of and"),
    ],
)
def test_the_check_finds(expression: str, why: str) -> None:
    with pytest.raises(WrongError, match=why):
        check(expression)


def test_the_check_parses() -> None:
    with pytest.raises(ValueError, match="expected type"):
        check("rate(roundhouse_retries_total)")
