"""gzip streams that no command writes, by zlib: `gzip.py KIND <TAR >BLOB`."""

import struct
import sys
import zlib

PIECE = 64 << 10


def member(data, level=6, strategy=zlib.Z_DEFAULT_STRATEGY, memory=8, flush=None, flags=0, fields=b""):
    """One member (RFC 1952). `fields` are what `flags` promise; FHCRC (2) is appended here."""
    header = struct.pack("<4BIBB", 0x1F, 0x8B, 8, flags, 1_700_000_000, 0, 3) + fields
    if flags & 2:
        header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    deflate = zlib.compressobj(level, zlib.DEFLATED, -15, memory, strategy)
    body = []
    for at in range(0, len(data), PIECE):
        body.append(deflate.compress(data[at : at + PIECE]))
        if flush is not None:
            body.append(deflate.flush(flush))
    body.append(deflate.flush())
    return header + b"".join(body) + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def extra(length):
    return struct.pack("<H", length) + b"AP" + struct.pack("<H", length - 4) + b"\xa5" * (length - 4)


def halves(data):
    return data[: len(data) // 2], data[len(data) // 2 :]


KINDS = {
    "level-1": lambda tar: member(tar, level=1),
    "level-9": lambda tar: member(tar, level=9),
    "stored": lambda tar: member(tar, level=0),
    "huffman-only": lambda tar: member(tar, strategy=zlib.Z_HUFFMAN_ONLY),
    "run-length": lambda tar: member(tar, strategy=zlib.Z_RLE),
    "fixed-codes": lambda tar: member(tar, strategy=zlib.Z_FIXED),
    "small-blocks": lambda tar: member(tar, memory=1),
    "sync-flush": lambda tar: member(tar, flush=zlib.Z_SYNC_FLUSH),
    "full-flush": lambda tar: member(tar, flush=zlib.Z_FULL_FLUSH),
    # FTEXT, FHCRC, FEXTRA, FNAME, FCOMMENT.
    "all-header-fields": lambda tar: member(tar, flags=0x1F, fields=extra(24) + b"layer.tar\0" + b"by hand\0"),
    # Longer than the smallest span.
    "largest-extra-field": lambda tar: member(tar, flags=4, fields=extra(65535)),
    "two-members": lambda tar: b"".join(member(half) for half in halves(tar)),
    "empty-members": lambda tar: member(b"") + member(b"").join(member(half) for half in halves(tar)) + member(b"") * 2,
    "largest-extra-fields-between": lambda tar: b"".join(member(half, flags=4, fields=extra(65535)) for half in halves(tar)),
    "zero-padding": lambda tar: member(tar) + bytes(10240),
}

sys.stdout.buffer.write(KINDS[sys.argv[1]](sys.stdin.buffer.read()))
