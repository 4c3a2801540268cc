"""Dockerfile and compose.yaml fit this repository; they are read, not built."""

from __future__ import annotations

import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SECRET = re.compile(r"(?i)(key|token|secret|password)\w*\s*[:=]\s*['\"]?[A-Za-z0-9_\-]{12,}")


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with their arguments, continued lines joined."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8")).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def values(name: str) -> list[str]:
    return [value for found, value in instructions() if found == name]


def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))


def command_line(arguments: list[str]) -> dict[str, Any]:
    """Read the arguments as ``self1e`` does, and return the command's parameters; nothing is run."""
    import typer

    from self1e.cli.main import app

    group: Any = typer.main.get_command(app)
    context = group.make_context("self1e", [], resilient_parsing=True)
    name, command, rest = group.resolve_command(context, list(arguments))
    assert command is not None, name
    return command.make_context(name, rest, parent=context).params | {"command": name}


def test_the_base_is_a_pinned_slim_python_that_the_package_takes() -> None:
    [base] = values("FROM")
    match = re.fullmatch(r"python:(3\.\d+)\.\d+-slim-\w+", base)
    assert match, base
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    least = re.fullmatch(r">=3\.(\d+)", project["requires-python"])
    assert least
    assert int(match[1].split(".")[1]) >= int(least[1])


def test_what_is_copied_is_there_and_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert ignored[0] == "*"
    for line in values("COPY"):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(fnmatch(Path(source).as_posix(), kept[1:]) for kept in ignored if kept[0] == "!"), source
    # hatchling needs them to build the package.
    copied = {source for line in values("COPY") for source in line.split()[:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {"pyproject.toml", project["readme"], *project["license-files"]} <= copied


def test_the_extras_exist_and_the_user_is_nobody_special() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [
        name for line in values("RUN") for found in re.findall(r"\.\[([\w,-]+)\]", line) for name in found.split(",")
    ]
    assert extras
    assert set(extras) <= set(project["optional-dependencies"])
    order = [name for name, _ in instructions()]
    assert values("USER") == ["self1e"]
    assert order.index("USER") < order.index("ENTRYPOINT")
    assert any("useradd" in line and "self1e" in line for line in values("RUN"))


def test_the_container_serves_with_a_command_that_exists() -> None:
    from self1e.serving.settings import ServiceSettings

    assert json.loads(values("ENTRYPOINT")[0]) == ["self1e"]
    parameters = command_line(json.loads(values("CMD")[0]))
    assert parameters["command"] == "serve"
    assert str(parameters["port"]) in values("EXPOSE")
    with pytest.raises(ValueError, match="SELF1E_API_KEYS"):  # open to all, so it needs one
        ServiceSettings(host=parameters["host"])
    [health] = values("HEALTHCHECK")
    test = json.loads(health[health.index("[") :])
    compile(test[2], "HEALTHCHECK", "exec")
    assert f"http://127.0.0.1:{parameters['port']}/ready" in test[2]


@pytest.mark.parametrize(("name", "device"), [("cpu", "cpu"), ("cuda", "cuda")])
def test_each_profile_of_compose_serves(name: str, device: str) -> None:
    from self1e.serving.server import KEYS
    from self1e.serving.settings import ServiceSettings

    service = compose()["services"][name]
    assert service["profiles"] == [name]
    assert (ROOT / service["build"]["context"] / "Dockerfile").is_file()
    known = {line.partition("=")[0] for line in values("ARG")}
    assert set(service["build"].get("args", {})) <= known
    parameters = command_line([re.sub(r"\$\{\w+:-(\w+)\}", r"\1", part) for part in service["command"]])
    assert (parameters["command"], parameters["device"], parameters["model"]) == ("serve", device, "nano")
    assert all(port.startswith("127.0.0.1:") and port.endswith(f":{parameters['port']}") for port in service["ports"])
    assert service["environment"][KEYS].startswith("${")  # from whoever starts it
    assert int(service["stop_grace_period"].removesuffix("s")) > ServiceSettings().drain_seconds
    assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(compose()["volumes"])
    reserved = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    assert bool(reserved) == (name == "cuda")


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml"])
def test_there_is_no_secret_in_it(name: str) -> None:
    assert not SECRET.search((ROOT / name).read_text("utf-8"))
    assert SECRET.search("SELF1E_API_KEYS=0123456789abcdef")
