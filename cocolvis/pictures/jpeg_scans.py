"""The compiled loop of the JPEG check: follows the Huffman codes of one scan block by block and discards the values."""

import numpy as np

from cocolvis.compiled import entry, inner

WHOLE, DC, DC_REFINED, AC, AC_REFINED = range(5)
"""What a scan holds of each block: everything, or in progressive files first or later bits of the DC or AC coefficients."""

FINE, BREAKS_OFF, NO_CODE, TOO_LONG, NO_RESTART, LEFT_OVER = range(6)
"""Results of :func:`follow`."""

FAULTS = {
    BREAKS_OFF: "break off",
    NO_CODE: "are damaged: a code is not in the Huffman tables",
    TOO_LONG: "are damaged: a block has more than 64 coefficients",
    NO_RESTART: "are damaged: a restart marker is missing or out of order",
    LEFT_OVER: "are damaged: some data belong to no block",
}
"""What each fault means; completes "the JPEG's pixels ..."."""

_BUFFER, _BITS, _AT = range(3)
"""The state of the bit reader: bits that were read but not used yet, their number, and the position of the next byte."""

_ENDED, _UNKNOWN = -1, -2


@entry()
def follow(data, at, tables, blocks, units, restart, kind, first, last, nonzero):
    """Follow the codes from byte ``at`` on; return (result, byte). FINE means that all codes end right before a marker.

    ``data`` (n,) uint8; ``tables`` (8, 65536) uint16, four for DC and four for AC: next 16 bits -> 256 * code length + symbol;
    ``blocks`` (m, 3) int64, the component, DC table and AC table of each block of a unit; ``units``, how many units the scan
    has, with a restart marker after every ``restart`` of them unless that is 0; ``first``..``last``, the coefficients;
    ``nonzero`` (b,) uint64, for AC scans, a bit for each coefficient of a block that is not 0.
    """
    state = np.array([0, 0, at])
    run, markers = 0, 0  # blocks that the last code also ended
    for unit in range(units):
        if restart and unit and unit % restart == 0:
            if run or not _drained(data, state):
                return LEFT_OVER, state[_AT]
            if not _restarted(data, state, markers % 8):
                return NO_RESTART, state[_AT]
            markers += 1
        for block in range(len(blocks)):
            dc, ac = tables[blocks[block, 1] & 3], tables[4 + (blocks[block, 2] & 3)]
            result = FINE
            if kind == WHOLE:
                result = _whole(data, state, dc, ac)
            elif kind == DC:
                result = _difference(data, state, dc)
            elif kind == DC_REFINED:
                result = FINE if _take(data, state, 1) >= 0 else BREAKS_OFF
            elif kind == AC and run:
                run -= 1
            elif kind == AC:
                result, run = _ac(data, state, ac, first, last, nonzero, unit)
            else:
                result, run = _ac_refined(data, state, ac, first, last, nonzero, unit, run)
            if result != FINE:
                return result, state[_AT]
    return (LEFT_OVER if run or not _drained(data, state) else FINE), state[_AT]


@inner()
def _fill(data, state):
    """Read ahead, but not past a marker."""
    state[_BUFFER], state[_BITS], state[_AT] = _filled(data, state[_BUFFER], state[_BITS], state[_AT])


@inner()
def _filled(data, buffer, bits, at):
    """The state after reading until 56 bits are there. FF 00 stands for a data byte FF, also after other FF, as in libjpeg."""
    while bits <= 48 and at < len(data):
        byte = np.int64(data[np.uint64(at)])
        if byte == 0xFF:
            after = _skip_fill(data, at)
            if after >= len(data) or data[after] != 0:
                break
            at = after
        at += 1
        buffer = buffer << 8 | byte
        bits += 8
    return buffer, bits, at


@inner()
def _skip_fill(data, at):
    """The position of the first byte from ``at`` on that is not FF."""
    while at < len(data) and data[at] == 0xFF:
        at += 1
    return at


@inner()
def _take(data, state, count):
    """The next ``count`` bits as a number, -1 if the data end before."""
    if state[_BITS] < count:
        _fill(data, state)
        if state[_BITS] < count:
            return _ENDED
    state[_BITS] -= count
    return state[_BUFFER] >> state[_BITS] & ((np.int64(1) << count) - 1)


@inner()
def _symbol(data, state, table):
    """The symbol of the next code; -1 if the data end, -2 if no code matches."""
    if state[_BITS] < 16:
        _fill(data, state)
    bits = state[_BITS]
    code = np.int64(table[_ahead(state[_BUFFER], bits)])
    length = code >> 8
    if length == 0 or length > bits:
        return _UNKNOWN if bits >= 16 else _ENDED
    state[_BITS] -= length
    return code & 255


@inner()
def _ahead(buffer, bits):
    """The next 16 bits, padded with zeros."""
    return np.uint64((buffer >> (bits - 16) if bits >= 16 else buffer << (16 - bits)) & 0xFFFF)


@inner()
def _fault(symbol):
    return BREAKS_OFF if symbol == _ENDED else NO_CODE


@inner()
def _difference(data, state, table):
    """Read a DC coefficient: its number of bits, then the bits."""
    size = _symbol(data, state, table)
    if size < 0:
        return _fault(size)
    if size > 16:
        return NO_CODE
    return FINE if _take(data, state, size) >= 0 else BREAKS_OFF


@inner()
def _whole(data, state, dc, ac):
    """Read a block of a sequential scan. Most files have only these, so the state is kept in local variables."""
    result = _difference(data, state, dc)
    if result != FINE:
        return result
    buffer, bits, at = state[_BUFFER], state[_BITS], state[_AT]
    k = np.int64(1)
    while k < 64:
        if bits < 32:
            buffer, bits, at = _filled(data, buffer, bits, at)
        code = np.int64(ac[_ahead(buffer, bits)])
        length, zeros, size = code >> 8, code >> 4 & 15, code & 15
        if length == 0 or length + size > bits:
            result = NO_CODE if length == 0 and bits >= 16 else BREAKS_OFF
            break
        bits -= length + size
        if size == 0 and zeros != 15:
            break
        k += zeros + 1
        if k > 64 and size:
            result = TOO_LONG
            break
    state[_BUFFER], state[_BITS], state[_AT] = buffer, bits, at
    return result


@inner()
def _end_of_band(data, state, exponent):
    """How many blocks end here, including this one; -1 if the data end."""
    more = _take(data, state, exponent)
    return more + (np.int64(1) << exponent) if more >= 0 else _ENDED


@inner()
def _ac(data, state, table, first, last, nonzero, block):
    """Read the first bits of AC coefficients; return (result, number of following blocks without any)."""
    k = first
    while k <= last:
        symbol = _symbol(data, state, table)
        if symbol < 0:
            return _fault(symbol), 0
        zeros, size = symbol >> 4, symbol & 15
        if size == 0:
            if zeros != 15:
                run = _end_of_band(data, state, zeros)
                return (FINE, run - 1) if run > 0 else (BREAKS_OFF, 0)
            k += 16
            continue
        k += zeros
        if k > last:
            return TOO_LONG, 0
        if _take(data, state, size) < 0:
            return BREAKS_OFF, 0
        nonzero[block] |= np.uint64(1) << np.uint64(k)
        k += 1
    return FINE, 0


@inner()
def _ac_refined(data, state, table, first, last, nonzero, block, run):
    """Refine AC coefficients; return (result, number of following blocks that only refine what they have)."""
    k = first
    while run == 0 and k <= last:
        symbol = _symbol(data, state, table)
        if symbol < 0:
            return _fault(symbol), 0
        zeros, size = symbol >> 4, symbol & 15
        if size > 1:
            return NO_CODE, 0
        if size == 0 and zeros != 15:
            run = _end_of_band(data, state, zeros)
            if run < 0:
                return BREAKS_OFF, 0
            break
        if size and _take(data, state, 1) < 0:
            return BREAKS_OFF, 0
        k = _refined(data, state, k, last, nonzero[block], zeros)
        if k < 0:
            return BREAKS_OFF, 0
        if size:
            if k > last:
                return TOO_LONG, 0
            nonzero[block] |= np.uint64(1) << np.uint64(k)
        k += 1
    if run:
        if _refined(data, state, k, last, nonzero[block], 64) < 0:
            return BREAKS_OFF, 0
        run -= 1
    return FINE, run


@inner()
def _refined(data, state, k, last, known, zeros):
    """Read a bit for each coefficient that is ``known`` to be nonzero, past ``zeros`` zeros; return where it ends, or -1."""
    while k <= last:
        if known >> np.uint64(k) & np.uint64(1):
            if _take(data, state, 1) < 0:
                return np.int64(_ENDED)
        elif zeros == 0:
            break
        else:
            zeros -= 1
        k += 1
    return k


@inner()
def _drained(data, state):
    """Whether only the padding bits of the last byte are left."""
    _fill(data, state)
    return state[_BITS] < 8


@inner()
def _restarted(data, state, number):
    """Skip the restart marker of this number; return whether it is there."""
    after = _skip_fill(data, state[_AT])
    if after >= len(data) or after == state[_AT] or data[after] != 0xD0 + number:
        return False
    state[_BUFFER] = state[_BITS] = 0
    state[_AT] = after + 1
    return True
