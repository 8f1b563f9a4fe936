"""Captures as Windows writes them: pcapng from `pktmon etl2pcap` and from etl2pcapng.

Facts: pktmon logs a packet at each component of the stack that it passes (its `Appearance`), so that the same bytes come several times
within microseconds, and cuts packets at 128 bytes unless `--pkt-size 0` is given. Interfaces are Ethernet, times are microseconds, each
packet has its direction in epb_flags. etl2pcapng adds a comment with the process that happened to run (`PID=4 ProcessorNumber=1`),
which need not be the caller.
"""

import struct

from capture import EPOCH, IMDS, Capture

CLIENT = "10.0.1.10"
STATE = "/latest/meta-data/autoscaling/target-lifecycle-state"


def block(kind, body):
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def option(code, value):
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


class WindowsCapture(Capture):
    """appearances: times that each packet is logged; size: bytes that are logged of it; comment: with etl2pcapng's process."""

    def __init__(self, name, appearances=4, size=None, comment=False):
        super().__init__(name)
        self.appearances, self.size, self.comment = appearances, size, comment

    def write(self):
        section = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)
        blocks = [block(0x0A0D0D0A, section), block(1, struct.pack("<HHI", 1, 0, 0))]
        logged = []
        for number, (time, data) in enumerate(sorted(self.packets, key=lambda packet: packet[0])):
            for appearance in range(self.appearances):
                # Copies of the packet at the components of the stack, some microseconds apart.
                logged.append((round(time * 1_000_000) + 5 * appearance, number, data))
        for micros, number, data in sorted(logged, key=lambda packet: packet[:2]):
            outgoing = data[26:30] == bytes(map(int, CLIENT.split(".")))
            stamp = EPOCH * 1_000_000 + micros
            part = data[: self.size]
            options = option(2, struct.pack("<I", 2 if outgoing else 1))
            if self.comment:
                options = option(1, b"PID=%d ProcessorNumber=%d" % (4, number % 2)) + options
            head = struct.pack("<IIIII", 0, stamp >> 32, stamp & 0xFFFFFFFF, len(part), len(data))
            blocks.append(block(6, head + part + bytes(-len(part) % 4) + options + option(0, b"")))
        self.path.write_bytes(b"".join(blocks))


def polls(capture, until, count=40, gap=5.0):
    """A lifecycle agent on one keep-alive connection after its token; from poll `until` on the path is gone."""
    agent = "lifecycle-agent/2.1"
    connection = capture.connect(0.5, CLIENT, IMDS)
    connection.token(agent=agent).response(200, 56)
    for number in range(count):
        connection.get(STATE, token="made-up-token", at=1.0 + gap * number, agent=agent)
        if number < until:
            connection.response(200, 9)
        else:
            connection.response(404, 339, reason="Not Found")
    connection.close()


with WindowsCapture("W-pktmon-live-migration.pcapng") as c:
    polls(c, until=6)
with WindowsCapture("W1-pktmon-healthy.pcapng") as c:
    polls(c, until=40)
with WindowsCapture("W2-pktmon-128-bytes.pcapng", size=128) as c:
    polls(c, until=6)
with WindowsCapture("W3-etl2pcapng-comments.pcapng", appearances=1, comment=True) as c:
    polls(c, until=6)
