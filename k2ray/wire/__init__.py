"""What travels in Kafka: record batches and seals as bytes."""
