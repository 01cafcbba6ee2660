"""Streams that every codec writes, as hashes: python tests/support/fingerprints.py writes those of this machine anew.

Encoders compute in floating point, so their bytes are the same on one kind of processor with one version of torch
(law 9), and another kind has an entry of its own in fingerprints.json. A refactoring leaves every entry as it is.
"""

import hashlib
import json
import platform
from pathlib import Path

import numpy as np

STORED = Path(__file__).with_name("fingerprints.json")

PLAIN = {"lmbda": 1.0}
SETTINGS_OF_PICTURES = {  # picture: [(codec, settings)]
    "colour": [
        *(
            (codec, {"lmbda": lmbda})
            for codec in ("hyperprior-context", "hyperprior", "vbq", "pln", "nc-vae")
            for lmbda in (12.8, 1.0, 0.15)
        ),
        ("hyperprior-context", {"lmbda": 41.0}),
        ("hyperprior-context:metric=ms-ssim", PLAIN),
        ("hyperprior-context:lossless=yes", PLAIN),
        *((f"hyperprior-context:effort={effort}", {"lmbda": lmbda}) for effort in (1, 2) for lmbda in (6.4, 0.4)),
        ("hyperprior-context:effort=2,metric=ms-ssim", PLAIN),
        ("hyperprior:effort=2", PLAIN),
        ("nc-vae:effort=2", PLAIN),
        ("pln:effort=2", PLAIN),
        *((f"vbq:quantizer={name}", PLAIN) for name in ("algorithm1", "uniform", "kmeans", "lloyd")),
        ("vbq:prior=factorized", PLAIN),
        ("vbq:quantizer=uniform,free_lambda=3", {}),
        *((f"pln:sampler={name}", {"lmbda": 8.0}) for name in ("greedy", "importance", "rejection")),
        ("pln:kappa=10,select=sample", PLAIN),
        ("hyperprior-context", {"size_bytes": 900}),
        ("hyperprior-context:effort=2", {"bpp": 1.0}),
        ("hyperprior", {"psnr": 31.0}),
        ("vbq", {"bpp": 0.8}),
    ],
    "gray": [(codec, PLAIN) for codec in ("hyperprior-context", "hyperprior", "vbq", "pln", "nc-vae")],
    "alpha": [("hyperprior-context", PLAIN), ("nc-vae", PLAIN)],
    "deep": [(codec, {"lmbda": 0.3}) for codec in ("hyperprior-context", "hyperprior", "vbq", "pln", "nc-vae")],
    "screen": [("hyperprior-context", PLAIN), ("hyperprior-context:lossless=no", PLAIN)],
}


def pictures() -> dict[str, np.ndarray]:
    """Pictures by name, in the shapes that `latcodec.encode` takes; both sides are odd."""
    from skimage import data

    colour = np.ascontiguousarray(data.chelsea()[60:151, 80:219])
    screen = np.full_like(colour, 255)
    screen[10:80:7, 20:110], screen[30:60, 40:43] = (0, 0, 0), (200, 30, 40)
    ramp = np.linspace(0, 255, colour.shape[1]).astype(np.uint8)[None].repeat(len(colour), 0)
    return {
        "colour": colour,
        "gray": colour[:, :, 1],
        "alpha": np.dstack([colour, ramp]),
        "deep": colour.astype(np.uint16) * 257 - (colour.astype(np.uint16) % 7),
        "screen": screen,
    }


def cases() -> list[tuple[str, str, str, dict]]:
    """(name of the case, picture, codec, settings) of all cases."""
    found = []
    for picture, settings in SETTINGS_OF_PICTURES.items():
        for codec, more in settings:
            told = ",".join(f"{key}={value:g}" for key, value in more.items())
            found.append((f"{picture} {codec} {told}".strip(), picture, codec, more))
    return found


def environment() -> str:
    """What decides floating point results here: the processor's vector instructions and torch."""
    import torch

    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    some = [name for name in ("avx512_bf16", "amx_bf16") if name in flags]
    vendor = next((name for name in ("AuthenticAMD", "GenuineIntel") if name in flags), platform.machine())
    version = torch.__version__.split("+")[0]
    return " ".join([vendor, torch.backends.cpu.get_cpu_capability(), *some, f"torch {version}"])


def fingerprint(pixels: np.ndarray, codec: str, settings: dict) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of what `latcodec.encode` writes."""
    import latcodec

    return hashlib.sha256(latcodec.encode(pixels, codec=codec, **settings)).hexdigest()[:16]


def stored() -> dict[str, dict[str, str]]:
    return json.loads(STORED.read_text()) if STORED.exists() else {}


def main() -> None:
    import torch

    torch.set_num_threads(1)
    made = pictures()
    found = {name: fingerprint(made[picture], codec, more) for name, picture, codec, more in cases()}
    STORED.write_text(json.dumps(stored() | {environment(): found}, indent=1) + "\n")
    print(f"{len(found)} cases of {environment()} written")


if __name__ == "__main__":
    main()
