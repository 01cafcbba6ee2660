"""Do files decode to the same integers however the networks are run? A command, not a test:

    python experiments/drift.py FOLDER [--lambdas 6.4 0.4] [--weights PATH] [--limit N]

Encodes every picture of a folder (or of one file) with one thread at each lambda of the benchmark and decodes each file
in the variants below, on the CPU. Prints integer mismatches (DriftError: law 1) and the largest pixel difference from
the one-thread float32 decode, in steps of 1/255. Exit code 1 after any mismatch, any other failure to decode, or a
float32 variant that is more than 1 away (law 9).
"""

import argparse
import copy
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from unittest import mock

import numpy as np
import torch

from latcodec import api as codec
from latcodec import backends, container, images
from latcodec.backends.loading import load_model
from latcodec.bench.contenders import LAMBDAS
from latcodec.cli.paths import expand_input
from latcodec.errors import DriftError, LatcodecError
from latcodec.images.formats import PICTURE_SUFFIXES


@dataclass
class Variant:
    """One way to run the networks, and what came of it."""

    name: str
    threads: int = 1
    onednn: bool = True
    channels_last: bool = True
    bfloat16: bool = False
    decodes: int = 0
    mismatches: int = 0
    failures: list[str] = field(default_factory=list)
    worst: float = 0.0

    def prepared(self, model):
        """A model that runs this way; its networks are copies where it has to change them."""
        variant = copy.copy(model)
        variant.autocast = self.bfloat16
        if not self.channels_last:
            variant.network = copy.deepcopy(model.network).to(memory_format=torch.contiguous_format)
        return variant

    @contextmanager
    def running(self, backend) -> Iterator[None]:
        """The settings of torch and of the tiles, for one decode."""
        run_in_tiles = backend.run_in_tiles

        def contiguous_tiles(network, x, *rest):
            return run_in_tiles(lambda part: network(part.contiguous()), x.contiguous(), *rest)

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with ExitStack() as stack:
                if not self.onednn:
                    stack.enter_context(warnings.catch_warnings())
                    warnings.simplefilter("ignore", UserWarning)  # the flags also set TF32, of which torch warns once
                    stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
                if not self.channels_last:
                    stack.enter_context(mock.patch.object(backend, "run_in_tiles", contiguous_tiles))
                yield
        finally:
            torch.set_num_threads(before)

    @property
    def sound(self) -> bool:
        return not (self.mismatches or self.failures or (self.worst > 1 and not self.bfloat16))


def main() -> int:
    parser = argparse.ArgumentParser(description="Decode the same files in several ways; count what differs.")
    parser.add_argument("folder", help="folder of pictures, or one picture")
    parser.add_argument("--lambdas", type=float, nargs="+", default=LAMBDAS)
    parser.add_argument("--codec", default="hyperprior")
    parser.add_argument("--weights", help="weights file or folder; the usual places otherwise")
    parser.add_argument("--limit", type=int, help="only so many pictures")
    options = parser.parse_args()
    reference = Variant("1 thread float32")
    variants = [
        Variant("2 threads", threads=2),
        Variant("oneDNN off", onednn=False),
        Variant("contiguous, not channels_last", channels_last=False),
        Variant("bf16 synthesis", bfloat16=True),
    ]
    row = backends.by_name(options.codec)
    backend = import_module(row.module)
    model = load_model(row, None, options.weights, "cpu")
    prepared = [(variant, variant.prepared(model)) for variant in variants]
    pictures = [path for path, _ in expand_input(options.folder, PICTURE_SUFFIXES)][: options.limit]
    for path in pictures:
        picture = images.read_picture(path)
        step = 257 if picture.pixels.dtype == np.uint16 else 1
        for lmbda in options.lambdas:
            settings = codec.EncodeSettings(codec=options.codec, lmbda=lmbda, weights=options.weights, device="cpu")
            with reference.running(backend):
                payload = container.unpack(codec.encode_picture(picture, settings).data)
                expected = backend.decode(model, payload).astype(np.int64)
            reference.decodes += 1
            for variant, variant_model in prepared:
                variant.decodes += 1
                try:
                    with variant.running(backend):
                        pixels = backend.decode(variant_model, payload)
                except DriftError:
                    variant.mismatches += 1
                except LatcodecError as error:
                    variant.failures.append(f"{path}, lambda {lmbda:g}: {error}")
                else:
                    variant.worst = max(variant.worst, float(np.abs(pixels - expected).max()) / step)
        print(f"{path}: done", file=sys.stderr)
    print(f"{len(pictures)} pictures x {len(options.lambdas)} lambdas, weights {model.weights_id.hex()}")
    print(f"{'variant':32}{'decodes':>8}{'mismatches':>12}{'failures':>10}{'largest difference':>20}")
    for v in (reference, *variants):
        print(f"{v.name:32}{v.decodes:8}{v.mismatches:12}{len(v.failures):10}{v.worst:20.4g}")
    for failure in (failure for variant in variants for failure in variant.failures):
        print(failure)
    return 0 if all(variant.sound for variant in variants) else 1


if __name__ == "__main__":
    sys.exit(main())
