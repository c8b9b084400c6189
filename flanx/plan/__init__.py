"""`flanx plan`: does a recipe fit a slice, under which layout, and how long would it take - before any chip is taken.

recipe (gin) -> layouts of a topology, ranked by an analytic estimate -> the best few compiled by the TPU compiler ->
memory, collectives and roofline of each -> the chosen one.
"""
