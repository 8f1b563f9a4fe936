#!/usr/bin/env python3
"""Overwrites tokens and response bodies in a little-endian pcap, byte for byte, so that a capture of the lab can be kept.

scrub.py IN OUT. Lengths stay; checksums don't, and nobody here checks them.
"""
import re
import struct
import sys

TOKEN = re.compile(rb"(?i)(x-aws-ec2-metadata-token: *)([^\r\n]+)")
HEAD = re.compile(rb"HTTP/1\.[01] \d{3}.*?\r\n\r\n", re.DOTALL)


def scrub(packet: bytes) -> bytes:
    packet = TOKEN.sub(lambda match: match[1] + b"x" * len(match[2]), packet)
    head = HEAD.search(packet)
    if head:
        packet = packet[: head.end()] + b"x" * (len(packet) - head.end())
    return packet


source, target = sys.argv[1:]
data = open(source, "rb").read()
out, at = [data[:24]], 24
while at + 16 <= len(data):
    length = struct.unpack_from("<I", data, at + 8)[0]
    out += [data[at : at + 16], scrub(data[at + 16 : at + 16 + length])]
    at += 16 + length
open(target, "wb").write(b"".join(out))
