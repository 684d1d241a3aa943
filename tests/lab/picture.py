"""Pictures of a screen: takes one that is finished, and reads QEMU's PNG files with none of QEMU's own code."""
import struct
import zlib

# still DEVICE FILE: its picture, once it has not changed for half a second (or ten have gone). What is written
# to a frame buffer of Linux's is on the screen only when a worker has copied it there.
STILL = """
still() {
  before= tries=0
  until pixels "$1" "$2" && now=$(sha256sum <"$2") && [ "$now" = "$before" ] || [ $tries = 20 ]; do
    before=$now tries=$((tries + 1))
    sleep 0.5
  done
}
"""


def read_png(data):
    """Width, height and the rows, each three bytes a pixel, of an 8-bit RGB picture."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n", data[:8]
    at, body = 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        content = data[at + 8:at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", content[:10])
            assert (depth, colour) == (8, 2), (depth, colour)
        elif kind == b"IDAT":
            body += content
        at += length + 12
    packed, stride = zlib.decompress(body), width * 3 + 1
    rows, above = [], bytes(width * 3)
    for number in range(height):
        above = _unfilter(packed[number * stride], packed[number * stride + 1:(number + 1) * stride], above)
        rows.append(above)
    return width, height, rows


def _unfilter(kind, line, above):
    """Undoes one of PNG's filters (PNG 9.2)."""
    if kind == 0:
        return line
    if kind == 2:
        return bytes((value + up) & 0xFF for value, up in zip(line, above))
    row = bytearray(3) + line  # with a pixel of zeros on its left
    above = bytes(3) + above
    for i in range(3, len(row)):
        left, up, corner = row[i - 3], above[i], above[i - 3]
        if kind == 1:
            guess = left
        elif kind == 3:
            guess = (left + up) // 2
        else:
            guess = min((left, up, corner), key=lambda one: abs(left + up - corner - one))
        row[i] = (row[i] + guess) & 0xFF
    return bytes(row[3:])
