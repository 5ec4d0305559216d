"""Settings from the environment."""

from pathlib import Path

import pytest

from roundhouse_gateway.settings import Settings, SettingsError, from_environment


def test_defaults() -> None:
    assert from_environment({"ROUNDHOUSE_ROUTES": "/r.yml", "ROUNDHOUSE_HOME": "x"}) == Settings(
        routes=Path("/r.yml"),
        host="127.0.0.1",
        port=8080,
        max_body=33_554_432,
        max_header=65_536,
        body_timeout=60,
        keep_alive=75,
        drain_timeout=30,
        drain_delay=0,
        workers=1,
        log="text",
    )


def test_all_of_them() -> None:
    given = {
        "ROUTES": "r",
        "HOST": "::1",
        "PORT": "0",
        "MAX_BODY": "1",
        "MAX_HEADER": "1024",
        "BODY_TIMEOUT": "0.5",
        "KEEP_ALIVE": "1",
        "DRAIN_TIMEOUT": "0",
        "DRAIN_DELAY": "5",
        "WORKERS": "64",
        "LOG": "json",
    }
    settings = from_environment({f"ROUNDHOUSE_{key}": value for key, value in given.items()})
    assert (settings.host, settings.port, settings.body_timeout, settings.log) == ("::1", 0, 0.5, "json")
    assert settings.workers == 64


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("HOST", ""),
        ("PORT", "http"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", " 80"),
        ("PORT", "٣"),
        ("PORT", ""),
        ("MAX_BODY", "0"),
        ("MAX_BODY", "1_000"),
        ("MAX_HEADER", "1"),
        ("BODY_TIMEOUT", "0"),
        ("KEEP_ALIVE", "nan"),
        ("DRAIN_TIMEOUT", "inf"),
        ("DRAIN_DELAY", "-1"),
        ("WORKERS", "0"),
        ("WORKERS", "65"),
        ("LOG", "xml"),
    ],
)
def test_bad_values(key: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_environment({"ROUNDHOUSE_ROUTES": "r", f"ROUNDHOUSE_{key}": value})
    (problem,) = caught.value.problems
    assert problem.startswith(f"ROUNDHOUSE_{key} is {value!r}, but must be ")


def test_all_problems_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        from_environment({"ROUNDHOUSE_PORT": "x", "ROUNDHOUSE_LOG": "y", "ROUNDHOUSE_KEYS": ""})
    assert len(caught.value.problems) == 4
    assert "Unset it to let anyone ask" in str(caught.value)
