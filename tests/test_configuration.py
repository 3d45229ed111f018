"""The section of flowml in Dask's configuration."""

import subprocess
import sys
from pathlib import Path

import dask.config
import pytest

from flowml import configuration
from flowml.errors import PlanError

FOLDER = Path(configuration.__file__).parent


def schema() -> dict:
    file = next(dask.config.collect_yaml([str(FOLDER / "flowml-schema.yaml")]))
    return file["properties"]["flowml"]


def test_the_schema_describes_each_key_of_the_defaults_and_no_other():
    properties = schema()["properties"]
    assert sorted(properties) == sorted(configuration.DEFAULTS)
    assert all(part["description"].endswith(".") for part in properties.values())


@pytest.mark.parametrize("key", sorted(configuration.DEFAULTS))
def test_each_default_can_be_read(key):
    value = configuration.read(key)
    allowed = schema()["properties"][key].get("enum")
    assert allowed is None or value in allowed


def test_durations_are_seconds_and_sizes_are_bytes():
    assert configuration.read("deadline") == 60.0
    assert configuration.read("window") == 1.0
    assert configuration.read("max_message") == 2**30
    with dask.config.set({"flowml.step-seconds": 2.5}):
        assert configuration.read("step-seconds") == 2.5


def test_the_environment_overrides_a_default():
    script = "from flowml.configuration import read; print(read('deadline'), read('windows-ahead'))"
    path = {"PYTHONPATH": str(FOLDER.parent)}
    override = {"DASK_FLOWML__DEADLINE": "5s", "DASK_FLOWML__WINDOWS_AHEAD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**path, **override},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == ["5.0", "3"]


@pytest.mark.parametrize("value", ["soon", "12 parsecs", [3]])
def test_a_duration_that_cannot_be_read_is_refused_with_its_key(value):
    with dask.config.set({"flowml.deadline": value}), pytest.raises(PlanError) as caught:
        configuration.read("deadline")
    assert "flowml.deadline" in str(caught.value)
    assert repr(value) in str(caught.value)
    assert "60s" in str(caught.value)


def test_an_unknown_key_is_refused_with_the_known_ones():
    with pytest.raises(PlanError, match=r"deadline.*got 'deadlin'"):
        configuration.read("deadlin")
