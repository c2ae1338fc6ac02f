"""From an ELF object to a position-independent blob: our own, small linker.

A blob is a 64-byte header and one image, text first, then read-only data; every relocation is
applied here, once. The list of relocations is closed: anything else, an undefined symbol or
writable data is an error, so that generated code can depend on nothing outside itself.

    offset size   (little-endian, struct "<8sIIIIQQQIIQ")
       0     8    magic "NIRBLOB\\0"
       8     4    version, 1
      12     4    arch: 1 x86-64, 2 AArch64
      16     4    ISA level: 0 plain, 1 avx2, 2 avx512, 3 neon
      20     4    header size, 64
      24     8    text size
      32     8    image size
      40     8    entry, an offset in the image below the text size
      48     4    CRC-32 of the image
      52     4    CRC-32 of header bytes 0 to 51
      56     8    zero
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from nir.errors import CodegenError
from nir.frozen import Frozen

_HEADER = struct.Struct("<8sIIIIQQQIIQ")
_MAGIC = b"NIRBLOB\0"
_VERSION = 1
_ISA_NUMBERS = {"plain": 0, "avx2": 1, "avx512": 2, "neon": 3}
_X86_64 = 1

# ELF's numbers, as the gABI and the x86-64 psABI name them.
_ELF64_LITTLE = b"\x7fELF\x02\x01\x01"
_ET_REL, _EM_X86_64 = 1, 62
_SHT_PROGBITS, _SHT_SYMTAB, _SHT_STRTAB, _SHT_RELA, _SHT_NOBITS, _SHT_REL = 1, 2, 3, 4, 8, 9
_SHF_WRITE, _SHF_ALLOC, _SHF_EXEC = 1, 2, 4
_SHN_UNDEF, _SHN_RESERVED = 0, 0xFF00
_R_X86_64_PC32, _R_X86_64_PLT32 = 2, 4
_RELOCATIONS = {_R_X86_64_PC32, _R_X86_64_PLT32}


@dataclass
class _Section:
    name: str
    type: int
    flags: int
    data: bytes
    link: int
    info: int
    align: int
    size: int
    at: int = -1  # place in the image


class _Symbol(Frozen):
    name: str
    section: int
    value: int


def link(obj: bytes, isa: str, entry: str) -> bytes:
    """The blob for an x86-64 relocatable ELF object. CodegenError names what it cannot hold."""
    sections = _sections(obj)
    symbols = _symbols(sections)
    image, text_size = _place(sections)
    _relocate(sections, symbols, image)
    start = next((s for s in symbols if s.name == entry and s.section != _SHN_UNDEF), None)
    if start is None:
        raise CodegenError(f"object: no symbol {entry!r}")
    at = sections[start.section].at + start.value
    if not 0 <= at < text_size:
        raise CodegenError(f"object: {entry!r} is not in the text")
    return _header(isa, text_size, bytes(image), at) + bytes(image)


def _header(isa: str, text_size: int, image: bytes, entry: int) -> bytes:
    sizes = (_HEADER.size, text_size, len(image), entry)
    fields = (_MAGIC, _VERSION, _X86_64, _ISA_NUMBERS[isa], *sizes)
    crc = zlib.crc32(image)
    first = _HEADER.pack(*fields, crc, 0, 0)[:52]
    return _HEADER.pack(*fields, crc, zlib.crc32(first), 0)


def _sections(obj: bytes) -> list[_Section]:
    if len(obj) < 64 or not obj.startswith(_ELF64_LITTLE):
        raise CodegenError("object: not a 64-bit little-endian ELF file")
    kind, machine = struct.unpack_from("<HH", obj, 16)
    if (kind, machine) != (_ET_REL, _EM_X86_64):
        raise CodegenError(f"object: not relocatable x86-64: type {kind}, machine {machine}")
    (table,) = struct.unpack_from("<Q", obj, 40)
    entry_size, count, names_at = struct.unpack_from("<HHH", obj, 58)
    raw = [struct.unpack_from("<IIQQQQIIQQ", obj, table + i * entry_size) for i in range(count)]
    names = raw[names_at]
    strings = obj[names[4] : names[4] + names[5]]
    out = []
    for name, type_, flags, _, offset, size, link_, info, align, _ in raw:
        data = b"" if type_ == _SHT_NOBITS else obj[offset : offset + size]
        out.append(
            _Section(_string(strings, name), type_, flags, data, link_, info, max(align, 1), size)
        )
    return out


def _string(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode()


def _symbols(sections: list[_Section]) -> list[_Symbol]:
    for s in sections:
        if s.type == _SHT_SYMTAB:
            strings = sections[s.link].data
            out = []
            for at in range(0, len(s.data), 24):
                name, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", s.data, at)
                out.append(_Symbol(_string(strings, name), section, value))
            return out
    raise CodegenError("object: no symbol table")


def _place(sections: list[_Section]) -> tuple[bytearray, int]:
    """Lay out text, then read-only data; returns the image and the text's size."""
    wanted = [s for s in sections if s.flags & _SHF_ALLOC and s.size]
    for s in wanted:
        if s.name.startswith(".eh_frame"):
            raise CodegenError("object: unwind tables; the function must be nounwind")
        if s.flags & _SHF_WRITE or s.type == _SHT_NOBITS:
            raise CodegenError(f"object: writable data in {s.name}")
        if s.align > 64:
            raise CodegenError(f"object: {s.name} wants alignment {s.align}, an image has 64")
    image = bytearray()
    text_size = 0
    for code in (True, False):
        for s in wanted:
            if bool(s.flags & _SHF_EXEC) == code:
                # One-byte traps between pieces of code.
                image += (b"\xcc" if code else b"\0") * (-len(image) % s.align)
                s.at = len(image)
                image += s.data
        if code:
            text_size = len(image)
    if not text_size:
        raise CodegenError("object: no code")
    return image, text_size


def _relocate(sections: list[_Section], symbols: list[_Symbol], image: bytearray) -> None:
    for s in sections:
        if s.type == _SHT_REL:
            raise CodegenError(f"object: relocations without addends in {s.name}")
        if s.type != _SHT_RELA or sections[s.info].at < 0:
            continue
        target = sections[s.info]
        for at in range(0, len(s.data), 24):
            offset, info, addend = struct.unpack_from("<QQq", s.data, at)
            _apply(image, sections, symbols[info >> 32], target, offset, info & 0xFFFFFFFF, addend)


def _apply(
    image: bytearray,
    sections: list[_Section],
    symbol: _Symbol,
    target: _Section,
    offset: int,
    kind: int,
    addend: int,
) -> None:
    if symbol.section == _SHN_UNDEF:
        raise CodegenError(f"object: undefined symbol {symbol.name!r}: code must stand alone")
    if kind not in _RELOCATIONS:
        raise CodegenError(f"object: relocation of type {kind} against {symbol.name!r}")
    if symbol.section >= _SHN_RESERVED or sections[symbol.section].at < 0:
        raise CodegenError(f"object: {symbol.name!r} lies outside the image")
    if offset + 4 > target.size:
        raise CodegenError(f"object: a relocation beyond the end of {target.name}")
    place = target.at + offset
    # S + A - P, in 32 bits: both of the relocations say the same of a defined symbol.
    value = sections[symbol.section].at + symbol.value + addend - place
    if not -(2**31) <= value < 2**31:
        raise CodegenError(f"object: {symbol.name!r} is too far away")
    struct.pack_into("<i", image, place, value)
