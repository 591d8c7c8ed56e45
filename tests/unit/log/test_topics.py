"""Topics' names and configuration."""

from __future__ import annotations

from k2ray.exchanges import adapter
from k2ray.log.partition import partition_of
from k2ray.log.topics import (
    ASSET_CLASSES,
    dead_letter_topic,
    table_topics,
    topic_config,
    topic_name,
    wanted_topics,
)
from k2ray.settings import Exchanges, Kafka, Settings

SETTINGS = Settings(
    exchanges=Exchanges.model_validate({"binance": {"channels": ["trades", "agg_trades", "quotes"]}}),
    kafka=Kafka(topic_prefix="market", partitions=6, retention_s=3600, min_insync_replicas=2, retention_bytes=10**9),
)


def test_names_are_the_contract() -> None:
    assert topic_name("market", "crypto", "trades", "binance") == "market.crypto.trades.binance"
    assert dead_letter_topic("market", "binance") == "market.dead_letter.binance"


def test_a_table_is_fed_by_all_channels_that_are_recorded() -> None:
    assert table_topics(SETTINGS, "trades") == ["market.crypto.trades.binance", "market.crypto.agg_trades.binance"]
    assert table_topics(SETTINGS, "quotes") == ["market.crypto.quotes.binance"]
    default = Settings()
    assert table_topics(default, "trades") == ["market.crypto.trades.binance"]


def test_every_topic_has_explicit_partitions() -> None:
    wanted = wanted_topics(SETTINGS)
    assert wanted.pop("market.dead_letter.binance") == 1
    assert set(wanted.values()) == {6}
    assert set(wanted) == {*table_topics(SETTINGS, "trades"), *table_topics(SETTINGS, "quotes")}


def test_nothing_that_matters_is_left_to_the_brokers_defaults() -> None:
    config = topic_config(SETTINGS.kafka)
    assert config["retention.ms"] == "3600000"
    assert config["retention.bytes"] == "1000000000"
    assert config["min.insync.replicas"] == "2"
    assert config["cleanup.policy"] == "delete"


def test_every_exchange_says_the_same_asset_class_in_topic_and_rows() -> None:
    for name in Exchanges.model_fields:
        assert adapter(name).asset_class == ASSET_CLASSES[name]


def test_partitions_of_instruments_never_change() -> None:
    """The hash is a contract: these values are what was written into topics before."""
    assert [partition_of("binance", symbol, 4) for symbol in ("BTCUSDT", "ETHUSDT", "BNBUSDT")] == [2, 1, 3]
