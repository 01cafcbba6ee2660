"""Random numbers that encoder and decoder share, each a pure function of (seed, stream, row, column).

Philox4x32-10 is counter-based: any word can be computed without those before it, in integers only. So a number depends
neither on how many were drawn before, nor on a library's version, nor on the machine. Sixteen bits of it select an
entry of a frozen table of the standard normal distribution in units of 1 / SCALE, which is data and never recomputed.

Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

import base64
import hashlib
import zlib
from functools import lru_cache

import numpy as np

SCALE_BITS = 12
SCALE = 1 << SCALE_BITS  # one standard deviation in the units of the table
WORDS = 8  # 16-bit words per counter
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)

# Upper half of rint(4096 * Phi^-1((u + 1/2) / 65536)), u = 32768..65535, as differences, uint16, zlib, base 85; the
# lower half is its negative mirror image. SHA-256 of all 65,536 int16, little-endian:
TABLE_SHA256 = "1ea009ce409dac97d6bd609266910f809c5fb912f78e16bd89145b08174d6fc5"
_TABLE = (
    "c-rkzNsbgT5X|nLVHSpE*mn>DAwWVx2nlgOTsUx;6E|+0Ir9SEz$<tQPvHe{pr)Fc?&?~+rR{V&I#qT$GcqFVCOZDjX#F>{$U{-N=i#z6mv{^OV|"
    "WX^1>OSxD^#EY6-g?1SKJt0aAP>e>%nmyj_bY`ZjYA)3Mim}0t&B!x5G{9^N1J1t#B*w#^S{d;iN1lb$Q2&VnW6QUIBNi#Ub?I7I&?28gBp}`h9>"
    "YClhW8R<J@rvjWu0SCgR(7m{7T9bDIR1Kb!dgdG1Wa^!dg{EK)U+zRf?a0xdO9B5b7q6BvM#ZAGIm!({N+_~m|rEVP!u7EBZ4R!FzRxHz#R@XrAA"
    "mC1-J9*4{9APfS9N6Tt<<o$&UYB@Pt}6baI^R^UE);Y)$bTD5fmOe1nXb^c?Zatpo}me(JS5obo2kJirggcf)0rmj)GGDpmE=Z`SKJdBGR_QlgwI"
    "(us^FE%1`bT-!^?H1&xL&L^!L#F5@3+bE>pR_UM&uCG1cKxvp4?v5*+2xkfJKBl2Wz4ch;#Xi?5VvnM&!gr7B9~m#ADqN4pc9v$@$dBBZKGSCxU3"
    "#hr4Z46X1<Neq&i;xVRINUtQ<fquu>CGBu4O}!*`JuEq<Q%uRzsF5=rstk_Y3jEy?^zzP>!-VQgG@sN-*%&FTp%b#^W3tKD)pOFOTGBK>J_lngge"
    "+dZDH-g#Y7$su>gDlWTSwxgj($oO7gS!xxLDtb)Jh!FvN%$)=F=(JQSEDeZlp4nGFcv)4<|)S>NIaJH=A^J*^Dt!Ij3Z*l%<pw8J8oh6Mvc?lLj3"
    "=mxEPjCWk2>HYS39GEP0kw1gR*r<~~Y{Zt&BmH3lkI4M;=e9BJFZaRcLDi+cm9X1s<8ILKSLY-d;3MnV^A>$)_yLmh5s_}8|75)j{zLZl6lz*KU!"
    "8esIi#Zp!<B#MyhoItC%{@MZ8;)~Q#+qU-UO#=!6=9F}<qXGg%($U=rp$ZHNuCaW#UJI5AI|uYzEvLdcpi#MadPXL&prsdN?6UU>RzAfn7ih_4Z<"
    "B6Hj|6h9P{jqb0*Z>t2cM5&%JBrird+~8`_x%Bm6U)UP#Ao_ph2yb{)I^)au@|Kl^1Nr|If+hxc>om?|!HyUtWKY;`}`?^6|1Hl9zP`sbm_c-0Nz"
    "77LI5!cbW_<qKn_yPHqL>-c#r8?TtZvD0{FS~vHTQ@_8Sb@QR~Sj`k$#@g0I*4?Mpv8?}%orc!_zMge++t?n=w>$f4?PkN@(7M_;^Wiwt%Qx5lH?"
    "*!|dEVKm?sWE@&evVL*)n!J`)==B#wy#Tz0SVZekbc{-|y`E?Y`fOv!~z5deE-R{h$-)PQPWGZ@=}pa2gle?>G+I?~pFF-!d+@apiwpZR1)K*W0+"
    "!#LXsdHF3L%J9M{+dvw2v2lTLwNA#GUH1U+4(Q|sy#7lZbujviFrFZn6KF~)xqEGahzR*|tM&IcN{iI*?myTw?XMYy|0MD90IR"
)


def philox4x32(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Compute Philox4x32-10.

    Args:
        counters: uint32 [n, 4].
        key: Two 32-bit words.

    Returns:
        Random words, uint32 [n, 4].
    """
    a, b, c, d = (counters[:, i].astype(np.uint64) for i in range(4))
    low, high = key
    for _ in range(10):
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            (right >> _HALF) ^ b ^ np.uint64(low),
            right & _LOW,
            (left >> _HALF) ^ d ^ np.uint64(high),
            left & _LOW,
        )
        low, high = (low + _WEYL[0]) & 0xFFFFFFFF, (high + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([a, b, c, d], 1).astype(np.uint32)


def random_words(seed: int, stream: int, rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return eight 16-bit words per pair of row and group of columns.

    Args:
        seed: 64 bits.
        stream: 32 bits.
        rows: Integers [n] in 0..2**64 - 1.
        groups: Integers [n] in 0..2**32 - 1.

    Returns:
        uint16 [n, 8]; word j belongs to column 8 * group + j.
    """
    rows = np.asarray(rows).astype(np.uint64)
    counters = np.empty((len(rows), 4), np.uint32)
    counters[:, 0] = groups
    counters[:, 1] = rows & _LOW
    counters[:, 2] = rows >> _HALF
    counters[:, 3] = stream
    out = philox4x32(counters, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    return out.astype("<u4").view("<u2").reshape(len(rows), WORDS)


@lru_cache(maxsize=1)
def gaussian_table() -> np.ndarray:
    """Return the frozen table, int16 [65536], odd-symmetric and rising."""
    steps = np.frombuffer(zlib.decompress(base64.b85decode(_TABLE)), "<u2")
    upper = np.cumsum(steps.astype(np.int64))
    table = np.concatenate([-upper[::-1], upper]).astype("<i2")
    if hashlib.sha256(table.tobytes()).hexdigest() != TABLE_SHA256:
        raise AssertionError("the frozen Gaussian table is not the one whose hash is written beside it")
    table.flags.writeable = False
    return table


def gaussian_rows(seed: int, stream: int, rows: np.ndarray, columns: int) -> np.ndarray:
    """Return standard normal numbers in units of 1 / SCALE, int16 [n, columns].

    Args:
        seed: 64 bits.
        stream: 32 bits.
        rows: Integers [n] in 0..2**64 - 1.
        columns: Number of columns, from column 0 on.
    """
    groups = -(-columns // WORDS)
    rows = np.asarray(rows)
    words = random_words(seed, stream, np.repeat(rows, groups), np.tile(np.arange(groups), len(rows)))
    return gaussian_table()[words.reshape(len(rows), groups * WORDS)[:, :columns]]


def uniform(seed: int, stream: int, rows: np.ndarray, column: int) -> np.ndarray:
    """Return uniform numbers in the open interval (0, 1), float64 [n], of 32 bits each. For encoders only.

    Args:
        seed: 64 bits.
        stream: 32 bits.
        rows: Integers [n] in 0..2**64 - 1.
        column: Integer in 0..2**32 - 1.
    """
    pair = random_words(seed, stream, rows, np.full(len(rows), column)).astype(np.float64)
    return (pair[:, 0] + 65536 * pair[:, 1] + 0.5) / 2**32
