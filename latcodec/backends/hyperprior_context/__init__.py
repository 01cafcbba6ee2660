"""The default codec: a mean-scale hyperprior with a four-step context model, one set of weights for every rate.

In the order of reading, from the paper to the bytes:

    network.py, config.py     the paper: equations, network, loss, configuration
    transforms.py             its analysis, synthesis and hyper-analysis
    residual_network.py       its residual layer: what the latents leave, in blocks of 8 x 8 px
    quadtree.py               the order in which latents are coded
    reconstruction.py         what symbols stand for, where that is not the symbol itself

    codec.py                  encode and decode
    mode_decision.py          the cheapest of the ways to code a picture, with base_rate.py and content.py
    step_coder.py             one pass: quantise and write, or read
    entropy_model.py          means and table indices of every symbol, in integers, for both directions
    residual.py               the same for the residual layer
    residual_encoder.py       the encoder's part of the residual layer, with residual_trial.py
    wiener.py                 the filter between synthesis and residual layer
    picture.py                latents of a picture, and the picture of integers
    lossless.py               pictures that cost less without loss
    tuning.py                 constants of the encoder that were found by trial

    model.py                  what a weights file holds, and the operating points of files
    export.py                 from a trained network to a weights file
    wire.py                   what the parameters of files say
    asymmetric.py             a network with a heavy analysis and a light synthesis; not a codec yet
"""
