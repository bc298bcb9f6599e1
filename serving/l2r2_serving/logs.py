"""The service's log on stderr: text for people or a JSON object a line for machines; a line a call, nothing of what was
sent.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from datetime import UTC, datetime
from weakref import WeakKeyDictionary

from l2r2_serving.observing import Call, Item

_access = logging.getLogger("l2r2_serving.access")

_PLAIN = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}
"""What every record has; anything else was given with `extra`."""


def set_up_logging(form: str = "text", level: str = "warning") -> None:
    """Send the log of this project and of its libraries to stderr, from that level on.

    Args:
        form: "text" or "json".
        level: "debug", "info", "warning" or "error".
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # libraries' chatter is not asked for
    logging.getLogger("l2r2").setLevel(level.upper())
    logging.getLogger("l2r2_serving").setLevel(level.upper())


class AccessLog:
    """A line a call, at info. Fulfils `Observer`."""

    def __init__(self) -> None:
        self._photographs: WeakKeyDictionary[Call, Counter[str]] = WeakKeyDictionary()

    def item(self, call: Call, item: Item) -> None:
        """Count it."""
        if not _access.isEnabledFor(logging.INFO):
            return
        self._photographs.setdefault(call, Counter())[item.code] += 1

    def call(self, call: Call) -> None:
        """Say who, what, how it ended and how long it took."""
        if not _access.isEnabledFor(logging.INFO):
            return
        photographs = self._photographs.pop(call, Counter())
        _access.info(
            "%s %s",
            call.method.rpartition("/")[2],
            call.code,
            extra={
                "request_id": call.request_id,
                "caller": call.caller,
                "ms": round((call.ended_ns - call.began_ns) / 1e6, 3),
                "photographs": dict(photographs),
            },
        )


class JsonFormatter(logging.Formatter):
    """One object a line; a line break in any text is escaped, so no caller can forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        """As `logging` calls it."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, message and what goes with it; one line but for a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """As `logging` calls it."""
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S")
        extras = "".join(f" {name}={value}" for name, value in _extras(record).items())
        line = _one_line(f"{time} {record.levelname.lower()}: {record.getMessage()}{extras}")
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in record.__dict__.items() if name not in _PLAIN}


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
