"""Make color profiles (ICC.1:2001-04) from colorants and gamma values."""

import struct

# Colorants (columns: X, Y, Z adapted to D50) of Adobe RGB (1998) and of sRGB (IEC 61966-2-1).
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
D50 = (0.9642, 1.0, 0.8249)


def xyz_tag(values):
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def profile(space, connection, tags):
    """An ICC profile of version 2.4 (ICC.1:2001-04)."""
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz_tag(D50),
        **tags,
    }
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(
        ">I4sI4s4s4s",
        at + len(body),
        b"lcms",
        0x02400000,
        b"prtr" if space == b"CMYK" else b"mntr",
        space,
        connection,
    )
    header += bytes(12) + b"acsp" + bytes(28) + xyz_tag(D50)[8:]
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def gamma_tag(gamma):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def rgb_profile(colorants, gamma):
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma_tag(gamma))
    names = (b"rXYZ", b"gXYZ", b"bXYZ")
    return profile(
        b"RGB ", b"XYZ ", dict(zip(names, map(xyz_tag, colorants), strict=True)) | curves
    )
