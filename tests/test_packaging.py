"""What stands around the package: the citation, the workflow, the check of its wheel."""

import runpy
import zipfile
from pathlib import Path

import pytest
import yaml

import flowturbo as ft

ROOT = Path(__file__).parent.parent
GOOD = ("flowturbo/__init__.py", "flowturbo-1.0.dist-info/METADATA")
check_wheel = runpy.run_path(str(ROOT / ".ci" / "check_wheel"))


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(cited)
    assert cited["version"] == ft.__version__
    assert "2409.18128" in cited["references"][0]["url"]


def test_the_workflow_runs_what_every_change_must_pass():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    versions = [step["with"]["python-version"] for step in job["steps"] if "with" in step]
    assert versions == ["3.11"]


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        (GOOD, ""),
        ((*GOOD, "tests/test_plan.py"), "tests/test_plan.py: not in "),
        ((*GOOD, "flowturbo.pth"), "flowturbo.pth: not in "),
        (GOOD[:1], "no file in flowturbo-1.0.dist-info/"),
        (GOOD[1:], "no file in flowturbo/"),
    ],
)
def test_a_wheel_holds_the_package_alone(files, fault, tmp_path):
    wheel = tmp_path / "flowturbo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in files:
            archive.writestr(file, "")
    found = check_wheel["faults"](wheel)
    assert [text.startswith(fault) for text in found] == [True] * bool(fault)


def test_a_large_wheel_is_refused(tmp_path):
    wheel = tmp_path / "flowturbo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in GOOD:
            archive.writestr(file, "")
        archive.writestr("flowturbo/weights", bytes(check_wheel["MOST"]))
    (fault,) = check_wheel["faults"](wheel)
    assert fault.endswith(" bytes: must be under 60,000,000")
