"""`flanx plan`: whether a training run fits a slice, with which mesh layout, and how long a step would take.

run (gin) -> mesh layouts of a topology, ranked by an analytic cost model -> the best few through the TPU compiler ->
memory, collectives and roofline of each -> the chosen one. No chip is needed.
"""
