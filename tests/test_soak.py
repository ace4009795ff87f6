"""What soaks the server notices: a right answer, a wrong one, and a server that is killed under load."""

import argparse
import importlib.util
import sys

import pytest
from conftest import BENCHMARKS, class_folders
from served import BLUE, MIXED, RED, colour_run

pytest.importorskip("fastapi", reason='needs the extra serve: pip install -e ".[serve]"')
pytest.importorskip("prometheus_client", reason='needs the extra serve: pip install -e ".[serve]"')

from template.deploy.serve.deployed import open_runs

SPEC = importlib.util.spec_from_file_location("soak_script", BENCHMARKS / "soak.py")
soak = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = soak  # its dataclass looks itself up there
SPEC.loader.exec_module(soak)


@pytest.mark.slow
def test_good_and_hostile_requests_are_answered_as_they_should_be(tmp_path, monkeypatch):
    run, images = colour_run(tmp_path / "colours"), class_folders(tmp_path / "images", each=4)
    how = {"requests": 150, "clients": 8, "hostile": 0.5, "restarts": 2}
    monkeypatch.setattr(soak, "BETWEEN", 5.0)
    found = soak.mixed(argparse.Namespace(run=run, images=images, **how))
    assert found["wrong"] == [] and sum(found["answers"].values()) == 150 and len(found["answers"]) > 8
    assert found["restarts"]["by"] == {"SIGTERM": 2, "SIGKILL": 2} and found["restarts"]["requests"] > 20


@pytest.mark.slow
def test_a_server_that_says_something_else_is_noticed(tmp_path):
    wrong, right = (colour_run(tmp_path / name, order) for name, order in (("a", (2, 1, 0)), ("b", (0, 1, 2))))
    with soak.serving(wrong) as server:
        asked = soak.Soak(server, *open_runs([right]), [RED, MIXED, BLUE], hostile=0.0)
        for number in range(3):
            asked.request(number)
        assert len(asked.wrong) == 3 and all(words.startswith("good: received 200") for words in asked.wrong)
    asked.hostile = 1.0
    asked.request(4)
    assert "ConnectionRefusedError" in asked.wrong[-1]
