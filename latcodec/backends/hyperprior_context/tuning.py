"""Constants of the encoder that were found by trial.

None of them is part of the format: a file decodes to the same picture whatever they were. The constants of the format
stand in the modules that use them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """What an encoder tries, and when it stops; the comment above a group says how its values were chosen."""

    # Quantisation. A channel is skipped (all its symbols are 0) at rates at which one of its steps weighs more than
    # this in the inputs of the context networks. That holds for a third of the channels at the lowest rates, whose
    # symbols are 0 in nearly every picture; the networks have not learned how to react to another symbol.
    skip_context_gain: float = 16.0

    # SGA. Steps at efforts 1, 2 and 3, where they differ from other codecs; effort 1 only fits a filter. The
    # distortion multipliers of which the cheapest is kept after fewer than `short_search_steps` steps.
    effort_2_steps: int = 15
    effort_3_steps: int = 50
    short_search_steps: int = 30
    short_search_multipliers: tuple[float, ...] = (30.0, 60.0, 100.0)

    # Base rate of photographs, chosen on training pictures and on pictures that no AVIF encoder has smoothed. A dense
    # residual layer corrects what latents leave, which are then best at a lower rate: from `lower_base_from` on, where
    # `residual_trial.sharpness` reaches a limit. The limit is `sharp` at rate index `sharp_at`, falls by a factor of e
    # each `sharp_falls` indices, and stays between `min_sharp` and `max_sharp` times `sharp`.
    lower_base_from: int = 170
    lower_base: int = 140
    lowest_base: int = 110
    sharp: float = 0.025
    sharp_at: int = 188
    sharp_falls: float = 18.0
    min_sharp: float = 0.1
    max_sharp: float = 1.5

    # Base rates of other pictures, which `thorough_effort` and above try in every picture; bits per pixel at lambda 1
    # (0.7 on average) above which a picture counts as noise.
    candidate_bases: tuple[int, ...] = (60, 100)
    thorough_effort: int = 4
    noise_bpp: float = 1.6

    # Base rate of a search. Photographs are searched at the rate of the file at these indices. Elsewhere a search
    # saves most with latents that are coarser by one part in `search_coarser_by` of their rate index, but not at the
    # lowest rates, where the residual layer is expensive, nor in files so small that the parameter costs what it saves.
    search_own_rate_from: int = 170
    search_own_rate_to: int = 230
    search_coarser_by: int = 9
    search_coarser_from: int = 30
    search_min_bits: int = 16_000

    # Content. A picture is screen content if this share of its pixels equals the left neighbour; it has few colours if
    # a grid of `sampled_rows` rows and columns holds no more than `few_colours`, or `few_grays` of a gray picture: a
    # gray photograph has at most 256.
    flat_share: float = 0.3
    sampled_rows: int = 128
    few_colours: int = 256
    few_grays: int = 32

    # Mode decision. Lossless is chosen without trying other base rates below this share of the lossy cost. In a picture
    # of at least `early_lossless_px` this is estimated from `early_lossless_tiles` tiles of `early_lossless_tile_px`.
    early_exit_ratio: float = 0.5
    early_lossless_px: int = 2**20
    early_lossless_tile_px: int = 256
    early_lossless_tiles: int = 4

    # Residual trial. The residual layer pays if anywhere in the tiles that hold most of band `probe_band`. The share of
    # tiles that is tried, the fewest that tell enough, and the part of the saving needed in the whole picture which
    # these must reach. High-energy tiles come first: the trial ends where the others would have to save more than
    # `optimism` times as much each as those before. Latents along the side of a tile, tiles per batch, and batches.
    probe_band: int = 7
    probe_share: float = 0.1
    probe_min_tiles: int = 4
    probe_saving: float = 0.16
    optimism: float = 5.0
    probe_tile: int = 4
    probe_batch: int = 32
    probe_batches: int = 3

    # Sharpness is the share of band `sharp_band` that exceeds `sharp_steps` steps of rate index `sharp_index`: of the
    # bands, this one predicts best where fewer latents pay.
    sharp_band: int = 9
    sharp_index: int = 188
    sharp_steps: float = 1.2

    # Residual layer. About the bits of a symbol that is not 0 where others are, of one that is, and of a shift by one
    # table; the largest shift, a factor of 170. A base in bf16 makes the layer dearer by .0 % at rate index 156, .1 %
    # at 188, .6 % at 250: up to `bf16_base_until` it is used where it is fast.
    residual_symbol_bits: float = 10.0
    residual_zero_bits: float = 0.02
    shift_bits: float = 2.0
    max_shift: int = 40
    bf16_base_until: int = 175


TUNING = Tuning()
