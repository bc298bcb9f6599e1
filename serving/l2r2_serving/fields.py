"""Messages of too many parts, found before they are read: an empty one has two bytes on the wire and 230 in memory."""

from __future__ import annotations

from functools import cache
from typing import Any

from l2r2.errors import InputError

MAX_FIELDS = 20_000
"""Fields of a message, those of the messages within it included. A full batch with everything in it has some 10,000; a
tensor's packed contents are one."""

_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)
"""How a field is written. Source: protobuf's encoding."""


def check_fields(data: bytes, kind: Any, most: int = MAX_FIELDS) -> None:
    """Count what a message is made of; what cannot be followed is left to the parser to refuse.

    Args:
        data: The message on the wire.
        kind: Its descriptor.
    Raises:
        InputError: more than `most`.
    """
    place, end, parts = 0, len(data), _parts(kind)
    within = [(end, parts)]
    found = 0
    while True:
        while place >= end:  # what goes beyond its end is none, which the parser says
            within.pop()
            if not within:
                return
            end, parts = within[-1]
        try:
            tag, place = _varint(data, place)
            number, wire = tag >> 3, tag & 7
            found += 1
            if found > most:
                raise InputError(f"the message has more than {most:,} fields; send less at once")
            if wire == _BYTES:
                size, place = _varint(data, place)
                part = parts.get(number)
                if part is None:
                    place += size
                else:
                    end, parts = min(place + size, end), _parts(part)
                    within.append((end, parts))
            elif wire == _VARINT:
                _, place = _varint(data, place)
            elif wire == _FIXED64:
                place += 8
            elif wire == _FIXED32:
                place += 4
            elif wire not in {_GROUP, _GROUP_END}:
                return
        except IndexError:
            return


@cache
def _parts(kind: Any) -> dict[int, Any]:
    """Numbers of a message's fields that are messages themselves → their descriptors."""
    return {
        number: each.message_type for number, each in kind.fields_by_number.items() if each.message_type is not None
    }


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Value and the place after it.

    Raises:
        IndexError: it has no end.
    """
    byte = data[place]
    if byte < 0x80:
        return byte, place + 1
    value, shift = byte & 0x7F, 7
    while True:
        place += 1
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place + 1
        shift += 7
        if shift > 63:
            raise IndexError(place)
