"""Structured logs: one JSON line an event, in a file named after the actor (Ray's own log files do not name it).

Each generation of an actor and each replica of the API has a file of its own, so old ones are removed: a year of
deployments and replacements would leave thousands.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import re
from pathlib import Path

import structlog

MAX_BYTES = 20_000_000
FILES_KEPT = 5
SAMPLES = "samples-"
"""Beginning of the files that `k2ray/soak/samples.py` keeps in the same folder, and looks after itself."""

DAYS_KEPT = 35
"""Logs that nobody has written to for this long go."""


def configure_logs(folder: Path, name: str, level: int = logging.INFO) -> None:
    """Send this process's `k2ray` log to `<folder>/<name>.jsonl`, rotated.

    Args:
        folder: Usually `DataDir.logs`; created if missing.
        name: The actor's or command's name; `:` and `#` become `-` in the file's name.
        level: The lowest level that is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', name)}.jsonl"
    handler = _LogFile(file, maxBytes=MAX_BYTES, backupCount=FILES_KEPT)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("k2ray")
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(actor=name, pid=os.getpid())


class _LogFile(logging.handlers.RotatingFileHandler):
    """Goes on in a new file where its own was removed: an actor may have had nothing to say for months."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self.stream is not None and not os.path.exists(self.baseFilename):
                self.stream.close()
                self.stream = self._open()
        except OSError:
            self.handleError(record)
            return
        super().emit(record)


def remove_old_logs(folder: Path, now_s: float) -> None:
    """Remove the logs that nobody has written to for `DAYS_KEPT` days; call it about once a day.

    Args:
        folder: Usually `DataDir.logs`.
        now_s: Unix time.

    Raises:
        OSError: The folder cannot be read, or a file not be removed.
    """
    for file in folder.glob("*.jsonl*"):
        if not file.name.startswith(SAMPLES) and file.stat().st_mtime < now_s - DAYS_KEPT * 86_400:
            file.unlink(missing_ok=True)


def get_logger(module: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module (`get_logger(__name__)`); it writes where `configure_logs` said."""
    name = module if module.startswith("k2ray") else f"k2ray.{module}"
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
