"""TensorFlow's checkpoints written by hand, with right checksums around whatever one likes.

    [(key, value), …] ─▶ table ─▶ a V1 checkpoint, or the index of a V2 one

Both are tables of LevelDB (its doc/table_format.md). A reader that compares checksums first never sees
what random damage does; behind right ones it does.
"""

import struct

Entries = list[tuple[bytes, bytes]]

_END = bytes.fromhex("57fb808b247547db")
_NAME = b"vggish/conv1/biases"
# Protocol buffers of one variable with four numbers: what TensorFlow 2.20 wrote.
V1: Entries = [
    (b"", b"\n'\n!\n\x13" + _NAME + b'\x12\x04\x12\x02\x08\x04\x18\x01"\x02\n\x00\x12\x02\x08\x01'),
    (
        b"\x00" + _NAME + b"\x00\x01\x01\x01\x80\x7f",
        b"\x12-\n\x13" + _NAME + b"\x12\x02\n\x00\x1a\x12*\x10" + b"\0\0\x80?" * 4,
    ),
]
V2: Entries = [
    (b"", b"\x08\x01\x1a\x02\x08\x01"),
    (_NAME, b"\x08\x01\x12\x04\x12\x02\x08\x04(\x105#7\xcb\xbb"),
]
V2_DATA = b"\0\0\x80?" * 4


def _crc_table() -> list[int]:
    found = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 & -(value & 1))
        found.append(value)
    return found


_CRC_TABLE = _crc_table()


def masked_crc(content: bytes) -> int:
    """CRC-32C, masked as tables have it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _CRC_TABLE[(crc ^ byte) & 255] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 128:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _block(entries: Entries) -> bytes:
    """A block in which every entry stands in full, with its type (not compressed) and its checksum."""
    found, restarts = bytearray(), []
    for key, value in entries:
        restarts.append(len(found))
        found += _varint(0) + _varint(len(key)) + _varint(len(value)) + key + value
    for restart in restarts or [0]:
        found += struct.pack("<I", restart)
    found += struct.pack("<I", len(restarts) or 1) + b"\0"
    return bytes(found) + struct.pack("<I", masked_crc(bytes(found)))


def table(entries: Entries) -> bytes:
    """A table of one block."""
    data, meta = _block(entries), _block([])
    last = entries[-1][0] if entries else b""
    index = _block([(last + b"\xff", _varint(0) + _varint(len(data) - 5))])
    handles = _varint(len(data)) + _varint(len(meta) - 5)
    handles += _varint(len(data) + len(meta)) + _varint(len(index) - 5)
    return data + meta + index + handles.ljust(40, b"\0") + _END


def packed(version: int, entries: Entries) -> bytes:
    """Entries as bytes that a fuzzer can change: the version; lengths of key and value, key, value; …"""
    parts = (struct.pack("<BB", len(key), len(value)) + key + value for key, value in entries)
    return bytes([version]) + b"".join(parts)


def unpacked(data: bytes) -> tuple[int, Entries]:
    """What `packed` packed; of other bytes something like it."""
    version, at, entries = (data[0] if data else 2), 1, []
    while at + 2 <= len(data) and len(entries) < 50:
        key_size, value_size = data[at], data[at + 1]
        key = data[at + 2 : at + 2 + key_size]
        at += 2 + key_size + value_size
        entries.append((key, data[at - value_size : at]))
    return 1 + (version + 1) % 2, entries
