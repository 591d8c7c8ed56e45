"""What a machine must have for the local Kafka, and what it is told when it has not."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from k2ray.errors import MissingProgram, TryAgain
from k2ray.log.jars import KAFKA_VERSION, POM, cache_folder, fetch_jars, find_java, java_version

WAYS_OUT = ("install", "mvn", "java 17", "kafka.bootstrap_servers", "K2RAY_KAFKA__BOOTSTRAP_SERVERS")


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def silent(_text: str) -> None:
    pass


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_292"', 8),
        ('openjdk version "25" 2025-09-16', 25),
        ('openjdk version "24-ea" 2025-03-18', 24),
        ("command failed", None),
    ],
)
def test_javas_version_is_read_in_all_its_forms(said: str, version: int | None) -> None:
    assert java_version(said) == version


def test_without_java_both_ways_out_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingProgram, match="java was not found") as raised:
        find_java({"PATH": str(tmp_path)})
    assert all(way in str(raised.value) for way in WAYS_OUT)


def test_without_mvn_both_ways_out_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingProgram, match="mvn was not found") as raised:
        fetch_jars({"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}, silent)
    assert all(way in str(raised.value) for way in WAYS_OUT)


def test_an_old_java_is_said_to_be_old(tmp_path: Path) -> None:
    program(tmp_path, "java", "echo 'openjdk version \"11.0.2\"' >&2")
    with pytest.raises(MissingProgram, match=r"too old: version 11, Kafka .* needs 17"):
        find_java({"PATH": str(tmp_path)})


def test_a_java_that_does_not_run_is_no_java(tmp_path: Path) -> None:
    program(tmp_path, "java", "exit 1")
    with pytest.raises(MissingProgram, match="does not say its version"):
        find_java({"PATH": str(tmp_path)})


def test_java_home_comes_before_the_path(tmp_path: Path) -> None:
    program(tmp_path / "home/bin", "java", "echo 'openjdk version \"21\"' >&2")
    program(tmp_path / "path", "java", "echo 'openjdk version \"11\"' >&2")
    environ = {"PATH": str(tmp_path / "path"), "JAVA_HOME": str(tmp_path / "home")}
    assert find_java(environ) == str(tmp_path / "home/bin/java")


def test_the_cache_is_outside_of_any_data_folder() -> None:
    assert cache_folder({"HOME": "/h"}) == Path(f"/h/.cache/k2ray/kafka-{KAFKA_VERSION}")
    assert cache_folder({"HOME": "/h", "XDG_CACHE_HOME": "/x"}) == Path(f"/x/k2ray/kafka-{KAFKA_VERSION}")
    assert cache_folder({"HOME": "/h", "XDG_CACHE_HOME": "relative"}).is_relative_to("/h")


def test_jars_are_fetched_once_and_appear_all_together(tmp_path: Path) -> None:
    script = 'for a in "$@"; do case $a in -DoutputDirectory=*) d=${a#*=};; esac; done\n'
    script += f'/bin/mkdir -p "$d" && : > "$d/kafka_2.13-{KAFKA_VERSION}.jar" && echo x >> "{tmp_path}/calls"'
    program(tmp_path / "bin", "mvn", script)
    environ = {"PATH": str(tmp_path / "bin"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    told: list[str] = []
    folder = fetch_jars(environ, told.append)
    assert fetch_jars(environ, told.append) == folder
    assert (tmp_path / "calls").read_text().count("x") == 1
    assert len(told) == 1
    assert "43 MB" in told[0]
    assert [path.name for path in folder.glob("*.jar")] == [f"kafka_2.13-{KAFKA_VERSION}.jar"]
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}


def test_a_failed_fetch_says_what_maven_said_and_leaves_nothing(tmp_path: Path) -> None:
    program(tmp_path / "bin", "mvn", "echo 'Could not resolve central'; exit 1")
    environ = {"PATH": str(tmp_path / "bin"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with pytest.raises(TryAgain, match="Could not resolve central"):
        fetch_jars(environ, silent)
    assert not cache_folder(environ).exists()


def test_the_pom_pins_the_version_that_the_code_names() -> None:
    versions = {node.findtext("{*}artifactId"): node.findtext("{*}version") for node in ElementTree.parse(POM).iter()}
    assert versions["kafka_2.13"] == KAFKA_VERSION
