"""Settings: precedence, misspelt names, secrets, and the documentation of each."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from k2ray.errors import SettingsError
from k2ray.settings import MASK, Settings, load_settings
from tests.support.documentation import setting_rows

ROOT = Path(__file__).parents[2]


def load(text: str, tmp_path: Path, **environ: str) -> Settings:
    file = tmp_path / "k2ray.yaml"
    file.write_text(text)
    return load_settings(file, environ=environ)


def test_arguments_win_over_variables_win_over_the_file(tmp_path: Path) -> None:
    text = "api: {port: 1001}\nlake: {commit: {interval_s: 7}}"
    assert load(text, tmp_path).api.port == 1001
    assert load(text, tmp_path, K2RAY_API__PORT="1002").api.port == 1002
    file = tmp_path / "k2ray.yaml"
    both = load_settings(file, environ={"K2RAY_API__PORT": "1002"}, arguments={"api": {"port": 1003}})
    assert both.api.port == 1003
    assert both.lake.commit.interval_s == 7
    assert both.lake.commit.max_rows == 500_000


def test_lists_and_nested_sections_come_from_the_environment(tmp_path: Path) -> None:
    settings = load(
        "",
        tmp_path,
        K2RAY_EXCHANGES__BINANCE__WS_URL="wss://localhost:1",
        K2RAY_EXCHANGES__BINANCE__SYMBOLS='["FDUSDUSDT"]',
        K2RAY_LAKE__CATALOG__TYPE="rest",
        K2RAY_TLS__CA_FILE="null",
    )
    binance = settings.exchanges.binance
    assert binance is not None
    assert binance.ws_url == "wss://localhost:1"
    assert binance.rest_url == "https://api.binance.com"
    assert binance.symbols == ("FDUSDUSDT",)
    assert settings.lake.catalog.type == "rest"
    assert settings.tls.ca_file is None


@pytest.mark.parametrize(
    ("variable", "value", "named", "nearest"),
    [
        ("K2RAY_API__PRT", "1", "K2RAY_API__PRT", "'port'"),
        ("K2RAY_EXCHANGE__BINANCE__WS_URL", "wss://x", "K2RAY_EXCHANGE__BINANCE__WS_URL", "'exchanges'"),
        ("K2RAY_EXCHANGES__BINANCE__SYMBOL", "[]", "K2RAY_EXCHANGES__BINANCE__SYMBOL", "'symbols'"),
        ("K2RAY_LAKE__COMIT__INTERVAL_S", "1", "K2RAY_LAKE__COMIT__INTERVAL_S", "'commit'"),
        ("K2RAY_EXCHANGES__BINANC__WS_URL", "x", "K2RAY_EXCHANGES__BINANC__WS_URL", "'binance'"),
    ],
)
def test_misspelt_variables_do_not_pass(tmp_path: Path, variable: str, value: str, named: str, nearest: str) -> None:
    """Trap 26: nested sections ignored misspelt names silently."""
    with pytest.raises(SettingsError) as caught:
        load("", tmp_path, **{variable: value})
    assert named in str(caught.value)
    assert f"did you mean {nearest}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named", "nearest"),
    [
        ("apis: {port: 1}", "apis", "'api'"),
        ("api: {ports: 1}", "api.ports", "'port'"),
        ("kafka: {bootstrap_server: x}", "kafka.bootstrap_server", "'bootstrap_servers'"),
        ("exchanges: {binance: {chanels: []}}", "exchanges.binance.chanels", "'channels'"),
    ],
)
def test_misspelt_keys_in_the_file_do_not_pass(tmp_path: Path, text: str, named: str, nearest: str) -> None:
    """Trap 26."""
    with pytest.raises(SettingsError) as caught:
        load(text, tmp_path)
    assert f"{named}: unknown setting; did you mean {nearest}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("api: {port: 99999}", "api.port: Input should be less than or equal to 65535, got 99999"),
        ("exchanges: {binance: {ws_url: 'ws://x'}}", "exchanges.binance.ws_url: must be a wss:// URL"),
        ("exchanges: {binance: {connections: 9}}", "exchanges.binance.connections: 9 is more than kafka.partitions"),
        ("exchanges: {binance: {symbols: [btcusdt]}}", "'btcusdt' is not an upper-case symbol"),
        ("exchanges: {binance: {symbols: [A, A]}}", "names A more than once"),
        ("- a\n- b", "must hold sections"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_bad_value_stops_the_start_with_its_name(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(SettingsError, match=r"k2ray\.yaml") as caught:
        load(text, tmp_path)
    assert expected in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent.yaml: cannot be read"):
        load_settings(tmp_path / "absent.yaml", environ={})


def test_bad_json_in_a_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="K2RAY_EXCHANGES__BINANCE__SYMBOLS: is not valid JSON"):
        load("", tmp_path, K2RAY_EXCHANGES__BINANCE__SYMBOLS="[BTC")


def test_secrets_never_print(tmp_path: Path) -> None:
    text = """
lake: {catalog: {uri: "postgresql+psycopg://k2:hunter2@host:5432/k2", s3.secret-access-key: hunter2}}
kafka: {options: {sasl.password: hunter2, security.protocol: SASL_SSL}}
"""
    settings = load(text, tmp_path)
    for printed in (str(settings), repr(settings), str(settings.describe())):
        assert "hunter2" not in printed
        assert MASK in printed
        assert "SASL_SSL" in printed
    assert "hunter2" in settings.to_json()
    assert Settings.from_json(settings.to_json()) == settings


def test_secrets_never_print_in_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load("lake: {catalog: {uri: [hunter2]}}", tmp_path)
    assert "lake.catalog.uri" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_relative_paths_count_from_the_file(tmp_path: Path) -> None:
    settings = load("data_dir: d\ntls: {ca_file: ca.pem, crl_file: crl.pem}\nlake: {warehouse: wh}", tmp_path)
    assert settings.data_dir == tmp_path / "d"
    assert settings.tls.ca_file == tmp_path / "ca.pem"
    assert settings.tls.crl_file == tmp_path / "crl.pem"
    assert settings.lake.warehouse == str(tmp_path / "wh")
    assert load("lake: {warehouse: 's3://b/wh'}", tmp_path).lake.warehouse == "s3://b/wh"


def test_the_shipped_file_holds_the_defaults() -> None:
    shipped = load_settings(ROOT / "k2ray.yaml", environ={})
    defaults = load_settings(None, environ={}, arguments={"data_dir": str(ROOT / "k2ray-data")})
    assert shipped == defaults


def test_the_shipped_file_names_every_setting() -> None:
    shipped = yaml.safe_load((ROOT / "k2ray.yaml").read_text())
    for row in setting_rows():
        path = row.split("`")[1]
        level = shipped
        for part in path.split("."):
            assert part in level, f"k2ray.yaml lacks {path}"
            level = level[part]


def test_every_setting_is_documented() -> None:
    documented = (ROOT / "docs" / "configuration.md").read_text()
    for row in setting_rows():
        assert row in documented, f"docs/configuration.md lacks this row:\n{row}"


def test_tables_are_those_of_the_recorded_channels(tmp_path: Path) -> None:
    assert load("", tmp_path).exchanges.tables() == ["trades", "quotes"]
    assert load("exchanges: {binance: {channels: [agg_trades, trades]}}", tmp_path).exchanges.tables() == ["trades"]
    assert load("exchanges: {binance: null}", tmp_path).exchanges.tables() == []
