"""What a person may set of the PLN codec, and what that settles."""

from dataclasses import dataclass

from latcodec.backends.base import EncodeRequest
from latcodec.backends.pln import samplers
from latcodec.errors import OptionError

EFFORTS = (10, 11, 12, 13, 14, 15, 16, 17, 18, 20)  # kappa; each bit more costs twice the time
THESIS_KAPPA = 14  # with the thesis' samplers of z1


@dataclass(frozen=True, kw_only=True)
class UserOptions:
    """What a person may set; raises OptionError for wrong values and contradictions.

    sampler: of z1. kappa: bits of an index. select: the likeliest candidate, or a sample of the posterior. shards of a
    block and beams of their search: with sampler=greedy. effort 0..9: kappa 10 .. 20, with sampler=blocks. What is left
    open ("", 0, -1) gets its default; an option that would do nothing is refused.
    """

    sampler: str = ""
    kappa: int = 0
    select: str = ""
    shards: int = 0
    beams: int = 0
    effort: int = -1

    def __post_init__(self) -> None:
        choices = {
            "sampler": ("", *samplers.SAMPLERS),
            "select": ("", *samplers.SELECTS),
            "kappa": (0, *samplers.KAPPAS),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                listed = ", ".join(str(k) for k in known if k)
                raise OptionError(f"{name} {getattr(self, name)!r} is unknown; there are: {listed}")
        for name, most in (("shards", samplers.MAX_SHARDS), ("beams", samplers.MAX_BEAMS), ("effort", 9)):
            if not getattr(type(self), name) <= getattr(self, name) <= most:
                raise OptionError(f"{name} {getattr(self, name)} is outside 0 ... {most}")
        sampler, kappa, shards, _, _ = self.settled()
        with_blocks, with_greedy = sampler == "blocks", sampler == "greedy"
        for name, fits in (("select", with_blocks), ("effort", with_blocks and not self.kappa),
                           ("shards", with_greedy), ("beams", with_greedy)):  # fmt: skip
            if getattr(self, name) != getattr(type(self), name) and not fits:
                kind = "greedy" if name in ("shards", "beams") else "blocks"
                raise OptionError(f"{name} goes with sampler={kind}" + " and without kappa" * (name == "effort"))
        if not samplers.exists(sampler, kappa, shards):
            raise OptionError(f"sampler {sampler} does not go with kappa {kappa} and {shards} shards")

    def settled(self) -> tuple[str, int, int, int, str]:
        """Sampler, kappa, shards, beams and select with what was left open filled in."""
        if self.sampler == "greedy":
            return "greedy", self.kappa or samplers.GREEDY_KAPPA, self.shards or 2, self.beams or 16, "best"
        if self.sampler in ("importance", "rejection"):
            return self.sampler, self.kappa or THESIS_KAPPA, 1, 1, "sample"
        return "blocks", self.kappa or EFFORTS[5 if self.effort < 0 else self.effort], 1, 1, self.select or "best"


@dataclass(frozen=True)
class Options(UserOptions, EncodeRequest):
    """A person's options and the encoder's request, together."""
