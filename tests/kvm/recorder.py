"""Stands between a client and a vfio-user server, and keeps what the client asks for."""
import contextlib
import os
import socket
import struct
import threading
from collections import Counter

from foreign_server import HEADER, READ, SET_IRQS, WRITE

MASK, UNMASK, TRIGGER = 1 << 3, 1 << 4, 1 << 5  # of SET_IRQS
COMMAND_OR_REPLY = 15
MOST_FDS = 64


class Recorder:
    """Serves one client at `path`, from threads, by the server at `server`."""

    def __init__(self, path, server):
        self.counts = Counter()
        self.server = server
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self):
        self.listener.close()

    def writes(self, region, offset):
        return self.counts[WRITE, region, offset]

    def interrupts_set(self, kind, action):
        return self.counts[SET_IRQS, kind, action]

    def _serve(self):
        with contextlib.suppress(OSError):  # the client went, or the test
            client, _ = self.listener.accept()
            with client, socket.socket(socket.AF_UNIX) as server:
                server.connect(self.server)
                back = threading.Thread(target=self._pass_on, args=(server, client, lambda *_: None))
                back.start()
                self._pass_on(client, server, self._count)
                back.join()

    @staticmethod
    def _pass_on(source, sink, note):
        """Whole messages, with the descriptors that came with each, until one side has closed."""
        with contextlib.suppress(OSError):
            while True:
                header, descriptors, _, _ = socket.recv_fds(source, HEADER.size, MOST_FDS, socket.MSG_WAITALL)
                if not header:
                    break
                _, command, size, flags, _ = HEADER.unpack(header)
                payload = source.recv(size - HEADER.size, socket.MSG_WAITALL) if size > HEADER.size else b""
                if flags & COMMAND_OR_REPLY == 0:
                    note(command, payload)
                try:
                    sent = socket.send_fds(sink, [header, payload], descriptors)
                finally:
                    for descriptor in descriptors:
                        os.close(descriptor)
                sink.sendall((header + payload)[sent:])
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _count(self, command, payload):
        what = ()
        if command in (READ, WRITE):
            offset, region = struct.unpack_from("<QI", payload)
            what = (region, offset)
        elif command == SET_IRQS:
            _, flags, kind = struct.unpack_from("<III", payload)
            what = (kind, flags & (MASK | UNMASK | TRIGGER))
        self.counts[command, *what] += 1
