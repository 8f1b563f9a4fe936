"""Writes packet captures from a description of what happened: `with Capture("NAME.pcap") as c: ...`.

Bodies are filler of a stated length, and tokens are made up: no file may hold anything that was a secret.
Times are seconds since the capture began. Checksums are zero, as captures on a host with checksum offload have them.
"""

import gzip
import ipaddress
import pathlib
import struct

HERE = pathlib.Path(__file__).resolve().parent.parent
IMDS = "169.254.169.254"
EPOCH = 1_772_366_400  # 2026-03-01 12:00:00 UTC
SYN, ACK, PSH, FIN, RST = 0x02, 0x10, 0x08, 0x01, 0x04


class Capture:
    """Packets as tcpdump on an Ethernet interface writes them, sorted by time."""

    def __init__(self, name):
        self.path = HERE / name
        self.packets = []
        self.port = 40_000

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            self.write()

    def write(self):
        # The gzip header contains no time, so that the same capture results in the same file.
        compressed = self.path.suffix == ".gz"
        with gzip.GzipFile(self.path, "wb", mtime=0) if compressed else open(self.path, "wb") as file:
            file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1))
            for time, data in sorted(self.packets, key=lambda packet: packet[0]):
                micros = round(time * 1_000_000)
                file.write(struct.pack("<IIII", EPOCH + micros // 1_000_000, micros % 1_000_000, len(data), len(data)))
                file.write(data)

    def ip(self, time, source, target, protocol, payload, ttl=64):
        """One packet with an IPv4 or IPv6 header; `protocol`: 1 ICMP, 6 TCP, 17 UDP, 58 ICMPv6."""
        a, b = ipaddress.ip_address(source), ipaddress.ip_address(target)
        if a.version == 4:
            head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, ttl, protocol, 0) + a.packed + b.packed
            kind = 0x0800
        else:
            head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, ttl) + a.packed + b.packed
            kind = 0x86DD
        self.packets.append((time, bytes.fromhex("0a0000000001" "0a0000000002") + struct.pack("!H", kind) + head + payload))
        return head + payload

    def udp(self, time, source, sport, target, dport, payload=b"", ttl=64):
        self.ip(time, source, target, 17, struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload, ttl)

    def connect(self, time, client="10.0.1.10", server=IMDS, **options):
        """A TCP connection; see `Connection`."""
        self.port += 1
        return Connection(self, time, client, options.pop("port", self.port), server, **options)


class Connection:
    """A TCP connection as the client's uplink sees it. `time` moves on with each packet.

    request_ttl, response_ttl: IP TTL of the packets of either side, as captured.
    syns: times of SYNs that nothing answers before the one that is (seconds before `time`); answered=False: none is.
    """

    def __init__(self, capture, time, client, port, server, request_ttl=64, response_ttl=255, server_port=80,
                 syns=(), answered=True, handshake=True, rtt=0.0002):
        self.capture, self.time = capture, time
        self.client, self.server = (client, port), (server, server_port)
        self.ttls = {True: request_ttl, False: response_ttl}
        self.seq = {True: 1_000 * port % 2**32, False: 7_000 * port % 2**32}
        self.rtt = rtt
        for before in syns:
            self.segment(True, SYN, at=time - before, count=False)
        if handshake:
            self.segment(True, SYN)
            if answered:
                self.segment(False, SYN | ACK)
                self.segment(True, ACK)

    def segment(self, outgoing, flags, data=b"", ttl=None, at=None, count=True):
        """One segment. `at`: its time, else a quarter of the round trip after the last; count=False: a copy or a lost one."""
        if at is None:
            self.time += self.rtt / 4
            at = self.time
        else:
            self.time = max(self.time, at)
        (source, sport), (target, dport) = (self.client, self.server) if outgoing else (self.server, self.client)
        acked = self.seq[not outgoing] if flags & ACK else 0
        head = struct.pack("!HHIIBBHHH", sport, dport, self.seq[outgoing], acked, 0x50, flags, 64_240, 0, 0)
        self.capture.ip(at, source, target, 6, head + data, ttl or self.ttls[outgoing])
        if count:
            self.seq[outgoing] = (self.seq[outgoing] + len(data) + bool(flags & (SYN | FIN))) % 2**32

    def request(self, method, path, headers=(), body=b"", at=None, agent="app/1.0"):
        """`headers`: lines without line ends."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.server[0]}", *([f"User-Agent: {agent}"] if agent else []), *headers]
        self.segment(True, PSH | ACK, "\r\n".join([*lines, "", ""]).encode() + body, at=at)
        return self

    def token(self, ttl=21_600, at=None, agent="app/1.0"):
        return self.request("PUT", "/latest/api/token", [f"X-aws-ec2-metadata-token-ttl-seconds: {ttl}"], at=at, agent=agent)

    def get(self, path, token=None, at=None, agent="app/1.0", method="GET"):
        return self.request(method, path, [f"X-aws-ec2-metadata-token: {token}"] if token else [], at=at, agent=agent)

    def response(self, status, length=10, headers=(), server="EC2ws", reason="X", after=0.0003, ttl=None, body=None, acked=True):
        """A response `after` seconds after the last packet, with `length` bytes of filler; server=None: no `Server` header."""
        filler = b"x" * length if body is None else body
        lines = [f"HTTP/1.1 {status} {reason}", f"Content-Length: {len(filler)}", *([f"Server: {server}"] if server else []), *headers]
        self.segment(False, PSH | ACK, "\r\n".join([*lines, "", ""]).encode() + filler, ttl=ttl, at=self.time + after)
        if acked:
            self.segment(True, ACK)
        return self

    def close(self, by_client=True):
        self.segment(by_client, FIN | ACK)
        self.segment(not by_client, FIN | ACK)
        self.segment(by_client, ACK)
        return self

    def reset(self, by_client=False, after=0.0):
        self.segment(by_client, RST | ACK, at=self.time + after)
        return self
