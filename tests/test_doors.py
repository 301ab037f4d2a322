"""The files for those who report, contribute and cite: they agree with the package."""

import ast
import pathlib
import re

import pytest

import bnext

from .ci_scripts import needs_the_folder

ROOT = pathlib.Path(__file__).parents[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_citation_is_of_this_version_and_license():
    project = text_of("pyproject.toml")
    citation = text_of("CITATION.cff")
    assert f"\nversion: {bnext.__version__}\n" in citation
    license = re.search(r'^license = "(.*)"$', project, re.MULTILINE)[1]
    assert f"\nlicense: {license}\n" in citation
    (author,) = re.findall(r'^authors = \[\{ name = "(.*)" \}\]$', project, re.MULTILINE)
    assert f'\nauthors:\n  - name: "{author}"\n' in citation


@pytest.mark.libraries("yaml")
@pytest.mark.parametrize("form", [f for f in FORMS if f.stem != "config"], ids=lambda f: f.stem)
def test_forms_are_whole(form):
    import yaml

    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "labels", "body"} == content.keys()
    assert len({item["id"] for item in content["body"]}) == len(content["body"])
    for item in content["body"]:
        assert item["type"] == "textarea"
        assert item["attributes"]["label"]


@pytest.mark.parametrize(
    "name",
    ["SECURITY.md", "CODE_OF_CONDUCT.md", ".github/PULL_REQUEST_TEMPLATE.md",
     *(f".github/ISSUE_TEMPLATE/{form.name}" for form in FORMS)],
)  # fmt: skip
def test_commands_and_files_that_are_named_exist(name):
    text = text_of(name)
    for command in re.findall(r"`python -m bnext (\w+)", text):
        assert f"  {command} " in text_of("python/bnext/__main__.py"), command
    for file in re.findall(r"\b[A-Z]{3,}\.(?:md|cff)\b", text):
        assert (ROOT / file).is_file(), file
    for function in re.findall(r"`bnext\.(\w+)`", text):
        assert hasattr(bnext, function), function
    assert not re.search(r"[\w.]+@[\w.]+", text), "no addresses: they are the repository's"


def test_documents_lead_to_them():
    assert "CODE_OF_CONDUCT.md" in text_of("CONTRIBUTING.md")
    for name in ("SECURITY.md", "CITATION.cff"):
        assert name in text_of("README.md"), name


@needs_the_folder
def test_sessions_of_nox_are_the_list_of_checks():
    """What `all_checks` runs are sessions with docstrings, and each runs once."""
    sources = [ROOT / "noxfile.py", *(ROOT / ".ci" / "sessions").glob("*.py")]
    sessions, lists = {}, {}
    for node in (n for path in sources for n in ast.parse(path.read_text("utf-8")).body):
        if isinstance(node, ast.FunctionDef):
            if any(re.match(r"check\b", ast.unparse(each)) for each in node.decorator_list):
                sessions[node.name] = ast.get_docstring(node)
        elif isinstance(node, ast.Assign):
            name = ast.unparse(node.targets[0])
            if name in ("CHECKS", "BEHIND"):
                lists[name] = ast.literal_eval(node.value)
    names = [*lists["CHECKS"], *lists["BEHIND"]]
    assert len(names) == len(set(names)) >= 15
    assert set(names) <= sessions.keys()
    assert all(sessions.values())
    apart = {"all_checks", "benchmarks"}  # the list itself; measurements without a verdict
    assert sessions.keys() - set(names) == apart
    assert len(text_of(".ci/run").splitlines()) <= 60
