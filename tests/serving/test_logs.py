"""A line a call: who, what and how it ended; nothing of what was sent, and no line that a caller wrote."""

import io
import json
import logging

import pytest

from l2r2.bundle import Bundle
from l2r2_serving.logs import AccessLog, JsonFormatter, TextFormatter
from l2r2_serving.v1 import recognition_pb2 as pb
from tests.serving.running import eventually, running
from tests.serving.statuses import refused
from tests.tiny import RED, encode, make_photo

PHOTO = encode(make_photo(RED))


def captured(formatter: logging.Formatter) -> tuple[io.StringIO, logging.Handler]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    return stream, handler


@pytest.fixture
def log() -> logging.Logger:
    logger = logging.getLogger("l2r2_serving.access")
    level = logger.level
    logger.setLevel(logging.INFO)
    yield logger
    logger.setLevel(level)


def test_a_line_a_call_with_nothing_of_what_was_sent(bundle: Bundle, log: logging.Logger) -> None:
    stream, handler = captured(JsonFormatter())
    log.addHandler(handler)
    try:
        with running(bundle, observer=AccessLog()) as place, place.stub() as stub:
            secret = {"image": PHOTO, "habitat": "my secret place", "metadata": {"finder": "Jane Doe"}}
            stub.Recognize(pb.RecognizeRequest(**secret), metadata=[("x-request-id", "mine-1")])
            refused(lambda: stub.Recognize(pb.RecognizeRequest(**{**secret, "month": 13})))
            batch = [pb.RecognizeRequest(image=PHOTO), pb.RecognizeRequest(image=b"text")]
            stub.BatchRecognize(pb.BatchRecognizeRequest(requests=batch))
            eventually(lambda: stream.getvalue().count("\n") == 3)
    finally:
        log.removeHandler(handler)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["message"] for line in lines] == ["Recognize OK", "Recognize INVALID_ARGUMENT", "BatchRecognize OK"]
    assert lines[0]["request_id"] == "mine-1"
    assert len(lines[1]["request_id"]) == 16
    assert [line["photographs"] for line in lines] == [
        {"OK": 1},
        {"INVALID_ARGUMENT": 1},
        {"OK": 1, "INVALID_ARGUMENT": 1},
    ]
    assert all(line["caller"] == "127.0.0.1" and line["ms"] > 0 and line["level"] == "info" for line in lines)
    for word in ("secret", "Jane", "Doe", "finder"):
        assert word not in stream.getvalue()


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_nobody_forges_a_line(formatter: logging.Formatter) -> None:
    record = logging.makeLogRecord({"msg": "hello\n2026-01-01 error: forged \u2028 \x1b[31m", "caller": "a\r\nb"})
    line = formatter.format(record)
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


def test_a_traceback_is_kept() -> None:
    error = ValueError("why")
    record = logging.makeLogRecord(
        {"msg": "failed", "exc_info": (ValueError, error, error.__traceback__), "levelname": "ERROR"}
    )
    assert "ValueError: why" in json.loads(JsonFormatter().format(record))["exception"]
    assert TextFormatter().format(record).endswith("ValueError: why")
