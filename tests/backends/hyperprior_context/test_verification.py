"""The encoder decodes what it wrote, without running a network twice, and notices what differs."""

from dataclasses import replace

import numpy as np
import pytest
from residual_networks import model_of

from latcodec.backends.hyperprior_context import (
    base_rate,
    residual,
)
from latcodec.backends.hyperprior_context import codec as backend
from latcodec.entropy.integer_net import IntegerNet
from latcodec.entropy.range_coder import RangeEncoder
from latcodec.errors import DriftError, FormatError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_verification_runs_no_network_twice(model, photograph, monkeypatch):
    image = np.ascontiguousarray(photograph[:64, :96])
    calls, run = [], type(model.hyper).__call__
    monkeypatch.setattr(type(model.hyper), "__call__", lambda net, x: calls.append(net) or run(net, x))
    monkeypatch.setattr(base_rate, "candidate_bases", lambda *anything: [])
    unverified = backend.encode(model, image, backend.Options(200, verify=False))
    alone = len(calls)
    again = backend.encode(model, image, backend.Options(200))
    assert len(calls) == 2 * alone > 0 and again.streams == unverified.streams and "verify" in again.seconds
    assert again.replay is unverified.replay is None
    coded = backend.encode_at(
        model, backend.analyse(model, image), backend.Options(200), 8.0, model.operating_point(200)
    )
    calls.clear()
    assert backend.verify(model, coded, 200, (4, 6)) and backend.verify(model, coded, 200, (4, 6)) and not calls


def test_verification_notices_another_stream(model, photograph, monkeypatch):
    image, finish = np.ascontiguousarray(photograph[:64, :96]), RangeEncoder.finish
    for place in (3, 40, -5):

        def damaged(encoder: RangeEncoder, place: int = place) -> bytes:
            stream = bytearray(finish(encoder))
            stream[place] ^= 16
            return bytes(stream)

        with monkeypatch.context() as patched, pytest.raises((DriftError, FormatError)):
            patched.setattr(RangeEncoder, "finish", damaged)
            backend.encode(model, image, backend.Options(200))


def test_verification_notices_another_rate(model, photograph):
    image = np.ascontiguousarray(photograph[:64, :96])
    coded = backend.encode_at(
        model, backend.analyse(model, image), backend.Options(200), 8.0, model.operating_point(200)
    )
    assert backend.verify(model, coded, 200, (4, 6))
    for index, parameters, shape in ((199, None, (4, 6)), (200, bytes((99,)), (4, 6)), (200, None, (6, 4))):
        with pytest.raises((DriftError, FormatError)):
            backend.verify(model, replace(coded, parameters=parameters), index, shape)


PLACES = ["hyper", "from_seen", "from_first", "corrections", "z_from_seen", "z_corrections"]
PLACES += [f"details.{name}" for name in residual.NETWORKS]


@pytest.mark.parametrize("name", PLACES)
def test_verification_notices_other_networks(network, photograph, monkeypatch, name):
    image, model = np.ascontiguousarray(photograph[:64, :96]), model_of(network)
    verify = backend.verify

    def drifted(net: IntegerNet) -> IntegerNet:
        first, *others = net.layers
        return IntegerNet([replace(first, bias=first.bias + 2.0 ** (first.shift + 11)), *others])

    def of_others(model: backend.Model, *rest) -> bool:
        if name == "hyper":
            monkeypatch.setattr(model, "hyper", drifted(model.hyper))
        else:
            nets, which = (model.residual.nets if name.startswith("details") else model.contexts), name.split(".")[-1]
            monkeypatch.setitem(nets, which, [drifted(net) for net in nets[which]])
        return verify(model, *rest)

    monkeypatch.setattr(backend, "verify", of_others)
    with pytest.raises((DriftError, FormatError)):
        backend.encode(model, image, backend.Options(200))
