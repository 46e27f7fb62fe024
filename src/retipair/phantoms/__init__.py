"""Render phantoms: synthetic pairs of CF and FA with ground truth.

An eye is sampled first, which is slow (`anatomy`). It is then rendered as maps of its structures (`maps`). From these
maps, any number of photographs can be rendered fast, in torch (`imaging`).
"""
