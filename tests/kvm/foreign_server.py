"""A vfio-user server that is none of ours, as small as one can be, with a part that a test may change."""
import errno
import socket
import struct
import threading

VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO = range(1, 6)
GET_IRQ_INFO, SET_IRQS, READ, WRITE, RESET = 7, 8, 9, 10, 13
HEADER = struct.Struct("<HHIII")  # id, command, size, flags, error
REPLY, ERROR = 1, 0x21
CONFIG = 7


class ForeignServer:
    """Serves one client at `path` from a thread. `changes`: for some commands what is answered in place of the usual,
    a function of the request's payload that gives the reply's, or None for no answer."""

    def __init__(self, path, regions=None, **changes):
        self.regions = {0: bytearray(4096), CONFIG: bytearray(256)} if regions is None else regions
        self.changes = {globals()[name.upper()]: change for name, change in changes.items()}
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        try:
            client, _ = self.listener.accept()
            with client:
                while header := client.recv(HEADER.size, socket.MSG_WAITALL):
                    self._answer(client, *HEADER.unpack(header)[:3])
        except OSError:
            pass  # the client went, or the test

    def close(self):
        self.listener.close()

    def _answer(self, client, number, command, size):
        # Descriptors came with the header, whose reader did not ask for them: the kernel has closed them.
        payload = client.recv(size - HEADER.size, socket.MSG_WAITALL) if size > HEADER.size else b""
        reply = self.changes.get(command, lambda data: self._usual(command, data))(payload)
        if reply is None:
            return
        failed = isinstance(reply, int)
        header = HEADER.pack(number, command, HEADER.size + (0 if failed else len(reply)), ERROR if failed else REPLY,
                             reply if failed else 0)
        client.sendall(header + (b"" if failed else reply))

    def _usual(self, command, data):
        if command == VERSION:
            return struct.pack("<HH", 0, 1) + b'{"capabilities":{}}\0'
        if command == DMA_UNMAP:
            return data
        if command == GET_INFO:
            return struct.pack("<IIII", 16, 3, 9, 5)  # a PCI device that can be reset
        if command == GET_REGION_INFO:
            index = struct.unpack_from("<I", data, 8)[0]
            return struct.pack("<IIIIQQ", 32, 3, index, 0, len(self.regions.get(index, b"")), 0)
        if command == GET_IRQ_INFO:
            return struct.pack("<IIII", 16, 1, struct.unpack_from("<I", data, 8)[0], 0)
        if command in (READ, WRITE):
            offset, index, count = struct.unpack_from("<QII", data)
            region = self.regions[index]
            if command == READ:
                return data[:16] + region[offset:offset + count]
            region[offset:offset + count] = data[16:]
            return data[:16]
        return b"" if command in (DMA_MAP, SET_IRQS, RESET) else errno.EINVAL
